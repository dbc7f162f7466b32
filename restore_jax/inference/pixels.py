"""Images as users have them: what can be restored, and its way to RGB floats and back."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from restore_jax.errors import RunError

DTYPES = ("uint8", "uint16", "float16", "float32", "float64")

# What an earlier resize in float32 may leave above white or below black.
_FLOAT_DUST = 1e-4


# Cameras give 10 bits and more in 16; those with 15 or 16 are taken to use the whole range.
_FEWEST_BITS, _MOST_BITS = 10, 14


class Levels(NamedTuple):
    """An image of whole numbers with the level that is white in it."""

    pixels: np.ndarray
    white: int | None


def found_white(planes: list[np.ndarray]) -> int | None:
    """Finds the white of a camera's 10 to 14 bits in 16 from the highest level.

    Args:
        planes: pictures of one camera.

    Returns:
        1,023, 4,095 or the like; None where the levels reach beyond 14 bits or are not uint16.
    """
    if any(plane.dtype != np.uint16 for plane in planes):
        return None
    highest = max(int(plane.max()) for plane in planes)
    bits = max(_FEWEST_BITS, highest.bit_length())
    return 2**bits - 1 if highest > 0 and bits <= _MOST_BITS else None


def checked(image: Any, name: str, batch: bool = False, white: int | None = None) -> np.ndarray:
    """Returns an image, or a batch where that is allowed, as a NumPy array.

    Args:
        image: to be checked.
        name: of it, for messages.
        batch: whether it may be a batch.
        white: the highest level that whole numbers may have; None for that of their type.

    Raises:
        ValueError: in one line, for anything else.
    """
    if not isinstance(image, np.ndarray | jax.Array):
        raise ValueError(
            f"{name}: a {type(image).__name__} is no array; give a NumPy or JAX array"
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
            raise ValueError(f"{name}: {array.dtype} has no level {white:,} to be white")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name}: some of its values are not finite")
        if low < -_FLOAT_DUST or high > 1.0 + _FLOAT_DUST:
            raise ValueError(
                f"{name}: floats must lie in [0, 1], these reach from {low:g} to {high:g}; "
                "scale them"
            )
    return array


class TiledImage:
    """An image as `restore_jax.inference.tiling` reads and writes it, and its result.

    Nothing of the image's size is held in float32: rows are converted as they come and go.
    """

    def __init__(
        self,
        array: np.ndarray,
        strength: float,
        context_side: int | None = None,
        white: int | None = None,
    ) -> None:
        self.height, self.width = array.shape[:2]
        self.result = np.empty_like(array)
        pixels = array[..., None] if array.ndim == 2 else array
        results = self.result[..., None] if array.ndim == 2 else self.result
        if pixels.shape[-1] == 4:
            results[..., 3] = pixels[..., 3]
        self._pixels, self._results = pixels[..., :3], results[..., :3]
        self._strength = strength
        self._white = np.float32(white or _white(array.dtype))
        self.context = None if context_side is None else self._thumbnail(context_side)

    def _thumbnail(self, side: int) -> np.ndarray:
        """Shrinks the image to a square as `models.gain_unet.thumbnail` does, in few rows."""
        everything = slice(None)
        small = np.empty((side, self.width, 3), np.float32)
        for row, (first, taps) in enumerate(_thumbnail_taps(self.height, side)):
            rows = self.read(slice(first, first + len(taps)), everything)
            small[row] = np.einsum("r,rwc->wc", taps, rows)
        columns = [
            np.einsum("r,hrc->hc", taps, small[:, first : first + len(taps)])
            for first, taps in _thumbnail_taps(self.width, side)
        ]
        return np.stack(columns, axis=1)

    def read(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
        """Returns some pixels as RGB, float32 [h, w, 3] in [0, 1]."""
        pixels = self._as_float32(self._pixels[rows][:, columns])
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def write(self, top: int, rows: np.ndarray) -> None:
        """Takes restored RGB rows, float32 [n, W, 3], any range."""
        if not np.isfinite(rows).all():
            raise RunError(
                "the model gives values that are not finite; take another checkpoint"
            )
        here = slice(top, top + len(rows))
        if self._results.shape[-1] == 1:
            # As `mean` does, which takes ten times as long over an axis of three.
            grey = rows[..., :1] + rows[..., 1:2]
            grey += rows[..., 2:]
            rows = np.divide(grey, np.float32(3.0), out=grey)
        rows = np.clip(rows, 0.0, 1.0)
        if self._strength < 1.0:
            rows *= np.float32(self._strength)
            rows += self._as_float32(self._pixels[here]) * np.float32(1.0 - self._strength)
        if self._results.dtype.kind == "u":
            rows *= self._white
            np.rint(rows, out=rows)
        else:
            rows += np.float32(0.0)  # makes zeros of negative zeros
        self._results[here] = rows

    def _as_float32(self, pixels: np.ndarray) -> np.ndarray:
        """Converts pixels of any dtype to float32 in [0, 1]."""
        if pixels.dtype.kind == "u":
            return pixels.astype(np.float32) / self._white
        return np.clip(pixels.astype(np.float32, copy=False), 0.0, 1.0)


def _thumbnail_taps(size: int, side: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first pixel under each pixel of a thumbnail, and the weights from there on."""
    ratio = size / side
    reach = max(ratio, 1.0)
    for place in range(side):
        centre = (place + 0.5) * ratio - 0.5
        first = max(0, math.ceil(centre - reach))
        pixels = np.arange(first, min(size - 1, math.floor(centre + reach)) + 1)
        taps = np.maximum(0.0, 1.0 - np.abs(pixels - centre) / reach)
        yield first, (taps / taps.sum()).astype(np.float32)


def _white(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
