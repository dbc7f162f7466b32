"""JAX's persistent compilation cache."""

import os
import tempfile

import jax

from restore_jax import user_cache


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick.

    Where there can be none, each start compiles anew. An environment that sets
    `JAX_COMPILATION_CACHE_DIR` has the last word.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = user_cache.folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
