"""Noise that the channels of a photograph share, and how it is made independent.

Training adds to each channel noise of its own, and a network learns to tell noise from texture
by that: texture is alike in all channels. In a grey photograph the noise is, too, and most of
it in a JPEG with its colours at half the size. A network that was trained on independent noise
takes it for texture and leaves it; one that has seen grey noise, too, still does where it is
weak.

Where the channels share noise of variance s², adding noise that sums to zero over the channels,
of covariance 3 s² (I − J / 3) with J all ones, makes theirs independent, of variance 3 s² each:
s² J + 3 s² (I − J / 3) = 3 s² I. The mean of the channels stays exactly what it was, so that
nothing is lost to a grey photograph. Pure functions of NumPy arrays.
"""

import functools
import math

import numpy as np

from restore_jax.degradation.definition import Law

_BLOCK = 16
# Of larger photographs, a window of this side in px in the middle is measured.
_WINDOW = 512
_FEWEST_BLOCKS = 8
# Less noise is that of a good photograph, which is to stay as it is, grey levels.
_LEAST = 2.0
# More shared noise than this is left to a network that was trained on it, grey levels.
_KNOWN_FROM = 7.0
# Share of the variance that channels of independent noise seem to share by chance, at most.
_BY_CHANCE = 0.2
# Second differences along both axes multiply the variance of white noise by this.
_DIFFERENCES = 36.0
# Side of the pattern of added noise, which is repeated.
_PERIOD = 512


def of_photograph(image: np.ndarray, scale: float = 1.0) -> float:
    """Estimates the noise that the channels of a photograph share.

    Args:
        image: [H, W] or [H, W, C] of any dtype.
        scale: factor to grey levels of 0…255.

    Returns:
        Its standard deviation in grey levels, from the flatter half of the photograph; 0 for
        less than 2, for a smaller part of the noise than may be chance, and for a photograph
        that is too small or clipped all over.
    """
    image = np.atleast_3d(image)
    rows, columns = (
        slice((length - side) // 2, (length + side) // 2)
        for length in image.shape[:2]
        for side in [min(length, _WINDOW) // _BLOCK * _BLOCK]
    )
    levels = image[rows, columns].astype(np.float32) * np.float32(scale)
    if not levels.size:
        return 0.0
    rough = levels
    for axis in (0, 1):
        rough = np.diff(rough, n=2, axis=axis, append=rough.take([-1, -1], axis))
    count = levels.shape[-1]
    total = _block_means(np.square(rough.sum(-1)))
    own = _block_means(np.square(rough).sum(-1))
    # The mean over the pairs of channels; one channel shares its noise with those made of it.
    shared = (total - own) / (count * (count - 1)) if count > 1 else own
    level = _block_means(levels.mean(-1))
    seen = (level > 1) & (level < 254)
    if seen.sum() < _FEWEST_BLOCKS:
        return 0.0
    shared, own = shared[seen], own[seen] / count
    flatter = own <= np.median(own)
    shared, own = float(shared[flatter].mean()), float(own[flatter].mean())
    if shared < _BY_CHANCE * own or shared < _LEAST**2 * _DIFFERENCES:
        return 0.0
    return float(np.sqrt(shared / _DIFFERENCES))


def most_to_separate(law: Law | None) -> float:
    """Returns up to which level a network takes shared noise for texture, grey levels.

    Args:
        law: that of its training, or None. Only a network that also learned to leave
            photographs without noise alone takes noise for texture; the others remove it.
    """
    if law is None or (law.noise_sigma[0] > 0 and not law.clean_share):
        return 0.0
    return _KNOWN_FROM if "grey" in law.noise else math.inf


def _block_means(image: np.ndarray) -> np.ndarray:
    """Returns the means of an image [H, W] over blocks, both sides being multiples of them."""
    height, width = (length // _BLOCK for length in image.shape)
    return image.reshape(height, _BLOCK, width, _BLOCK).mean((1, 3)).ravel()


@functools.cache
def _pattern() -> np.ndarray:
    """Returns noise of covariance 3 (I − J / 3) over the channels, float32 [512, 512, 3]."""
    noise = np.random.default_rng(0).standard_normal((_PERIOD, _PERIOD, 3), np.float32)
    noise -= noise.mean(-1, keepdims=True)
    return noise * np.float32(np.sqrt(3))


def complement(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the noise that makes shared noise of variance 1 independent.

    Args:
        rows: numbers of the rows of a photograph, [h].
        columns: numbers of its columns, [w].

    Returns:
        Always the same for a pixel, float32 [h, w, 3].
    """
    return _pattern()[rows % _PERIOD][:, columns % _PERIOD]
