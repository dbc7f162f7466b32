"""Reading anybody's image files, and writing them back restored in their own format.

All come out as grey or RGB, with 8 or 16 bits a sample (TIFF also with floats), with or without
alpha. Neither TensorFlow nor JAX is needed.
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
from restore_jax.image_io.photograph import Photograph, Refused
from restore_jax.shared_context import SharedContext

__all__ = ["MAX_PIXELS", "ImageFileError", "Photograph", "read", "write"]

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
    """An image file cannot be read or written; one line with its path and what is wrong."""


def read(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, pages: str = "first"
) -> Photograph:
    """Reads an image file, turned upright by its EXIF orientation.

    Of several pages or frames it is the first, which `notes` tells; of a TIFF file all of the
    series with the most pixels, if asked for. A colour that stands for transparency becomes
    alpha; palettes and CMYK, whatever its profile, become RGB, and 1 bit a pixel 8-bit grey,
    which `notes` tells. What JPEG data lost to damage within the file cannot always be told
    from a picture.

    Args:
        path: the file; its content alone says which format it is.
        max_pixels: a file with more is refused before it is decoded; a pixel of more than 8
            bytes counts as several.
        pages: of a TIFF file, "first" or "all".

    Raises:
        ImageFileError: the file cannot be read, is no image, is damaged, has too many pixels or
            pixels whose white nobody knows: integers of 32 bits, floats outside [0, 1].
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
        raise ImageFileError(f"{_shown(path)}: {error}") from error
    except MemoryError as error:
        raise ImageFileError(f"{_shown(path)}: does not fit into memory") from error
    # Whatever a decoder stumbles over in a damaged file: struct.error, KeyError, …
    except Exception as error:
        known = isinstance(error, OSError) and error.strerror
        reason = f"cannot be read: {known}" if known else f"is damaged: {_line(error)}"
        raise ImageFileError(f"{_shown(path)}: {reason}") from error


def write(
    path: str | os.PathLike[str],
    restored: np.ndarray | Sequence[np.ndarray],
    like: Photograph,
    format: str | None = None,
) -> tuple[str, ...]:
    """Writes a restored photograph in the format of its source, whole or not at all.

    Size, bits a sample, colour profile, resolution and what is told beside them are kept where
    the format has room; so is alpha, but for BMP and GIF. JPEG and AVIF have quality 95 and
    colour at full resolution, GIF the 256 nearest colours; all others are written without loss.

    Args:
        path: the file, which is replaced if it exists; its folder is made if need be.
        restored: pixels of the shape and type of `like.pixels`; of a stack, a sequence of them,
            for `like` and each of `like.further`.
        like: the photograph that was restored, from `read`.
        format: as `image_paths.format_name` takes it; the source's if None.

    Returns:
        What the format could not keep, each a line without the path.

    Raises:
        ImageFileError: the file cannot be written, or is too large for its format.
        UsageError: there is no such format.
        ValueError: `restored` does not go with `like`.
    """
    path = Path(path)
    name = like.format if format is None else format_name(format)
    planes = [restored] if isinstance(restored, np.ndarray) else list(restored)
    if len(planes) not in (1, 1 + len(like.further)):
        raise ValueError(f"{len(planes)} are restored of {1 + len(like.further)} pictures")
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
    # A full disk, but also metadata that an encoder does not take.
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or _line(error)
        raise ImageFileError(f"{_shown(path)}: cannot be written: {reason}") from error
    return notes


def _shown(path: Path) -> str:
    """The path on one line."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
