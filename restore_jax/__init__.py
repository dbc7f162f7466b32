"""Trains, evaluates and applies networks that restore images and preserve their defects.

`restore_jax.load(path_or_name)` returns a trained model that is callable on arrays, see
`Restorer`. `restore_jax.models_available()` lists the models that come with the package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restore_jax.checkpoints.weights_file import save_weights
    from restore_jax.inference.assessment import Assessment
    from restore_jax.inference.restorer import Restorer, load
    from restore_jax.shipped import models_available

__all__ = ["Assessment", "Restorer", "load", "models_available", "save_weights"]

_HOMES = {
    "Assessment": "inference.assessment",
    "Restorer": "inference.restorer",
    "load": "inference.restorer",
    "models_available": "shipped",
    "save_weights": "checkpoints.weights_file",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that JAX is loaded only when it is needed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
