"""PyTorch counterparts of the SCA U-Net and the RCAN, to compare speed and weights with.

Written from their published descriptions: Sarvesan and Mendhe (SCA U-Net) and Mahesh, Malapaka,
Garimella and Singh (RCAN), IIT Madras 2024; tensors are named as in the published files. A
training step computes the experiment's loss, its gradient, Adam, and PSNR and SSIM, like the
step in JAX.

Variants: "eager", "channels_last" (the memory layout that its convolutions prefer), "compiled"
(both channels_last and `torch.compile`). bfloat16 uses autocast: parameters and loss stay
float32.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import Task
from restore_jax.errors import UsageError
from restore_jax.losses.loss_terms import CHARBONNIER_EPSILON, MASKED_MSE_ALPHA
from restore_jax.metrics.fidelity import MIN_MSE
from restore_jax.metrics.gaussian_window import SSIM_SIGMA, SSIM_WINDOW

FORMS = ("eager", "channels_last", "compiled")


class DoubleConv(nn.Module):
    """`relu(conv(relu(conv(x)))) + shortcut(x)`."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
        )
        self.residual_conv = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, a, H, W] → [B, b, H, W]."""
        return self.conv_block(x) + self.residual_conv(x)


def channel_attention(c: int, hidden: int) -> nn.Sequential:
    """Returns the gate of channel attention, [B, c, H, W] → [B, c, 1, 1]."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(c, hidden, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, c, 1),
        nn.Sigmoid(),
    )


class SpatialChannelAttention(nn.Module):
    """`x · sigmoid(conv1×1(x)) · channel_attention(x)`."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.spatial_attention = nn.Conv2d(c, c, 1)
        self.channel_attention = channel_attention(c, c // 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W] → [B, c, H, W]."""
        return x * torch.sigmoid(self.spatial_attention(x)) * self.channel_attention(x)


