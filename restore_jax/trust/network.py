"""A small network that predicts how wrong each pixel of a restoration may be.

It sees the degraded photograph and its restoration by any model, and works on blocks of 4×4
pixels, which become channels: most of its arithmetic is done at a sixteenth of the pixels, and
yet every pixel gets a value of its own. It is purely convolutional, so that a tile gets the
same values as in the whole photograph, except for a margin of 60 px.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers
from restore_jax.models.gain_unet import shuffle, unshuffle

_BLOCK = 4
_DILATIONS = (1, 2, 4)
# Added to differences before their logarithm is taken: half a grey level of 8 bits.
_FLOOR = 0.5 / 255
_START = -3.0  # log half-width before training: 13 grey levels

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

    width: int = 24

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
        both = jnp.concatenate([degraded, jnp.clip(restored, 0.0, 1.0)], axis=-1)
        x = unshuffle(layers.pad_to_multiple(both, _BLOCK), _BLOCK)
        x = jnp.concatenate([x - 0.5, _statistics(x)], axis=-1)
        x = nn.relu(layers.Conv(self.width, (1, 1), name="blocks")(x))
        for number, dilation in enumerate(_DILATIONS, start=1):
            y = layers.Conv(self.width, (3, 3), kernel_dilation=dilation, name=f"conv{number}")(
                x
            )
            x = x + nn.relu(y)
        x = layers.Conv(
            _BLOCK**2,
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


def _statistics(blocks: jax.Array) -> jax.Array:
    """Returns what a block says of noise and detail, on a logarithmic scale.

    Args:
        blocks: [B, h, w, 96], blocks of pixels of both images.

    Returns:
        [B, h, w, 6]: per colour, the mean absolute change that the restoration made, and the
        standard deviation of the restored block; about ±1.
    """
    pixels = blocks.reshape(*blocks.shape[:3], _BLOCK**2, 6)
    degraded, restored = pixels[..., :3], pixels[..., 3:]
    change = jnp.mean(jnp.abs(degraded - restored), axis=3)
    variance = jnp.mean(jnp.square(restored), axis=3) - jnp.square(jnp.mean(restored, axis=3))
    # The square root has no gradient at 0, and none is needed there.
    detail = jnp.sqrt(jnp.maximum(variance, 1e-8))
    return 2.0 + 0.5 * jnp.log(jnp.concatenate([change, detail], axis=-1) + _FLOOR)
