"""A decoded image file, with everything that is needed to write it again."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from restore_jax.image_io import tiff_stack

# Notes on pixel formats that can be read but are not written again.
BITS_AS_GREY = "1 bit: written as 8-bit grey"
PALETTE_AS_RGB = "palette: written as RGB"
CMYK_AS_RGB = "CMYK: written as RGB"
UPPER_8_BITS = "is read with the upper 8 bits of each sample"


_FULL = 65535
# Cameras store 10 or more bits in 16; those with 15 or 16 are assumed to use the whole range.
_MIN_CAMERA_BITS, MAX_CAMERA_BITS = 10, 14


class Refused(Exception):
    """A file cannot be read or written; the message gives the reason, without the path."""


class TooLarge(Refused):
    """A file has more pixels than the limit."""


class Header(NamedTuple):
    """What an image file tells before its pixels are decoded.

    Attributes:
        size: displayed (height, width) in px.
        pictures: number of pictures, of which one is read unless all are asked for.
        deep: whether its samples are integers of more than 8 bits.
        states_white: whether it states the white level of such samples.
        plain: whether it is an upright 8-bit PNG or JPEG file, grey or RGB without alpha, of
            which all decoders make the same pixels.
    """

    size: tuple[int, int]
    pictures: int = 1
    deep: bool = False
    states_white: bool = False
    plain: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """An image file's pixels, upright, and its metadata.

    Attributes:
        pixels: [H, W] for grey, [H, W, 3] for RGB: uint8 or uint16 over their whole range, or
            the file's own float16, float32 or float64 in [0, 1].
        alpha: opacity [H, W] of the same dtype; None if the file has none.
        format: a key of `image_paths.SUFFIXES`, determined by the file's content.
        icc_profile: the colour profile of `pixels`; empty if there is none.
        dpi: horizontal and vertical resolution in px per inch, or None.
        exif: EXIF data that describe the photograph (time, location, camera), in the bytes that
            Pillow reads and writes; without orientation and thumbnail. Empty if there are none.
        white: the white level of integer samples; None for the maximum of their type.
        xmp: the XMP packet, adjusted to the upright photograph; empty if there is none.
        comment: the comment of a JPEG or GIF file.
        png_colour: names and contents of the chunks that define the colours of a PNG file.
        png_text: names and contents of the text chunks of a PNG file.
        further: the other pictures of a TIFF stack, of the same shape and type.
        tiff: the rest of a TIFF file's metadata, to be written again.
        notes: what the user should know about how the file was read, one line each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    icc_profile: bytes = b""
    dpi: tuple[float, float] | None = None
    exif: bytes = b""
    white: int | None = None
    xmp: bytes = b""
    comment: bytes = b""
    png_colour: tuple[tuple[bytes, bytes], ...] = ()
    png_text: tuple[tuple[bytes, bytes], ...] = ()
    further: "tuple[Photograph, ...]" = ()
    tiff: tiff_stack.Form | None = None
    notes: tuple[str, ...] = ()

    @property
    def planes(self) -> list[np.ndarray]:
        """Returns the pixels of all pictures."""
        return [self.pixels, *(picture.pixels for picture in self.further)]


def estimated_white(highest: int) -> int | None:
    """Estimates the white level of 10 to 14 bits stored in 16.

    Args:
        highest: the highest level in images of one camera.

    Returns:
        1,023, 4,095 or the like; None if the level exceeds 14 bits or is 0.
    """
    bits = max(_MIN_CAMERA_BITS, highest.bit_length())
    return 2**bits - 1 if highest > 0 and bits <= MAX_CAMERA_BITS else None


class Levels(NamedTuple):
    """The levels of a 16-bit image: its file's name, the white level it states, its highest."""

    name: str
    stated: int | None
    highest: int


def common_white(found: Sequence[Levels]) -> tuple[int, str]:
    """Returns the one white level of the 16-bit images of a data set.

    Images that state a level decide; if none does, it is estimated from the highest level of
    all of them. It is never one per image, which would hide differences in exposure.

    Args:
        found: the levels of the images, at least one.

    Returns:
        The level, and how it was found, as the end of a sentence about "its 16-bit images".

    Raises:
        Refused: the images contradict each other.
    """
    stated = [levels for levels in found if levels.stated is not None]
    if not stated:
        highest = max(levels.highest for levels in found)
        white = estimated_white(highest)
        if white is None:
            return _FULL, f"use the whole range: {_FULL:,} is white"
        bits = white.bit_length()
        return white, f"stay below {highest + 1:,}: {white:,} ({bits} bits) is taken for white"
    low, high = (pick(stated, key=lambda levels: levels.stated or 0) for pick in (min, max))
    assert low.stated is not None and high.stated is not None
    white = high.stated if low.stated == high.stated else 2 ** high.stated.bit_length() - 1
    if low.stated.bit_length() != high.stated.bit_length():
        raise Refused(f"{low.name} states {low.stated:,}, {high.name} {high.stated:,}")
    brightest = max(found, key=lambda levels: levels.highest)
    if brightest.highest > white:
        raise Refused(
            f"{high.name} states {high.stated:,}, {brightest.name} reaches "
            f"{brightest.highest:,}"
        )
    return white, f"state that {white:,} is white"


def to_dtype(levels: np.ndarray, dtype: np.dtype, white: int | None) -> np.ndarray:
    """Rescales samples to another integer type, rounding to nearest.

    Args:
        levels: uint8 or uint16 with a `white`, float in [0, 1], or uint16 for uint8.
        dtype: uint8 or uint16.
        white: the level of integers that is white; None: the highest of their type.

    Raises:
        ValueError: for other pairs of types.
    """
    if levels.dtype == dtype:
        return levels
    if white is not None:
        scaled = levels.astype(np.uint32) * np.iinfo(dtype).max + white // 2
        return np.minimum(scaled // white, np.iinfo(dtype).max).astype(dtype)
    if levels.dtype.kind == "f":
        white = np.iinfo(dtype).max
        return np.rint(np.clip(levels, 0, 1) * np.float32(white)).astype(dtype)
    if (levels.dtype, dtype) != (np.uint16, np.uint8):
        raise ValueError(f"{levels.dtype} cannot be rescaled to {dtype}")
    # 65,535 = 257 · 255
    return ((levels.astype(np.uint32) + 128) // 257).astype(dtype)
