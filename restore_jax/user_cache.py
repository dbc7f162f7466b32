"""Where this project keeps what can be made again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """Returns `restore_jax` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(user) / "restore_jax"
