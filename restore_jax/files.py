"""Where this project keeps its own files, and how it writes files whole or not at all."""

import atexit
import contextlib
import functools
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator

from restore_jax.errors import UsageError

TEMPORARY = ".tmp-"
"""What the names of files begin with that are still being written."""

# Letters and digits of any script; all else might mean something to somebody.
_PLAIN = re.compile(r"[\w/. -]*")


def cache_folder() -> pathlib.Path:
    """Returns `restore_jax` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(user) / "restore_jax"


@contextlib.contextmanager
def replacing(path: pathlib.Path, sole_writer: bool = False) -> Iterator[pathlib.Path]:
    """Gives a path to write to, whose content replaces the file once it is complete.

    A reader sees the old content or the new, never half of it, whatever ends the process or
    fills the disk meanwhile. Folders that are missing are made.

    Args:
        path: the file.
        sole_writer: that no other process writes it at the same time. What a killed process
            left is then overwritten by the next, instead of staying beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = "" if sole_writer else f"{os.getpid()}-"
    # A digest in place of the name, which may be as long already as names can be.
    digest = f"{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary = path.with_name(f"{TEMPORARY}{writer}{digest}{path.suffix[:16]}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one step, see `replacing`; it is on the disk when this returns."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def plain_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns an absolute path to a folder for libraries that read more into a path than names.

    Orbax looks for its files with an unescaped `glob`, TensorStore takes a backslash for a
    slash, and TensorFlow Datasets globs for what it prepared: a folder called `line [3]` is one
    that none of them finds. They get a link to it instead, in a folder of a plain name.

    Args:
        folder: need not be there yet.

    Returns:
        Its own path, if it is of plain characters; else one through a link, which is there
        until the process ends and is the same for the same folder.

    Raises:
        UsageError: where a link is needed and none can be made.
    """
    absolute = os.path.abspath(folder)  # noqa: PTH100 - as it is named: links are not followed
    if _is_plain(absolute):
        return pathlib.Path(absolute)
    return _link_to(absolute)


def _is_plain(path: str) -> bool:
    return _PLAIN.fullmatch(path) is not None


@functools.cache
def _link_to(absolute: str) -> pathlib.Path:
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if not _is_plain(place):
            continue
        try:
            folder = tempfile.mkdtemp(prefix="restore_jax-", dir=place)
            link = pathlib.Path(folder, "folder")
            link.symlink_to(absolute)
        except OSError:
            continue
        atexit.register(_remove, folder, os.getpid())
        return link
    raise UsageError(
        f"{absolute}: a path with such characters needs a link to it in a temporary folder, "
        "and none can be made; take another folder, or set TMPDIR to one that can be written"
    )


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
