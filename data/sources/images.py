"""Reading image files of any common format and pixel type as RGB (or a mask) in 8 bits.

Pillow reads, and what comes out is an encoded PNG or JPEG that `decode` turns into pixels in
`tf.data`. A file that is one already and needs no change stays as it is.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from restore_jax.image_io import limits, png_chunks

MAX_PIXELS = limits.MAX_MEGAPIXELS * 1_000_000

# Those of `image_io.image_paths` by Pillow's names. Given, so that a file in disguise never
# reaches the formats that run other programs. Those of cameras with several pictures in a JPEG
# file ("MPO" once opened) come with JPEG.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")

# Those that have a meaning in RGB; not floats, of which nobody knows what white is.
_MODES = (
    "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I",
    "I;16", "I;16B", "I;16L", "I;16N",
)  # fmt: skip


class ImageError(Exception):
    """A file cannot be read as an image; the message says why, without the file's name."""


class EncodedImage(NamedTuple):
    """An encoded picture and its size in px, (height, width), as it is displayed."""

    data: bytes
    size: tuple[int, int]


def decode(encoded: tf.Tensor | bytes, channels: int) -> tf.Tensor:
    """Decodes a PNG or JPEG file.

    Args:
        encoded: the file, string scalar.
        channels: 3 for RGB (grey is repeated), 1 for grey.

    Returns:
        uint8 [H, W, channels].
    """
    # Takes PNG as well. JPEG is decoded as Pillow does, to the bit; TensorFlow's default, a
    # faster arithmetic, is only within 47 dB of that, which shows in the PSNR of a good model.
    image = tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [None, None, channels])


def measure(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns an image's (height, width) in px, as displayed; reads no more than its header.

    Raises:
        ImageError: for a file that is no image, has pixels of a kind that is not read, or has
            more than `max_pixels`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no matter
        with _opened(path, max_pixels) as image:
            _check_mode(image)
            # The base class's: that of PNG would decode the whole image.
            turned = image.format != "TIFF" and _orientation(Image.Image.getexif(image)) >= 5
            width, height = image.size  # in a TIFF file's size its orientation is accounted for
            return (width, height) if turned else (height, width)


def encode(path: Path, max_pixels: int = MAX_PIXELS) -> EncodedImage:
    """Reads a photograph as an encoded PNG or JPEG that `decode` takes.

    Alpha is dropped, 16 bits are scaled to 8 over their whole range (to the nearest for grey;
    Pillow keeps the upper 8 of colour), the EXIF orientation is applied. Of a file with
    several pages or frames, it is the first.

    Raises:
        ImageError: for a file that is damaged, or that `measure` refuses.
    """
    with _opened(path, max_pixels) as image:
        _check_mode(image)
        plain = image.format in ("PNG", "JPEG") and image.mode in ("L", "RGB")
        if plain and _orientation(image.getexif()) == 1 and "transparency" not in image.info:
            data = path.read_bytes()
            if image.format == "PNG":  # libpng finds some texts and profiles too long
                data = png_chunks.without(data, png_chunks.LONG)
            # By the very decoder that it is for: each lets some damage pass that others refuse.
            height, width, _ = decode(data, 3).shape
            return EncodedImage(data, (height, width))
        ImageOps.exif_transpose(image, in_place=True)
        return _as_png(_to_rgb(image))


class Mask(NamedTuple):
    """A defect mask, as `Picture`; `blank` where there is no defect in it."""

    data: bytes
    size: tuple[int, int]
    blank: bool


def encode_mask(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> Mask:
    """Reads a defect mask as an encoded PNG, 0 or 255: defect is whatever is above 0.

    In a JPEG file it is what is above half: its compression blurs the edges. Alpha is no part
    of the mask.

    Args:
        file: its path, or what is in it.
        max_pixels: how many it may have.

    Raises:
        ImageError: as `encode`.
    """
    with _opened(file, max_pixels) as image:
        _check_mode(image)
        threshold = 127 if image.format in ("JPEG", "MPO") else 0
        ImageOps.exif_transpose(image, in_place=True)
        # Before any scaling: the defect may be the 1 of 16 bits.
        if not image.mode.startswith("I"):
            image = _to_rgb(image)
        levels = np.asarray(image)
        defect = levels > threshold if levels.ndim == 2 else (levels > threshold).any(axis=-1)
        picture = _as_png(Image.fromarray(np.where(defect, 255, 0).astype(np.uint8)))
        return Mask(*picture, blank=not defect.any())


def united(masks: Sequence[Mask]) -> bytes:
    """Returns the encoded PNG of all defects of several masks, which are of one size."""
    if len(masks) == 1:
        return masks[0].data
    levels = [np.asarray(Image.open(io.BytesIO(mask.data), formats=["PNG"])) for mask in masks]
    return _as_png(Image.fromarray(np.maximum.reduce(levels))).data


def blank_mask(size: tuple[int, int]) -> bytes:
    """Returns an encoded PNG without defect, of a size (height, width)."""
    return _as_png(Image.new("L", (size[1], size[0]))).data


@contextlib.contextmanager
def _opened(source: Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image; whatever fails inside is an ImageError.

    Args:
        source: the file's path, or what is in it.
        max_pixels: how many there may be.
    """
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise ImageError("not a plain file")  # a named pipe would never end
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            lifted = limits.PILLOWS_LIFTED
            with lifted, Image.open(file, formats=_FORMATS) as image:
                problem = limits.problem(
                    *image.size, max_pixels, "config.data.max_megapixels", len(image.getbands())
                )
                if problem:
                    raise ImageError(problem)
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        empty = not (source if isinstance(source, bytes) else source.stat().st_size)
        raise ImageError("the file is empty" if empty else "not an image file") from error
    # Whatever a decoder stumbles over in a damaged file: struct.error, KeyError, …
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        if isinstance(error, tf.errors.OpError):
            reason = "it is damaged"
        raise ImageError(
            reason or " ".join(str(error).split())[:200] or type(error).__name__
        ) from error


def _check_mode(image: Image.Image) -> None:
    if image.mode not in _MODES:
        raise ImageError(f"pixels of type {image.mode!r}; save it with 8 or 16 bits")


def _orientation(exif: Image.Exif) -> int:
    """The EXIF orientation; 1, upright, where there is none that means anything."""
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError("grey values beyond 16 bits; save it with 8 or 16 bits")
        # To the nearest: 65535 is 255 · 257.
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # or Pillow warns of the transparency it leaves out
    return image.convert("RGB")


def _as_png(image: Image.Image) -> EncodedImage:
    buffer = io.BytesIO()
    # The quickest compression that does anything: it is decoded again within the minute.
    image.save(buffer, "PNG", compress_level=1)
    return EncodedImage(buffer.getvalue(), (image.height, image.width))
