"""An image file's picture in memory, with what it takes to write it again."""

import dataclasses

import numpy as np

from restore_jax.image_io import tiff_stack

# What is said of a form that is read, but not written again.
BITS_AS_GREY = "1 bit: written as 8-bit grey"
PALETTE_AS_RGB = "palette: written as RGB"
CMYK_AS_RGB = "CMYK: written as RGB"
UPPER_8_BITS = "is read with the upper 8 bits of each sample"


class Refused(Exception):
    """A file cannot be read or written; the message says why, without its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """An image file's pixels, upright, and what the file tells beside them.

    Attributes:
        pixels: [H, W] for grey, [H, W, 3] for RGB: uint8 or uint16 over their whole range, or
            the file's own float16, float32 or float64 in [0, 1].
        alpha: opacity [H, W] of the same dtype; None where the file has none.
        format: a name of `image_paths.SUFFIXES`, by the file's content.
        icc_profile: the colour profile of `pixels`; empty where there is none.
        dpi: horizontal and vertical resolution in px per inch, or None.
        exif: what EXIF tells of the photograph, its time, place and camera, as Pillow takes it;
            without orientation and thumbnail. Empty where there is none.
        white: the level of whole numbers that is white; None for the largest of their type.
        xmp: the XMP packet, as it holds for the upright photograph; empty where there is none.
        comment: of JPEG and GIF.
        png_colour: names and contents of the chunks by which a PNG file defines its colours.
        png_text: and those of its text.
        further: the other pictures of a TIFF stack, of the same form.
        tiff: what else a TIFF file tells, to be written again.
        notes: what a person should know of the reading, each a line.
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
        """The pixels of all pictures."""
        return [self.pixels, *(picture.pixels for picture in self.further)]
