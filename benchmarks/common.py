"""Shared by the benchmarks: flags, the two limits of a device, and the format of the output.

The keys of every line:

    op, framework, model, size, batch, dtype, device   the work, how it was done, and on what
    ms_per_image     median over the rounds; ms_low and ms_high are the quartiles
    images_per_s     1000 / ms_per_image
    gflop, mb        minimum arithmetic (10⁹ operations, a multiply-accumulate counts as two)
                     and minimum memory traffic (10⁶ bytes) per image, see `benchmarks.limits`
    compute_share    fraction of ms_per_image that the minimum arithmetic takes at the device's
                     measured peak rate
    memory_share     the same for the minimum traffic
    relative_time    median over the rounds of this time divided by JAX's in the same round;
                     above 1, JAX is faster

Missing figures are None. All work of one run is timed in turn, round by round, so that other
load on the machine affects everything equally; compare within a run, not between runs.
"""

import argparse
import ast
import dataclasses
import functools
import importlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import limits
from restore_jax import errors
from restore_jax.errors import UsageError
from restore_jax.metrics import cost
from restore_jax.parallel import compilation, cores

MODELS = ("sca_unet", "rcan")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        model: name of an experiment in `configs`.
        size: side length of the images in px.
        batch: batch size.
        dtype: precision of the arithmetic.
        rounds: how often each piece of work is timed.
        peers: PyTorch variants to compare with, names of `torch_peer.FORMS`.
        fields: changes to the configuration, by path; they do not apply to the peers.
    """

    model: str = "sca_unet"
    size: int = 256
    batch: int = 8
    dtype: str = "float32"
    rounds: int = 5
    peers: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(
    description: str,
    measure: Callable[[Task], Iterable[Mapping[str, Any]]],
    argv: Sequence[str] | None = None,
    **defaults: Any,
) -> None:
    """Measures according to the command line and prints the lines.

    Args:
        description: the module's docstring, for --help.
        measure: yields the records of a task.
        argv: the flags; None: those of the process.
        **defaults: other default values for fields of `Task`.
    """
    start = Task(**defaults)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=start.model, help="an experiment of configs/")
    parser.add_argument("--size", type=_positive, default=start.size, help="side length, px")
    parser.add_argument("--batch", type=_positive, default=start.batch, help="batch size")
    parser.add_argument("--dtype", choices=DTYPES, default=start.dtype, help="precision")
    parser.add_argument("--rounds", type=_positive, default=start.rounds)
    parser.add_argument(
        "--peers",
        default=",".join(start.peers),
        help="PyTorch variants to compare with: eager, channels_last, compiled",
    )
    given = vars(parser.parse_args(argv))
    given["peers"] = tuple(name for name in given["peers"].split(",") if name)
    compilation.use_cache()
    cores.prepare()
    with errors.exit_on_failure():
        for record in measure(dataclasses.replace(start, **given)):
            emit(record)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def emit(record: Mapping[str, Any]) -> None:
    """Prints a record as a line of JSON."""
    print(json.dumps(dict(record)), flush=True)


def make_config(task: Task, data: str = "mvtec_ad") -> Any:
    """Returns the configuration of a task's experiment.

    Raises:
        UsageError: there is no such experiment.
    """
    try:
        module = importlib.import_module(f"configs.{task.model}")
    except ModuleNotFoundError as error:
        if error.name != f"configs.{task.model}":
            raise
        raise UsageError(f"--model={task.model}: there is no configs/{task.model}.py") from None
    config = module.get_config(data)
    config.dtype = task.dtype
    config.train.batch_size = task.batch
    config.update_from_flattened_dict(dict(task.fields))
    return config


def parse_option(text: str) -> tuple[str, Any]:
    """Returns the name and the value of a flag `--option=NAME=VALUE`.

    Raises:
        UsageError: there is no value.
    """
    field, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option={text}: write NAME=VALUE, as in bottleneck=1024")
    try:
        return field, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return field, value  # a name, as in mask_attention=identity


def make_batch(task: Task) -> dict[str, jax.Array]:
    """Makes the arrays of a batch of noise, with a defect in the centre of each image."""
    shape = (task.batch, task.size, task.size, 3)
    clean = jax.random.uniform(jax.random.key(1), shape)
    noise = 0.1 * jax.random.normal(jax.random.key(2), shape)
    quarter = task.size // 4
    mask = jnp.zeros((*shape[:3], 1)).at[:, quarter:-quarter, quarter:-quarter].set(1.0)
    return {
        "degraded": jnp.clip(clean + noise, 0.0, 1.0),
        "clean": clean,
        "mask": mask,
        "has_mask": jnp.ones(task.batch, bool),
        "valid": jnp.ones(task.batch, bool),
    }


@functools.cache
def ceilings(dtype: str) -> tuple[float, float]:
    """Measures a device's limits: operations per second and bytes per second.

    The arithmetic is products of large square matrices of `dtype` (on a GPU, float32 with JAX's
    default precision, which is TF32); the traffic is reading an array far larger than the
    caches and writing another one.
    """
    on_cpu = jax.default_backend() == "cpu"
    side, chain = (1536, 1) if on_cpu else (8192, 8)
    matrix = jnp.full((side, side), 1.0 / side, dtype)

    @jax.jit
    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        for _ in range(chain):
            x = x @ y
        return x

    length = 2**24 if on_cpu else 2**28
    array = jnp.ones(length, jnp.float32)
    scale = jax.jit(lambda x: 1.5 * x)
    found = cost.interleaved_times(
        {"product": lambda: product(matrix, matrix), "scale": lambda: scale(array)}, rounds=5
    )
    # The minimum time, since a limit must not depend on other load of the machine.
    return 2.0 * chain * side**3 / min(found["product"]), 8.0 * length / min(found["scale"])


def ceilings_record(dtype: str) -> dict[str, Any]:
    """Returns the record of the two limits."""
    operations, traffic = ceilings(dtype)
    return {
        "op": "ceilings",
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "gflop_per_s": round(operations / 1e9, 1),
        "gb_per_s": round(traffic / 1e9, 1),
    }


def records(
    op: str,
    task: Task,
    calls: Mapping[str, Callable[[], Any]],
    least: limits.Least | None = None,
    repeats: int = 1,
) -> list[dict[str, Any]]:
    """Times equivalent pieces of work in turn.

    Args:
        op: name of the work.
        task: what it is done to; each call processes `task.batch` images.
        calls: by framework; the others are compared with "jax".
        least: minimum cost of the work per image.
        repeats: how often each call does the work.
    """
    times = {
        name: np.asarray(seconds) * 1e3 / (task.batch * repeats)
        for name, seconds in cost.interleaved_times(calls, task.rounds).items()
    }
    return [
        record(op, task, framework, values, least, values / times["jax"])
        for framework, values in times.items()
    ]


def record(
    op: str,
    task: Task,
    framework: str,
    milliseconds: Sequence[float],
    least: limits.Least | None = None,
    relative: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Returns the record of one piece of work, from the ms per image of its rounds."""
    median = statistics.median(milliseconds)
    low, high = np.quantile(milliseconds, [0.25, 0.75])
    line = {
        "op": op,
        "framework": framework,
        "model": task.model,
        "size": task.size,
        "batch": task.batch,
        "dtype": task.dtype,
        "device": jax.devices()[0].device_kind,
        "rounds": len(milliseconds),
        "ms_per_image": _rounded(median),
        "ms_low": _rounded(low),
        "ms_high": _rounded(high),
        "images_per_s": _rounded(1000.0 / median),
        **dict.fromkeys(("gflop", "mb", "compute_share", "memory_share")),
        "relative_time": None if relative is None else _rounded(statistics.median(relative)),
    }
    if least is not None:
        operations, traffic = ceilings(task.dtype)
        line |= {
            "gflop": _rounded(least.operations / 1e9),
            "mb": _rounded(least.bytes / 1e6),
            "compute_share": _rounded(1e3 * least.operations / operations / median),
            "memory_share": _rounded(1e3 * least.bytes / traffic / median),
        }
    return line


def _rounded(value: float) -> float:
    """Rounds to four significant digits; no timing is more precise."""
    return float(f"{value:.4g}")
