"""Times `launch.py --mode=restore` on a folder of photographs, as a user runs it.

    python -m benchmarks.folder
    python -m benchmarks.folder --images=10000 --size=64 --rounds=1      # is its memory flat?

An untrained model, a folder of PNG photographs of a smooth texture and noise, and, round by
round, three pieces of work, each in a fresh process; one JSON line for each:

    restore_model     the model alone, on batches that lie on the device
    restore_arrays    `Restorer.restore_many` on arrays in memory: cuts, blends, converts, too
    restore_folder    the command: reads, restores and writes files

`benchmarks.common` says what most keys mean; `batch` is what the restorer chooses by itself, in
tiles. Besides:

    device_share            time of the model alone over this time, in the same round: 1 where
                            the device never waits for the host
    cores                   processor time over wall time: cores kept busy
    processor_ms_per_image  processor time; where the device is the processor, what files cost
                            is the difference to "restore_arrays"

and of the folder

    images, distinct        how many names, and files behind them: a few, of many hard links
    first_image_s           from the command to the first restored image: start-up
    seconds                 from the command to its end
    read_mb, written_mb     10⁶ bytes of image files, of a run
    resident_mb             10⁶ bytes of the process in memory when so much of the images was
                            done, the highest of the rounds; peak_resident_mb over a whole run

ms_per_image of the folder is of what comes after the first batch, so without start-up. Take a
multiple of the batch: the rest of a small folder has a batch size, and a program, of its own.
Compiled programs come from the user's cache, where "restore_model" has put them. The files are
read from the system's cache, not from a disk, and restorations are removed as they come, so
that any number of images needs room for a few. Only on Linux.
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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import common, launched
from benchmarks.common import Task
from restore_jax.errors import RunError, UsageError
from restore_jax.inference import restorer, sharded, tiling
from restore_jax.parallel import compilation, cores

DONE = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Parts of the images after which the memory is noted."""

_DISTINCT = 16
# Enough that the first cut and the last blending, which nothing overlaps, weigh little.
_BATCHES = 8
_LOOK_S = 0.01


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a piece of work takes, per image.

    Attributes:
        ms: milliseconds.
        processor_ms: milliseconds of all processors together.
    """

    ms: float
    processor_ms: float


@dataclasses.dataclass(frozen=True)
class Alone:
    """The work without files.

    Attributes:
        batch: tiles restored at once.
        images_per_batch: how many images these belong to, 1 or more.
        model: the model alone.
        arrays: the restorer on arrays in memory.
    """

    batch: int
    images_per_batch: int
    model: Spent
    arrays: Spent


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the command.

    Attributes:
        spent: on an image after the first batch.
        first_image_s: from the command to the first image.
        seconds: from the command to its end.
        resident: bytes in memory when the parts `DONE` of the images were done.
        peak: bytes in memory at the most.
        written: bytes of all restorations.
    """

    spent: Spent
    first_image_s: float
    seconds: float
    resident: tuple[int, ...]
    peak: int
    written: int


