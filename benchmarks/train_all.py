"""Trains all models in one call on a GPU machine, the most important first, in ten minutes.

    python -m benchmarks.train_all --pairs pairs256.zip pairs512.zip --output=trained
    python -m benchmarks.train_all --list            # list the experiments, in order
    python -m benchmarks.train_all --tiny            # trial run on a CPU, in a minute

Requires compact files of pairs (`benchmarks.make_pairs`), JAX, Flax, optax, Orbax, dm-pix,
ml-collections, absl, safetensors, Pillow, SciPy, Matplotlib, tensorboard and tqdm; no
TensorFlow. Set `JAX_PLATFORMS=cuda` to prevent a fallback to the CPU.

First, imports, configurations, models, pairs and the output are checked, which takes about ten
seconds. Then each experiment of `benchmarks.experiments` is trained in its own process; with
`--ahead`, the next ones prepare (import, compile) in the meantime. Each process measures the
time per epoch and chooses the number of epochs that fits its share of the remaining time, so
that its cosine schedule ends at zero; time that it does not need goes to the next ones. A
process that fails, hangs or crashes is reported, and the next one starts.

As soon as a model is trained, its metrics on the validation photographs, in full float32, are
appended to `results.jsonl`, and its weights are written to the output as a `.safetensors` file
or an entry of `others.zip`: at most eight files. `log.txt` has the messages of the trainings.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from benchmarks.train_parts import Failed, Process, Store

if TYPE_CHECKING:
    from benchmarks.experiments import Task

_NEEDED = (
    *("jax", "flax", "optax", "orbax.checkpoint", "dm_pix", "ml_collections", "absl"),
    *("safetensors", "PIL", "scipy", "matplotlib", "tensorboard", "tqdm", "numpy"),
)
# Seconds: reserve at the end; minimum needed to start a training; maximum preparation; how long
# a training may exceed its share before it is stopped.
_RESERVE, _LEAST, _PREPARATION, _GRACE = 8.0, 4.0, 200.0, 20.0


def main(argv: Sequence[str] | None = None) -> None:
    """Trains according to the flags; the exit status is 1 if nothing could be trained."""
    began = time.monotonic()
    given = _parse(argv)
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        _refuse(f"not installed: {', '.join(missing)}; see --help")
    # Imported late, so that a missing module leads to a one-line message.
    from benchmarks import compact_pairs, experiments  # noqa: PLC0415
    from restore_jax.errors import UsageError  # noqa: PLC0415

    planned = experiments.tiny() if given.tiny else experiments.everything(given.size)
    names = [experiment.name for experiment in planned]
    if given.list:
        print(*names, sep="\n")
        return
    if unknown := sorted(set(given.only or []) - set(names)):
        _refuse(f"--only: no experiment {unknown[0]!r}; there are {', '.join(names)}")
    if not given.pairs and not given.tiny:
        _refuse("--pairs: missing; give files of python -m benchmarks.make_pairs, or --tiny")
    # Exits normally on SIGTERM, so that the child processes are ended as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        try:
            files = given.pairs or [_tiny_pairs(work / "pairs.zip")]
            by_size = {compact_pairs.check(path).size: path for path in files}
            store = Store(given.output, given.largest_mib * 2**20)
        except UsageError as error:
            _refuse(str(error))
        planned = _with_images(planned, given.images)
        tasks = [
            experiments.Task(
                experiment,
                pairs=str(by_size.get(experiment.size, "")),
                dtype=given.dtype,
                weights=str(work / f"{experiment.name}.safetensors"),
            )
            for experiment in planned
            if not given.only or experiment.name in given.only
        ]
        end = began + 60.0 * given.minutes - _RESERVE
        trained = run(checked(tasks, store), end, store, ahead=given.ahead)
        seconds = round(time.monotonic() - began, 1)
        store.emit({"op": "train_all", "trained": trained, "seconds": seconds})
    sys.exit(0 if trained else 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pairs", type=pathlib.Path, nargs="+", default=[], help="compact files, one per size")
    folder = pathlib.Path(os.environ.get("OUT") or "trained")
    add("--output", type=pathlib.Path, default=folder, help="folder; default: $OUT or trained")
    add("--minutes", type=float, default=10.0, help="total time limit")
    add("--only", nargs="+", help="names of experiments, see --list")
    add("--images", nargs="+", default=[], help="limits on images, NAME=COUNT")
    add("--ahead", type=int, default=0, help="processes that prepare meanwhile")
    add("--size", type=int, help="one image size for all, px, for a trial run")
    add("--dtype", choices=("float32", "bfloat16"), default="", help="default: by device")
    add("--largest_mib", type=float, default=16.0, help="limit on a weights file")
    add("--list", action="store_true", help="only list the experiments")
    add("--tiny", action="store_true", help="trial run")
    return parser.parse_args(argv)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def _with_images(planned: Sequence[Any], given: Sequence[str]) -> list[Any]:
    """Returns the experiments with the limits on images given by --images."""
    images = dict(text.partition("=")[::2] for text in given)
    names = [experiment.name for experiment in planned]
    for name, count in images.items():
        if name not in names or not count.isdecimal():
            _refuse(f"--images: {name}={count} is no name of --list with a whole number")
    return [
        dataclasses.replace(e, images=int(images[e.name])) if e.name in images else e
        for e in planned
    ]


def _tiny_pairs(path: pathlib.Path) -> pathlib.Path:
    from benchmarks import compact_pairs, resident  # noqa: PLC0415

    compact_pairs.write(resident.make_pairs(32, images=12, held_out=3, draws=0), path)
    return path


def command_of(*arguments: str) -> list[str]:
    """Returns the command line of a process that trains or checks."""
    return [sys.executable, "-m", "benchmarks.train_one", *arguments]


def checked(tasks: Sequence["Task"], store: Store) -> list["Task"]:
    """Returns the tasks that can be trained, and reports the problems of the others.

    Exits the program if the check itself fails, for example on an import.
    """
    texts = [task.as_json() for task in tasks]
    # The check only needs shapes and must not occupy the GPU.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    fit = []
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        with Process(command_of("--check", *texts), environment, log) as process:
            for task in tasks:
                try:
                    found = process.hear(_PREPARATION)
                except Failed as error:
                    _refuse(f"the check failed: {error}")
                if found["problem"] is None:
                    fit.append(task)
                else:
                    store.emit({"op": "skipped", **found})
    return fit


def run(
    tasks: Sequence["Task"],
    end: float,
    store: Store,
    command: Callable[["Task"], Sequence[str]] = lambda task: command_of(task.as_json()),
    ahead: int = 0,
) -> list[str]:
    """Trains tasks one after the other until a deadline, while others prepare.

    Args:
        tasks: the tasks, in order.
        end: deadline, in the time of `time.monotonic`.
        store: receives the records and the weights.
        command: returns the command line of a task's process.
        ahead: number of processes that prepare beside the one that trains. Their compilation
            does not slow down training on a GPU, but it does on a CPU.

    Returns:
        The names of the trained experiments.
    """
    trained, waiting = [], deque(tasks)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:

        def start() -> tuple["Task", Process, pathlib.Path] | None:
            if not waiting or end - time.monotonic() < _LEAST:
                return None
            task = waiting.popleft()
            log = pathlib.Path(folder) / task.experiment.name
            environment = {
                # Several processes use the device at once.
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                # Not the user's cache: a program found there would hide the time of
                # compilation, by which each process plans its epochs.
                "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder) / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
                **os.environ,
            }
            process = Process(command(task), environment, log)
            return task, stack.enter_context(process), log

        started: deque[tuple[Task, Process, pathlib.Path]] = deque()
        while True:
            while len(started) <= ahead and (new := start()) is not None:
                started.append(new)
            if not started:
                break
            task, process, log = started.popleft()
            try:
                left = end - time.monotonic()
                # With hours of time, a slow machine may take longer to prepare.
                process.hear(min(left, max(_PREPARATION, left / 3)))
                left = end - time.monotonic()
                behind = [t for t, *_ in started]
                shares = [t.experiment.share for t in (task, *behind, *waiting)]
                seconds = left * shares[0] / sum(shares)
                limit = min(left, 1.2 * seconds + _GRACE)
                process.tell({"seconds": seconds, "limit": limit})
                limit += time.monotonic()
                process.hear(limit - time.monotonic())
                record = process.hear(limit - time.monotonic())
                kept = store.keep(pathlib.Path(task.weights), task.experiment.bundled)
                store.emit({**record, "weights": {**record["weights"], **kept}})
                trained.append(task.experiment.name)
            except (Failed, OSError) as error:
                reason = " ".join(str(error).split())
                store.emit({"op": "failed", "name": task.experiment.name, "reason": reason})
            process.close()
            store.log(task.experiment.name, log)
    for task in waiting:
        store.emit({"op": "left_out", "name": task.experiment.name})
    return trained


if __name__ == "__main__":
    main()
