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
from restore_jax.models.gain_unet import shuffle, unshuffle

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
        residual = seen - shown
        # Several convolutions, since on a CPU joining their inputs would take longer.
        parts = {
            "degraded": seen - 0.5,
            "restored": shown - 0.5,
            "statistics": _statistics(residual, shown),
            "evidence": _evidence(residual, shown),
        }
        x = nn.relu(
            sum(layers.Conv(self.width, (1, 1), name=name)(x) for name, x in parts.items())
        )
        for number, dilation in enumerate(_DILATIONS, start=1):
            y = layers.Conv(
                self.width,
                (3, 3),
                kernel_dilation=dilation,
                padding="VALID",
                name=f"conv{number}",
            )(_continued(x, dilation))
            x = x + nn.relu(y)
        x = layers.Conv(
            _PIXELS,
            (1, 1),
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(_START),
            name="output",
        )(x)
        predicted = shuffle(x, _BLOCK)[:, :height, :width]
        levels = self.variable("calibration", "levels", jnp.arange, float(LEVELS)).value
        factors = self.variable("calibration", "factors", jnp.zeros, LEVELS).value
        return jnp.exp(calibrated(predicted, levels, factors))


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


def _statistics(residual: jax.Array, restored: jax.Array) -> jax.Array:
    """Returns what a block says of noise and detail, on a logarithmic scale.

    Args:
        residual: [B, h, w, 48], blocks of pixels of the degraded image less the restored one.
        restored: those of the restored image.

    Returns:
        [B, h, w, 6]: per colour, the mean absolute change that the restoration made, and the
        standard deviation of the restored block; about ±1.
    """
    change = _block_sum(jnp.abs(residual)) / _PIXELS
    mean = _block_sum(restored) / _PIXELS
    variance = _block_sum(jnp.square(restored)) / _PIXELS - jnp.square(mean)
    # The square root has no gradient at 0, and none is needed there.
    detail = jnp.sqrt(jnp.maximum(variance, 1e-8))
    return 2.0 + 0.5 * jnp.log(jnp.concatenate([change, detail], axis=-1) + _FLOOR)


def _evidence(residual: jax.Array, restored: jax.Array) -> jax.Array:
    """Returns how far means of the residual are from zero, and how strong the residual is.

    Args:
        residual: as for `_statistics`.
        restored: likewise.

    Returns:
        [B, h, w, 12]: per colour, the residual's mean over the block and over 3×3 blocks, less
        what a change of brightness explains, and its mean over 7×7 blocks, all in units of
        their standard errors if the residual were white noise, on a scale that compresses
        large values; and the logarithm of its standard deviation in 7×7 blocks. About ±1 for
        noise.
    """
    mean = _block_sum(residual) / _PIXELS
    level = _block_sum(restored) / _PIXELS
    square = _block_sum(jnp.square(residual)) / _PIXELS
    near, wide = (_window_count(*residual.shape[1:3], side) for side in _WINDOWS)
    moments = jnp.concatenate([mean, level, mean * level, level * level, square], axis=-1)
    mean_near, level_near, product, level_square, square = jnp.split(
        _window_sum(moments, _WINDOWS[1]) / wide, 5, axis=-1
    )
    variance = jnp.maximum(square - jnp.square(mean_near), 0.0) + _FLOOR**2
    # The gain that explains the residual best, pulled to none where the level hardly varies.
    spread = level_square - jnp.square(level_near) + _RIDGE * variance / _PIXELS + _FLOOR**2
    gain = jnp.clip((product - mean_near * level_near) / spread, -_MOST_GAIN, _MOST_GAIN)
    unexplained = mean - mean_near - gain * (level - level_near)
    error = jnp.sqrt(variance / _PIXELS)  # standard error of the mean of a block
    in_errors = (
        unexplained / error,
        _window_sum(unexplained, _WINDOWS[0]) / (error * jnp.sqrt(near)),
        mean_near / error * jnp.sqrt(wide),
    )
    parts = [0.5 * jnp.arcsinh(part) for part in in_errors]
    return jnp.concatenate([*parts, 2.0 + 0.25 * jnp.log(variance)], axis=-1)


def _block_sum(blocks: jax.Array) -> jax.Array:
    """Sums over the pixels of each block, per colour: [B, h, w, 48] → [B, h, w, 3].

    As a product of matrices, which a CPU computes several times as fast as a sum along the
    second-last axis.
    """
    return blocks @ jnp.tile(jnp.eye(3), (_PIXELS, 1))


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
