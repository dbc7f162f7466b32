"""Checks a long training for memory and file leaks; prints a JSON line at regular intervals.

    python -m benchmarks.long_run
    python -m benchmarks.long_run --model=rcan --option=width=8 --option=blocks=2 --steps=5000

It trains on rendered images in a temporary workdir, like any training: it validates and saves
after every epoch, saves within epochs, writes logs and plots curves. Linux only.

    op, model, size, batch, dtype, step   what was measured, and at which step
    resident_mb     resident memory of the process, 10⁶ bytes
    open_files      number of open files, pipes and sockets
    threads         number of threads
    ms_per_image    of training, validation and saves since the previous line; images_per_s

The last line, op "long_run", covers the time after the first 200 steps:
`resident_growth_percent` and `open_files_growth_percent` are the growth from there to the
maximum, and `resident_drift_percent` that from the median of the first quarter to the median of
the last.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from benchmarks import common
from data import pipeline
from restore_jax import batches, errors, models
from restore_jax.parallel import compilation, host_memory
from restore_jax.train import loop

SETTLED = 200
"""Number of steps after which nothing should grow any more."""


def main(argv: Sequence[str]) -> None:
    """Trains according to the flags and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sca_unet", help="an experiment of configs/")
    parser.add_argument(
        "--option", action="append", default=[], help="NAME=VALUE of config.model"
    )
    parser.add_argument("--size", type=int, default=32, help="side length, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=2000, help="minimum number of steps")
    parser.add_argument("--every", type=int, default=50, help="steps between the lines")
    given = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    host_memory.keep_freed()
    compilation.use_cache()
    with errors.exit_on_failure():
        records = measure(make_config(given), given)
    print(json.dumps(compare(records)))


def make_config(given: argparse.Namespace) -> ConfigDict:
    """Returns the configuration of a training as the flags describe it.

    Raises:
        UsageError: there is no such experiment, or its model has no such option or value.
    """
    options = dict(map(common.parse_option, given.option))
    task = common.Task(given.model, batch=given.batch, dtype=given.dtype)
    config = common.make_config(task, "sample")
    with config.unlocked():
        config.model.update(options)
    models.from_config(config)  # refuses a wrong option before any image is rendered
    config.data.image_size = given.size
    config.data.sample_size = 2 * given.size
    config.data.sample_count = 4
    config.eval.batch_size = given.batch
    config.train.early_stopping_patience = 0
    config.checkpoint.every_steps = 7
    return config


def measure(config: ConfigDict, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains; prints and returns a record every `given.every` steps."""
    data = pipeline.make_data(config)
    steps_per_epoch = math.ceil(data.train_images / given.batch)
    config.train.epochs = math.ceil(given.steps / steps_per_epoch)
    found: list[dict[str, Any]] = []
    fixed = {name: getattr(given, name) for name in ("model", "size", "batch", "dtype")}

    def train_batches(step: int) -> Iterator[batches.Batch]:
        began, images = time.perf_counter(), 0
        for done, batch in enumerate(data.train_batches(step), step):
            if done and done % given.every == 0:
                spent = (time.perf_counter() - began) / images
                speed = {
                    "ms_per_image": round(1000 * spent, 3),
                    "images_per_s": round(1 / spent, 1),
                }
                found.append({"op": "train", **fixed, "step": done, **usage(), **speed})
                print(json.dumps(found[-1]), flush=True)
                began, images = time.perf_counter(), 0
            images += int(batch["valid"].sum())
            yield batch

    watched = dataclasses.replace(data, train_batches=train_batches)
    with tempfile.TemporaryDirectory() as folder:
        loop.train(config, pathlib.Path(folder, "run"), lambda _: watched)
    return found


def usage() -> dict[str, float]:
    """Returns the current resource usage of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        "open_files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
    }


def compare(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarises the growth of resource usage after `SETTLED` steps."""
    settled = [record for record in records if record["step"] >= SETTLED]
    if not settled:
        return {"op": "long_run", "steps": 0}

    def growth(name: str) -> float:
        values = [record[name] for record in settled]
        return round(100 * (max(values) / values[0] - 1), 2)

    resident = [record["resident_mb"] for record in settled]
    quarter = max(1, len(resident) // 4)
    first, last = statistics.median(resident[:quarter]), statistics.median(resident[-quarter:])
    return {
        "op": "long_run",
        "steps": settled[-1]["step"],
        "resident_mb": settled[0]["resident_mb"],
        "resident_growth_percent": growth("resident_mb"),
        "resident_drift_percent": round(100 * (last / first - 1), 2),
        "open_files": settled[0]["open_files"],
        "open_files_growth_percent": growth("open_files"),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
