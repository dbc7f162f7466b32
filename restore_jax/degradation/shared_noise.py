"""Noise that the channels of a photograph share, as those of a monochrome camera do.

Fine texture is alike in all channels, too, and passes for such noise here: what is found is the
most that it can be. Pure functions of NumPy arrays.
"""

import numpy as np

_BLOCK = 16
# Of larger photographs, a window of this side in px in the middle is measured.
_WINDOW = 512
_FEWEST_BLOCKS = 8
# Less noise is that of a good photograph, grey levels.
_LEAST = 2.0
# Share of the variance that channels of independent noise seem to share by chance, at most.
_BY_CHANCE = 0.2
# Second differences along both axes multiply the variance of white noise by this.
_DIFFERENCES = 36.0


def of_photograph(image: np.ndarray) -> float:
    """Estimates the noise that the channels of a photograph share.

    Args:
        image: [H, W, 3], grey levels 0…255 of any dtype.

    Returns:
        Its standard deviation in grey levels, from the flatter half of the photograph; 0 for
        less than 2, for a smaller part of the noise than may be chance, and for a photograph
        that is too small or clipped all over.
    """
    rows, columns = (
        slice((length - side) // 2, (length + side) // 2)
        for length in image.shape[:2]
        for side in [min(length, _WINDOW) // _BLOCK * _BLOCK]
    )
    levels = image[rows, columns].astype(np.float32)
    if not levels.size:
        return 0.0
    rough = levels
    for axis in (0, 1):
        rough = np.diff(rough, n=2, axis=axis, append=rough.take([-1, -1], axis))
    count = levels.shape[-1]
    total = _block_means(np.square(rough.sum(-1)))
    own = _block_means(np.square(rough).sum(-1))
    shared = (total - own) / (count * (count - 1))  # the mean over the pairs of channels
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


def _block_means(image: np.ndarray) -> np.ndarray:
    """Returns the means of an image [H, W] over blocks, both sides being multiples of them."""
    height, width = (length // _BLOCK for length in image.shape)
    return image.reshape(height, _BLOCK, width, _BLOCK).mean((1, 3)).ravel()
