"""Users' images: which arrays can be restored, and their conversion to RGB floats and back."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from restore_jax.errors import RunError

DTYPES = ("uint8", "uint16", "float16", "float32", "float64")

# How far an earlier resize in float32 may overshoot white or black.
_RANGE_TOLERANCE = 1e-4


class Levels(NamedTuple):
    """An image to restore.

    Attributes:
        pixels: the image.
        white: the white level of integers; None: the highest of their dtype.
        in_place: whether the restoration may overwrite the pixels, which saves the memory of a
            second image.
        gain: the digital gain of each channel, if it was measured before; None: not yet.
    """

    pixels: np.ndarray
    white: int | None
    in_place: bool = False
    gain: np.ndarray | None = None


def checked(image: Any, name: str, batch: bool = False, white: int | None = None) -> np.ndarray:
    """Checks an image, or a batch if allowed, and returns it as a NumPy array.

    Args:
        image: the image.
        name: its name in error messages.
        batch: whether a batch is allowed.
        white: the highest level that integers may have; None: the highest of their dtype.

    Raises:
        ValueError: if it cannot be restored, in one line.
    """
    if not isinstance(image, np.ndarray | jax.Array):
        raise ValueError(
            f"{name}: a {type(image).__name__} is not an array; give a NumPy or JAX array"
        )
    if np.dtype(image.dtype).name not in DTYPES:
        raise ValueError(f"{name}: dtype {image.dtype} is not one of {', '.join(DTYPES)}")
    array, shape = np.asarray(image), list(image.shape)
    layouts = "[H, W] or [H, W, C]" + (" or [B, H, W, C]" if batch else "")
    if not 2 <= array.ndim <= 3 + batch:
        raise ValueError(f"{name}: shape {shape} is not {layouts}")
    if array.ndim > 2 and shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name}: shape {shape} has {shape[-1]} channels in its last axis; there must be 1 "
            "(grey), 3 (RGB) or 4 (RGB and alpha)"
        )
    if not array.size:
        raise ValueError(f"{name}: shape {shape} has no pixels")
    if array.dtype.kind == "u" and white is not None:
        colours = array[..., :3] if shape[-1] == 4 and array.ndim > 2 else array
        if (highest := int(colours.max())) > white:
            raise ValueError(f"{name}: its levels reach {highest:,}, above the white {white:,}")
        if white > np.iinfo(array.dtype).max:
            raise ValueError(f"{name}: the white level {white:,} does not fit {array.dtype}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name}: some of its values are not finite")
        if low < -_RANGE_TOLERANCE or high > 1.0 + _RANGE_TOLERANCE:
            raise ValueError(
                f"{name}: floats must lie in [0, 1], these range from {low:g} to {high:g}; "
                "scale them"
            )
    return array


class TiledImage:
    """An image to be restored by `restore_jax.inference.tiling`, and its result.

    No float32 copy of the whole image is held: rows are converted as they are read and written.
    The result may overwrite the image, since no tile is read from rows that were written.

    Args:
        array: the image, as `Restorer` accepts it.
        strength: weight of the restoration in the result, the rest being the image itself.
        context_side: side of the thumbnail in `context`; None for none.
        white: the white level of integers; None: the highest of their dtype.
        in_place: the result may overwrite the image.
        gain: factors [C] that the colours are divided by before they are restored.

    Attributes:
        result: the restored image, of the shape and dtype of the input.
        half_width: float32 [H, W], how far a pixel may be off, 1 being white; None unless the
            restored rows have a fourth channel with it.
    """

    half_width: np.ndarray | None = None

    def __init__(
        self,
        array: np.ndarray,
        strength: float,
        context_side: int | None = None,
        white: int | None = None,
        in_place: bool = False,
        gain: np.ndarray | None = None,
    ) -> None:
        self.height, self.width = array.shape[:2]
        self._in_place = in_place and array.flags.writeable
        self.result = array if self._in_place else np.empty_like(array)
        self._written = 0  # rows
        pixels = array[..., None] if array.ndim == 2 else array
        results = self.result[..., None] if array.ndim == 2 else self.result
        if pixels.shape[-1] == 4:
            results[..., 3] = pixels[..., 3]
        self._pixels, self._results = pixels[..., :3], results[..., :3]
        self._strength = strength
        self._white = np.float32(white_of(array.dtype, white))
        self._gain = gain
        self.context = None if context_side is None else self._thumbnail(context_side)

    def _thumbnail(self, side: int) -> np.ndarray:
        """Resizes the image as `models.gain_unet.thumbnail` does, a few rows at a time."""
        small = np.empty((side, self.width, 3), np.float32)
        for row, (first, taps) in enumerate(_thumbnail_taps(self.height, side)):
            rows = self.read(slice(first, first + len(taps)), slice(None))
            small[row] = np.einsum("r,rwc->wc", taps, rows)
        columns = [
            np.einsum("r,hrc->hc", taps, small[:, first : first + len(taps)])
            for first, taps in _thumbnail_taps(self.width, side)
        ]
        return np.stack(columns, axis=1)

    def read(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
        """Returns the pixels of given rows and columns as RGB, float32 [h, w, 3] in [0, 1]."""
        pixels = self._as_float32(self._pixels[rows][:, columns])
        if self._gain is not None:
            pixels = pixels / self._gain
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def write(self, top: int, rows: np.ndarray) -> None:
        """Converts restored RGB rows, float32 [n, W, 3] of any range, and stores them.

        A fourth channel is the half-width of the pixels' intervals.

        Raises:
            RunError: if some values are not finite, or memory ran out when a part of an image
                was already overwritten.
        """
        if self._in_place and top < self._written:
            raise RunError("out of memory while an image was restored; use a smaller tile")
        self._written = top + len(rows)
        if not np.isfinite(rows).all():
            raise RunError("the model gives values that are not finite; use another checkpoint")
        here = slice(top, top + len(rows))
        bars = rows[..., 3:]
        if self._results.shape[-1] == 1:
            # Not `mean`, which takes ten times as long over an axis of three.
            grey = rows[..., :1] + rows[..., 1:2]
            grey += rows[..., 2:3]
            rows = np.divide(grey, np.float32(3.0), out=grey)
            np.clip(rows, 0.0, 1.0, out=rows)
        elif bars.size:
            # Channel by channel: NumPy takes five times as long for three of four at once.
            colours = np.empty((*rows.shape[:2], 3), np.float32)
            for channel in range(3):
                np.clip(rows[..., channel], 0.0, 1.0, out=colours[..., channel])
            rows = colours
        else:
            rows = np.clip(rows, 0.0, 1.0)
        kept = np.float32(1.0 - self._strength)
        degraded = self._as_float32(self._pixels[here]) if kept else None
        if bars.size:
            if self.half_width is None:
                self.half_width = np.empty((self.height, self.width), np.float32)
            half_width = bars[..., 0]
            if degraded is not None:
                # What the blend is away from the restoration may add to the error.
                half_width = half_width + kept * np.abs(degraded - rows).max(axis=-1)
            self.half_width[here] = np.minimum(half_width, 1.0)
        if degraded is not None:
            rows *= np.float32(self._strength)
            rows += degraded * kept
        if self._results.dtype.kind == "u":
            rows *= self._white
            np.rint(rows, out=rows)
        else:
            rows += np.float32(0.0)  # turns -0.0 into 0.0
        self._results[here] = rows

    @property
    def share(self) -> float:
        """Returns how much of it is restored, from 0 to 1."""
        return self._written / self.height

    def _as_float32(self, pixels: np.ndarray) -> np.ndarray:
        """Converts pixels of any dtype to float32 in [0, 1]."""
        if pixels.dtype.kind == "u":
            return pixels.astype(np.float32) / self._white
        return np.clip(pixels.astype(np.float32, copy=False), 0.0, 1.0)


def _thumbnail_taps(size: int, side: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first pixel that each pixel of a thumbnail covers, and the weights from it."""
    ratio = size / side
    reach = max(ratio, 1.0)
    for place in range(side):
        centre = (place + 0.5) * ratio - 0.5
        first = max(0, math.ceil(centre - reach))
        pixels = np.arange(first, min(size - 1, math.floor(centre + reach)) + 1)
        taps = np.maximum(0.0, 1.0 - np.abs(pixels - centre) / reach)
        yield first, (taps / taps.sum()).astype(np.float32)


def white_of(dtype: np.dtype, white: int | None = None) -> float:
    """Returns the level that is white: of integers `white` or the highest, of floats 1."""
    return float(white or np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
