"""A small network that predicts how wrong each pixel of a restoration may be.

It sees the degraded photograph and its restoration by any model, and works on blocks of 4×4
pixels, which become channels: most of its arithmetic is done at a sixteenth of the pixels, and
yet every pixel gets a value of its own. It is purely convolutional, so that a tile gets the
same values as in the whole photograph, except for a margin of 47 px. Beyond the border of an
image, features continue with their last values, so that the border looks like no edge.

Detail that was erased, or invented, remains in the residual, the photograph less its
restoration: there, its mean over a few pixels is further from zero than noise explains. The
network is shown such means, in units of their standard error. A gain that the restorer undid or
missed would hide them, and is taken out first; but no more than a law may contain, since to the
photograph, an invented defect is contrast with a gain of zero.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers
from restore_jax.models.gain_unet import unshuffle

_BLOCK = 4
_PIXELS = _BLOCK**2
_DILATIONS = (1, 2, 4)
# Added to differences before their logarithm is taken: half a grey level of 8 bits.
_FLOOR = 0.5 / 255
_START = -3.0  # log half-width before training: 13 grey levels
_WINDOWS = (3, 7)  # sides of the windows over which residuals are averaged, in blocks
# Gains that a restoration may undo or miss: those of the `kla` law, and somewhat more. And how
# much noise in the level counts as variation of it.
_MOST_GAIN = 0.15
_RIDGE = 0.1

# Channels of what the first layer is given.
_ENTRIES = {"degraded": 3 * _PIXELS, "restored": 3 * _PIXELS, "statistics": 6, "evidence": 12}

VERSION = 2
"""Of the architecture; a trust map of another one cannot be used."""

LEVELS = 8
"""Number of predicted levels at which the calibration has a factor of its own."""


class ErrorBar(nn.Module):
    """Predicts the half-width of an interval that contains the true value of a pixel.

    Its variables are "params", which are trained, and "calibration", which is measured
    afterwards (see `conformal`): "levels" [8], increasing logarithms of the predicted
    half-width, and "factors" [8], the logarithms of what it is multiplied by there, linearly
    interpolated between the levels and constant beyond them. Initially, all factors are 1.

    Attributes:
        width: channels of the convolutions.
    """

    width: int = 16

    @nn.compact
    def __call__(self, degraded: jax.Array, restored: jax.Array) -> jax.Array:
        """Returns the half-width of the interval of each pixel.

        Args:
            degraded: [B, H, W, 3] in [0, 1].
            restored: its restoration, the same shape, of any range.

        Returns:
            [B, H, W, 1] float32, above 0, on the scale of the images.
        """
        height, width = degraded.shape[1:3]
        seen, shown = (
            unshuffle(layers.pad_to_multiple(image, _BLOCK), _BLOCK)
            for image in (degraded, jnp.clip(restored, 0.0, 1.0))
        )
        x = nn.relu(self._entered(seen, shown))
        for number, dilation in enumerate(_DILATIONS, start=1):
            y = layers.Conv(
                self.width,
                (3, 3),
                kernel_dilation=dilation,
                padding="VALID",
                name=f"conv{number}",
            )(_continued(x, dilation))
            x = x + nn.relu(y)
        kernel, bias = _Pointwise(
            _PIXELS, nn.initializers.zeros, nn.initializers.constant(_START), name="output"
        )(self.width)
        levels = self.variable("calibration", "levels", jnp.arange, float(LEVELS)).value
        factors = self.variable("calibration", "factors", jnp.zeros, LEVELS).value
        # As `shuffle`, but row by row of the blocks: XLA's fast product of matrices for CPUs is
        # three times as slow, with all that follows, if its result is transposed.
        b, h, w, _ = x.shape
        rows = [
            (x @ kernel[:, first : first + _BLOCK] + bias[first : first + _BLOCK]).reshape(
                b, h, 1, w * _BLOCK
            )
            for first in range(0, _PIXELS, _BLOCK)
        ]
        predicted = jnp.concatenate(rows, axis=2).reshape(b, h * _BLOCK, w * _BLOCK, 1)
        return jnp.exp(calibrated(predicted[:, :height, :width], levels, factors))

    def _entered(self, seen: jax.Array, shown: jax.Array) -> jax.Array:
        """Returns the first features of blocks, [B, h, w, width], before their ReLU.

        They are 1×1 convolutions of the images less 0.5, of what `_statistics` says and of what
        `_evidence` says. Each image is multiplied once, by its kernel and by what averages
        its blocks, as for a CPU reading an image takes longer than multiplying it.
        """
        kernels, bias = {}, jnp.zeros(self.width)
        for name, channels in _ENTRIES.items():
            entry = _Pointwise(self.width, name=name)
            kernels[name], own_bias = entry(channels)
            bias += own_bias
        for name in ("degraded", "restored"):
            bias -= 0.5 * jnp.sum(kernels[name], axis=0)
        (from_seen, seen_level), (from_shown, level) = (
            jnp.split(
                _multiplied(x, jnp.concatenate([kernels[name], _averages()], axis=1)),
                [self.width],
                axis=-1,
            )
            for name, x in (("degraded", seen), ("restored", shown))
        )
        blocks = _Blocks.of(seen, shown, seen_level - level, level)
        said = jnp.concatenate([_statistics(blocks), _evidence(blocks)], axis=-1)
        kernel = jnp.concatenate([kernels["statistics"], kernels["evidence"]])
        return from_seen + from_shown + said @ kernel + bias


class _Pointwise(nn.Module):
    """The parameters of a 1×1 convolution, stored as those of `nn.Conv`.

    Attributes:
        features: output channels.
        kernel_init, bias_init: initial values.
    """

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel [channels, features] and the bias [features]."""
        shape = (1, 1, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return kernel[0, 0], self.param("bias", self.bias_init, (self.features,))


def calibrated(predicted: jax.Array, levels: jax.Array, factors: jax.Array) -> jax.Array:
    """Adds the interpolated logarithms of the factors to predicted logarithms.

    As a sum of ramps between neighbouring levels, which is far faster than a search for the
    levels that enclose each value.

    Args:
        predicted: of any shape.
        levels: [N], increasing.
        factors: [N], the value to add at each level.

    Returns:
        The shape of `predicted`.
    """
    result = predicted + factors[0]
    for i in range(LEVELS - 1):
        ramp = jnp.clip((predicted - levels[i]) / (levels[i + 1] - levels[i]), 0.0, 1.0)
        result = result + ramp * (factors[i + 1] - factors[i])
    return result


class WithErrorBar(nn.Module):
    """Appends the half-width to a restoration as a fourth channel: [B, H, W, 4]."""

    bar: ErrorBar

    @nn.compact
    def __call__(self, degraded: jax.Array, restored: jax.Array) -> jax.Array:
        """As `ErrorBar`; the first three channels are `restored`."""
        return jnp.concatenate([restored, self.bar(degraded, restored)], axis=-1)

    @staticmethod
    def wrapped(variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the variables of this module from those of its error bar."""
        return {collection: {"bar": found} for collection, found in variables.items()}


class Trust(NamedTuple):
    """A trained and calibrated error bar.

    Attributes:
        model: the network.
        variables: its "params" and "calibration".
        notes: what it was made from and what it covers, as stored in its file.
    """

    model: ErrorBar
    variables: dict[str, Any]
    notes: dict[str, Any]


class _Blocks(NamedTuple):
    """Means over the pixels of each block, per colour: [B, h, w, 3] each.

    Attributes:
        residual: of the degraded image less the restored one.
        level: of the restored image.
        change: of the residual's absolute values.
        square: of its squares.
        level_square: of the squares of the restored image.
    """

    residual: jax.Array
    level: jax.Array
    change: jax.Array
    square: jax.Array
    level_square: jax.Array

    @classmethod
    def of(
        cls, seen: jax.Array, shown: jax.Array, residual: jax.Array, level: jax.Array
    ) -> "_Blocks":
        """Averages blocks of the degraded and the restored image, [B, h, w, 48] each.

        Args:
            seen: blocks of the degraded image.
            shown: those of the restored one.
            residual: as the attribute, where it is known.
            level: likewise.
        """
        difference = seen - shown
        others = (jnp.abs(difference), jnp.square(difference), jnp.square(shown))
        return cls(residual, level, *(_multiplied(x, _averages()) for x in others))


def _statistics(blocks: _Blocks) -> jax.Array:
    """Returns what a block says of noise and detail, on a logarithmic scale.

    Returns:
        [B, h, w, 6]: per colour, the mean absolute change that the restoration made, and the
        standard deviation of the restored block; about ±1.
    """
    variance = blocks.level_square - jnp.square(blocks.level)
    # The square root has no gradient at 0, and none is needed there.
    detail = jnp.sqrt(jnp.maximum(variance, 1e-8))
    parts = jnp.concatenate([blocks.change, detail], axis=-1)
    return 2.0 + 0.5 * jnp.log(parts + _FLOOR)


def _evidence(blocks: _Blocks) -> jax.Array:
    """Returns how far means of the residual are from zero, and how strong the residual is.

    Returns:
        [B, h, w, 12]: per colour, the residual's mean over the block and over 3×3 blocks, less
        what a change of brightness explains, and its mean over 7×7 blocks, all in units of
        their standard errors if the residual were white noise, on a scale that compresses
        large values; and the logarithm of its standard deviation in 7×7 blocks. About ±1 for
        noise.
    """
    mean, level = blocks.residual, blocks.level
    near, wide = (_window_count(*mean.shape[1:3], side) for side in _WINDOWS)
    moments = [mean, level, mean * level, level * level, blocks.square]
    mean_near, level_near, product, level_square, square = jnp.split(
        _window_sum(jnp.concatenate(moments, axis=-1), _WINDOWS[1]) / wide, 5, axis=-1
    )
    variance = jnp.maximum(square - jnp.square(mean_near), 0.0) + _FLOOR**2
    # The gain that explains the residual best, pulled to none where the level hardly varies.
    spread = level_square - jnp.square(level_near) + _RIDGE * variance / _PIXELS + _FLOOR**2
    gain = jnp.clip((product - mean_near * level_near) / spread, -_MOST_GAIN, _MOST_GAIN)
    unexplained = mean - mean_near - gain * (level - level_near)
    precision = jax.lax.rsqrt(variance / _PIXELS)  # 1 / standard error of the mean of a block
    in_errors = (
        unexplained * precision,
        _window_sum(unexplained, _WINDOWS[0]) * precision / jnp.sqrt(near),
        mean_near * precision * jnp.sqrt(wide),
    )
    parts = [0.5 * jnp.arcsinh(part) for part in in_errors]
    return jnp.concatenate([*parts, 2.0 + 0.25 * jnp.log(variance)], axis=-1)


def _averages() -> jax.Array:
    """Returns what averages the pixels of a block per colour, as a matrix [48, 3].

    A product of matrices is several times as fast on a CPU as a sum along the second-last axis.
    """
    return jnp.tile(jnp.eye(3), (_PIXELS, 1)) / _PIXELS


def _multiplied(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies channels by a matrix, on GPUs without rounding to fewer digits.

    A mean of the residual is a small difference of large means.
    """
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def _window_sum(x: jax.Array, side: int) -> jax.Array:
    """Returns the sum over a window of an odd side around each place of [B, h, w, C].

    Outside of the image, there are zeros.
    """
    for window in ((1, side, 1, 1), (1, 1, side, 1)):
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")
    return x


def _window_count(height: int, width: int, side: int) -> jax.Array:
    """Returns how many places of a window of `_window_sum` lie in the image, [1, h, w, 1]."""

    def along(length: int) -> jax.Array:
        place = jnp.arange(length)
        first = jnp.maximum(place - side // 2, 0)
        last = jnp.minimum(place + side // 2, length - 1)
        return (last - first + 1).astype(jnp.float32)

    return (along(height)[:, None] * along(width))[None, ..., None]


def _continued(x: jax.Array, margin: int) -> jax.Array:
    """Continues [B, h, w, C] with its outermost values by a margin on all four sides."""
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
