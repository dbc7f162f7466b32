"""Limits on the size of images, checked before anything is decoded.

The sizes of formats whose decoders allocate memory as they open a file are parsed here.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from restore_jax.image_io.photograph import Refused, TooLarge
from restore_jax.shared_context import SharedContext

MAX_MEGAPIXELS = 200
"""Default limit, in millions of pixels of up to `BYTES_PER_PIXEL` bytes."""

# 16-bit RGB with alpha. A pixel with more bytes counts as several.
BYTES_PER_PIXEL = 8

MAX_CHANNELS = 64
"""Maximum number of channels of a TIFF or JPEG 2000 file."""

# Maximum bytes of one decompressed text or profile of a PNG file, and of all texts together.
_MAX_TEXT, _MAX_TEXTS = 64 << 20, 256 << 20
_PILLOW_LIMITS: tuple[tuple[Any, str, int | None], ...] = (
    (Image, "MAX_IMAGE_PIXELS", None),
    (PngImagePlugin, "MAX_TEXT_CHUNK", _MAX_TEXT),
    (PngImagePlugin, "MAX_TEXT_MEMORY", _MAX_TEXTS),
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
    """Returns an error message if an image has too many pixels.

    Args:
        width: in px.
        height: in px.
        max_pixels: the limit.
        setting: name of the setting that raises the limit, such as `--max_megapixels`.
        samples: number of samples per pixel.
        sample_bytes: bytes per sample.
        planes: number of pictures of that size.

    Returns:
        What is wrong and which setting allows it; None if the image is within the limit.
    """
    count = width * height * planes
    weighted = max(count, -(-count * samples * sample_bytes // BYTES_PER_PIXEL))
    if weighted <= max_pixels:
        return None
    size = f"{width:,} × {height:,} pixels"
    if planes > 1:
        size = f"{planes:,} pictures of {size}"
    if weighted > count:
        size += f" with {samples} samples of {8 * sample_bytes} bits"
    needed = -(-weighted // 1_000_000)
    limit = f"{max_pixels / 1e6:g} megapixels"
    return f"has {size}, more than {limit}; {setting}={needed} allows it"


def check_size(
    width: int,
    height: int,
    max_pixels: int,
    samples: int = 1,
    sample_bytes: int = 1,
    planes: int = 1,
) -> None:
    """Checks the size of an image; the arguments are those of `problem`.

    Raises:
        Refused: the image has no pixels; `TooLarge` if it has too many.
    """
    if width < 1 or height < 1:
        raise Refused("has no pixels")
    setting = "--max_megapixels"
    if found := problem(width, height, max_pixels, setting, samples, sample_bytes, planes):
        raise TooLarge(found)


def gif_size(header: bytes) -> tuple[int, int]:
    """Returns the (width, height) of a GIF file."""
    width, height = struct.unpack("<HH", header[6:10])
    return width, height


def webp_size(header: bytes) -> tuple[int, int] | None:
    """Returns the (width, height) in a WebP file's first chunk; None if it is truncated."""
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
    """Header of a JPEG 2000 codestream: size in px, samples per pixel, bits per sample."""

    width: int
    height: int
    samples: int
    bits: int


def jp2_codestream(encoded: bytes) -> Codestream:
    """Parses the codestream header of a JPEG 2000 file, whose boxes may state another size.

    Raises:
        Refused: there is no codestream, or its samples have no defined white level.
    """
    start = encoded.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(encoded[start + 40 : start + 42])
    if start < 0 or not 1 <= count <= MAX_CHANNELS:
        raise Refused("is damaged: it has no JPEG 2000 codestream")
    depths = set(encoded[start + 42 : start + 42 + 3 * count : 3])
    bits = (max(depths, default=0) & 127) + 1
    if len(depths) != 1 or max(depths) > 127 or bits > 16:
        raise Refused(
            "has samples that are signed, of different depths or of more than 16 bits"
        )
    right, bottom, left, top = struct.unpack(">4I", encoded[start + 8 : start + 24])
    return Codestream(right - left, bottom - top, count, bits)


@contextlib.contextmanager
def _lift_pillow_limits() -> Iterator[None]:
    before = [(of, name, getattr(of, name)) for of, name, _ in _PILLOW_LIMITS]
    _set(_PILLOW_LIMITS)
    try:
        yield
    finally:
        _set(before)


def _set(values: Iterable[tuple[Any, str, Any]]) -> None:
    for of, name, value in values:
        setattr(of, name, value)


PILLOW_LIMITS_LIFTED = SharedContext(_lift_pillow_limits)
"""Context in which Pillow opens files of any size, which `problem` then checks.

Texts and profiles of PNG files may then also exceed Pillow's limit of one megabyte.
"""
