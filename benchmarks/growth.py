"""Measures how the cost of a model grows with image size, batch, devices and number of images.

    python -m benchmarks.growth > growth.jsonl
    python -m benchmarks.growth --ops=restorer --sides=256,512,1024 --batches= --devices=
    python -m benchmarks.growth --lines=growth.jsonl --plot=growth.png --table

Three operations (`--ops`) are measured along several axes; an empty list skips an axis:

    restore       whole images, untiled                side, batch, devices
    train_step    loss, gradients, Adam, metrics       side, batch, devices
    restorer      `restore_jax.Restorer`, with tiles   side, images (one after the other)

Along `side`, the batch is one image; on the other axes, `--size` is the side. Along `devices`,
`--batch` images are divided among the devices. CPU devices share the CPU's cores, so they show
the overhead of sharding and not the gain of more devices. One JSON line per point:

    op, axis, value, model, size, batch, devices, images, dtype, rounds   what was measured
    device           kind of device; None if the point failed
    ms_per_image     median over the rounds; ms_low and ms_high are the quartiles
    images_per_s     1000 / ms_per_image
    peak_mb          10⁶ bytes. On a CPU: peak resident memory of the process; on a GPU: peak
                     memory in use on the first device. Compilation is not included.
    base_mb          the same before the work: JAX loaded and the device initialised
    exponent         time per image grew as value^exponent since the previous point
    memory_exponent  the same for peak_mb - base_mb
    failed           why there are no figures: out of memory, slower than `--limit` allows,
                     or the last message of the process; None if there are figures

Each point runs in two processes: the first compiles and calls the work once, the second is
measured. Each may take `--limit` seconds per call, all else included. Points larger than a
failed one are skipped. `--lines` reads the lines of an earlier run instead of measuring.
TensorFlow is not needed.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import common, growth_report
from benchmarks.models import peak_bytes, run_script
from restore_jax import errors, models
from restore_jax.errors import UsageError
from restore_jax.inference import tiling
from restore_jax.inference.restorer import Restorer
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.metrics import cost
from restore_jax.parallel import device_mesh, host_memory
from restore_jax.train import steps

AXES = {
    "side": ("restore", "train_step", "restorer"),
    "batch": ("restore", "train_step"),
    "devices": ("restore", "train_step"),
    "images": ("restorer",),
}
# Share of the free memory that a point may use; the rest is left to other processes.
_SHARE_OF_MEMORY = 0.9
_FIGURES = (
    *("device", "ms_per_image", "ms_low", "ms_high", "images_per_s", "peak_mb", "base_mb"),
    *("exponent", "memory_exponent", "failed"),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement; sent to another process as JSON.

    Attributes:
        op: the operation, a key of `WORK`.
        axis: the axis that is varied, a key of `AXES`.
        value: value on that axis, repeated in `size`, `batch`, `devices` or `images`.
        model: name of an experiment in `configs`.
        size: side length of the images in px.
        batch: batch size.
        devices: number of devices that the batch is divided among.
        images: images per call.
        dtype: precision of the arithmetic.
        rounds: how often the call is timed.
    """

    op: str
    axis: str
    value: int
    model: str
    size: int
    batch: int = 1
    devices: int = 1
    images: int = 1
    dtype: str = "float32"
    rounds: int = 3

    @property
    def task(self) -> common.Task:
        """The same as a task of the other benchmarks."""
        return common.Task(self.model, self.size, self.batch, self.dtype, self.rounds)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures or reads the lines, then plots and tabulates them as the flags ask."""
    given = parser().parse_args(argv)
    with errors.exit_on_failure():
        if given.plot and given.plot.suffix.lower() != ".png":
            raise UsageError(f"--plot={given.plot}: the picture is a PNG; name it FILE.png")
        if given.lines:
            lines = growth_report.read(given.lines)
        else:
            lines = []
            for line in measure_all(series(given), given.limit):
                common.emit(line)
                lines.append(line)
        if given.plot:
            growth_report.draw(lines, given.plot)
        if given.table:
            print(growth_report.table(lines))


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="sca_unet", help="an experiment of configs/")
    made.add_argument("--ops", default=",".join(WORK), help="what to measure")
    made.add_argument("--sides", type=_numbers, default="128,256,512,1024,2048", help="px")
    made.add_argument("--batches", type=_numbers, default="1,2,4,8,16")
    made.add_argument("--devices", type=_numbers, default="1,2")
    made.add_argument("--images", type=_numbers, default="1,10,100")
    made.add_argument("--size", type=int, default=256, help="side length on the other axes, px")
    made.add_argument("--batch", type=int, default=8, help="batch size on the axis of devices")
    made.add_argument("--dtype", choices=common.DTYPES, default="float32", help="precision")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--limit", type=float, default=600.0, help="seconds per call")
    made.add_argument("--lines", type=pathlib.Path, help="file of lines to read, not measure")
    made.add_argument("--plot", type=pathlib.Path, metavar="FILE.png", help="plot of the lines")
    made.add_argument("--table", action="store_true", help="print the lines as Markdown")
    return made


def _numbers(text: str) -> list[int]:
    values = sorted({int(number) for number in text.split(",") if number})
    if values and values[0] < 1:
        raise argparse.ArgumentTypeError(f"{values[0]} is not 1 or more")
    return values


def series(given: argparse.Namespace) -> list[list[Point]]:
    """Lists the points of each operation and axis in increasing order, according to the flags.

    Raises:
        UsageError: a model or operation does not exist, or a value is out of range.
    """
    ops = [op for op in given.ops.split(",") if op]
    for op in ops:
        if op not in WORK:
            raise UsageError(f"--ops={given.ops}: {op!r} is not one of {', '.join(WORK)}")
    for name in ("size", "batch", "rounds"):
        if getattr(given, name) < 1:
            raise UsageError(f"--{name}={getattr(given, name)}: must be 1 or more")
    for count in given.devices:
        if given.batch % count:
            raise UsageError(
                f"--batch={given.batch}: cannot be divided among {count} devices; choose a "
                "multiple of each of --devices"
            )
    same = {name: getattr(given, name) for name in ("model", "size", "dtype", "rounds")}
    common.make_config(common.Task(given.model))  # refuses an unknown model at once
    of_axis = {
        "side": {value: {"size": value} for value in given.sides},
        "batch": {value: {"batch": value} for value in given.batches},
        "devices": {value: {"batch": given.batch, "devices": value} for value in given.devices},
        "images": {value: {"images": value} for value in given.images},
    }
    return [
        [
            Point(op=op, axis=axis, value=value, **(same | fields))
            for value, fields in of_axis[axis].items()
        ]
        for axis, grown in AXES.items()
        for op in grown
        if op in ops
    ]


def measure_all(planned: Sequence[Sequence[Point]], limit: float) -> Iterator[dict[str, Any]]:
    """Yields the records of all points, each measured in its own processes."""
    with tempfile.TemporaryDirectory() as cache:
        for points in planned:
            before, failed = None, None
            for point in points:
                # A batch divided among more devices needs less memory on each.
                if failed is not None and point.axis != "devices":
                    found = {"failed": f"not tried, as {point.axis} {failed} failed"}
                else:
                    found = _in_processes(point, limit, cache)
                line = dataclasses.asdict(point) | dict.fromkeys(_FIGURES) | found
                if line["failed"] is not None:
                    failed = point.value if failed is None else failed
                else:
                    if before is not None:
                        line |= growth_report.exponents(before, line)
                    before = line
                yield line


def _in_processes(point: Point, limit: float, cache: str) -> dict[str, Any]:
    """Returns the figures of a point, or the reason for its failure."""
    calls = {"prepare": 1, "measure": cost.WARM_UPS + point.rounds}
    try:
        # The first compiles, which can take more memory than the work itself.
        for part, count in calls.items():
            done = _process(point, part, limit * count, cache)
            if done.returncode:
                return {"failed": _reason(done)}
            found = json.loads(done.stdout.splitlines()[-1])
            if "failed" in found:
                return found
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {limit:g} s per call"}
    return found


def _process(
    point: Point, part: str, timeout: float, cache: str
) -> subprocess.CompletedProcess[str]:
    script = "import sys; from benchmarks import growth; growth.report(*sys.argv[1:])"
    argument = json.dumps(dataclasses.asdict(point))
    return run_script(script, part, argument, cache=cache, timeout=timeout)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    # A killed process leaves no message; the system kills those that exhaust the memory.
    text = done.stderr.lower()
    if done.returncode == -9 or "out of memory" in text or "bad_alloc" in text:
        return "out of memory"
    return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


def report(part: str, argument: str) -> None:
    """Runs a point's work once ("prepare") or measures it, and prints the figures as JSON."""
    point = Point(**json.loads(argument))
    jax.config.update("jax_num_cpu_devices", point.devices)
    host_memory.keep_freed()  # as a training does
    print(json.dumps(measure(point, once=part == "prepare")))


