"""Gain U-Net: corrects the camera's colour from the whole photograph, then restores locally.

This project's own network. It differs from the published ones in two ways:

- The gain of each channel is a property of the whole photograph, and uncorrected it limits the
  PSNR more than noise and blur do. A small branch estimates it from a thumbnail of the whole
  photograph, so that all tiles of a large photograph get the same correction.
- Everything else is convolutions, without pooling or attention over the whole image. A tile is
  restored as in the whole photograph, except for a margin as wide as the receptive field.

The trunk works on pixels rearranged into channels (`stem`×`stem` pixels, W. Shi et al., CVPR
2016), where a convolution covers a larger part of the photograph for the same arithmetic. Its
blocks are residual, without normalisation, and initialised as the identity: their last
convolution is zero (H. Zhang, Y. Dauphin and T. Ma, "Fixup Initialization", ICLR 2019).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.batches import CONTEXT_SIZE
from restore_jax.errors import UsageError
from restore_jax.models import layers, options

_MAX_LOG_GAIN = 0.25
_GAIN_WIDTHS = (16, 32, 64)


def thumbnail(photograph: jax.Array, side: int = CONTEXT_SIZE) -> jax.Array:
    """Resizes photographs to a square with an antialiasing triangle filter.

    Args:
        photograph: [B, H, W, 3], any H and W.
        side: side of the result, px.

    Returns:
        [B, side, side, 3] float32.
    """

    def weights(size: int) -> jax.Array:
        ratio = size / side
        centres = (jnp.arange(side, dtype=jnp.float32) + 0.5) * ratio - 0.5
        distance = jnp.abs(jnp.arange(size, dtype=jnp.float32)[None, :] - centres[:, None])
        taps = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(ratio, 1.0))
        return taps / jnp.sum(taps, axis=1, keepdims=True)

    x = photograph.astype(jnp.float32)
    x = jnp.einsum("oh,bhwc->bowc", weights(x.shape[1]), x)
    return jnp.einsum("ow,bhwc->bhoc", weights(x.shape[2]), x)


def unshuffle(x: jax.Array, factor: int) -> jax.Array:
    """Rearranges f×f blocks of pixels into channels: [B, H, W, C] → [B, H/f, W/f, f·f·C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, factor**2 * c)


