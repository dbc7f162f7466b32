"""Reads image files of any common format and pixel type as 8-bit RGB, or as masks.

The result is an encoded PNG or JPEG that `decode` turns into pixels in `tf.data`. A plain 8-bit
PNG or JPEG file is passed through; all others are read by `restore_jax.image_io`, as in
restoring.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tifffile
from PIL import Image

from restore_jax import files
from restore_jax.errors import RunError, one_line
from restore_jax.image_io import image_files, limits, png_chunks
from restore_jax.image_io.photograph import BITS_AS_GREY, to_dtype

MAX_PIXELS = limits.MAX_MEGAPIXELS * 1_000_000

_PNG = b"\x89PNG"
# Pillow's names of TIFF samples that are no photographs, but labels of defects.
_LABEL_MODES = ("I", "F")


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


def header(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> image_files.Header:
    """Reads what an image file tells before its pixels are decoded.

    Args:
        file: path or contents of the file.
        max_pixels: maximum number of pixels.

    Raises:
        ImageError: the file is not an image, its pixel type is not supported, or it has more
            than `max_pixels`.
        RunError: the system fails to read the file.
    """
    with _errors(file):
        return image_files.read_header(file, max_pixels)


def encode(file: Path | bytes, max_pixels: int = MAX_PIXELS, white: int = 0) -> EncodedImage:
    """Reads a photograph as an encoded PNG or JPEG for `decode`.

    A plain 8-bit PNG or JPEG file is passed through; any other is read as in restoring. Alpha
    is dropped, 16 bits and floats are scaled to 8 bits, and the EXIF orientation is applied. Of
    several pages or frames, the first is read.

    Args:
        file: path or contents of the file.
        max_pixels: maximum number of pixels.
        white: the white level of 16-bit files; 0: as the file states, or else 65,535.

    Raises:
        ImageError: the file is damaged, `header` would refuse it, or its levels exceed `white`.
        RunError: the system fails to read the file.
    """
    with _errors(file):
        if image_files.read_header(file, max_pixels).plain:
            data = file if isinstance(file, bytes) else files.retried(file.read_bytes)
            if data.startswith(_PNG):  # some texts and profiles are too long for libpng
                data = png_chunks.without(data, png_chunks.LONG)
            # Checked with the decoder that will be used: others accept other kinds of damage.
            height, width, _ = decode(data, 3).shape
            return EncodedImage(data, (height, width))
        photograph = image_files.read(file, max_pixels)
        pixels, level = photograph.pixels, photograph.white
        if pixels.dtype == np.uint16 and white:
            if (highest := int(pixels.max())) > white:
                raise ImageError(
                    f"its levels reach {highest:,}, above the white {white:,} of "
                    "config.data.white"
                )
            level = white
        return _as_png(Image.fromarray(to_dtype(pixels, np.dtype(np.uint8), level)))


def highest_level(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> int:
    """Returns the highest level of a photograph; arguments and errors as for `header`."""
    with _errors(file):
        return int(image_files.read(file, max_pixels).pixels.max())


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
    with _errors(file):
        try:
            photograph = image_files.read(file, max_pixels)
            labels = photograph.pixels > (127 if photograph.format == "JPEG" else 0)
            if photograph.format == "TIFF" and BITS_AS_GREY in photograph.notes:
                labels ^= _is_bool_array(file)
        except image_files.ImageFileError:
            with _label_image(file, max_pixels) as image:
                if image is None:
                    raise
                labels = np.asarray(image) > 0
        defect = labels if labels.ndim == 2 else labels.any(axis=-1)
        picture = _as_png(Image.fromarray(np.where(defect, 255, 0).astype(np.uint8)))
        return Mask(*picture, blank=not defect.any())


def _is_bool_array(file: Path | bytes) -> bool:
    """Returns whether a 1-bit TIFF file is a Boolean array that tifffile wrote.

    It declares those as white where they are False, so that they look inverted elsewhere.
    """
    with tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file) as tiff:
        page = tiff.pages.first
        white_is_zero = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        return white_is_zero and page.software.startswith("tifffile")


def mask_header(file: Path | bytes, max_pixels: int = MAX_PIXELS) -> image_files.Header:
    """Reads what a mask file tells before its pixels are decoded; as `header`."""
    with _errors(file):
        try:
            return image_files.read_header(file, max_pixels)
        except image_files.ImageFileError:
            with _label_image(file, max_pixels) as image:
                if image is None:
                    raise
                return image_files.Header(image.size[::-1])


@contextlib.contextmanager
def _label_image(file: Path | bytes, max_pixels: int) -> Iterator[Image.Image | None]:
    """Opens a TIFF file of 32-bit integers or floats, which can only be labels, for a mask.

    Yields None for any other file.
    """
    with limits.PILLOW_LIMITS_LIFTED, contextlib.ExitStack() as stack:
        image = None
        if isinstance(file, bytes) or file.is_file():  # a named pipe would block
            with contextlib.suppress(OSError, SyntaxError, ValueError):
                source = io.BytesIO(file) if isinstance(file, bytes) else file
                image = stack.enter_context(Image.open(source, formats=["TIFF"]))
        if image is not None and image.mode in _LABEL_MODES:
            limits.check_size(*image.size, max_pixels, 1, 4)
            yield image
        else:
            yield None


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
def _errors(file: Path | bytes) -> Iterator[None]:
    """Turns any failure into an ImageError, or a RunError if the file may be intact."""
    try:
        yield
    except ImageError:
        raise
    except image_files.ImageFileError as error:
        if error.passing:
            raise RunError(str(error)) from error
        raise ImageError(_renamed(error.reason)) from error
    # Decoders raise all kinds of errors on damaged files: struct.error, KeyError, …
    except Exception as error:
        if files.is_passing(error):
            raise RunError(f"{file!s}: cannot be read: {error.strerror}") from error
        if isinstance(error, tf.errors.OpError):
            raise ImageError("is damaged") from error
        reason = error.strerror if isinstance(error, OSError) else None
        raise ImageError(_renamed(reason or one_line(error))) from error


def _renamed(reason: str) -> str:
    """Gives the limit the name that it has in a training."""
    return reason.replace("--max_megapixels", "config.data.max_megapixels")


def _as_png(image: Image.Image) -> EncodedImage:
    buffer = io.BytesIO()
    # The fastest level that still compresses: the data are soon decoded again.
    image.save(buffer, "PNG", compress_level=1)
    return EncodedImage(buffer.getvalue(), (image.height, image.width))
