"""The chunks that PNG files are made of."""

import io
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Signature and header, before which there is no other chunk.
START = len(_SIGNATURE) + 12 + 13
# The chunks by which a PNG file without a profile defines its colours.
COLOUR = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
TEXT = (b"tEXt", b"zTXt", b"iTXt")
# Those that may be longer than libpng takes without a warning.
LONG = (*TEXT, b"iCCP")
PIXELS = (b"IDAT", b"fcTL", b"fdAT")

_XMP = b"XML:com.adobe.xmp"
# Text that is written anew: XMP, and EXIF as some programs keep it.
_METADATA = (_XMP, b"Raw profile type exif", b"Raw profile type APP1")


def read(file: BinaryIO, names: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the names and contents of some of a PNG file's chunks."""
    for name, start, length in _chunks(file):
        if name in names:
            file.seek(start + 8)
            yield name, file.read(length)


def without(encoded: bytes, names: Collection[bytes]) -> bytes:
    """Returns a PNG file without some of its chunks; all else stays where it is, damage too."""
    kept, end = [], 0
    for name, start, length in _chunks(io.BytesIO(encoded)):
        if name in names:
            kept.append(encoded[end:start])
            end = start + 12 + length
    return b"".join([*kept, encoded[end:]])


def chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk as it stands in a file."""
    check = zlib.crc32(name + content)
    return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", check)


def xmp_chunk(xmp: bytes) -> tuple[bytes, bytes]:
    """Returns the name and content of a chunk with an XMP packet."""
    return b"iTXt", _XMP + b"\0\0\0\0\0" + xmp


def is_metadata(text: bytes) -> bool:
    """Whether a text chunk of this content has XMP or EXIF data."""
    return text.split(b"\0", 1)[0] in _METADATA


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yields names, places and lengths of content."""
    size = file.seek(0, io.SEEK_END)
    place = len(_SIGNATURE)
    while place + 12 <= size:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if place + 12 + length > size:
            return
        yield name, place, length
        if name == b"IEND":
            return
        place += 12 + length
