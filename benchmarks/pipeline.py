"""Times the batches of the host's pipeline without training.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --size=256 --photograph=1024 --batch=8 --rounds=10
    python -m benchmarks.pipeline --device_rate=1200       # images/s that a device trains

Rendered photographs with a side of `--photograph` px (by default four times `--size`: 1024 px,
like those of MVTec AD, for 256 px) are degraded by the `kla` law at that size. One JSON line
each; `benchmarks.common` documents the keys:

    pipeline_fresh    decoded, degraded and resized anew in every epoch
    pipeline_cached   fixed pairs, cached as 8-bit pixels after the first epoch
    resident_fresh    gain and noise drawn by JAX at the working size, on pairs in device
                      memory, and fetched from there
    resident_cached   fixed pairs drawn from device memory and fetched

Additional keys:

    cores                        number of available cores
    images_per_s_per_core        the speed divided by this number
    photograph                   side length of the photographs in px
    cpu_ms_per_image             processor time of all threads of the process
    cores_busy                   processor seconds per second: number of busy cores
    images_per_s_per_busy_core   the speed divided by this number: 1000 / cpu_ms_per_image
    device_rate                  as given, 5000 images/s by default
    wait_share                   fraction of its time that a device with that rate would wait
                                 for input from this host: 1 - images_per_s / device_rate, at
                                 least 0; None for resident pairs, which need no host

The choice of the model does not matter. Requires TensorFlow.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import launch
from benchmarks import common
from benchmarks.common import Task
from restore_jax.errors import UsageError

DEVICE_RATE = 5000.0

# Minimum number of batches and minimum seconds of each round.
_BATCHES = 4
_SECONDS = 0.5
# Seconds after which the prefetched batches are used up or no longer matter.
_DRAIN = 0.25
# Maximum seconds to wait for streams to finish prefetching while others have their turn.
_SETTLE = 30.0

Stream = Iterator[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures according to the common flags and two of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--photograph", type=int)
    parser.add_argument("--device_rate", type=float, default=DEVICE_RATE)
    own, others = parser.parse_known_args(argv)
    common.run(__doc__, functools.partial(measure, **vars(own)), others)


def measure(
    task: Task, photograph: int | None = None, device_rate: float = DEVICE_RATE
) -> Iterator[dict[str, Any]]:
    """Yields a record for each way to make pairs, timed in turn.

    Args:
        task: what to measure.
        photograph: side length of the photographs in px; None: four times `task.size`.
        device_rate: images per second that a device would train on.

    Raises:
        UsageError: the rate is not positive.
    """
    if device_rate <= 0:
        raise UsageError(f"--device_rate={device_rate:g}: must be above 0, in images/s")
    task = dataclasses.replace(task, dtype="float32")
    native = photograph or 4 * task.size
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(sys.stderr):
        streams = {
            f"{way}_{kind}": _batches(task, native, draws, way == "resident", cache)
            for way in ("pipeline", "resident")
            for kind, draws in (("fresh", 0), ("cached", 1))
        }
    found: dict[str, list[tuple[float, float]]] = {op: [] for op in streams}
    for _ in range(task.rounds):
        for op, stream in streams.items():
            found[op].append(_milliseconds(stream))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for op, rounds in found.items():
        from_host = op.startswith("pipeline")
        wall, cpu = zip(*rounds, strict=True)
        line = common.record(op, task, "tf.data" if from_host else "jax", wall)
        speed, spent = line["images_per_s"], statistics.median(cpu)
        yield line | {
            "device": "host",
            "cores": cores,
            "images_per_s_per_core": round(speed / cores, 2),
            "photograph": native,
            "cpu_ms_per_image": round(spent, 4),
            "cores_busy": round(statistics.median(c / w for w, c in rounds), 3),
            "images_per_s_per_busy_core": round(1e3 / spent, 2),
            "device_rate": device_rate,
            "wait_share": round(max(0.0, 1 - speed / device_rate), 4) if from_host else None,
        }


def _batches(
    task: Task, photograph: int, realisations: int, resident: bool, cache: str
) -> Stream:
    config = common.make_config(task, "sample")
    config.data.image_size = task.size
    config.data.sample_size = photograph
    config.data.sample_count = 2
    config.data.realisations = realisations
    config.data.references = 0
    config.data.resident = resident
    config.data.cache_dir = cache
    batches = launch.make_data(config).train_batches(0)
    next(batches)  # renders the photographs and fills the cache
    return batches


def _milliseconds(batches: Stream) -> tuple[float, float]:
    """Takes batches for a while; returns wall time and processor time per image in ms.

    Batches that were prefetched while other streams had their turn would cost nothing now, so
    they are taken first and not counted.
    """
    _settle()
    start = time.perf_counter()
    while time.perf_counter() - start < _DRAIN:
        next(batches)
    start, spent, images, count = time.perf_counter(), time.process_time(), 0, 0
    while count < _BATCHES or time.perf_counter() - start < _SECONDS:
        images += int(next(batches)["valid"].sum())
        count += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - spent
    return 1e3 * wall / images, 1e3 * cpu / images


def _settle() -> None:
    """Waits until no stream is prefetching any more, which shows by an idle processor."""
    end = time.perf_counter() + _SETTLE
    while time.perf_counter() < end:
        start, spent = time.perf_counter(), time.process_time()
        time.sleep(0.05)
        if time.process_time() - spent < 0.2 * (time.perf_counter() - start):
            return


if __name__ == "__main__":
    main()
