"""JAX's persistent compilation cache."""

import contextlib
import os
import pathlib
import tempfile

import jax

from restore_jax import files

# A program takes some hundred KiB, of large models on a GPU some MiB.
MAX_BYTES = 2 << 30


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick.

    What was not used for longest goes when they take more than `MAX_BYTES`. Where there can be
    no such folder, each start compiles anew. An environment that sets
    `JAX_COMPILATION_CACHE_DIR` has the last word.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = files.cache_folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return
    prune(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def prune(folder: pathlib.Path, most: int) -> None:
    """Removes the files of a folder that were not used for longest, if all take too much.

    Half of what is allowed is left then. Another process may do the same meanwhile, and one
    that misses a program compiles it.

    Args:
        folder: of files; it may be missing.
        most: bytes that they may take together.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= most:
        return
    for _, size, path in sorted(found):
        if total <= most // 2:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - it has a name, not a Path
        total -= size
