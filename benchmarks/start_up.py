"""Times the start-up of training, to its first step, and of restoring, to the first image.

    python -m benchmarks.start_up
    python -m benchmarks.start_up --model=rcan --rounds=1

Every figure is the median over `--rounds` fresh processes, which run the commands of launch.py
and are observed from outside. JSON lines with `op`, `rounds`, `seconds`, `seconds_low` and
`seconds_high` (the quartiles), and

    import                `module`: seconds to import it. "restore_jax" imports its contents
                          lazily; "restore_jax.folders.run" is what restoring imports,
                          "restore_jax.train.loop" what training imports, and "data.pipeline"
                          what its data add
    train_first_step      from the command to the record of the first step: an epoch of the
                          `sample` data is a single step of 16 images
    restore_first_image   from the command to the first restored image

The last two are measured with `cache` "cold", with an empty user cache for this project and
others (compiled programs, font lists), and with `cache` "warm", with what the cold run left
there. Python's compiled modules and the operating system's file cache are warm in both. `parts`
of a training are the seconds between the events that can be observed (restoring has none before
its image):

    data          imports and data: until it prints the number of images
    first_batch   until it claims its workdir, when the first batch has been made
    state         until it opens its log of records: the initial parameters, which are drawn in
                  a thread since the imports, have come
    step          until the record of the first step: compilation and the step itself

The images are so small (`--size`) that start-up dominates. Linux only.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import ROOT, common, folder, launched
from benchmarks.common import Task
from restore_jax import errors
from restore_jax.errors import RunError

# Number of training images without defects in the smallest `sample` data.
BATCH = 16

_IMPORTS = {
    "restore_jax": "import restore_jax",
    "restore_jax.load": "from restore_jax import load",
    "restore_jax.folders.run": "import restore_jax.folders.run",
    "restore_jax.train.loop": "import restore_jax.train.loop, restore_jax.evaluation.evaluate",
    "data.pipeline": (
        "import restore_jax.train.loop, restore_jax.evaluation.evaluate; "
        "began = now(); import data.pipeline"
    ),
}
_LOOK_S = 0.005

Events = Mapping[str, Callable[[], bool]]


def main(argv: Sequence[str]) -> None:
    """Measures according to the flags and prints the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sca_unet", help="an experiment of configs/")
    parser.add_argument("--size", type=int, default=64, help="side length, px")
    parser.add_argument("--dtype", choices=common.DTYPES, default="float32", help="precision")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    if min(given.size, given.rounds) < 1:
        parser.error("--size and --rounds must be 1 or more")
    task = Task(given.model, given.size, BATCH, given.dtype, given.rounds)
    with errors.exit_on_failure():
        for record in measure(task):
            common.emit(record)


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the records described in the module's docstring.

    Raises:
        UsageError: the model does not exist.
        RunError: a command fails.
    """
    common.make_config(task, "sample")  # refuses an unknown model at once
    for module, statement in _IMPORTS.items():
        seconds = [_time_import(statement) for _ in range(task.rounds)]
        yield {"op": "import", "module": module, **_summary(seconds)}
    with tempfile.TemporaryDirectory() as name:
        weights = pathlib.Path(name, "model.safetensors")
        launched.in_fresh_process(launched.save_untrained, task, weights)
        yield from _starts("train_first_step", task, lambda place: _training(task, place))
        one = dataclasses.replace(task, batch=1)
        yield from _starts(
            "restore_first_image", one, lambda place: _restoring(one, weights, place)
        )


def _time_import(statement: str) -> float:
    script = (
        f"from time import perf_counter as now; began = now(); {statement}; "
        "print(now() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"{statement}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return float(done.stdout.splitlines()[-1])


def _starts(
    op: str, task: Task, command: Callable[[pathlib.Path], tuple[list[str], Events]]
) -> Iterator[dict[str, Any]]:
    """Yields the records of a command with a cold and a warm cache.

    Args:
        op: name of the measurement.
        task: what to measure.
        command: returns, for a temporary folder, the command's flags and the events to observe.
    """
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(task.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for times in found.values():
                with tempfile.TemporaryDirectory() as place:
                    flags, events = command(pathlib.Path(place))
                    times.append(_look(flags, events, pathlib.Path(place), cache))
    for cache, times in found.items():
        parts = {
            name: round(statistics.median(one[name] for one in times), 3) for name in times[0]
        }
        yield {
            "op": op,
            "cache": cache,
            "model": task.model,
            "size": task.size,
            "batch": task.batch,
            "dtype": task.dtype,
            # Queried last, since it opens the device, which the commands need.
            "device": jax.devices()[0].device_kind,
            **_summary([sum(one.values()) for one in times]),
            "parts": parts if len(parts) > 1 else None,
        }


def _training(task: Task, place: pathlib.Path) -> tuple[list[str], Events]:
    run, said = place / "run", place / "said"
    fields = {
        "dtype": task.dtype,
        "data.split": "good",
        "data.sample_count": 2,
        "data.sample_size": max(32, task.size),
        "data.image_size": task.size,
        "train.batch_size": task.batch,
        "train.epochs": 1,
    }
    flags = [
        f"--config={ROOT}/configs/{task.model}.py:sample",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={run}",
    ]
    records = run / "metrics.jsonl"
    return flags, {
        "data": lambda: f"{task.batch} images to train on" in said.read_text(),
        "first_batch": (run / "config.json").exists,
        "state": records.exists,
        "step": lambda: records.stat().st_size > 0,
    }


def _restoring(
    task: Task, weights: pathlib.Path, place: pathlib.Path
) -> tuple[list[str], Events]:
    photographs, restored = place / "photographs", place / "restored"
    folder.make_folder(photographs, 1, task.size)
    flags = [
        "--mode=restore",
        f"--workdir={weights}",
        f"--input={photographs}",
        f"--output={restored}",
    ]
    return flags, {"image": (restored / folder.image_name(0)).exists}


def _look(
    flags: Sequence[str], events: Events, place: pathlib.Path, cache: str
) -> dict[str, float]:
    """Starts a command and returns the seconds to its first event, and from each to the next.

    The command is killed after the last event.

    Raises:
        RunError: the command ends before that.
    """
    # Compiled programs go to the user's cache only if no other folder is set.
    own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    own |= {"XDG_CACHE_HOME": cache, "PYTHONUNBUFFERED": "1"}
    found: dict[str, float] = {}
    before = time.perf_counter()
    with launched.running(flags, place, own) as process:
        for name, has_come in events.items():
            while True:
                ended = process.poll() is not None
                if has_come():
                    break
                if ended:
                    raise launched.failure(process, place)
                time.sleep(_LOOK_S)
            now = time.perf_counter()
            found[name] = now - before
            before = now
    return found


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(seconds, [0.25, 0.75])
    return {
        "rounds": len(seconds),
        "seconds": round(statistics.median(seconds), 3),
        "seconds_low": round(float(low), 3),
        "seconds_high": round(float(high), 3),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
