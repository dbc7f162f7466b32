"""How large an image may be: what it takes in memory is known before anything is decoded.

Where the decoders make room for a picture as they open its file, the size is read here.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from restore_jax.image_io.photograph import Refused
from restore_jax.shared_context import SharedContext

MAX_MEGAPIXELS = 200
"""The limit where none is given, in millions of pixels of up to `BYTES` bytes."""

# RGB with alpha in 16 bits. A pixel of more bytes counts as several.
BYTES = 8

MOST_CHANNELS = 64
"""Of a TIFF or JPEG 2000 file."""

# Of one compressed text or profile in a PNG file, and of all texts together, in bytes.
_MOST_TEXT, _MOST_TEXTS = 64 << 20, 256 << 20
_PILLOWS: tuple[tuple[Any, str, int | None], ...] = (
    (Image, "MAX_IMAGE_PIXELS", None),
    (PngImagePlugin, "MAX_TEXT_CHUNK", _MOST_TEXT),
    (PngImagePlugin, "MAX_TEXT_MEMORY", _MOST_TEXTS),
)


def problem(
    width: int,
    height: int,
    max_pixels: int,
    setting: str,
    samples: int = 1,
    sample_bytes: int = 1,
    planes: int = 1,
) -> str | None:
    """Tells whether an image has too many pixels.

    Args:
        width: in px.
        height: in px.
        max_pixels: the limit.
        setting: what raises it, such as `--max_megapixels`.
        samples: of a pixel.
        sample_bytes: what each of them takes.
        planes: how many pictures of that size there are.

    Returns:
        What is wrong and what to do; None if nothing is.
    """
    count = width * height * planes
    weighed = max(count, -(-count * samples * sample_bytes // BYTES))
    if weighed <= max_pixels:
        return None
    size = f"{width:,} × {height:,} pixels"
    if planes > 1:
        size = f"{planes:,} pictures of {size}"
    if weighed > count:
        size += f" with {samples} samples of {8 * sample_bytes} bits"
    needed = -(-weighed // 1_000_000)
    limit = f"{max_pixels / 1e6:g} megapixels"
    return f"has {size}, more than {limit}; {setting}={needed} takes it"


def check_size(
    width: int,
    height: int,
    max_pixels: int,
    samples: int = 1,
    sample_bytes: int = 1,
    planes: int = 1,
) -> None:
    """Refuses what has no pixels or too many; the arguments are those of `problem`."""
    if width < 1 or height < 1:
        raise Refused("has no pixels")
    setting = "--max_megapixels"
    if found := problem(width, height, max_pixels, setting, samples, sample_bytes, planes):
        raise Refused(found)


def gif_size(header: bytes) -> tuple[int, int]:
    """The (width, height) of a GIF file."""
    width, height = struct.unpack("<HH", header[6:10])
    return width, height


def webp_size(header: bytes) -> tuple[int, int] | None:
    """The (width, height) that a WebP file's first chunk tells; None if it is cut short."""
    kind, data = header[12:16], header[20:]
    if len(data) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF


class Codestream(NamedTuple):
    """Of a JPEG 2000 file: size in px, samples of a pixel, bits of a sample."""

    width: int
    height: int
    samples: int
    bits: int


def jp2_codestream(encoded: bytes) -> Codestream:
    """Finds what the codestream of a JPEG 2000 file tells; its boxes may tell another size.

    Raises:
        Refused: there is none, or its samples have no defined white.
    """
    start = encoded.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(encoded[start + 40 : start + 42])
    if start < 0 or not 1 <= count <= MOST_CHANNELS:
        raise Refused("is damaged: it has no JPEG 2000 codestream")
    depths = set(encoded[start + 42 : start + 42 + 3 * count : 3])
    bits = (max(depths, default=0) & 127) + 1
    if len(depths) != 1 or max(depths) > 127 or bits > 16:
        raise Refused("has samples with signs, of several kinds or of more than 16 bits")
    right, bottom, left, top = struct.unpack(">4I", encoded[start + 8 : start + 24])
    return Codestream(right - left, bottom - top, count, bits)


@contextlib.contextmanager
def _pillows_lifted() -> Iterator[None]:
    before = [(of, name, getattr(of, name)) for of, name, _ in _PILLOWS]
    _set(_PILLOWS)
    try:
        yield
    finally:
        _set(before)


def _set(values: Iterable[tuple[Any, str, Any]]) -> None:
    for of, name, value in values:
        setattr(of, name, value)


PILLOWS_LIFTED = SharedContext(_pillows_lifted)
"""Entered around what opens files with Pillow, whose size is then checked with `problem`.

Texts and profiles of PNG files may then be longer than the megabyte that Pillow takes.
"""
