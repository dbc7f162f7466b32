"""Reading and removing the chunks of PNG files."""

import io
import struct
from collections.abc import Collection, Iterator
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Length of the signature and the header chunk (IHDR), which is always the first.
START = len(_SIGNATURE) + 12 + 13
# Chunks that define the colours of a PNG file without a profile.
COLOUR = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
TEXT = (b"tEXt", b"zTXt", b"iTXt")
# Chunks that may exceed the length that libpng accepts without a warning.
LONG = (*TEXT, b"iCCP")
PIXELS = (b"IDAT", b"fcTL", b"fdAT")

_XMP = b"XML:com.adobe.xmp"
# Keywords of text chunks that are written from other fields: XMP, and EXIF as some programs
# store it.
_METADATA = (_XMP, b"Raw profile type exif", b"Raw profile type APP1")


def read(file: BinaryIO, names: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the name and content of each chunk of a PNG file with one of the given names."""
    for name, start, length in _chunks(file):
        if name in names:
            file.seek(start + 8)
            yield name, file.read(length)


def without(encoded: bytes, names: Collection[bytes]) -> bytes:
    """Returns a PNG file without the named chunks; everything else, even damage, is kept."""
    kept, end = [], 0
    for name, start, length in _chunks(io.BytesIO(encoded)):
        if name in names:
            kept.append(encoded[end:start])
            end = start + 12 + length
    return b"".join([*kept, encoded[end:]])


def xmp_chunk(xmp: bytes) -> tuple[bytes, bytes]:
    """Returns the name and content of the chunk for an XMP packet."""
    return b"iTXt", _XMP + b"\0\0\0\0\0" + xmp


def is_metadata(text: bytes) -> bool:
    """Returns whether the content of a text chunk is XMP or EXIF data."""
    return text.split(b"\0", 1)[0] in _METADATA


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name, position and content length of each chunk, up to a truncated one."""
    size = file.seek(0, io.SEEK_END)
    position = len(_SIGNATURE)
    while position + 12 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        if position + 12 + length > size:
            return
        yield name, position, length
        if name == b"IEND":
            return
        position += 12 + length