class NonLocal(nn.Module):
    """Attention between all positions, in the report's form or the released code's."""

    def __init__(self, c: int, released: bool) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(c, c // 2, 1) for _ in range(3))
        self.W = nn.Conv2d(c // 2, c, 1)
        self.released = released

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W] → [B, c, H, W]."""
        b, _, h, w = x.shape
        theta, phi, g = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        scores = theta.transpose(1, 2) @ phi  # [B, HW, HW]
        if self.released:
            y = (scores / (h * w)) @ g.transpose(1, 2)
            y = y.reshape(b, -1, h, w)  # the released code lacks the transpose that was meant
        else:
            y = torch.softmax(scores, -1) @ g.transpose(1, 2)
            y = y.transpose(1, 2).reshape(b, -1, h, w)
        return x + self.W(y)


class SCAUNet(nn.Module):
    """The SCA U-Net."""

    def __init__(self, released: bool, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        a, b, c, d = widths
        self.dconv_down1, self.dconv_down2 = DoubleConv(3, a), DoubleConv(a, b)
        self.dconv_down3, self.dconv_down4 = DoubleConv(b, c), DoubleConv(c, d)
        self.dconv_bottleneck = DoubleConv(d, d)
        self.dconv_up3, self.dconv_up2 = DoubleConv(d + c, c), DoubleConv(c + b, b)
        self.dconv_up1 = DoubleConv(b + a, a)
        for i, width in enumerate(widths, start=1):
            setattr(self, f"att{i}", SpatialChannelAttention(width))
        self.nl_block = NonLocal(d, released)
        self.conv_last = nn.Conv2d(a, 3, 1)
        self.released = released

    def up(self, x: torch.Tensor) -> torch.Tensor:
        """Doubles height and width."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.released)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restores [B, 3, H, W], the sides multiples of 8."""
        s1 = self.dconv_down1(x)
        s2 = self.dconv_down2(F.max_pool2d(s1, 2))
        s3 = self.dconv_down3(F.max_pool2d(s2, 2))
        y = self.att4(self.dconv_down4(F.max_pool2d(s3, 2)))
        y = self.nl_block(self.dconv_bottleneck(y))
        y = self.dconv_up3(torch.cat([self.up(y), self.att3(s3)], 1))
        y = self.dconv_up2(torch.cat([self.up(y), self.att2(s2)], 1))
        y = self.dconv_up1(torch.cat([self.up(y), self.att1(s1)], 1))
        return x + self.conv_last(y)


class RCAB(nn.Module):
    """A residual block of two dilated convolutions with channel attention."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=2, dilation=2)
        self.conv2 = nn.Conv2d(c, c, 3, padding=2, dilation=2)
        self.channel_attention = channel_attention(c, max(1, c // 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W] → [B, c, H, W]."""
        y = self.conv2(torch.relu(self.conv1(x)))
        return x + y * self.channel_attention(y)


class RCAN(nn.Module):
    """The RCAN-like network."""

    def __init__(self, width: int = 64, blocks: int = 10) -> None:
        super().__init__()
        self.initial_conv = nn.Conv2d(3, width, 7, padding=3)
        self.res_blocks = nn.ModuleList(RCAB(width) for _ in range(blocks))
        self.final_conv = nn.Conv2d(width, 3, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restores [B, 3, H, W]."""
        x = self.initial_conv(x)
        for block in self.res_blocks:
            x = block(x)
        return self.final_conv(x)


def similarity(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Returns the mean SSIM of [B, 3, H, W], computed like `fidelity.unclipped_ssim_map`."""
    offsets = torch.arange(SSIM_WINDOW, device=restored.device) - SSIM_WINDOW // 2
    taps = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = taps / taps.sum()
    x, y = restored, clean
    # All five planes at once, as channels: one pass along the columns, one along the rows.
    planes = torch.cat([x, y, x * x, y * y, x * y], 1)
    count = planes.shape[1]
    for shape in ((1, 1, SSIM_WINDOW, 1), (1, 1, 1, SSIM_WINDOW)):
        kernel = window.reshape(shape).expand(count, -1, -1, -1)
        planes = F.conv2d(planes, kernel, groups=count)
    mean_x, mean_y, xx, yy, xy = planes.chunk(5, 1)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean()


def _charbonnier(difference: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(difference**2 + CHARBONNIER_EPSILON**2).mean()


def sca_unet_loss(
    restored: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Returns the loss of the SCA U-Net's report."""
    d = restored - clean
    p = F.pad(d, (1, 1, 1, 1), mode="replicate")
    around = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
    edge = _charbonnier(around - 4.0 * d)
    return _charbonnier(d) + 0.1 * edge + 0.3 * (1.0 - similarity(restored, clean))


def rcan_loss(restored: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the loss of the RCAN's report."""
    squared = (restored - clean) ** 2
    masked = (mask * squared).mean()
    return MASKED_MSE_ALPHA * squared.mean() + (1.0 - MASKED_MSE_ALPHA) * masked


_LOSSES = {"sca_unet": sca_unet_loss, "rcan": rcan_loss}
_LEARNING_RATES = {"sca_unet": 1e-3, "rcan": 1e-4}


def restoring(task: Task) -> dict[str, Callable[[], Any]]:
    """Returns calls that restore a batch, one per variant of `task.peers`, by "torch FORM"."""

    def make(form: str) -> Callable[[], Any]:
        net, (images, _, _), autocast = _prepare(task, form)
        restore = torch.compile(net) if form == "compiled" else net

        def call() -> None:
            with torch.inference_mode(), autocast():
                restore(images)
            _finish()

        return call

    return {f"torch {form}": make(form) for form in task.peers}


def training(task: Task) -> dict[str, Callable[[], Any]]:
    """Returns calls that take a training step, one per variant of `task.peers`."""

    def make(form: str) -> Callable[[], Any]:
        net, (images, clean, mask), autocast = _prepare(task, form)
        optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATES[task.model])

        def objective() -> tuple[torch.Tensor, ...]:
            with autocast():
                restored = net(images)
            restored = restored.float()
            with torch.no_grad():
                clipped = restored.clamp(0.0, 1.0)
                error = ((clipped - clean) ** 2).mean((1, 2, 3)).clamp(min=MIN_MSE)
                figures = -10.0 * torch.log10(error).mean(), similarity(clipped, clean)
            return _LOSSES[task.model](restored, clean, mask), *figures

        computed = torch.compile(objective) if form == "compiled" else objective

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            computed()[0].backward()
            optimizer.step()
            _finish()

        return call

    return {f"torch {form}": make(form) for form in task.peers}


def _prepare(task: Task, form: str) -> tuple[nn.Module, list[torch.Tensor], Callable[[], Any]]:
    """Makes the network, a batch (degraded, clean, mask), and the autocast context."""
    if task.model not in _LOSSES:
        raise UsageError(f"--peers: PyTorch has no {task.model} here, only {list(_LOSSES)}")
    if form not in FORMS:
        raise UsageError(f"--peers={form}: not one of {', '.join(FORMS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    torch.manual_seed(0)
    if device == "cuda":
        # TF32 for matrix products, like JAX's default; convolutions use it already.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    net = SCAUNet(released=False) if task.model == "sca_unet" else RCAN()
    net = net.to(device, memory_format=layout)
    shape = (task.batch, 3, task.size, task.size)
    clean = torch.rand(shape)
    images = (clean + 0.1 * torch.randn(shape)).clamp(0.0, 1.0)
    mask = torch.zeros(task.batch, 1, task.size, task.size)
    quarter = task.size // 4
    mask[..., quarter:-quarter, quarter:-quarter] = 1.0
    batch = [x.to(device, memory_format=layout) for x in (images, clean, mask)]

    def autocast() -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=task.dtype == "bfloat16")

    return net, batch, autocast


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