def measure(point: Point, once: bool = False) -> dict[str, Any]:
    """Measures a point in this process; the peak memory covers the process's whole life.

    Args:
        point: what to measure.
        once: whether to run the work once without measuring.
    """
    jnp.zeros(1).block_until_ready()  # initialises the device before the work begins
    base = peak_bytes() / 1e6
    there = len(jax.devices())
    if there < point.devices:
        return {"failed": f"{point.devices} devices asked for, {there} there"}
    _bound_memory()
    try:
        call = WORK[point.op](point)
        if once:
            jax.block_until_ready(call())
            return {}
        seconds = cost.interleaved_times({"work": call}, point.rounds)["work"]
    except Exception as error:
        if not tiling.is_out_of_memory(error):
            raise
        return {"failed": "out of memory"}
    milliseconds = [1e3 * value / (point.batch * point.images) for value in seconds]
    median = statistics.median(milliseconds)
    low, high = np.quantile(milliseconds, [0.25, 0.75])
    return {
        "device": jax.devices()[0].device_kind,
        "ms_per_image": round(median, 3),
        "ms_low": round(float(low), 3),
        "ms_high": round(float(high), 3),
        "images_per_s": round(1000.0 / median, 3),
        "peak_mb": round(peak_bytes() / 1e6, 1),
        "base_mb": round(base, 1),
    }


