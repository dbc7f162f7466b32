"""The cache folder of this project, atomic writes, and paths that other libraries can read."""

import atexit
import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from restore_jax.errors import UsageError

TEMPORARY = ".tmp-"
"""Prefix of the names of files that are still being written."""

# Letters and digits of any script; any other character may be special to some library.
_PLAIN = re.compile(r"[\w/. -]*")


Result = TypeVar("Result")

# Failures of a disk or a network share, which say nothing about the file.
_PASSING = frozenset(
    (
        errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENFILE, errno.EMFILE,
        errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ECONNRESET,
        errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
        errno.ENETUNREACH, errno.ENOTCONN, errno.ESHUTDOWN,
    )
)  # fmt: skip
_RETRY_PAUSES = (0.2, 2.0)  # in s


def is_passing(error: BaseException) -> bool:
    """Returns whether the system failed to read a file that may be intact."""
    return isinstance(error, OSError) and error.errno in _PASSING


def retried(read: Callable[[], Result]) -> Result:
    """Calls a function that reads files, again after a failure of the system.

    Raises:
        OSError: the failure of the last attempt.
        Exception: any other exception of the function, at once.
    """
    for pause in _RETRY_PAUSES:
        try:
            return read()
        except OSError as error:
            if not is_passing(error):
                raise
            time.sleep(pause)
    return read()


def cache_folder() -> pathlib.Path:
    """Returns `restore_jax` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(user) / "restore_jax"


@contextlib.contextmanager
def replacing(path: pathlib.Path, sole_writer: bool = False) -> Iterator[pathlib.Path]:
    """Writes a file atomically: yields a temporary path, which replaces the file on success.

    A reader sees either the old content or the new, never a partial file, even if the process
    is killed or the disk is full. Missing folders are created.

    Args:
        path: the file.
        sole_writer: whether no other process writes the file at the same time. The temporary
            file of a killed process is then overwritten by the next one instead of being left
            behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = "" if sole_writer else f"{os.getpid()}-"
    # A digest instead of the name, which may already have the greatest length allowed.
    digest = f"{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary = path.with_name(f"{TEMPORARY}{writer}{digest}{path.suffix[:16]}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically, see `replacing`; it is on disk when this returns."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def plain_path(folder: pathlib.Path) -> pathlib.Path:
    """Returns an absolute path to a folder without characters that some libraries interpret.

    Orbax looks for its files with an unescaped `glob`, TensorStore treats a backslash as a
    slash, and TensorFlow Datasets globs for what it prepared: none of them finds a folder
    called `line [3]`. They are given a symbolic link to it with a plain name instead.

    Args:
        folder: the folder, which need not exist yet.

    Returns:
        The folder's own path, if all its characters are plain; otherwise a path through a
        link, which lasts until the process ends and is the same for the same folder.

    Raises:
        UsageError: if a link is needed and none can be created.
    """
    absolute = os.path.abspath(folder)  # noqa: PTH100 - unlike resolve, follows no links
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
        f"{absolute}: a path with special characters needs a link in a temporary folder, which "
        "cannot be created; use another folder, or set TMPDIR to a writable one"
    )


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
