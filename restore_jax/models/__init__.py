"""The architectures, by the name that `config.model.name` gives."""

import inspect
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax.errors import UsageError
from restore_jax.models.sca_unet import VARIANTS, SCAUNet

MODELS: dict[str, type[nn.Module]] = {"sca_unet": SCAUNet}


def create(name: str, **options: Any) -> nn.Module:
    """Makes an architecture; its parameters come from `init`.

    Args:
        name: a key of `MODELS`.
        **options: the architecture's attributes, e.g. `variant="released"`.

    Returns:
        A module with `apply(variables, degraded, mask=None, train=False)` → restored
        [B, H, W, 3] float32, for any H and W.

    Raises:
        UsageError: for an unknown name, option or option value.
    """
    if name not in MODELS:
        raise UsageError(f"config.model.name: no model {name!r}; there are {sorted(MODELS)}")
    known = [
        o for o in inspect.signature(MODELS[name]).parameters if o not in ("parent", "name")
    ]
    for option in options:
        if option not in known:
            raise UsageError(
                f"config.model.{option}: {name} has no such option; it has {known}"
            )
    if options.get("variant", VARIANTS[0]) not in VARIANTS:
        raise UsageError(
            f"config.model.variant: {options['variant']!r} is not one of {list(VARIANTS)}"
        )
    if "widths" in options:
        options["widths"] = tuple(options["widths"])
        if len(options["widths"]) < 2 or any(w < 2 or w % 2 for w in options["widths"]):
            raise UsageError(
                f"config.model.widths: {options['widths']} must be two or more even numbers"
            )
    return MODELS[name](**options)


def from_config(config: ConfigDict) -> nn.Module:
    """Makes the architecture of `config.model`, computing in `config.dtype`."""
    if config.dtype not in ("float32", "bfloat16"):
        raise UsageError(f"config.dtype: {config.dtype!r} is not one of float32, bfloat16")
    options = config.model.to_dict()
    return create(options.pop("name"), dtype=jnp.dtype(config.dtype), **options)
