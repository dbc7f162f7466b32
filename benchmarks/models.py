"""Measures the cost of restoring an image with each model; prints one JSON line per model.

    python -m benchmarks.models
    python -m benchmarks.models --model=sca_unet,rcan --size=512 --dtype=bfloat16 --rounds=20
    python -m benchmarks.models --model=pexels_unet --option=bottleneck=1024

All models are timed in turn, round by round, so that other load on the machine affects them
equally. Memory is measured before, each model in its own processes. TensorFlow is not needed.

    op, model, options, size, batch, dtype, device   what was measured, and on what
    parameters          number of trainable values; for a GAN, of the generator
    gmac                10⁹ multiply-accumulates per image
    receptive_field     side length in px of the receptive field of local operations
    global              whether each pixel also depends on the whole image
    ms_per_image        median over the rounds; ms_low and ms_high are the quartiles
    images_per_s        1000 / ms_per_image
    peak_memory_mb      10⁶ bytes. On a CPU: peak resident memory of a process that restores a
                        batch with a precompiled program, minus that of an idle process with
                        JAX loaded. On a GPU: peak memory in use on the device.
    compiling_peak_mb   the same for the first process, which compiles the program
    program_memory_mb   memory of the compiled program alone by XLA's plan: arguments
                        (parameters and images), result and intermediate arrays, without the
                        scratch space of library kernels
"""

import dataclasses
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks import ROOT, common
from restore_jax import errors, models
from restore_jax.errors import RunError, UsageError
from restore_jax.metrics import cost
from restore_jax.models.receptive_field import receptive_field
from restore_jax.parallel import compilation