def main(argv: Sequence[str]) -> None:
    """Restores as the flags say and prints what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sca_unet", help="an experiment of configs/")
    parser.add_argument("--size", type=int, default=256, help="side of the images, px")
    parser.add_argument("--dtype", choices=common.DTYPES, default="float32", help="arithmetic")
    parser.add_argument("--images", type=int, default=160, help="in the folder")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    if min(given.size, given.images, given.rounds) < 1:
        parser.error("--size, --images and --rounds must be 1 or more")
    task = Task(model=given.model, size=given.size, dtype=given.dtype, rounds=given.rounds)
    try:
        for record in measure(task, given.images):
            common.emit(record)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def measure(task: Task, images: int) -> Iterator[dict[str, Any]]:
    """Yields the three lines; see the module's docstring.

    Raises:
        UsageError: for a model that does not exist, or no more images than a batch has.
        RunError: where the command fails.
    """
    common.make_config(task)  # a wrong name is told at once
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        weights, photographs = place / "model.safetensors", place / "photographs"
        launched.in_fresh_process(launched.save_untrained, task, weights)
        read = make_folder(photographs, images, task.size)
        alone: list[Alone] = []
        runs: list[Run] = []
        for _ in range(task.rounds):
            alone.append(launched.in_fresh_process(run_alone, weights, task.size))
            runs.append(run_folder(place, weights, photographs, alone[-1].images_per_batch))
    task = dataclasses.replace(task, batch=alone[0].batch)
    models_alone = [found.model for found in alone]
    yield _record("restore_model", task, models_alone, models_alone)
    yield _record("restore_arrays", task, [found.arrays for found in alone], models_alone)
    resident = [max(found) for found in zip(*(run.resident for run in runs), strict=True)]
    yield _record("restore_folder", task, [run.spent for run in runs], models_alone) | {
        "images": images,
        "distinct": min(images, _DISTINCT),
        "first_image_s": round(statistics.median(run.first_image_s for run in runs), 2),
        "seconds": round(statistics.median(run.seconds for run in runs), 2),
        "read_mb": _megabytes(read),
        "written_mb": _megabytes(runs[-1].written),
        "resident_mb": {
            f"{part:.0%}": _megabytes(held) for part, held in zip(DONE, resident, strict=True)
        },
        "peak_resident_mb": _megabytes(max(run.peak for run in runs)),
    }


def _record(
    op: str, task: Task, spent: Sequence[Spent], model: Sequence[Spent]
) -> dict[str, Any]:
    shares = [alone.ms / whole.ms for alone, whole in zip(model, spent, strict=True)]
    processor = statistics.median(one.processor_ms for one in spent)
    cores = statistics.median(one.processor_ms / one.ms for one in spent)
    return common.record(op, task, "jax", [one.ms for one in spent]) | {
        "device_share": round(statistics.median(shares), 4),
        "cores": round(cores, 3),
        "processor_ms_per_image": round(processor, 3),
    }


def _megabytes(count: int) -> float:
    return round(count / 1e6, 1)


def make_folder(folder: pathlib.Path, images: int, size: int) -> int:
    """Makes a folder of photographs; returns the bytes that are read to restore it.

    Args:
        folder: where they go, named by their number in the order of their names.
        images: how many; beyond a few they are hard links.
        size: side, px.
    """
    folder.mkdir()
    read = 0
    for number in range(images):
        path = folder / image_name(number)
        if number < _DISTINCT:
            Image.fromarray(make_photograph(size, number)).save(path)
        else:
            path.hardlink_to(folder / image_name(number % _DISTINCT))
        read += path.stat().st_size
    return read


def image_name(number: int) -> str:
    """Returns the name of an image's file; names are in the order of the numbers."""
    return f"{number:07d}.png"


