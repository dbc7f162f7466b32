"""Reads image files from any source and writes their restorations in the same format.

All are decoded to grey or RGB, with 8 or 16 bits a sample (TIFF also to floats), with or
without alpha. Neither TensorFlow nor JAX is needed.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from restore_jax.errors import RunError
from restore_jax.files import replacing
from restore_jax.image_io import decoding, encoding, limits
from restore_jax.image_io.image_paths import format_name
from restore_jax.image_io.photograph import Photograph, Refused, TooLarge
from restore_jax.shared_context import SharedContext

__all__ = [
    "MAX_PIXELS",
    "ImageFileError",
    "ImageTooLargeError",
    "Photograph",
    "format_of",
    "read",
    "write",
]

MAX_PIXELS = limits.MAX_MEGAPIXELS * 1_000_000


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings and tifffile's log."""
    log = logging.getLogger("tifffile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = before


_QUIET = SharedContext(_quiet)


class ImageFileError(RunError):
    """An image file cannot be read or written; one line with its path and the reason."""


class ImageTooLargeError(ImageFileError):
    """An image file has more pixels than the limit."""


def format_of(path: Path) -> str:
    """Returns the format of an image file, as in `Photograph.format`, by its content.

    Raises:
        Refused: it has no supported format.
    """
    with path.open("rb") as file:
        return decoding.format_of(file.read(decoding.HEADER_BYTES))


def read(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, pages: str = "first"
) -> Photograph:
    """Reads an image file, turned upright according to its EXIF orientation.

    Of several pages or frames, only the first is read; of a TIFF file, optionally all pages of
    the series with the most pixels. A colour that marks transparency becomes alpha. Palettes
    and CMYK (ignoring its profile) become RGB, and 1-bit images become 8-bit grey. `notes`
    mentions pages that were not read, and these conversions. Damage inside JPEG data cannot
    always be detected.

    Args:
        path: the file; its format is determined by its content alone.
        max_pixels: a larger file is refused before it is decoded; a pixel of more than 8 bytes
            counts as several.
        pages: "first" or "all" pages of a TIFF file.

    Raises:
        ImageFileError: the file cannot be read, is not an image, is damaged, has too many
            pixels (`ImageTooLargeError`) or has no defined white level: 32-bit integers,
            floats outside [0, 1].
    """
    path = Path(path)
    try:
        if path.is_dir():
            allowed = os.access(path, os.R_OK | os.X_OK)
            raise Refused("is a folder" if allowed else "is a folder that cannot be read")
        if path.exists() and not path.is_file():
            raise Refused("is not a regular file")
        with _QUIET, limits.PILLOW_LIMITS_LIFTED, path.open("rb") as file:
            return decoding.decode(file, max_pixels, pages == "all")
    except Refused as error:
        kind = ImageTooLargeError if isinstance(error, TooLarge) else ImageFileError
        raise kind(f"{_shown(path)}: {error}") from error
    except MemoryError as error:
        raise ImageFileError(f"{_shown(path)}: does not fit into memory") from error
    # Decoders raise all kinds of errors on damaged files: struct.error, KeyError, …
    except Exception as error:
        known = isinstance(error, OSError) and error.strerror
        reason = f"cannot be read: {known}" if known else f"is damaged: {_one_line(error)}"
        raise ImageFileError(f"{_shown(path)}: {reason}") from error


def write(
    path: str | os.PathLike[str],
    restored: np.ndarray | Sequence[np.ndarray],
    like: Photograph,
    format: str | None = None,
) -> tuple[str, ...]:
    """Writes a restored photograph atomically, in the format of its source by default.

    Size, bits a sample, colour profile, resolution and other metadata are kept if the format
    supports them; so is alpha, except in BMP and GIF. JPEG and AVIF are written at quality 95
    with colour at full resolution, GIF with the 256 nearest colours, all others losslessly.

    Args:
        path: the file, which is replaced if it exists; missing folders are created.
        restored: pixels of the shape and type of `like.pixels`; for a stack, a sequence of
            them, for `like` and each of `like.further`.
        like: the photograph that was restored, from `read`.
        format: a format or suffix that `image_paths.format_name` accepts; None for that of the
            source.

    Returns:
        What the format could not keep, one line each, without the path.

    Raises:
        ImageFileError: the file cannot be written, or the image is too large for its format.
        UsageError: the format is unknown.
        ValueError: `restored` does not match `like` in number, shape or type.
    """
    path = Path(path)
    name = like.format if format is None else format_name(format)
    planes = [restored] if isinstance(restored, np.ndarray) else list(restored)
    if len(planes) not in (1, 1 + len(like.further)):
        raise ValueError(
            f"restored has {len(planes)} pictures, the photograph {1 + len(like.further)}"
        )
    for plane in planes:
        if plane.shape != like.pixels.shape or plane.dtype != like.pixels.dtype:
            raise ValueError(
                f"restored is {plane.dtype} {plane.shape}, the photograph "
                f"{like.pixels.dtype} {like.pixels.shape}"
            )
    try:
        with replacing(path, sole_writer=True) as part, _QUIET, part.open("wb+") as file:
            notes = encoding.encode(file, planes, like, name)
    except Refused as error:
        raise ImageFileError(f"{_shown(path)}: {error}") from error
    # A full disk, but also metadata that an encoder rejects.
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or _one_line(error)
        raise ImageFileError(f"{_shown(path)}: cannot be written: {reason}") from error
    return notes


def _shown(path: Path) -> str:
    """Returns the path on one line, escaped if need be."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _one_line(error: Exception) -> str:
    """Returns the message of an error on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