def _bound_memory() -> None:
    """Limits allocations to the free memory, so that they fail instead of killing a process."""
    free, own = pathlib.Path("/proc/meminfo"), pathlib.Path("/proc/self/status")
    if jax.default_backend() != "cpu" or not free.exists():
        return
    available = _kilobytes(free, "MemAvailable") * _SHARE_OF_MEMORY
    # The limit counts reserved addresses too, some of which the process will never use.
    most = int(1024 * (_kilobytes(own, "VmData") + available))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _kilobytes(path: pathlib.Path, name: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _restoring(point: Point) -> Callable[[], Any]:
    """Returns a call that restores a batch, divided among the devices."""
    model = models.from_config(common.make_config(point.task))
    mesh = device_mesh.make_mesh(jax.devices()[: point.devices])
    both = device_mesh.replicated(mesh), device_mesh.split_over(mesh)
    shape = (point.batch, point.size, point.size, 3)
    images = np.random.default_rng(1).random(shape, np.float32)
    restore = jax.jit(model.apply, in_shardings=both)
    placed = jax.device_put((_variables(model), images), both)
    return lambda: restore(*placed)


def _training(point: Point) -> Callable[[], Any]:
    """Returns a call that takes the next training step, on a batch divided among devices."""
    config = common.make_config(point.task)
    learner = state.make_learner(config)
    mesh = device_mesh.make_mesh(jax.devices()[: point.devices])
    step = steps.compile_step(config, learner, loss_terms.weighted_sum(config.loss), mesh)
    batch = jax.device_put(common.make_batch(point.task), device_mesh.split_over(mesh))
    shapes = state.abstract_state(learner, device_mesh.replicated(mesh))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    begun = zeros.replace(params=_drawn(shapes.params))
    now = jax.device_put(begun, device_mesh.replicated(mesh))

    def call() -> Any:
        nonlocal now
        now, scalars = step(now, batch, {})
        return now, scalars

    return call


def _tiling(point: Point) -> Callable[[], Any]:
    """Returns a call that restores `point.images` new images and discards the results."""
    config = common.make_config(point.task)
    model = models.from_config(config)
    restorer = Restorer(model, _variables(model), config)
    draw_image = functools.partial(
        np.random.default_rng(1).integers, 0, 256, (point.size, point.size, 3), np.uint8
    )

    def call() -> None:
        for _ in restorer.restore_many(draw_image() for _ in range(point.images)):
            pass

    return call


def _drawn(shapes: Any) -> Any:
    """Fills a tree with random numbers by NumPy, since drawing them in JAX takes memory."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: rng.uniform(-0.05, 0.05, leaf.shape).astype(leaf.dtype), shapes
    )


def _variables(model: nn.Module) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # The variances of normalisation layers must be positive.
    return jax.tree.map(np.abs, _drawn(shapes)) | {"params": _drawn(shapes["params"])}


WORK: dict[str, Callable[[Point], Callable[[], Any]]] = {
    "restore": _restoring,
    "train_step": _training,
    "restorer": _tiling,
}


if __name__ == "__main__":
    main()
