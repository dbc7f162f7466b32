"""JAX's persistent compilation cache."""

import os

import jax

from restore_jax import user_cache


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start is quick.

    An environment that sets `JAX_COMPILATION_CACHE_DIR` has the last word.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(user_cache.folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
