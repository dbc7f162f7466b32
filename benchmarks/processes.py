"""Times a training step divided among processes on this machine, and their communication.

    python -m benchmarks.processes --processes=1,2,4 --size=64 --batch=8

One JSON line per number of processes: `step_ms`, a step of the SCA U-Net on the global batch,
median over the rounds; `sum_ms`, an all-reduce over the processes of as many float32 values as
the model has parameters; `mb`, their size; and `asked_ms`, the agreement on whether to stop.
The processes share the cores of this machine, so this shows the cost of communication and not
the gain of more machines.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.metrics.cost import parameter_count
from restore_jax.parallel import compilation, device_mesh, launcher, processes, signals
from restore_jax.train import steps


def measure(task: common.Task) -> dict[str, Any]:
    """Measures the figures of the module's docstring, in all processes of a job together."""
    config = common.make_config(task)
    mesh = device_mesh.make_mesh()
    learner = state.make_learner(config)
    step = steps.compile_step(config, learner, loss_terms.weighted_sum(config.loss), mesh)
    own = processes.share().rows(task.batch)
    batch = {name: np.asarray(value)[own] for name, value in common.make_batch(task).items()}
    now = processes.replicate(state.create_state(learner, config.seed), mesh)
    count = parameter_count(now.params)

    def one_step() -> Any:
        nonlocal now
        now, scalars = step(now, device_mesh.to_devices(batch, mesh), {})
        return scalars

    part = jax.make_array_from_process_local_data(
        device_mesh.split_over(mesh), np.ones((len(mesh.local_devices), count), np.float32)
    )
    total = jax.jit(
        lambda values: jnp.sum(values, 0), out_shardings=device_mesh.replicated(mesh)
    )
    stop = processes.Stop(signals.Request(), mesh)
    return {
        "processes": jax.process_count(),
        "size": task.size,
        "batch": task.batch,
        "step_ms": _median_ms(one_step, task.rounds),
        "sum_ms": _median_ms(lambda: total(part), task.rounds),
        "mb": count * 4 / 1e6,
        "asked_ms": _median_ms(stop.requested, task.rounds),
    }


def _median_ms(work: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(times[1:]), 2)  # the first compiles


def main(argv: list[str]) -> None:
    """Runs each number of processes in turn, and prints what their first process measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes")
    parser.add_argument("--size", type=int, default=64, help="side length, px")
    parser.add_argument("--batch", type=int, default=8, help="global batch size")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--job", help=argparse.SUPPRESS)  # INDEX,COUNT,PORT of a child process
    given = parser.parse_args(argv)
    task = common.Task(size=given.size, batch=given.batch, rounds=given.rounds)
    if given.job:
        index, count, port = map(int, given.job.split(","))
        compilation.use_cache()
        with processes.joined(
            launcher.Job(index, count, f"localhost:{port}") if count > 1 else None
        ):
            found = measure(task)
            if processes.is_first():
                print(json.dumps(found), flush=True)
        return
    for count in map(int, given.processes.split(",")):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *argv, f"--job={index},{count},{port}"]
            )
            for index in range(count)
        ]
        statuses = [process.wait() for process in started]
        if any(statuses):
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
