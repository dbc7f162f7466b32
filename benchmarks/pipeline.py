"""Times the batches of the host's pipeline, without a training.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --size=256 --batch=8 --rounds=10

Rendered photographs of 1024×1024 px (four times `--size`) are degraded by the `kla` law at that
size. One JSON line each; `benchmarks.common` says what the keys mean:

    pipeline_fresh    decoded, degraded and resized anew for every epoch
    pipeline_cached   fixed pairs, kept as 8-bit pixels after the first epoch
    resident_fresh    gain and noise drawn by JAX at the working size, on pairs in device
                      memory, and fetched from there
    resident_cached   fixed pairs in device memory, drawn and fetched

`cores` is how many there are, and `images_per_s_per_core` the speed divided by it. The
model plays no part. It takes TensorFlow.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import launch
from benchmarks import common
from benchmarks.common import Task

# Of each round: enough that what was fetched ahead does not decide.
_BATCHES = 4


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields a line for each way to make pairs, timed in turn."""
    task = dataclasses.replace(task, dtype="float32")
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(sys.stderr):
        streams = {
            f"{way}_{kind}": _batches(task, draws, way == "resident", cache)
            for way in ("pipeline", "resident")
            for kind, draws in (("fresh", 0), ("cached", 1))
        }
    found: dict[str, list[float]] = {op: [] for op in streams}
    for _ in range(task.rounds):
        for op, stream in streams.items():
            found[op].append(_milliseconds(stream))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for op, milliseconds in found.items():
        framework = "tf.data" if op.startswith("pipeline") else "jax"
        line = common.record(op, task, framework, milliseconds)
        speed = round(line["images_per_s"] / cores, 2)
        yield line | {"device": "host", "cores": cores, "images_per_s_per_core": speed}


def _batches(
    task: Task, realisations: int, resident: bool, cache: str
) -> Iterator[Mapping[str, Any]]:
    config = common.make_config(task, "sample")
    config.data.image_size = task.size
    config.data.sample_size = 4 * task.size
    config.data.sample_count = 2
    config.data.realisations = realisations
    config.data.references = 0
    config.data.resident = resident
    config.data.cache_dir = cache
    batches = launch.make_data(config).train_batches(0)
    next(batches)  # renders the photographs, and fills the cache
    return batches


def _milliseconds(batches: Iterator[Mapping[str, Any]]) -> float:
    start, images = time.perf_counter(), 0
    for _ in range(_BATCHES):
        images += int(next(batches)["valid"].sum())
    return 1e3 * (time.perf_counter() - start) / images


if __name__ == "__main__":
    common.run(__doc__, measure)