def make_photograph(size: int, seed: int) -> np.ndarray:
    """Makes a smooth texture with a camera's noise, uint8 [size, size, 3].

    A PNG file of it is as large as that of a photograph with such noise, so that it takes as
    long to read.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / 256
    texture = np.zeros((size, size, 3))
    for amplitude, most in ((0.2, 8.0), (0.08, 40.0)):
        across, down = rng.uniform(-most, most, 2)
        texture += amplitude * np.sin((across * x + down * y)[..., None] + rng.uniform(0, 6, 3))
    texture += 0.5 + rng.normal(0, 0.08, texture.shape)
    return np.rint(255 * np.clip(texture, 0, 1)).astype(np.uint8)


def run_alone(weights: pathlib.Path, size: int) -> Alone:
    """Times the model and the restorer on what lies in memory, with as many images."""
    cores.prepare()
    compilation.use_cache()
    loaded = restorer.load(weights)
    tile, overlap, batch = loaded.options.cut
    plan = tiling.plan(size, size, tile, overlap)
    images_per_batch = max(1, batch // plan.count)
    photographs = [make_photograph(size, number) for number in range(_DISTINCT)]
    images = [photographs[i % _DISTINCT] for i in range(_BATCHES * images_per_batch)]
    on_device = jax.random.uniform(jax.random.key(0), (batch, *plan.shape, 3))
    apply = sharded.make_apply(loaded.model, loaded.variables)

    def model() -> None:
        # As the restorer does: the next one is sent, then the one before is waited for.
        found = apply(on_device)
        for _ in range(_BATCHES - 1):
            before, found = found, apply(on_device)
            before.block_until_ready()
        found.block_until_ready()

    def arrays() -> None:
        for _ in loaded.restore_many(images):
            pass

    return Alone(
        batch,
        images_per_batch,
        _time(model, _BATCHES * batch / plan.count),
        _time(arrays, len(images)),
    )


def _time(work: Callable[[], None], images: float) -> Spent:
    work()  # compiles, and finds the memory that is used again
    processor, began = time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return Spent(1e3 * seconds / images, 1e3 * (time.process_time() - processor) / images)


def run_folder(
    place: pathlib.Path, weights: pathlib.Path, photographs: pathlib.Path, settled: int
) -> Run:
    """Runs the command on a folder and looks on.

    Args:
        place: a folder for what it says and writes.
        weights: the file of the model.
        photographs: the folder of images, from `make_folder`.
        settled: images after which start-up is over.

    Raises:
        UsageError: for no more images than that.
        RunError: where the command fails, or its images are none.
    """
    sources = sorted(photographs.iterdir())
    if len(sources) <= settled:
        raise UsageError(f"--images={len(sources)}: a batch has {settled}; take more")
    with tempfile.TemporaryDirectory(dir=place) as name:
        output = pathlib.Path(name, "restored")
        flags = (f"--workdir={weights}", f"--input={photographs}", f"--output={output}")
        with launched.running(["--mode=restore", *flags], pathlib.Path(name)) as process:
            targets = [output / source.name for source in sources]
            run = _watch(process, targets, settled, pathlib.Path(name))
        check_restored(output / sources[0].name, sources[0])
    return run


def check_restored(path: pathlib.Path, source: pathlib.Path) -> None:
    """Checks that a restoration is an image as large as its source, and another one.

    Raises:
        RunError: where it is not.
    """
    with Image.open(path) as restored, Image.open(source) as image:
        if restored.size != image.size:
            raise RunError(f"{path}: {restored.size} px; its source has {image.size}")
        if np.array_equal(np.asarray(restored), np.asarray(image)):
            raise RunError(f"{path}: is what it was before")


@dataclasses.dataclass(frozen=True)
class _Look:
    """What a look at the process found.

    Attributes:
        at: seconds since the command.
        processor_s: that it had spent.
        resident: bytes that it held in memory.
        done: images that were there.
    """

    at: float
    processor_s: float
    resident: int
    done: int


def _watch(
    process: subprocess.Popen,
    targets: Sequence[pathlib.Path],
    settled: int,
    place: pathlib.Path,
) -> Run:
    """Looks at a process until its images are there and it has ended.

    All but the first are removed. They are looked for in their order, which the command keeps
    but for the few that are written at the same time.
    """
    began = time.perf_counter()
    noted: list[_Look] = []  # whenever there are more images
    spent, held, peak, done, written = 0.0, 0, 0, 0, 0
    while done < len(targets):
        ended = process.poll() is not None
        if not ended:
            # A process that has just ended holds nothing: what counts is what it held before.
            spent, held = _usage(process.pid) or (spent, held)
        peak = max(peak, held)
        at, before = time.perf_counter() - began, done
        while done < len(targets) and targets[done].exists():
            written += targets[done].stat().st_size
            if done:
                targets[done].unlink()
            done += 1
        if done > before:
            noted.append(_Look(at, spent, held, done))
        elif ended:
            raise launched.failure(process, place)
        else:
            time.sleep(_LOOK_S)
    if process.wait():
        raise launched.failure(process, place)
    seconds = time.perf_counter() - began
    start, end = next(look for look in noted if look.done >= settled), noted[-1]
    images = end.done - start.done
    if not images:
        raise RunError(f"all {done} images came at once; take more, or larger ones")
    return Run(
        spent=Spent(
            1e3 * (end.at - start.at) / images,
            1e3 * (end.processor_s - start.processor_s) / images,
        ),
        first_image_s=noted[0].at,
        seconds=seconds,
        resident=tuple(
            next(look.resident for look in noted if look.done >= part * done) for part in DONE
        ),
        peak=peak,
        written=written,
    )


def _usage(process: int) -> tuple[float, int] | None:
    """Returns a process's processor time, s, and its bytes in memory; None when it is over."""
    files = pathlib.Path(f"/proc/{process}")
    pages = int((files / "statm").read_text().split()[1])
    # After its name, which may have blanks, and eleven fields: user and system time.
    ticks = (files / "stat").read_text().rpartition(")")[2].split()[11:13]
    if not pages:
        return None
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1:])
