"""Times a training step: forward pass, loss, gradients, Adam and the step's metrics.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --model=rcan --batch=4 --peers=channels_last,compiled

One JSON line per framework; `benchmarks.common` documents the keys. Loss, optimizer and metrics
are those of the experiment, and PyTorch computes the same. TensorFlow is not needed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks import common, limits
from benchmarks.common import Task
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh
from restore_jax.train import steps


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the limits of the device and a record for each framework."""
    config = common.make_config(task)
    model = state.make_learner(config).model
    calls = {"jax": make_step(task)}
    if task.peers:
        # Imported on demand, since PyTorch is not a requirement.
        from benchmarks import torch_peer  # noqa: PLC0415

        calls |= torch_peer.training(task)
    yield common.ceilings_record(task.dtype)
    least = limits.training(model, task.size, task.batch, task.dtype)
    yield from common.records("train_step", task, calls, least)


def make_step(task: Task) -> Callable[[], Any]:
    """Returns a call that takes the next training step, always on the same batch."""
    config = common.make_config(task)
    learner = state.make_learner(config)
    mesh = device_mesh.make_mesh(device_mesh.fitting_devices(task.batch))
    step = steps.compile_step(config, learner, loss_terms.weighted_sum(config.loss), mesh)
    batch = jax.device_put(common.make_batch(task), device_mesh.split_over(mesh))
    now = jax.device_put(state.create_state(learner, config.seed), device_mesh.replicated(mesh))

    def call() -> Any:
        nonlocal now
        now, scalars = step(now, batch, {})
        return now, scalars

    return call


if __name__ == "__main__":
    common.run(__doc__, measure)
