"""Blocks that several architectures share, and the resampling they are built on.

All arrays are [B, H, W, C]. Modules compute in `dtype`; parameters stay float32.

Every layer uses Flax's default initialisation: kernels with a variance of 1/fan_in, biases
zero. The reports specify none; this one preserves the scale of activations and gradients at any
width, and one rule for all makes the architectures comparable.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import portable
from restore_jax.models.conv import convolution

Dtype = Any

Conv = functools.partial(nn.Conv, conv_general_dilated=convolution.conv_general_dilated)
"""`nn.Conv` with implementations that are faster on a CPU."""

# Positions whose attention is computed at once: those of a 512×512 image after three poolings.
_MAX_QUERIES = 4096


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads height and width by reflection at the bottom and right to a multiple of `multiple`.

    Reflection, not zeros: a border of zeros would shift the global means and the attention.
    Images smaller than the padding are reflected as often as needed.

    Args:
        x: images [B, H, W, C].
        multiple: number that must divide both sides.

    Returns:
        [B, H', W', C] with H' >= H and W' >= W; `x` itself if it needs no padding.
    """
    height, width = x.shape[1:3]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="reflect")


def max_pool2(x: jax.Array) -> jax.Array:
    """Max-pools images with even sides over 2×2 pixels, [B, H/2, W/2, C].

    Computed as pairwise maxima of two reshaped axes. The gradient of `nn.max_pool` is slow, and
    on a GPU it has no deterministic form. The gradient of a maximum over axes divides by the
    number of entries equal to the maximum. If XLA recomputes the entries with other rounding,
    there are none, and the gradient is NaN.
    """
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // 2, 2, w // 2, 2, c)
    rows = jnp.maximum(blocks[:, :, 0], blocks[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _edge_padded(x: jax.Array, axis: int) -> jax.Array:
    """Repeats the first and the last entry of an axis."""
    size = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
    return jnp.concatenate([first, x, last], axis)


def _upsample2_transposed(g: jax.Array, axis: int) -> jax.Array:
    """Applies the transpose of linear upsampling by 2 to one axis."""
    size = g.shape[axis] // 2
    pairs = g.reshape(*g.shape[:axis], size, 2, *g.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))

    def part(x: jax.Array, start: int, stop: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, start, stop, axis=axis)

    if size == 1:
        return even + odd
    # A pixel has weight 3/4 in the two output pixels that lie on it and 1/4 in the next on
    # either side. At the border, the outermost output pixel has the full weight of its own.
    first = part(even, 0, 1) + 0.75 * part(odd, 0, 1) + 0.25 * part(even, 1, 2)
    near = part(even, 1, size - 1) + part(odd, 1, size - 1)
    far = part(odd, 0, size - 2) + part(even, 2, size)
    last = 0.25 * part(odd, size - 2, size - 1) + 0.75 * part(even, size - 1, size)
    return jnp.concatenate(
        [first, 0.75 * near + 0.25 * far, last + part(odd, size - 1, size)], axis
    )


@jax.custom_vjp
def upsample2(x: jax.Array) -> jax.Array:
    """Upsamples bilinearly by 2 (pixel centres), [B, 2H, 2W, C].

    Equals `jax.image.resize(..., "bilinear")`, which computes the same two taps as dense
    products with [2H, H] matrices. It has a gradient of its own, so that only reverse-mode
    differentiation is supported: the gradient that JAX derives adds padded copies, and takes
    twelve times as long on a CPU.
    """
    b, h, w, c = x.shape
    # The barrier materialises the padded array: without it, each of the four output pixels
    # would check for the border.
    x = jax.lax.optimization_barrier(_edge_padded(_edge_padded(x, 1), 2))
    rows = (0.25 * x[:, :h] + 0.75 * x[:, 1:-1], 0.75 * x[:, 1:-1] + 0.25 * x[:, 2:])
    pixels = [
        (
            0.25 * row[:, :, :w] + 0.75 * row[:, :, 1:-1],
            0.75 * row[:, :, 1:-1] + 0.25 * row[:, :, 2:],
        )
        for row in rows
    ]
    return jnp.stack([jnp.stack(row, 3) for row in pixels], 2).reshape(b, 2 * h, 2 * w, c)


def _upsample2_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return upsample2(x), None


def _upsample2_backward(_: None, g: jax.Array) -> tuple[jax.Array]:
    return (_upsample2_transposed(_upsample2_transposed(g, 1), 2),)


upsample2.defvjp(_upsample2_forward, _upsample2_backward)


def upsample2_aligned(x: jax.Array) -> jax.Array:
    """Upsamples bilinearly by 2 with aligned corners, [B, 2H, 2W, C].

    The corner pixels of input and output coincide (PyTorch's `align_corners=True`), so the taps
    vary along the axis; they are applied as one product with a [2H, H] matrix per axis.
    """

    def taps(size: int) -> jax.Array:
        position = jnp.linspace(0.0, size - 1.0, 2 * size)
        distance = jnp.abs(position[:, None] - jnp.arange(size)[None, :])
        return jnp.maximum(0.0, 1.0 - distance).astype(x.dtype)

    rows, columns = taps(x.shape[1]), taps(x.shape[2])
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision="highest")
    return jnp.einsum("ow,bhwc->bhoc", columns, x, precision="highest")


