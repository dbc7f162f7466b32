"""Times training including its input, for each way to provide the input.

    python -m benchmarks.end_to_end
    python -m benchmarks.end_to_end --size=256 --batch=8 --rounds=50

The photographs are rendered at twice `--size`. One JSON line per way, all timed in turn:

    train_fresh            the host's pipeline, which degrades them anew in every epoch
    train_cached           the host's pipeline, with fixed pairs cached as 8-bit pixels
    train_resident         fixed pairs in device memory, several steps per dispatch
    train_resident_fresh   the same, with noise and gain drawn within the step

`benchmarks.common` documents the keys. A round is a few steps, and `relative_time` is relative
to "train_cached" in the same round. Additional keys:

    input_share       fraction of the time spent waiting for the pipeline; None without one
    first_step_s      from creating the data to the end of the first steps, compilation
                      included; for "train_resident" this includes making the file of pairs

Requires TensorFlow.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections

import launch
from benchmarks import common, limits
from benchmarks.common import Task
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh
from restore_jax.train import steps
from restore_jax.train.on_device import resident

# Steps per round and per dispatch.
STEPS = 4
_WARM_UPS = 2

Turn = Callable[[], float | None]


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the limits of the device and a record for each way."""
    yield common.ceilings_record(task.dtype)
    with tempfile.TemporaryDirectory() as cache:
        turns: dict[str, Turn] = {}
        first: dict[str, float] = {}
        for op, draws in (
            ("train_cached", 1), ("train_fresh", 0),
            ("train_resident", 1), ("train_resident_fresh", 0),
        ):  # fmt: skip
            began = time.perf_counter()
            config = _config(task, draws, op.startswith("train_resident"), cache)
            # Messages about the file of pairs must not mix with the JSON lines.
            with contextlib.redirect_stdout(sys.stderr):
                turns[op] = _resident(config) if config.data.resident else _from_host(config)
            turns[op]()
            first[op] = time.perf_counter() - began
        spent: dict[str, list[float]] = {op: [] for op in turns}
        waited: dict[str, list[float | None]] = {op: [] for op in turns}
        for number in range(_WARM_UPS + task.rounds):
            for op, turn in turns.items():
                start = time.perf_counter()
                wait = turn()
                if number >= _WARM_UPS:
                    spent[op].append(time.perf_counter() - start)
                    waited[op].append(wait)
    least = limits.training(state.make_learner(config).model, task.size, task.batch, task.dtype)
    for op, seconds in spent.items():
        milliseconds = [1e3 * value / (STEPS * task.batch) for value in seconds]
        ratios = [a / b for a, b in zip(seconds, spent["train_cached"], strict=True)]
        share = None
        if not op.startswith("train_resident"):
            share = round(sum(filter(None, waited[op])) / sum(seconds), 4)
        yield common.record(op, task, "jax", milliseconds, least) | {
            "relative_time": round(statistics.median(ratios), 4),
            "input_share": share,
            "first_step_s": round(first[op], 2),
        }


def _config(task: Task, draws: int, in_memory: bool, cache: str) -> ml_collections.ConfigDict:
    config = common.make_config(task, "sample")
    config.data.image_size = task.size
    config.data.sample_size = max(32, 2 * task.size)
    config.data.sample_count = 2
    config.data.realisations = draws
    config.data.references = 0
    config.data.resident = in_memory
    config.data.cache_dir = cache
    return config


def _from_host(config: ml_collections.ConfigDict) -> Turn:
    """Returns a call that takes the steps of a round and returns the seconds spent waiting."""
    learner, mesh, now = _start(config)
    step = steps.compile_step(config, learner, loss_terms.weighted_sum(config.loss), mesh)
    stream = launch.make_data(config).train_batches(0)

    def turn() -> float:
        nonlocal now
        waited = 0.0
        for _ in range(STEPS):
            start = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - start
            now, scalars = step(now, device_mesh.to_devices(batch, mesh), {})
            # Unlike in training, where the host runs ahead, so that waiting can be attributed.
            jax.block_until_ready((now, scalars))
        return waited

    return turn


def _resident(config: ml_collections.ConfigDict) -> Turn:
    """Returns a call that takes the steps of a round in one dispatch."""
    learner, mesh, now = _start(config)
    data = launch.make_data(config)
    loss = loss_terms.weighted_sum(config.loss)
    source = resident.make_resident(config, data, learner, loss, mesh)
    assert source is not None

    def turn() -> None:
        nonlocal now
        # May run past the end of an epoch, where the last image is repeated.
        now, scalars = source.dispatch(now, source.arrays, {}, STEPS)
        jax.block_until_ready((now, scalars))

    return turn


def _start(config: ml_collections.ConfigDict) -> tuple[state.Learner, Any, state.TrainState]:
    learner = state.make_learner(config)
    sizes = (config.train.batch_size, config.eval.batch_size)
    mesh = device_mesh.make_mesh(device_mesh.fitting_devices(*sizes))
    now = state.create_state(learner, config.seed)
    return learner, mesh, jax.device_put(now, device_mesh.replicated(mesh))


if __name__ == "__main__":
    common.run(__doc__, measure, rounds=20)
