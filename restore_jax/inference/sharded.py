"""Restoring a batch on all devices of a process: images, or the rows of one, are divided."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from restore_jax.parallel import device_mesh

# Cores that share an image have so many of its rows at least: they also compute what lies
# around their own.
_LEAST_ROWS = 64


def divided(model: nn.Module, variables: Mapping[str, Any]) -> Callable[..., jax.Array]:
    """Returns what runs a model on the devices of this process.

    The images of a batch are divided among as many devices as their number allows. A single
    image is divided by its rows among the cores of a CPU, which exchange what convolutions,
    means and attention see of the others' rows. The results are the same to rounding.

    Args:
        model: an architecture of `restore_jax.models` that restores.
        variables: what its `apply` takes.

    Returns:
        A function of float32 [B, H, W, 3] in [0, 1], which gives the same shape, not clipped.
        A second argument, [B, h, w, 3] or None, is what the images are parts of, for models
        that take it.
    """
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"

    @functools.cache
    def program(in_context: bool, count: int, *axes: str | None) -> Callable[..., jax.Array]:
        mesh = device_mesh.make_mesh(devices[:count])
        placed = jax.device_put(variables, device_mesh.replicated(mesh))
        split = NamedSharding(mesh, PartitionSpec(*axes))
        # The rows of one image share its whole context.
        contexts = (NamedSharding(mesh, PartitionSpec(axes[0])),) * in_context
        compiled = jax.jit(
            functools.partial(_apply, model),
            in_shardings=(device_mesh.replicated(mesh), split, *contexts),
            out_shardings=split,
        )
        return functools.partial(compiled, placed)

    def restore(
        batch: np.ndarray | jax.Array, context: np.ndarray | jax.Array | None = None
    ) -> jax.Array:
        images = (batch,) if context is None else (batch, context)
        in_context = context is not None
        count = _most(len(devices), len(batch))
        if count == 1 and on_cpu:
            rows = batch.shape[1]
            count = _most(min(len(devices), rows // _LEAST_ROWS), rows)
            return program(in_context, count, None, "data")(*images)
        return program(in_context, count, "data")(*images)

    return restore


def _apply(
    model: nn.Module, variables: Mapping[str, Any], degraded: jax.Array, *context: jax.Array
) -> jax.Array:
    return model.apply(variables, degraded, **({"context": context[0]} if context else {}))


def _most(limit: int, size: int) -> int:
    """Returns the largest number up to a limit that divides a size; 1 at least."""
    return max((n for n in range(1, limit + 1) if size % n == 0), default=1)