def shuffle(x: jax.Array, factor: int) -> jax.Array:
    """Inverts `unshuffle`: [B, H, W, f·f·C] → [B, H·f, W·f, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, c // factor**2)


def averaged(x: jax.Array, factor: int) -> jax.Array:
    """Averages blocks of pixels and upsamples the averages bilinearly to the same shape.

    Args:
        x: [B, H, W, C], both sides a multiple of `factor`.
        factor: side of the blocks in px, a power of 2.

    Returns:
        [B, H, W, C].
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4))
    for _ in range(factor.bit_length() - 1):
        x = layers.upsample2(x)
    return x


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(x)))`, 3×3, as wide as the input; initialised as the identity."""

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        features = x.shape[-1]
        y = layers.Conv(features, (3, 3), dtype=self.dtype, name="conv1")(x)
        y = layers.Conv(
            features,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv2",
        )(nn.relu(y))
        return x + y


class GainBranch(nn.Module):
    """Estimates from a thumbnail what the trunk cannot see in a part of the photograph.

    That is the logarithm of each channel's gain, and offsets for the trunk's features: how to
    interpret a clipped value depends on both noise and gain. All are initialised to 0.

    Attributes:
        offset_widths: channels of the trunk's stages that get an offset.
        dtype: computation dtype of the convolutions.
    """

    offset_widths: Sequence[int] = ()
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """[B, 64, 64, 3] → [B, 1, 1, 3] float32 in ±0.25, and [B, 1, 1, C] for each stage."""
        for number, features in enumerate(_GAIN_WIDTHS, start=1):
            x = layers.Conv(features, (3, 3), dtype=self.dtype, name=f"conv{number}")(x)
            x = layers.max_pool2(nn.relu(x))
        pooled = [jnp.mean(x, (1, 2), dtype=jnp.float32), jnp.max(x, (1, 2))]
        hidden = nn.relu(nn.Dense(64, name="hidden")(jnp.concatenate(pooled, -1)))

        def dense(features: int, name: str) -> jax.Array:
            layer = nn.Dense(features, kernel_init=nn.initializers.zeros, name=name)
            return layer(hidden).astype(jnp.float32)[:, None, None, :]

        log_gain = _MAX_LOG_GAIN * jnp.tanh(dense(3, "log_gain"))
        offsets = [dense(c, f"tell{i}") for i, c in enumerate(self.offset_widths, start=1)]
        return log_gain, offsets


class GainUNet(nn.Module):
    """The gain U-Net.

    Attributes:
        widths: channels of the stages, finest first.
        blocks: residual blocks per stage, in the encoder and in the decoder; the coarsest
            stage, which is the bottleneck, has them once.
        stem: side of the blocks of pixels that become channels: 2 for photographs with detail
            down to the pixel, 4 where blur leaves none and time matters.
        gain: corrects the gain of each channel; to be turned off where the camera's colours
            are correct, or unknown and therefore to be preserved.
        tell: the branch that estimates the gain also adds offsets to the trunk's coarser
            features.
        shortcut: what the trunk's output is added to: the "image" itself, or its "average"
            over the blocks of the stem, interpolated. Use the latter under strong noise: the
            trunk has too few channels to carry all the noise that it would have to subtract.
        dtype: computation dtype; parameters, gain and result are float32.
    """

    widths: Sequence[int] = (32, 48, 64, 80)
    blocks: int = 2
    stem: int = 2
    gain: bool = True
    tell: bool = False
    shortcut: str = "image"
    dtype: layers.Dtype = jnp.float32

    takes_context = True
    """`apply` accepts a whole photograph, or its thumbnail, along with a part of it."""

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_numbers("widths", self.widths, least=1)
        options.check_number("blocks", self.blocks)
        options.check_number("stem", self.stem)
        options.check_switch("gain", self.gain)
        options.check_switch("tell", self.tell)
        options.check_choice("shortcut", self.shortcut, ("image", "average"))
        if self.shortcut == "average" and self.stem & (self.stem - 1):
            raise UsageError(
                f"config.model.shortcut: an average over {self.stem}×{self.stem} pixels cannot "
                "be interpolated; set config.model.stem to a power of 2"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        degraded: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        valid: jax.Array | None = None,
        context: jax.Array | None = None,
    ) -> jax.Array:
        """Restores images of any size.

        Args:
            degraded: [B, H, W, 3] in [0, 1].
            mask: ignored; part of the signature that all models share.
            train: ignored; the model has no dropout and no running statistics.
            valid: ignored; the rows of a batch are independent.
            context: [B, h, w, 3], the whole photographs that `degraded` are crops of, at any
                size, from which the gain is estimated; None: `degraded` is the whole.

        Returns:
            [B, H, W, 3] float32, near [0, 1] but not clipped.
        """
        del mask, train, valid
        height, width = degraded.shape[1:3]
        multiple = self.stem * 2 ** (len(self.widths) - 1)
        base = layers.pad_to_multiple(degraded, multiple).astype(jnp.float32)
        offsets: list[jax.Array] = []
        if self.gain:
            whole = thumbnail(degraded if context is None else context).astype(self.dtype)
            # All stages but the finest, coarsest first.
            widths = self.widths[:0:-1] if self.tell else ()
            branch = GainBranch(widths, dtype=self.dtype, name="gain_branch")
            log_gain, offsets = branch(whole)
            base = base * jnp.exp(-log_gain)

        def conv(features: int, size: int, name: str, zero: bool = False) -> nn.Conv:
            init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
            return layers.Conv(
                features, (size, size), kernel_init=init, dtype=self.dtype, name=name
            )

        def stage(x: jax.Array, name: str) -> jax.Array:
            for block in range(1, self.blocks + 1):
                x = ResidualBlock(dtype=self.dtype, name=f"{name}_block{block}")(x)
            return x

        def with_offset(x: jax.Array) -> jax.Array:
            return x + offsets.pop(0).astype(self.dtype) if offsets else x

        x = unshuffle(base, self.stem).astype(self.dtype)
        x = conv(self.widths[0], 3, "input")(x)
        skips = []
        for level, features in enumerate(self.widths[1:], start=1):
            x = stage(x, f"down{level}")
            skips.append(x)
            x = conv(features, 1, f"reduce{level}")(unshuffle(x, 2))
        x = stage(with_offset(x), "bottleneck")
        for level in range(len(self.widths) - 1, 0, -1):
            x = layers.upsample2(conv(self.widths[level - 1], 1, f"expand{level}")(x))
            x = stage(with_offset(x + skips[level - 1]), f"up{level}")
        residual = conv(3 * self.stem**2, 3, "output", zero=True)(x)
        if self.shortcut == "average":
            base = averaged(base, self.stem)
        restored = base + shuffle(residual.astype(jnp.float32), self.stem)
        return restored[:, :height, :width]
