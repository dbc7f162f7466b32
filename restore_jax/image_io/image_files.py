"""Reads image files from any source and writes their restorations in the same format.

All are decoded to grey or RGB, with 8 or 16 bits a sample (TIFF also to floats), with or
without alpha. Neither TensorFlow nor JAX is needed.
"""

import concurrent.futures
import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from restore_jax.errors import RunError, UsageError, one_line
from restore_jax.files import is_passing, replacing, retried
from restore_jax.image_io import decoding, encoding, limits
from restore_jax.image_io.image_paths import format_name
from restore_jax.image_io.photograph import (
    MAX_CAMERA_BITS,
    Header,
    Levels,
    Photograph,
    Refused,
    TooLarge,
    common_white,
)
from restore_jax.shared_context import SharedContext

__all__ = [
    "MAX_PIXELS", "Header", "ImageFileError", "ImageTooLargeError", "Photograph", "find_white",
    "format_of", "read", "read_header", "write",
]  # fmt: skip

Read = TypeVar("Read")

# Images whose levels are read at the same time, and up to how many this is done silently.
_THREADS, _SILENT = 4, 100

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
    """An image file cannot be read or written; one line with its path and the reason.

    Attributes:
        reason: the reason without the path.
        passing: whether the system failed to read the file, which may be intact.
    """

    def __init__(self, path: Path, reason: str, passing: bool = False) -> None:
        super().__init__(f"{_shown(path)}: {reason}")
        self.reason, self.passing = reason, passing


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
    path: str | os.PathLike[str] | bytes,
    max_pixels: int = MAX_PIXELS,
    pages: str = "first",
) -> Photograph:
    """Reads an image file, turned upright according to its EXIF orientation.

    Of several pages or frames, only the first is read; of a TIFF file, optionally all pages of
    the series with the most pixels. A colour that marks transparency becomes alpha. Palettes
    and CMYK (ignoring its profile) become RGB, and 1-bit images become 8-bit grey. `notes`
    mentions pages that were not read, and these conversions. Damage inside JPEG data cannot
    always be detected.

    Args:
        path: the file, or its contents, which alone determine its format.
        max_pixels: a larger file is refused before it is decoded; a pixel of more than 8 bytes
            counts as several.
        pages: "first" or "all" pages of a TIFF file.

    Raises:
        ImageFileError: the file cannot be read, is not an image, is damaged, has too many
            pixels (`ImageTooLargeError`) or has no defined white level: 32-bit integers,
            floats outside [0, 1].
    """
    return _reading(path, lambda file: decoding.decode(file, max_pixels, pages == "all"))


def read_header(path: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads what an image file tells before its pixels are decoded.

    Args:
        path: the file, or its contents.
        max_pixels: as for `read`.

    Raises:
        ImageFileError: as far as `read` would refuse the file by its header.
    """
    return _reading(path, lambda file: decoding.read_header(file, max_pixels))


def _reading(
    source: str | os.PathLike[str] | bytes, decode: Callable[[BinaryIO], Read]
) -> Read:
    """Applies a decoder to a file, or to its contents; any failure is an ImageFileError."""
    path = Path() if isinstance(source, bytes) else Path(source)

    def once() -> Read:
        with _QUIET, limits.PILLOW_LIMITS_LIFTED:
            if isinstance(source, bytes):
                return decode(io.BytesIO(source))
            with path.open("rb") as file:
                return decode(file)

    try:
        if not isinstance(source, bytes):
            _check_regular(path)
        return retried(once)
    except Refused as error:
        kind = ImageTooLargeError if isinstance(error, TooLarge) else ImageFileError
        raise kind(path, str(error)) from error
    except MemoryError as error:
        raise ImageFileError(path, "does not fit into memory") from error
    # Decoders raise all kinds of errors on damaged files: struct.error, KeyError, …
    except Exception as error:
        known = isinstance(error, OSError) and error.strerror
        # Pillow quotes the bytes that it took for the name of a part of the file.
        told = re.sub(r" \(chunk b['\"].*\)", "", one_line(error))
        reason = f"cannot be read: {known}" if known else f"is damaged: {told}"
        raise ImageFileError(path, reason, is_passing(error)) from error


def _check_regular(path: Path) -> None:
    if path.is_dir():
        allowed = os.access(path, os.R_OK | os.X_OK)
        raise Refused("is a folder" if allowed else "is a folder that cannot be read")
    if path.exists() and not path.is_file():  # reading a named pipe would block
        raise Refused("is not a regular file")


def find_white(name: str, paths: Sequence[Path], max_pixels: int = MAX_PIXELS) -> int:
    """Finds the one white level of the 16-bit images among the files of a data set.

    The pixels of 16-bit files are read, unless the first ones show that the whole range is
    used; the level and how it was found are printed in one line. Files that cannot be read are
    left to those who read them later.

    Args:
        name: name of the data set.
        paths: the files.
        max_pixels: as for `read`.

    Returns:
        The level; 0 if there are no 16-bit images.

    Raises:
        UsageError: the files contradict each other, see `photograph.common_white`.
    """
    deep = [(path, head) for path in paths if (head := _deep_header(path, max_pixels))]
    any_states = any(head.states_white for _, head in deep)
    found: list[Levels] = []
    title = f"{name}: looking for the white level"
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(deep), _THREADS):
            chunk = [path for path, _ in deep[start : start + _THREADS]]
            read_levels = threads.map(lambda path: _levels(path, max_pixels), chunk)
            found += [levels for levels in read_levels if levels is not None]
            if start == 0 and len(deep) > _SILENT:
                print(f"{title} of {len(deep)} 16-bit images", file=sys.stderr)
            whole = found and max(levels.highest for levels in found) >= 1 << MAX_CAMERA_BITS
            if whole and not any_states:
                break
    if not found:
        return 0
    try:
        white, how = common_white(found)
    except Refused as error:
        raise UsageError(
            f"config.data.white: the 16-bit images have different white levels ({error}); set "
            "it to that of all of them, or store them alike"
        ) from error
    print(f"{name}: its 16-bit images {how}")
    return white


def _deep_header(path: Path, max_pixels: int) -> Header | None:
    """Returns the header of a file of more than 8 bits; None for others and unreadable ones."""
    try:
        header = read_header(path, max_pixels)
    except ImageFileError:
        return None
    return header if header.deep else None


def _levels(path: Path, max_pixels: int) -> Levels | None:
    try:
        photograph = read(path, max_pixels)
    except ImageFileError:
        return None
    if photograph.pixels.dtype != np.uint16:
        return None
    return Levels(path.name, photograph.white, int(photograph.pixels.max()))


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
        raise ImageFileError(path, str(error)) from error
    # A full disk, but also metadata that an encoder rejects.
    except Exception as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ImageFileError(path, f"cannot be written: {reason}") from error
    return notes


def _shown(path: Path) -> str:
    """Returns the path on one line, escaped if need be."""
    return str(path) if str(path).isprintable() else ascii(str(path))
