"""The architectures, by the name used in `config.model.name`."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.errors import UsageError
from restore_jax.models.cbam_unet import CBAMUNet
from restore_jax.models.gain_unet import GainUNet
from restore_jax.models.pexels_cnn import PexelsCNN
from restore_jax.models.pexels_gan import PexelsDiscriminator, PexelsGenerator
from restore_jax.models.pexels_unet import PexelsUNet
from restore_jax.models.rcan import RCAN
from restore_jax.models.sca_unet import SCAUNet
from restore_jax.models.unet_small import SmallUNet

MODELS: dict[str, type[nn.Module]] = {
    "sca_unet": SCAUNet,
    "gain_unet": GainUNet,
    "rcan": RCAN,
    "unet_small": SmallUNet,
    "cbam_unet": CBAMUNet,
    "pexels_unet": PexelsUNet,
    "pexels_cnn": PexelsCNN,
    "pexels_generator": PexelsGenerator,
    "pexels_discriminator": PexelsDiscriminator,
}

DISCRIMINATORS = ("pexels_discriminator",)
"""Models that judge images instead of restoring them."""


def create(name: str, **options: Any) -> nn.Module:
    """Creates an architecture; its parameters come from `init`.

    Args:
        name: a key of `MODELS`.
        **options: the architecture's attributes, e.g. `variant="released"`; each architecture
            checks its own values. Lists, as read from JSON, become tuples.

    Returns:
        A module with `apply(variables, degraded, mask=None, train=False, valid=None)` →
        restored [B, H, W, 3] float32, for any H and W. Only some architectures use `mask`
        [B, H, W, 1]. In training, models with BatchNorm use the statistics of the rows that
        are `valid` (bool [B]; None: all) and return updated "batch_stats"; dropout uses the
        PRNG key "dropout". Only "pexels_discriminator" differs, see its class.

    Raises:
        UsageError: for an unknown name, option or option value.
    """
    if name not in MODELS:
        raise UsageError(f"config.model.name: no model {name!r}; there are {sorted(MODELS)}")
    known = [
        o for o in inspect.signature(MODELS[name]).parameters if o not in ("parent", "name")
    ]
    for option, value in options.items():
        if option not in known:
            raise UsageError(
                f"config.model.{option}: {name} has no such option; it has {known}"
            )
        # With a list the module would not be hashable and could not be a static argument.
        if isinstance(value, list):
            options[option] = tuple(value)
    return MODELS[name](**options)


def from_config(config: ConfigDict) -> nn.Module:
    """Creates the architecture of `config.model`, computing in `config.dtype`.

    Raises:
        UsageError: for an invalid field, or an architecture that does not restore images.
    """
    if config.dtype not in ("float32", "bfloat16"):
        raise UsageError(f"config.dtype: {config.dtype!r} is not one of float32, bfloat16")
    options = config.model.to_dict()
    name = options.pop("name")
    if name in DISCRIMINATORS:
        raise UsageError(
            f"config.model.name: {name} judges images instead of restoring them; use "
            "pexels_generator"
        )
    return create(name, dtype=jnp.dtype(config.dtype), **options)


def takes_context(model: nn.Module) -> bool:
    """Returns whether `apply` accepts `context`: the whole photograph along with a crop."""
    return getattr(model, "takes_context", False) and model.gain


def context_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword argument `context` for `apply`; {} if the model does not use it."""
    name = batches.CONTEXT
    if name not in batch or not takes_context(model):
        return {}
    return {"context": _without_gain(batch[name], batch)}


def input_of(batch: Mapping[str, Any]) -> Any:
    """Returns the degraded images of a batch as a network sees them, [B, H, W, 3]."""
    return _without_gain(batch["degraded"], batch)


def _without_gain(images: Any, batch: Mapping[str, Any]) -> Any:
    if batches.GAIN not in batch:
        return images
    return images / batch[batches.GAIN][:, None, None, :]


def discriminator(name: str, dtype: str) -> nn.Module:
    """Creates the discriminator of `config.adversarial`, computing in `config.dtype`.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in DISCRIMINATORS:
        raise UsageError(
            f"config.adversarial.discriminator: {name!r} is not one of {list(DISCRIMINATORS)}"
        )
    return create(name, dtype=jnp.dtype(dtype))
