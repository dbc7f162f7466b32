"""A decoded image file, with everything that is needed to write it again."""

import dataclasses

import numpy as np

from restore_jax.image_io import tiff_stack

# Notes on pixel formats that can be read but are not written again.
BITS_AS_GREY = "1 bit: written as 8-bit grey"
PALETTE_AS_RGB = "palette: written as RGB"
CMYK_AS_RGB = "CMYK: written as RGB"
UPPER_8_BITS = "is read with the upper 8 bits of each sample"


class Refused(Exception):
    """A file cannot be read or written; the message gives the reason, without the path."""


class TooLarge(Refused):
    """A file has more pixels than the limit."""


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
