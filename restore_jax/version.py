"""The version of the installed package."""

import importlib.metadata


def installed() -> str | None:
    """Returns it; None for a checkout that is not installed."""
    try:
        return importlib.metadata.version("restore_jax")
    except importlib.metadata.PackageNotFoundError:
        return None
