"""Times `launch.py --mode=restore` on a folder of photographs, as a user runs it.

    python -m benchmarks.folder
    python -m benchmarks.folder --images=10000 --size=64 --rounds=1      # does memory grow?

The model is untrained, and the folder has PNG photographs of a smooth texture with noise. Three
pieces of work are timed round by round, each in a fresh process, with one JSON line for each:

    restore_model     the model alone, on batches in device memory
    restore_arrays    `Restorer.restore_many` on arrays in memory, with tiling, blending and
                      conversion
    restore_folder    the command: reads, restores and writes files

`benchmarks.common` documents most keys; `batch` is the number of tiles per batch, chosen by the
restorer. Additional keys:

    device_share            time of the model alone divided by this time, in the same round; 1
                            if the device never waits for the host
    cores                   processor time divided by wall time: number of busy cores
    processor_ms_per_image  processor time; if the device is the CPU, the cost of files is the
                            difference to "restore_arrays"

and for the folder only

    images, distinct        number of file names, and of different files, to which the other
                            names are hard links
    first_image_s           from the command to the first restored image: start-up
    seconds                 from the command to its end
    read_mb, written_mb     10⁶ bytes of image files per run
    resident_mb             resident memory of the process, 10⁶ bytes, when the given fraction
                            of the images was done, maximum over the rounds; peak_resident_mb
                            is the maximum over a whole run

For the folder, ms_per_image excludes the first batch and thus start-up. Choose a multiple of
the batch size: the remainder of a small folder has its own batch size and needs its own
program. Compiled programs come from the user's cache, where "restore_model" has put them. Files
are read from the operating system's cache, not from disk, and restored images are deleted as
they appear, so that disk space for a few suffices. Linux only.
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
from restore_jax import errors
from restore_jax.errors import RunError, UsageError
from restore_jax.inference import restorer, sharded, tiling
from restore_jax.parallel import compilation, cores

DONE = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Fractions of the images after which memory use is recorded."""

_DISTINCT = 16
# Enough that cutting the first and blending the last batch, which nothing overlaps, hardly
# matter.
_BATCHES = 8
_LOOK_S = 0.01


@dataclasses.dataclass(frozen=True)
class Spent:
    """The time that a piece of work takes per image.

    Attributes:
        ms: wall time in milliseconds.
        processor_ms: processor time in milliseconds, summed over all cores.
    """

    ms: float
    processor_ms: float


@dataclasses.dataclass(frozen=True)
class Alone:
    """Timings without files.

    Attributes:
        batch: tiles per batch.
        images_per_batch: number of images that fill a batch, at least 1.
        model: time of the model alone.
        arrays: time of the restorer on arrays in memory.
    """

    batch: int
    images_per_batch: int
    model: Spent
    arrays: Spent


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the command.

    Attributes:
        spent: time per image after the first batch.
        first_image_s: from the command to the first image.
        seconds: from the command to its end.
        resident: resident bytes when the fractions `DONE` of the images were done.
        peak: maximum resident bytes.
        written: total bytes of the restored images.
    """

    spent: Spent
    first_image_s: float
    seconds: float
    resident: tuple[int, ...]
    peak: int
    written: int


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark according to the flags and prints the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sca_unet", help="an experiment of configs/")
    parser.add_argument("--size", type=int, default=256, help="side length, px")
    parser.add_argument("--dtype", choices=common.DTYPES, default="float32", help="precision")
    parser.add_argument("--images", type=int, default=160, help="number of images")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    if min(given.size, given.images, given.rounds) < 1:
        parser.error("--size, --images and --rounds must be 1 or more")
    task = Task(model=given.model, size=given.size, dtype=given.dtype, rounds=given.rounds)
    with errors.exit_on_failure():
        for record in measure(task, given.images):
            common.emit(record)


def measure(task: Task, images: int) -> Iterator[dict[str, Any]]:
    """Yields the three records, see the module's docstring.

    Raises:
        UsageError: the model does not exist, or there are no more images than fill a batch.
        RunError: the command fails.
    """
    common.make_config(task)  # refuses an unknown model at once
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
    """Makes a folder of photographs and returns the bytes that are read to restore it.

    Args:
        folder: the folder to create; files are named by number.
        images: number of images; all but the first few are hard links.
        size: side length in px.
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
    """Returns the file name of an image; names sort like the numbers."""
    return f"{number:07d}.png"


def make_photograph(size: int, seed: int) -> np.ndarray:
    """Makes a smooth texture with camera noise, uint8 [size, size, 3].

    As a PNG file it is as large, and takes as long to read, as a photograph with such noise.
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
    """Times the model and the restorer on the same number of images in memory."""
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
        # Like the restorer, which dispatches a batch before it waits for the previous one.
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
    work()  # compiles, and allocates memory that is then reused
    processor, began = time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return Spent(1e3 * seconds / images, 1e3 * (time.process_time() - processor) / images)


def run_folder(
    place: pathlib.Path, weights: pathlib.Path, photographs: pathlib.Path, settled: int
) -> Run:
    """Runs the command on a folder and monitors it.

    Args:
        place: folder for its output and messages.
        weights: the weights file of the model.
        photographs: the folder of images, from `make_folder`.
        settled: number of images after which start-up is over.

    Raises:
        UsageError: there are no more images than that.
        RunError: the command fails, or does not restore the images.
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
    """Checks that a restored image has the size of its source and differs from it.

    Raises:
        RunError: it does not.
    """
    with Image.open(path) as restored, Image.open(source) as image:
        if restored.size != image.size:
            raise RunError(f"{path}: {restored.size} px; its source has {image.size}")
        if np.array_equal(np.asarray(restored), np.asarray(image)):
            raise RunError(f"{path}: is what it was before")


@dataclasses.dataclass(frozen=True)
class _Look:
    """One observation of the process.

    Attributes:
        at: seconds since the command was started.
        processor_s: processor time so far, in seconds.
        resident: resident memory in bytes.
        done: number of restored images.
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
    """Monitors a process until it has written all images and has ended.

    All images but the first are deleted. They are expected in order, which the command keeps
    except for the few that it writes concurrently.
    """
    began = time.perf_counter()
    noted: list[_Look] = []  # one entry whenever there are new images
    spent, held, peak, done, written = 0.0, 0, 0, 0, 0
    while done < len(targets):
        ended = process.poll() is not None
        if not ended:
            # A process that has just ended has no usage; the last known one is kept.
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
    """Returns a process's processor time (s) and resident bytes; None if it has ended."""
    files = pathlib.Path(f"/proc/{process}")
    pages = int((files / "statm").read_text().split()[1])
    # User and system time follow the name, which may contain blanks, and eleven fields.
    ticks = (files / "stat").read_text().rpartition(")")[2].split()[11:13]
    if not pages:
        return None
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1:])
