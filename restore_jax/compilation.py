"""JAX's persistent compilation cache."""

import os
import pathlib

import jax


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick.

    An environment that sets `JAX_COMPILATION_CACHE_DIR` has the last word.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "restore_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
