"""What the benchmarks of launch.py share: its commands run as a user runs them."""

import concurrent.futures
import contextlib
import multiprocessing
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from benchmarks import ROOT, common
from benchmarks.common import Task
from restore_jax import models
from restore_jax.checkpoints import weights_file
from restore_jax.errors import RunError

Result = TypeVar("Result")


@contextlib.contextmanager
def running(
    flags: Sequence[str], place: pathlib.Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Runs launch.py, which says things into the files "said" and "errors" of a folder.

    It is killed where it is left before its end.
    """
    command = [sys.executable, str(ROOT / "launch.py"), *flags]
    with (
        (place / "said").open("w") as said,
        (place / "errors").open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=errors
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def failure(process: subprocess.Popen, place: pathlib.Path) -> RunError:
    """Returns the error of a command that ended before its work was done."""
    said = (place / "errors").read_text(errors="replace").strip().splitlines()
    last = said[-1] if said else "it said nothing"
    return RunError(f"launch.py ended with status {process.returncode}: {last}")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process of its own, which leaves the device to the next one.

    Raises:
        UsageError, RunError: those of the function.
    """
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, fresh) as process:
        return process.submit(function, *arguments).result()


def save_untrained(task: Task, path: pathlib.Path) -> None:
    """Writes a model's first parameters to a file of weights."""
    config = common.make_config(task)
    model = models.from_config(config)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    weights_file.save_weights(path, variables, config)
