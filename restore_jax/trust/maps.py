"""The trust map as pictures: a heat map for the eye, and exact half-widths in 16 bits."""

import numpy as np

STEPS = 256
"""Steps of the 16-bit map per grey level of 8 bits."""

COLOURS = (
    "#000004", "#210c4a", "#57106e", "#8a226a", "#bc3754", "#e45a31", "#f98e09", "#f9cb35",
    "#fcffa4",
)  # fmt: skip
"""Colours of the heat map at ±0.5, 1, 2, 4, … 128 grey levels: nine of Matplotlib's "inferno".

It runs from dark to light, so that it can be read without colour vision.
"""

_FIRST = 0.5  # half-width of the first colour, in grey levels; each further one is twice it


def heat_map(half_width: np.ndarray) -> np.ndarray:
    """Colours half-widths on a fixed logarithmic scale, so that any two maps compare.

    Args:
        half_width: [H, W], at least 0, 1 being the white of the image.

    Returns:
        uint8 [H, W, 3].
    """
    doublings = np.log2(np.maximum(half_width, 1e-9) * np.float32(255 / _FIRST))
    place = np.clip(doublings / (len(COLOURS) - 1), 0.0, 1.0)
    return palette(256)[np.rint(place * 255).astype(np.uint8)]


def palette(count: int) -> np.ndarray:
    """Returns `COLOURS` and those between them, evenly spaced, uint8 [count, 3]."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS])
    places = np.linspace(0, len(COLOURS) - 1, count)
    channels = [np.interp(places, np.arange(len(COLOURS)), channel) for channel in anchors.T]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def sixteen_bits(half_width: np.ndarray) -> np.ndarray:
    """Converts half-widths to whole 1/256 grey levels of 8 bits, uint16 [H, W]."""
    return np.rint(np.clip(half_width, 0.0, 1.0) * np.float32(255 * STEPS)).astype(np.uint16)