EXPERIMENTS = sorted(
    path.stem for path in (ROOT / "configs").glob("[a-z]*.py") if path.stem != "default"
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A model to measure and its input; sent to other processes as JSON.

    Attributes:
        model: name of an experiment.
        options: changes to its `config.model`.
        size: side length of the images in px.
        batch: batch size.
        dtype: precision of the arithmetic, float32 or bfloat16.
    """

    model: str
    options: dict[str, Any]
    size: int
    batch: int
    dtype: str


def main(argv: Sequence[str]) -> None:
    """Measures the models that the flags name and prints their lines."""
    with errors.exit_on_failure():
        for record in measure(*parse(argv)):
            print(json.dumps(record), flush=True)


def parse(argv: Sequence[str]) -> tuple[list[Task], int]:
    """Parses a command line into the tasks and the number of rounds.

    Raises:
        UsageError: a flag, model or option does not exist, or a value is out of range.
    """
    values = flags.FlagValues()  # not absl's global flags, which other modules define
    of = {"flag_values": values}
    flags.DEFINE_list("model", ["all"], "Names of configs/, or all.", **of)
    flags.DEFINE_multi_string("option", [], "NAME=VALUE in config.model, for all models.", **of)
    flags.DEFINE_integer("size", 256, "Side length of the images, px.", 1, **of)
    flags.DEFINE_integer("batch", 1, "Batch size.", 1, **of)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision.", **of)
    flags.DEFINE_integer("rounds", 10, "How often to time each model.", 1, **of)
    flags.DEFINE_bool("help", False, "Shows this.", short_name="h", **of)
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UsageError(" ".join(str(error).split())) from None
    if values.help:
        print(__doc__ + values.get_help())
        sys.exit(0)
    if rest[1:]:
        raise UsageError(f"{rest[1]}: not a flag; see python -m benchmarks.models --help")
    names = EXPERIMENTS if values.model == ["all"] else list(dict.fromkeys(values.model))
    for name in names:
        if name not in EXPERIMENTS:
            raise UsageError(f"--model: no config {name!r}; there are all, {EXPERIMENTS}")
    options = dict(map(common.parse_option, values.option))
    tasks = [Task(name, options, values.size, values.batch, values.dtype) for name in names]
    for task in tasks:
        make_model(task)  # refuses wrong options before anything is measured
    return tasks, values.rounds


def make_model(task: Task) -> nn.Module:
    """Makes the model of a task.

    Raises:
        UsageError: the model does not have an option or accept its value.
    """
    config: ConfigDict = importlib.import_module(f"configs.{task.model}").get_config()
    config.dtype = task.dtype
    with config.unlocked():
        config.model.update(task.options)
    return models.from_config(config)


def measure(tasks: Sequence[Task], rounds: int) -> list[dict[str, Any]]:
    """Measures several models.

    Args:
        tasks: tasks of the same size and batch, each model once.
        rounds: how often each model is timed.

    Returns:
        A record for each task, in order; the module's docstring documents the keys.

    Raises:
        RunError: a process that measures memory fails.
    """
    # Memory first, in other processes: on a GPU, this process would hold the memory they need.
    memory = peak_memory(tasks)
    compilation.use_cache()
    shape = (tasks[0].batch, tasks[0].size, tasks[0].size, 3)
    images = jax.random.uniform(jax.random.key(1), shape)
    made = {task.model: make_model(task) for task in tasks}
    with_variables = {
        name: (model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
        for name, model in made.items()
    }
    costs = cost.measure(with_variables, images, rounds)
    records = []
    for task, megabytes in zip(tasks, memory, strict=True):
        found = costs[task.model]
        field = receptive_field(made[task.model])
        records.append(
            {
                "op": "restore",
                **dataclasses.asdict(task),
                "device": jax.devices()[0].device_kind,
                "rounds": rounds,
                "parameters": found.parameters,
                "gmac": round(found.gmac, 4),
                "receptive_field": field.side,
                "global": field.whole_image,
                "ms_per_image": round(found.ms_per_image, 3),
                "ms_low": round(found.ms_low, 3),
                "ms_high": round(found.ms_high, 3),
                "images_per_s": round(1000.0 / found.ms_per_image, 3),
                **megabytes,
            }
        )
    return records


def peak_memory(tasks: Sequence[Task]) -> list[dict[str, float]]:
    """Measures the memory of restoring a batch, each model in its own processes.

    Returns:
        `peak_memory_mb`, `compiling_peak_mb` and `program_memory_mb` of each task.

    Raises:
        RunError: such a process fails.
    """
    with tempfile.TemporaryDirectory() as cache:
        idle = _in_a_process(None, cache)["peak_mb"]
        found = []
        for task in tasks:
            # The first process compiles, which takes more memory than most models.
            first, again = (_in_a_process(task, cache) for _ in range(2))
            found.append(
                {
                    "peak_memory_mb": round(again["peak_mb"] - idle, 1),
                    "compiling_peak_mb": round(first["peak_mb"] - idle, 1),
                    "program_memory_mb": round(first["program_mb"], 1),
                }
            )
    return found


def _in_a_process(task: Task | None, cache: str) -> dict[str, float]:
    argument = json.dumps(None if task is None else dataclasses.asdict(task))
    script = "import sys; from benchmarks import models; models.report_memory(sys.argv[1])"
    done = run_script(script, argument, cache=cache)
    if done.returncode:
        name = "an idle process" if task is None else task.model
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RunError(f"{name}: its memory could not be measured: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def run_script(
    script: str, *arguments: str, cache: str, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a new process, with its compilation cache in the folder `cache`.

    Raises:
        subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
    """
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def report_memory(argument: str) -> None:
    """Restores a batch (nothing for null) and prints this process's peak memory as JSON."""
    task = json.loads(argument)
    program = 0.0
    jnp.zeros(1).block_until_ready()  # an idle process has initialised the device, too
    if task is not None:
        program = _restore_twice(Task(**task)) / 1e6
    print(json.dumps({"peak_mb": peak_bytes() / 1e6, "program_mb": program}))


def _restore_twice(task: Task) -> int:
    model = make_model(task)
    images = jnp.full((task.batch, task.size, task.size, 3), 0.5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1, :32, :32])
    # Constants, as a program that draws random parameters would take memory, too.
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    restore = jax.jit(model.apply).lower(variables, images).compile()
    for _ in range(2):
        restore(variables, images).block_until_ready()
    plan = restore.memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes


def peak_bytes() -> int:
    """Returns the peak memory of this process: on its device or, for a CPU, resident."""
    statistics = jax.devices()[0].memory_stats()
    if statistics:
        return statistics["peak_bytes_in_use"]
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a process inherits from its parent on Linux.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    main(sys.argv)
