"""Restores a batch on all devices of a process, sharded over images or the rows of one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from restore_jax.parallel import device_mesh

# Smallest number of rows per core when an image is sharded by rows: each core also computes
# a margin around its own rows.
_MIN_ROWS = 64


def make_apply(model: nn.Module, variables: Mapping[str, Any]) -> Callable[..., jax.Array]:
    """Returns a function that applies a model on the devices of this process.

    A batch is sharded by images over as many devices as divide their number. A single image is
    sharded by rows over the cores of a CPU, which exchange the rows that convolutions, means
    and attention need from other cores. The results are equal up to rounding.

    Args:
        model: an architecture of `restore_jax.models` that restores images.
        variables: variables for its `apply`.

    Returns:
        A function from float32 [B, H, W, 3] in [0, 1] to the same shape, not clipped. Its
        second argument, [B, h, w, 3] or None, is the whole photographs that the images are
        parts of, for models that accept it; its third, the shape of the first or None, is the
        images' restorations, for a model that judges them.
    """
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"

    @functools.cache
    def program(
        names: tuple[str, ...], count: int, *axes: str | None
    ) -> Callable[..., jax.Array]:
        mesh = device_mesh.make_mesh(devices[:count])
        placed = jax.device_put(variables, device_mesh.replicated(mesh))
        split = NamedSharding(mesh, PartitionSpec(*axes))
        # The context is sharded by images, but not by rows.
        by_image = NamedSharding(mesh, PartitionSpec(axes[0]))
        others = (by_image if name == "context" else split for name in names)
        compiled = jax.jit(
            functools.partial(_apply, model, names),
            in_shardings=(device_mesh.replicated(mesh), split, *others),
            out_shardings=split,
        )
        return functools.partial(compiled, placed)

    def restore(
        batch: np.ndarray | jax.Array,
        context: np.ndarray | jax.Array | None = None,
        restored: np.ndarray | jax.Array | None = None,
    ) -> jax.Array:
        given = {"context": context, "restored": restored}
        others = {name: images for name, images in given.items() if images is not None}
        names, images = tuple(others), (batch, *others.values())
        count = _most(len(devices), len(batch))
        if count == 1 and on_cpu:
            rows = batch.shape[1]
            count = _most(min(len(devices), rows // _MIN_ROWS), rows)
            return program(names, count, None, "data")(*images)
        return program(names, count, "data")(*images)

    return restore


def _apply(
    model: nn.Module,
    names: tuple[str, ...],
    variables: Mapping[str, Any],
    degraded: jax.Array,
    *others: jax.Array,
) -> jax.Array:
    return model.apply(variables, degraded, **dict(zip(names, others, strict=True)))


def _most(limit: int, size: int) -> int:
    """Returns the largest divisor of a size up to a limit, at least 1."""
    return max((n for n in range(1, limit + 1) if size % n == 0), default=1)
