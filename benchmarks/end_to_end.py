"""Times training with its input: the host's pipeline, the way to the device and the step.

    python -m benchmarks.end_to_end
    python -m benchmarks.end_to_end --size=256 --batch=8 --rounds=50

Rendered photographs of twice `--size` are degraded anew for every epoch ("train_fresh") or once
("train_cached"); a round is a step. One JSON line each; `benchmarks.common` says what the keys
mean. Besides:

    input_share       of the time, spent waiting for the pipeline
    first_step_s      from the making of the data to the end of the first, compiled step

It takes TensorFlow.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import common, limits
from benchmarks.common import Task
from data import pipeline
from restore_jax import batches, losses, state, steps

_WARM_UPS = 2


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the limits of the device and a line for each way to make pairs."""
    yield common.ceilings_record(task.dtype)
    yield _train("train_fresh", task, realisations=0)
    yield _train("train_cached", task, realisations=1)


def _train(op: str, task: Task, realisations: int) -> dict[str, Any]:
    began = time.perf_counter()
    config = common.make_config(task, "sample")
    config.data.image_size = task.size
    config.data.sample_size = max(32, 2 * task.size)
    config.data.sample_count = 2
    config.data.realisations = realisations
    system = state.make_system(config)
    mesh = batches.make_mesh(jax.devices()[:1])
    step = steps.compile_step(config, system, losses.weighted_sum(config.loss), mesh)
    now = jax.device_put(state.create_state(system, config.seed), batches.replicated(mesh))
    stream = pipeline.make_data(config).train_batches(0)

    first, waited = 0.0, 0.0
    milliseconds = []
    for turn in range(_WARM_UPS + task.rounds):
        start = time.perf_counter()
        batch = next(stream)
        ready = time.perf_counter()
        # Waited for, unlike in a training, where the host runs ahead: each round is its own.
        now, scalars = step(now, batches.to_devices(batch, mesh), {})
        jax.block_until_ready((now, scalars))
        end = time.perf_counter()
        if turn == 0:
            first = end - began
        if turn >= _WARM_UPS:
            waited += ready - start
            milliseconds.append(1e3 * (end - start) / task.batch)
    least = limits.training(system.model, task.size, task.batch, task.dtype)
    share = 1e3 * waited / (sum(milliseconds) * task.batch)
    return common.record(op, task, "jax", milliseconds, least) | {
        "input_share": round(share, 4),
        "first_step_s": round(first, 2),
    }


if __name__ == "__main__":
    common.run(__doc__, measure, rounds=20)