class TransposedConv2(nn.Module):
    """Transposed 2×2 convolution with stride 2: doubles height and width.

    Its windows do not overlap, so that it is a matrix product per input pixel whose four
    results are arranged as 2×2 pixels: on a CPU, the gradient of `nn.ConvTranspose` takes up to
    60 times longer. The parameters are `kernel` [2, 2, C, features], in the orientation of the
    output's pixels (as in PyTorch, after moving axes), and `bias` [features].
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, 2H, 2W, features]."""
        b, h, w, c = x.shape
        # Each output pixel depends on one input pixel: the four taps do not add to the fan-in.
        init = nn.initializers.lecun_normal(batch_axis=(0, 1))
        kernel = self.param("kernel", init, (2, 2, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (z.astype(self.dtype) for z in (x, kernel, bias))
        y = jnp.einsum("bhwc,ijcf->bhiwjf", x, kernel) + bias
        return y.reshape(b, 2 * h, 2 * w, self.features)


def batch_norm(
    x: jax.Array, train: bool, valid: jax.Array | None, dtype: Dtype, name: str
) -> jax.Array:
    """Applies BatchNorm with PyTorch's defaults; call it in a compact method.

    In training it uses the statistics of the batch and updates the running ones with a weight
    of 0.1; otherwise it uses the running ones. Every pixel counts, including padding by
    reflection. All statistics are float32, and those of a batch that is sharded over devices
    cover the whole batch. Unlike in PyTorch, the running variance is not scaled by n/(n−1),
    which is negligible at tens of thousands of pixels.

    Args:
        x: [B, H, W, C].
        train: whether the statistics of the batch are used.
        valid: bool [B], false for padding rows, which the statistics leave out. At least one
            must be true. None: all rows count.
        dtype: dtype of the result.
        name: name of the submodule.

    Returns:
        [B, H, W, C].
    """
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        # Computed in one pass, the variance of a flat image is a difference of large numbers.
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )
    return norm(x, mask=None if valid is None else valid[:, None, None, None])


class BatchNormDoubleConv(nn.Module):
    """Two times 3×3 convolution, BatchNorm and ReLU, then dropout of whole channels.

    Attributes:
        features: channels of both convolutions.
        use_bias: whether the convolutions have a bias. BatchNorm makes it redundant, but some
            reports count it among their parameters.
        dropout: fraction of the channels set to zero in training, drawn for every image.
        dtype: computation dtype.
    """

    features: int
    use_bias: bool = True
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, valid: jax.Array | None = None
    ) -> jax.Array:
        """[B, H, W, C] → [B, H, W, features]; for `valid` see `batch_norm`."""
        for i in (1, 2):
            x = Conv(
                self.features,
                (3, 3),
                use_bias=self.use_bias,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            x = nn.relu(batch_norm(x, train, valid, self.dtype, f"norm{i}"))
        return nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)


class ResidualDoubleConv(nn.Module):
    """`relu(conv(relu(conv(x)))) + shortcut(x)`, 3×3 convolutions, no ReLU after the sum.

    The shortcut is a 1×1 convolution where the number of channels changes, else the identity.
    Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, features]."""
        y = nn.relu(Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(x))
        y = nn.relu(Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(y))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return y + x


