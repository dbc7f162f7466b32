"""Times the reports' complete training on pairs in device memory: 932 images, 250 epochs.

    python -m benchmarks.whole_run --dtype=bfloat16
    python -m benchmarks.whole_run --epochs=3 --images=40 --size=64

This includes all that training does: steps, validation on 88 images after every epoch,
checkpoints with their digests, logs and curves, in a temporary folder. The pixels are random.
Short runs of 1 epoch and of `--warm` more epochs come first, to compile and to measure the time
per epoch; if all epochs would take longer than `--limit` seconds, the result is extrapolated
from them. One JSON line:

    op, model, size, batch, dtype, device, images, validation_images, epochs
    seconds           of the whole run, from call to return, with compiled programs cached
    measured          false if extrapolated from the short runs
    epoch_s           per epoch, with its validation and checkpoint
    first_run_s       of the first short run, with compilation if nothing was cached
    images_per_s      training images per second of the whole run

TensorFlow is not needed.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging

from benchmarks import common, resident
from benchmarks.common import Task
from restore_jax.parallel import compilation
from restore_jax.train import loop
from restore_jax.train.on_device import dataset


def main(argv: Sequence[str]) -> None:
    """Trains according to the flags and prints the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sca_unet", help="an experiment of configs/")
    parser.add_argument("--size", type=int, default=256, help="side length, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=common.DTYPES, default="float32")
    parser.add_argument("--images", type=int, default=resident.IMAGES)
    parser.add_argument("--held_out", type=int, default=88)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds")
    given = parser.parse_args(argv)
    compilation.use_cache()
    task = Task(given.model, given.size, given.batch, given.dtype)
    for record in measure(
        task, given.images, given.held_out, given.epochs, given.warm, given.limit
    ):
        print(json.dumps(record), flush=True)


def measure(
    task: Task,
    images: int = resident.IMAGES,
    held_out: int = 88,
    epochs: int = 250,
    warm: int = 3,
    limit: float = 150.0,
) -> Iterator[dict[str, Any]]:
    """Yields the one record; the module's docstring explains the arguments."""
    logging.set_verbosity(logging.ERROR)
    pairs = resident.make_pairs(task.size, images, held_out, 1)
    first = _train(task, pairs, 1)
    short, longer = _train(task, pairs, 1), _train(task, pairs, 1 + warm)
    epoch = (longer - short) / warm
    seconds = longer + epoch * max(0, epochs - 1 - warm)
    measured = seconds <= limit
    if measured:
        seconds = _train(task, pairs, epochs)
    yield {
        "op": "whole_run",
        "model": task.model,
        "size": task.size,
        "batch": task.batch,
        "dtype": task.dtype,
        "device": jax.devices()[0].device_kind,
        "images": images,
        "validation_images": held_out,
        "epochs": epochs,
        "seconds": round(seconds, 2),
        "measured": measured,
        "epoch_s": round(epoch, 4),
        "first_run_s": round(first, 2),
        "images_per_s": round(images * epochs / seconds, 2),
    }


def _train(task: Task, pairs: Any, epochs: int) -> float:
    """Trains in a temporary workdir and returns the seconds it took."""
    config = common.make_config(task)
    config.data.resident = True
    config.data.augment = "none"
    config.train.epochs = epochs
    data = dataset.as_data(pairs, config)
    # The messages of training must not mix with the JSON line.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        began = time.perf_counter()
        loop.train(config, pathlib.Path(folder) / "run", lambda _: data, jax.devices()[:1])
        return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
