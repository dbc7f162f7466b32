"""Reads tar archives of unknown origin as a stream, without extracting them.

Such archives are not trusted: nothing is ever written under a name taken from one. A member is
refused if it points outside the archive, is not a regular file or folder, is sparse, or is
larger than the pixels of any photograph that is read. An archive is refused if it claims to be
larger than any data set, or if it is truncated, which `tarfile` on its own does not notice.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from restore_jax.errors import UsageError, one_line
from restore_jax.image_io import limits

SUFFIXES = (".tar.xz", ".tar.gz", ".tar", ".txz", ".tgz")
# MVTec AD has about 7,000 members.
MAX_MEMBERS = 100_000
MAX_BYTES = 64 << 30  # all members together, uncompressed; MVTec AD has 5 GB
MAX_NAME = 1_000  # characters
# All headers of one member; `tarfile` trusts their sizes and follows chains of them.
MAX_HEADER_BYTES = 16 << 10

_MAGIC_BYTES = 6


def is_archive(path: Path) -> bool:
    """Returns whether a file has the name of a supported archive."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def refused(path: Path, problem: str) -> UsageError:
    """Returns the error for an archive and what is wrong with it."""
    return UsageError(
        f"config.data.root: the archive {str(path)!r} was refused: {problem};"
        " download it again from its official page"
    )


def members(
    path: Path, wanted: Callable[[str], bool], max_pixels: int
) -> Iterator[tuple[str, bytes | None]]:
    """Yields the name of every file in an archive, with its contents if wanted, else None.

    Args:
        path: the archive.
        wanted: whether to read the file of a given name.
        max_pixels: maximum number of pixels of a photograph.

    Raises:
        UsageError: the archive cannot be read to its end, or a member is refused.
    """
    seen: set[str] = set()
    claimed = 0
    try:
        with _open(path) as stream:
            guarded = _Guarded(stream)
            with tarfile.open(fileobj=guarded, mode="r:") as tar:
                for count in itertools.count():
                    guarded.allow(MAX_HEADER_BYTES)
                    member = tar.next()
                    if member is None:
                        break
                    # Neither is needed, and a hostile archive could fill the memory with them.
                    tar.members.clear()
                    tar.pax_headers.clear()
                    if count >= MAX_MEMBERS:
                        raise refused(path, f"it has more than {MAX_MEMBERS:,} members")
                    name = _checked_name(path, member, max_pixels)
                    claimed += member.size
                    if claimed > MAX_BYTES:
                        raise refused(path, f"its members take more than {MAX_BYTES:,} bytes")
                    if member.isdir():
                        continue
                    if name in seen:
                        raise refused(path, f"it contains {name!r} twice")
                    seen.add(name)
                    content = None
                    if wanted(name):
                        guarded.allow(member.size)
                        content = tar.extractfile(member).read()
                    yield name, content
            if guarded.last != bytes(tarfile.BLOCKSIZE):
                raise refused(path, "it has no end mark: it is cut short or damaged")
    # On an invalid header, `tarfile` raises whatever error it runs into.
    except (
        tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError,
        ValueError, LookupError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise refused(path, f"it cannot be read to its end ({one_line(error)})") from error


class _Guarded:
    """File object for `tarfile` that limits the bytes read and remembers the last block.

    `tarfile` reads extended headers completely, whatever their claimed size and number, and
    takes an unreadable header for the end of the archive.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._allowed = MAX_HEADER_BYTES
        self.last = b""
        self.seek = stream.seek
        self.tell = stream.tell

    def allow(self, count: int) -> None:
        """Sets the number of bytes that may be read from now on."""
        self._allowed = count

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes.

        Raises:
            tarfile.ReadError: `size` exceeds what is allowed.
        """
        if not 0 <= size <= self._allowed:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        self._allowed -= size
        self.last = self._stream.read(size)
        return self.last


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Opens an archive for reading, decompressed according to its first bytes."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(path.open("rb"))
        magic = stream.read(_MAGIC_BYTES)
        stream.seek(0)
        if magic.startswith(b"\xfd7zXZ"):
            stream = stack.enter_context(lzma.open(stream))
        elif magic.startswith(b"\x1f\x8b"):
            stream = stack.enter_context(gzip.open(stream))
        yield stream


def _checked_name(path: Path, member: tarfile.TarInfo, max_pixels: int) -> str:
    """Checks that a member is a harmless file or folder and returns its name without `./`."""
    if len(member.name) > MAX_NAME:
        raise refused(path, f"the name of a member has {len(member.name):,} characters")
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        raise refused(path, f"its member {member.name!r} points outside of it")
    if not (member.isfile() or member.isdir()):
        raise refused(path, f"its member {member.name!r} is a link or a device")
    if member.issparse():
        raise refused(path, f"its member {member.name!r} is a sparse file")
    most = max_pixels * limits.BYTES_PER_PIXEL
    if not 0 <= member.size <= most:
        needed = -(-member.size // (limits.BYTES_PER_PIXEL * 1_000_000))
        raise refused(
            path,
            f"its member {member.name!r} claims {member.size:,} bytes (at most {most:,} are"
            f" read; config.data.max_megapixels={needed} allows it)",
        )
    return "/".join(part for part in parts if part not in ("", "."))
