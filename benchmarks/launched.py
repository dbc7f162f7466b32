"""Shared by the benchmarks of launch.py: runs its commands as a user does."""

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
    """Runs launch.py, with its output in the files "said" and "errors" of a folder.

    On exit from the context, the process is killed if it is still running.
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
    """Returns the error for a command that ended before its work was done."""
    said = (place / "errors").read_text(errors="replace").strip().splitlines()
    last = said[-1] if said else "it said nothing"
    return RunError(f"launch.py ended with status {process.returncode}: {last}")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a new process, which frees the device when it ends.

    Raises:
        UsageError, RunError: as raised by the function.
    """
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, fresh) as process:
        return process.submit(function, *arguments).result()


def save_untrained(task: Task, path: pathlib.Path) -> None:
    """Writes the initial parameters of a model to a weights file."""
    config = common.make_config(task)
    model = models.from_config(config)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    weights_file.save_weights(path, variables, config)
