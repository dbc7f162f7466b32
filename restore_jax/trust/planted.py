"""Plants erased and invented defects, from which the error bar learns what they look like.

A good restorer makes few such errors, and none that its training data teach it to avoid. What
they leave behind is known: an erased defect is in the photograph, blurred, but not in the
restoration; an invented one in the restoration alone. Functions of NumPy arrays.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

KINDS = ("erased", "invented", "smoothed")

# Half-lengths of defects in px, and their contrasts, where 1 is white.
_LENGTHS = (2.5, 20.0)
_CONTRASTS = (0.06, 0.5)
# Widths of the blur of the photograph in px, along each axis.
_BLURS = (0.3, 6.0)
# Widths of the blur that removes detail from a restoration.
_SMOOTHED = (2.0, 6.0)


class Crop(NamedTuple):
    """A part of a photograph, float32 [H, W, 3] each, and of its restoration."""

    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray


def plant(crop: Crop, kind: str, random: np.random.Generator) -> Crop:
    """Adds an erased defect, an invented one, or a smoothed region.

    Args:
        crop: what to add it to; stays as it is.
        kind: one of `KINDS`.
        random: the source of randomness.

    Returns:
        An erased defect is added to the clean and the degraded image, an invented one to the
        restored one; in a smoothed region, that is blurred.
    """
    colours, inside = defect(*crop.clean.shape[:2], random)
    if kind == "erased":
        clean = np.clip(crop.clean + colours, 0.0, 1.0)
        widths = (_between(_BLURS, random), _between(_BLURS, random), 0.0)
        trace = ndimage.gaussian_filter(clean - crop.clean, widths)
        # Where a gain was undone, white may lie above 1.
        white = np.maximum(crop.degraded, 1.0)
        return Crop(np.clip(crop.degraded + trace, 0.0, white), crop.restored, clean)
    if kind == "invented":
        return crop._replace(restored=np.clip(crop.restored + colours, 0.0, 1.0))
    width = _between(_SMOOTHED, random)
    smooth = ndimage.gaussian_filter(crop.restored, (width, width, 0.0))
    return crop._replace(restored=crop.restored + inside * (smooth - crop.restored))


def defect(
    height: int, width: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a spot, a scratch or a stain with an irregular outline.

    Returns:
        What it adds to an image, float32 [height, width, 3] in [-0.5, 0.5]; and its shape, 1
        inside, with soft edges, float32 [height, width, 1].
    """
    length = _between(_LENGTHS, random)
    kind = random.choice(("spot", "scratch", "stain"))
    share = (0.05, 0.2) if kind == "scratch" else (0.4, 1.0)
    breadth = max(1.2, length * random.uniform(*share))
    angle = random.uniform(0.0, np.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] - random.uniform(0, height)
    columns = np.arange(width, dtype=np.float32) - random.uniform(0, width)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    outline = 1.0
    if kind == "stain":
        lobes, phase = random.integers(2, 6), random.uniform(0.0, 2 * np.pi)
        outline = 1.0 + 0.3 * np.sin(lobes * np.arctan2(across, along) + phase)
    distance = np.hypot(along / length, across / breadth) / outline
    inside = np.clip((1.15 - distance) * (min(length, breadth) / 1.5), 0.0, 1.0)
    inside = inside[..., None].astype(np.float32)
    colour = random.uniform(0.4, 1.0, 3) if random.random() < 0.5 else np.ones(3)
    contrast = random.choice((-1.0, 1.0)) * _between(_CONTRASTS, random)
    return inside * (contrast * colour).astype(np.float32), inside


def _between(limits: tuple[float, float], random: np.random.Generator) -> float:
    """Draws a number that is uniform on a logarithmic scale."""
    return float(np.exp(random.uniform(*np.log(limits))))
