"""What storage as a JPEG does to an image, in JAX, for use within a training step.

Baseline JPEG as libjpeg writes and reads it by default: colours at half the resolution (4:2:0),
the tables of Annex K of ITU-T T.81 scaled by the quality, and colours interpolated on reading.
The coding of the coefficients loses nothing and is left out. Unlike libjpeg's, the transforms
are not in integers, so that a coefficient close to half a step may be rounded the other way.
"""

import jax
import jax.numpy as jnp
import numpy as np

MCU = 16
"""Side in px of the smallest unit of a JPEG in 4:2:0: one block of each colour."""

_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMINANCE = np.full((8, 8), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# ITU-R BT.601, of all values from 0 to 255 (JFIF): rows are Y, Cb and Cr.
_TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
    np.float32,
)
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)

_FREQUENCY, _PIXEL = np.mgrid[:8, :8]
_DCT = np.cos((2 * _PIXEL + 1) * _FREQUENCY * np.pi / 16) / 2
_DCT[0] /= np.sqrt(2)  # orthonormal
_DCT = _DCT.astype(np.float32)

_HIGHEST = jax.lax.Precision.HIGHEST


def stored(image: jax.Array, quality: jax.Array) -> jax.Array:
    """Returns an image as it is read from the JPEG that it was stored in.

    Args:
        image: [H, W, 3], grey levels 0…255; H and W multiples of `MCU`.
        quality: 1 to 100, on libjpeg's scale; a scalar.

    Returns:
        float32 [H, W, 3], whole grey levels.
    """
    height, width = image.shape[:2]
    colours = jnp.einsum("ci,hwi->hwc", _TO_YCBCR, jnp.round(image), precision=_HIGHEST)
    colours = jnp.round(colours)
    luma = _quantised(colours[..., 0] - 128, _table(_LUMINANCE, quality)) + 128
    sums = colours[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).sum((1, 3))
    # libjpeg rounds halves down and up by turns.
    halves = jnp.floor((sums + 1 + np.arange(width // 2)[:, None] % 2) / 4)
    table = _table(_CHROMINANCE, quality)
    chroma = jnp.stack([_quantised(halves[..., i], table) for i in range(2)], axis=-1)
    whole = jax.image.resize(chroma, (height, width, 2), "linear")
    colours = jnp.concatenate([luma[..., None], jnp.round(whole)], axis=-1)
    read = jnp.einsum("ic,hwc->hwi", _TO_RGB, colours, precision=_HIGHEST)
    return jnp.clip(jnp.round(read), 0.0, 255.0)


def _table(table: np.ndarray, quality: jax.Array) -> jax.Array:
    """Scales a table of the standard, as libjpeg does: 50 leaves it as it is."""
    quality = jnp.round(quality)
    per_cent = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
    return jnp.clip(jnp.floor((table * per_cent + 50) / 100), 1, 255)


def _quantised(plane: jax.Array, table: jax.Array) -> jax.Array:
    """Rounds the coefficients of a plane's blocks, [H, W], to multiples of a table's."""
    height, width = plane.shape
    blocks = plane.reshape(height // 8, 8, width // 8, 8)
    spectra = jnp.einsum("ui,yixj,vj->yuxv", _DCT, blocks, _DCT, precision=_HIGHEST)
    steps = table[None, :, None, :]
    kept = jnp.round(spectra / steps) * steps
    read = jnp.einsum("ui,yuxv,vj->yixj", _DCT, kept, _DCT, precision=_HIGHEST)
    return jnp.clip(jnp.round(read), -128, 127).reshape(height, width)
