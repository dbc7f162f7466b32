"""Paths for libraries that read more into a path than the name of a file.

Orbax looks for its files with an unescaped `glob`, TensorStore takes a backslash for a slash,
and TensorFlow Datasets globs for what it prepared: a folder called `line [3]` is one that none
of them finds. They get a link to it instead, in a folder of a plain name.
"""

import atexit
import functools
import os
import pathlib
import re
import shutil
import tempfile

from restore_jax.errors import UsageError

# Letters and digits of any script; all else might mean something to somebody.
_PLAIN = re.compile(r"[\w/. -]*")


def of(folder: pathlib.Path) -> pathlib.Path:
    """Returns an absolute path of plain characters that leads to a folder.

    Args:
        folder: need not be there yet.

    Returns:
        Its own path, if it is one; else one through a link, which is there until the process
        ends and is the same for the same folder.

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
