"""Times restoring a batch of images in device memory.

    python -m benchmarks.infer
    python -m benchmarks.infer --model=rcan --batch=1 --peers=channels_last,compiled

One JSON line per framework; `benchmarks.common` documents the keys. TensorFlow is not needed.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import common, limits
from benchmarks.common import Task
from restore_jax import models
from restore_jax.inference import sharded


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the limits of the device and a record for each framework."""
    model = models.from_config(common.make_config(task))
    images = common.make_batch(task)["degraded"]
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    restore = sharded.make_apply(model, variables)
    calls = {"jax": lambda: restore(images)}
    if task.peers:
        # Imported on demand, since PyTorch is not a requirement.
        from benchmarks import torch_peer  # noqa: PLC0415

        calls |= torch_peer.restoring(task)
    yield common.ceilings_record(task.dtype)
    least = limits.restoring(model, task.size, task.batch, task.dtype)
    yield from common.records("infer", task, calls, least)


if __name__ == "__main__":
    common.run(__doc__, measure)