def channel_gate(x: jax.Array, dtype: Dtype) -> jax.Array:
    """Returns `sigmoid(fc(relu(fc(global mean of x))))`; call it in a compact method.

    The hidden layer has 1/16 of the channels (at least one). The two layers are the caller's
    submodules `squeeze` and `excite`.

    Args:
        x: [B, H, W, C].
        dtype: computation dtype.

    Returns:
        [B, 1, 1, C] in (0, 1).
    """
    channels = x.shape[-1]
    # The mean is computed in float32: over 65,536 pixels, bfloat16 would be too imprecise.
    mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    hidden = nn.Dense(max(1, channels // 16), dtype=dtype, name="squeeze")(mean)
    return nn.sigmoid(nn.Dense(channels, dtype=dtype, name="excite")(nn.relu(hidden)))


class ChannelAttention(nn.Module):
    """`x · channel_gate(x)`.

    Source: Y. Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention
    Networks", ECCV 2018.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        return x * channel_gate(x, self.dtype)


class SpatialChannelAttention(nn.Module):
    """`x · sigmoid(conv1×1(x)) · channel_gate(x)`.

    Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        spatial = Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="spatial")(x)
        return x * nn.sigmoid(spatial) * channel_gate(x, self.dtype)


def softmax_attention(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """Returns `softmax(θᵀφ)·g` without scaling, equation 6 of the report.

    Args:
        theta: queries [B, H, W, C].
        phi: keys [B, H, W, C].
        g: values [B, H, W, C].

    Returns:
        [B, H, W, C]; the time is quadratic in H·W, the memory linear beyond 4,096 positions.
    """
    b, h, w, c = theta.shape
    count = h * w
    query, key, value = (z.reshape(b, count, c) for z in (theta, phi, g))

    def attend(query: jax.Array) -> jax.Array:
        # Not `jax.nn.dot_product_attention`: because of its axis of heads, a CPU transposes all
        # the weights, forward and backward.
        scores = jnp.einsum("bqc,bkc->bqk", *(z.astype(jnp.float32) for z in (query, key)))
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bqk,bkc->bqc", weights, value)

    # While an export is traced, the count may be symbolic and cannot be compared.
    if not isinstance(count, int) or count <= _MAX_QUERIES:
        return attend(query).reshape(b, h, w, c)
    # A native 1024×1024 photograph has 16,384 positions here, whose weights would take 1 GB per
    # image at once, so the queries are processed in blocks.
    if portable.is_on():
        # Other programs may not support loops.
        starts = range(0, count, _MAX_QUERIES)
        parts = [attend(query[:, start : start + _MAX_QUERIES]) for start in starts]
        return jnp.concatenate(parts, axis=1).reshape(b, h, w, c)
    query = jnp.pad(query, ((0, 0), (0, -count % _MAX_QUERIES), (0, 0)))
    blocks = query.reshape(b, -1, _MAX_QUERIES, c).swapaxes(0, 1)
    attended = jax.lax.map(jax.checkpoint(attend), blocks).swapaxes(0, 1)
    return attended.reshape(b, -1, c)[:, :count].reshape(b, h, w, c)


def linear_attention_as_released(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """Returns `θᵀφ·g / (H·W)` in the layout of the released code, which its weights rely on.

    The released code *reshapes* the [H·W, C] result to [C, H, W] where a transpose was meant,
    which scatters each position's channels over the image. Without a softmax the product is
    associative, so that `θ·(φᵀg)/(H·W)` gives the same result at linear cost.

    Args:
        theta: queries [B, H, W, C].
        phi: keys [B, H, W, C].
        g: values [B, H, W, C].

    Returns:
        [B, H, W, C].
    """
    b, h, w, c = theta.shape
    query, key, value = (z.reshape(b, h * w, c) for z in (theta, phi, g))
    # Divided first: a sum over H·W products would exceed the useful range of bfloat16.
    context = jnp.einsum("bnc,bnd->bcd", key, value / (h * w))
    attended = jnp.einsum("bnc,bcd->bnd", query, context)
    return attended.reshape(b, c, h, w).transpose(0, 2, 3, 1)


class NonLocal(nn.Module):
    """`x + W(attend(θ(x), φ(x), g(x)))`: four 1×1 convolutions, half the channels inside.

    Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024, after
    X. Wang et al., "Non-local Neural Networks", CVPR 2018.

    Attributes:
        as_released: uses the attention of the released code instead of the report's.
        dtype: computation dtype.
    """

    as_released: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        channels = x.shape[-1]
        theta, phi, g = (
            Conv(channels // 2, (1, 1), dtype=self.dtype, name=name)(x)
            for name in ("theta", "phi", "g")
        )
        attend = linear_attention_as_released if self.as_released else softmax_attention
        y = attend(theta, phi, g)
        return x + Conv(channels, (1, 1), dtype=self.dtype, name="W")(y)
