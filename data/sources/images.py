"""Reads image files of any common format and pixel type as 8-bit RGB, or as masks.

Pillow reads the file, and the result is an encoded PNG or JPEG that `decode` turns into pixels
in `tf.data`. A PNG or JPEG file that needs no conversion is passed through.
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

# The formats of `image_io.image_paths`, by Pillow's names. Restricted, so that a file with a
# false suffix never reaches formats whose decoders run other programs. JPEG includes the files
# of cameras that hold several pictures ("MPO" once opened).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")

# Pixel types that convert to RGB; floats do not, since their white level is undefined.
_MODES = (
    "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I",
    "I;16", "I;16B", "I;16L", "I;16N",
)  # fmt: skip


class ImageError(Exception):
    """A file cannot be read as an image; the message says why, without the file's name."""


class EncodedImage(NamedTuple):
    """An encoded image and its displayed size in px, (height, width)."""

    data: bytes
    size: tuple[int, int]


def decode(encoded: tf.Tensor | bytes, channels: int) -> tf.Tensor:
    """Decodes a PNG or JPEG file.

    Args:
        encoded: string scalar, the contents of the file.
        channels: 3 for RGB (grey is repeated), 1 for grey.

    Returns:
        uint8 [H, W, channels].
    """
    # Decodes PNG as well. This DCT method gives the same bits as Pillow; TensorFlow's faster
    # default is only within 47 dB of them, which shows in the PSNR of a good model.
    image = tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, [None, None, channels])


def measure(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns an image's displayed (height, width) in px; reads the file's header only.

    Raises:
        ImageError: the file is not an image, its pixel type is not supported, or it has more
            than `max_pixels`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata, which does not matter here
        with _opened(path, max_pixels) as image:
            _check_mode(image)
            # The base class's method: that of PNG would decode the whole image.
            sideways = image.format != "TIFF" and _orientation(Image.Image.getexif(image)) >= 5
            width, height = image.size  # already as displayed for TIFF
            return (width, height) if sideways else (height, width)


def encode(path: Path, max_pixels: int = MAX_PIXELS) -> EncodedImage:
    """Reads a photograph as an encoded PNG or JPEG for `decode`.

    Alpha is dropped, 16 bits are scaled to 8 over their full range (rounded for grey; for
    colour, Pillow keeps the upper 8 bits), and the EXIF orientation is applied. Of several
    pages or frames, the first is read.

    Raises:
        ImageError: the file is damaged, or `measure` would refuse it.
    """
    with _opened(path, max_pixels) as image:
        _check_mode(image)
        plain = image.format in ("PNG", "JPEG") and image.mode in ("L", "RGB")
        if plain and _orientation(image.getexif()) == 1 and "transparency" not in image.info:
            data = path.read_bytes()
            if image.format == "PNG":  # some texts and profiles are too long for libpng
                data = png_chunks.without(data, png_chunks.LONG)
            # Checked with the decoder that will be used: others accept other kinds of damage.
            height, width, _ = decode(data, 3).shape
            return EncodedImage(data, (height, width))
        ImageOps.exif_transpose(image, in_place=True)
        return _as_png(_to_rgb(image))


class Mask(NamedTuple):
    """A defect mask, as `EncodedImage`; `blank` if it shows no defect."""

    data: bytes
    size: tuple[int, int]
    blank: bool


def encode_mask(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> Mask:
    """Reads a defect mask as an encoded PNG of 0 and 255 (defect).

    Values above 0 are defect; in a JPEG file, whose compression blurs the edges, those above
    half. Alpha is ignored.

    Args:
        file: path or contents of the file.
        max_pixels: maximum number of pixels.

    Raises:
        ImageError: as `encode`.
    """
    with _opened(file, max_pixels) as image:
        _check_mode(image)
        threshold = 127 if image.format in ("JPEG", "MPO") else 0
        ImageOps.exif_transpose(image, in_place=True)
        # Not scaled to 8 bits: in a 16-bit mask, the defect may be marked by 1.
        if not image.mode.startswith("I"):
            image = _to_rgb(image)
        levels = np.asarray(image)
        defect = levels > threshold if levels.ndim == 2 else (levels > threshold).any(axis=-1)
        picture = _as_png(Image.fromarray(np.where(defect, 255, 0).astype(np.uint8)))
        return Mask(*picture, blank=not defect.any())


def union(masks: Sequence[Mask]) -> bytes:
    """Returns the union of several masks of one size, as an encoded PNG."""
    if len(masks) == 1:
        return masks[0].data
    levels = [np.asarray(Image.open(io.BytesIO(mask.data), formats=["PNG"])) for mask in masks]
    return _as_png(Image.fromarray(np.maximum.reduce(levels))).data


def blank_mask(size: tuple[int, int]) -> bytes:
    """Returns an empty mask of size (height, width), as an encoded PNG."""
    return _as_png(Image.new("L", (size[1], size[0]))).data


@contextlib.contextmanager
def _opened(source: Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image; any failure, also in the caller's block, becomes an ImageError.

    Args:
        source: path or contents of the file.
        max_pixels: maximum number of pixels.
    """
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise ImageError("not a plain file")  # reading a named pipe would block
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            lifted = limits.PILLOW_LIMITS_LIFTED
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
    # Decoders raise all kinds of errors on damaged files: struct.error, KeyError, …
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
    """Returns the EXIF orientation; 1 (upright) if missing or invalid."""
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError("grey values beyond 16 bits; save it with 8 or 16 bits")
        # Rounds to nearest: 65535 is 255 · 257.
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # otherwise Pillow warns of dropped transparency
    return image.convert("RGB")


def _as_png(image: Image.Image) -> EncodedImage:
    buffer = io.BytesIO()
    # The fastest level that still compresses: the data are soon decoded again.
    image.save(buffer, "PNG", compress_level=1)
    return EncodedImage(buffer.getvalue(), (image.height, image.width))
