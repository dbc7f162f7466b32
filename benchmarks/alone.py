"""What each of this code's own ways of computing on a CPU gains alone: a load without it.

    python -m benchmarks.alone
    python -m benchmarks.alone --loads=folder --without=winograd,cores --rounds=9

The loads (`--loads`) are those of users:

    sample   six training steps of the SCA U-Net at 64×64 px, batch 4, as on the `sample` data
    train    one at 256×256 px
    folder   two photographs of 1024×1024 px, restored in tiles by `general`
    small    16 photographs of 256×256 px, restored by `sca_unet_kla_256`

The ways (`--without`):

    blocks      kernel gradients in blocks (`models.conv.convolution`)
    winograd    fewer multiplications (`models.conv.winograd`)
    upsampling  bilinear upsampling by shifts, with its own gradient (`models.layers`)
    window      SSIM's window as products (`metrics.gaussian_window`)
    cores       each core as a device (`parallel.cores`)
    allocator   freed memory is kept (`parallel.host_memory`)

Each runs in a process of its own, and they take turns. One JSON line for each, the first one
with all ways:

    load, without    what was measured
    cpu_ms           CPU time of a call, of all threads; the median over the rounds, as all are
    relative_cpu     this divided by that with all ways in the same round
    relative_wall    the same for wall time, which other load of the machine disturbs more
    system_ms        the system's part of the CPU time
    first_cpu_s      CPU time of the first call, which compiles
    peak_mb          10⁶ bytes, peak resident memory of the process

TensorFlow is not needed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import ROOT, common, train_step
from benchmarks.models import peak_bytes
from restore_jax import load
from restore_jax.metrics import gaussian_window
from restore_jax.models import layers
from restore_jax.models.conv import convolution, winograd
from restore_jax.parallel import cores, host_memory


def main(argv: Sequence[str] | None = None) -> None:
    """Measures according to the flags and prints the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", default=",".join(LOADS), help="what to measure")
    parser.add_argument("--without", default=",".join(WAYS), help="what to leave out")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(argv)
    loads, ways = given.loads.split(","), given.without.split(",")
    for names, known in ((loads, LOADS), (ways, WAYS)):
        if unknown := set(names) - set(known):
            parser.error(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    for name in loads:
        for line in measure(name, ways, given.rounds):
            common.emit(line)


def measure(name: str, ways: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the records of a load: with all ways, and without each of those given."""
    workers = {way: _Worker(name, way) for way in ("", *ways)}
    found = [{way: worker.call() for way, worker in workers.items()} for _ in range(rounds)]
    for way, worker in workers.items():
        worker.close()
        of_way = {key: [row[way][key] for row in found] for key in found[0][way]}
        relative = {
            key: statistics.median(row[way][key] / row[""][key] for row in found)
            for key in ("cpu", "wall")
        }
        yield {
            "load": name,
            "without": way or None,
            "cpu_ms": round(1e3 * statistics.median(of_way["cpu"]), 1),
            "relative_cpu": round(relative["cpu"], 3),
            "relative_wall": round(relative["wall"], 3),
            "system_ms": round(1e3 * statistics.median(of_way["system"]), 1),
            "first_cpu_s": round(worker.first["cpu"], 1),
            "peak_mb": round(max(of_way["peak"]) / 1e6),
        }


class _Worker:
    """A process that does the work of a load when it is told to.

    Attributes:
        first: the cost of its first call.
    """

    def __init__(self, name: str, way: str) -> None:
        script = "import sys; from benchmarks import alone; alone.serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, name, way],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self.call()
        self.call()  # allocates the memory that later calls use again

    def call(self) -> dict[str, float]:
        """Returns the cost of a call, from `serve`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(file=stdin, flush=True)
        return json.loads(stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def serve(name: str, way: str) -> None:
    """Does the work of a load at each line of the standard input, and prints what it cost."""
    if way != "allocator":
        host_memory.keep_freed()
    if way != "cores":
        cores.as_devices()
    if way:
        WAYS[way]()
    work = LOADS[name]()
    for _ in sys.stdin:
        began = time.monotonic(), time.process_time(), _system_time()
        jax.block_until_ready(work())
        ended = time.monotonic(), time.process_time(), _system_time()
        wall, cpu, system = (end - begin for begin, end in zip(began, ended, strict=True))
        cost = {"wall": wall, "cpu": cpu, "system": system, "peak": peak_bytes()}
        print(json.dumps(cost), flush=True)


def _system_time() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def _training(size: int, steps: int) -> Callable[[], Any]:
    step = train_step.make_step(common.Task("sca_unet", size, batch=4))

    def call() -> Any:
        for _ in range(steps - 1):
            step()
        return step()

    return call


def _restoring(model: str, side: int, count: int) -> Callable[[], Any]:
    restorer = load(model)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
    return lambda: restorer(images)


LOADS: dict[str, Callable[[], Callable[[], Any]]] = {
    "sample": lambda: _training(64, 6),
    "train": lambda: _training(256, 1),
    "folder": lambda: _restoring("general", 1024, 2),
    "small": lambda: _restoring("sca_unet_kla_256", 256, 16),
}


def _no_blocks() -> None:
    convolution._is_small = lambda x: True


def _no_winograd() -> None:
    winograd.is_faster = lambda x, kernel, dilation: False


def _no_upsampling() -> None:
    def resized(x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")

    layers.upsample2 = resized


def _no_window() -> None:
    gaussian_window.by_products = gaussian_window.by_shifts


# `serve` itself leaves out the last two, which are settings of the process.
WAYS: dict[str, Callable[[], None]] = {
    "blocks": _no_blocks,
    "winograd": _no_winograd,
    "upsampling": _no_upsampling,
    "window": _no_window,
    "cores": lambda: None,
    "allocator": lambda: None,
}


if __name__ == "__main__":
    main()
