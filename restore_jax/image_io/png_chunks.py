"""The chunks of PNG files: those with text, which may be of any size, apart from the picture.

Pillow takes a file whose compressed text or profile is longer than a megabyte for damaged. It
is given the file without these chunks, and the text goes from file to file as it is.
"""

import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks by which a PNG file without a profile defines its colours.
COLOUR = (b"cICP", b"sRGB", b"gAMA", b"cHRM")

_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp"
# Where some programs keep EXIF, which is written anew in its own chunk. Pillow looks in these
# and in XMP for the orientation.
_EXIF_AS_TEXT = (b"Raw profile type exif", b"Raw profile type APP1")
# Of one compressed text or profile; more is not for a person to read.
_MOST_BYTES = 64 << 20
_PILLOWS_MOST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Aside:
    """What was kept from Pillow.

    Attributes:
        text: names and contents of the chunks with text, but EXIF and XMP.
        xmp: the XMP packet; empty where there is none.
        icc_profile: the colour profile; empty where there is none.
        colour: names and contents of the chunks of `COLOUR`.
        notes: what is left out, each a line.
    """

    text: tuple[tuple[bytes, bytes], ...] = ()
    xmp: bytes = b""
    icc_profile: bytes = b""
    colour: tuple[tuple[bytes, bytes], ...] = ()
    notes: tuple[str, ...] = ()


def read(file: BinaryIO, names: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the names and contents of some of a PNG file's chunks."""
    for name, start, length in _chunks(file):
        if name in names:
            file.seek(start + 8)
            yield name, file.read(length)


def chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk as it stands in a file."""
    check = zlib.crc32(name + content)
    return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", check)


def xmp_chunk(xmp: bytes) -> tuple[bytes, bytes]:
    """Returns the name and content of a chunk with an XMP packet."""
    return b"iTXt", _XMP + b"\0\0\0\0\0" + xmp


def set_aside(file: BinaryIO, header_only: bool = False) -> tuple[BinaryIO, Aside]:
    """Divides a PNG file into its picture and what is told beside it.

    Args:
        file: open for reading.
        header_only: looks no further than the first of the pixels.

    Returns:
        The file without text and profile, open at its start; and these.
    """
    kept: list[tuple[int, int]] = []
    text: list[tuple[bytes, bytes]] = []
    colour: list[tuple[bytes, bytes]] = []
    notes: list[str] = []
    xmp = profile = b""
    end = 0
    for name, start, length in _chunks(file):
        if header_only and name == b"IDAT":
            break
        content = b""
        if name in COLOUR or name in _TEXT or name == b"iCCP":
            content = file.read(length)
        if name in COLOUR:
            colour.append((name, content))
        if name not in (*_TEXT, b"iCCP"):
            continue
        keyword = content.split(b"\0", 1)[0]
        is_xmp = keyword == _XMP and name == b"iTXt"
        if is_xmp:
            xmp = _itxt(content, notes)
        if not (keyword in _EXIF_AS_TEXT or is_xmp) or _is_long(name, content):
            kept.append((end, start))
            end = start + 12 + length
        if name == b"iCCP":
            profile = _inflated(content[len(keyword) + 2 :], notes, "colour profile")
        elif keyword not in _EXIF_AS_TEXT and not is_xmp:
            text.append((name, content))
    aside = Aside(tuple(text), xmp, profile, tuple(colour), tuple(notes))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if not kept:
        return file, aside
    parts = _Parts(file, [*kept, (end, size)])
    return io.BufferedReader(parts), aside  # type: ignore[return-value]


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yields names, places and lengths; the file then stands at the content."""
    size = file.seek(0, io.SEEK_END)
    place = len(SIGNATURE)
    while place + 12 <= size:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if place + 12 + length > size:
            return
        yield name, place, length
        if name == b"IEND":
            return
        place += 12 + length


def _is_long(name: bytes, content: bytes) -> bool:
    most = _PILLOWS_MOST_BYTES
    if name == b"tEXt" or len(content) > most:
        return len(content) > most
    text = _itxt(content, []) if name == b"iTXt" else content.split(b"\0", 1)[-1][1:]
    return len(text if name == b"iTXt" else _inflate(text, most + 1)) > most


def _inflate(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""


def _inflated(data: bytes, notes: list[str], what: str) -> bytes:
    found = _inflate(data, _MOST_BYTES + 1)
    if not found or len(found) > _MOST_BYTES:
        reason = f"it has more than {_MOST_BYTES >> 20} MiB" if found else "it is damaged"
        notes.append(f"its {what} is left out: {reason}")
        return b""
    return found


def _itxt(content: bytes, notes: list[str]) -> bytes:
    """The text of an international text chunk."""
    _, _, rest = content.partition(b"\0")
    *_, text = rest[2:].split(b"\0", 2)
    return _inflated(text, notes, "XMP packet") if rest[:1] == b"\1" else text


class _Parts(io.RawIOBase):
    """Parts of a file as one file: (start, end) each, read where they lie."""

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]]) -> None:
        super().__init__()
        self._file, self._parts, self._place = file, parts, 0
        self._size = sum(end - start for start, end in parts)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        place = self._place
        for start, end in self._parts:
            if place < end - start:
                self._file.seek(start + place)
                data = self._file.read(min(len(buffer), end - start - place))
                buffer[: len(data)] = data
                self._place += len(data)
                return len(data)
            place -= end - start
        return 0
