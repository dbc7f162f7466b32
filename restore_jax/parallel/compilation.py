"""JAX's persistent compilation cache."""

import contextlib
import os
import pathlib
import tempfile

import jax

from restore_jax import files

# A compiled program takes some hundred KiB, that of a large model on a GPU some MiB.
MAX_BYTES = 2 << 30


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick.

    The least recently used programs are removed when all take more than `MAX_BYTES`. If the
    folder cannot be created, each start compiles anew. `JAX_COMPILATION_CACHE_DIR` in the
    environment takes precedence.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = files.cache_folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home folder, or not writable
        return
    prune(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def prune(folder: pathlib.Path, most: int) -> None:
    """Removes the least recently used files of a folder that has grown too large.

    It is then reduced to half of the limit. Other processes may do the same at the same time;
    a process that misses a program compiles it.

    Args:
        folder: the folder, which may be missing.
        most: largest total size of its files, in bytes.
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
