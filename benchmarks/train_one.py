"""Runs one training of `benchmarks.train_all` in its own process.

    python -m benchmarks.train_one TASK          # JSON of an `experiments.Task`
    python -m benchmarks.train_one --check TASK…

It communicates in lines of JSON: it prints `{"event": "ready", …}` when everything is compiled,
waits for a line `{"seconds": …, "limit": …}` on standard input (the time to plan for, and the
time after which it is killed), prints `{"event": "training", …}` and finally its record. The
library's messages go to standard error. With `--check` it trains nothing and prints what is
wrong with each task.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import restore_jax
from benchmarks import compact_pairs, experiments
from benchmarks.experiments import Task
from restore_jax import batches, errors, models
from restore_jax.checkpoints import checkpoint
from restore_jax.errors import RunError, UsageError
from restore_jax.evaluation import per_image
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.metrics import fidelity
from restore_jax.metrics.cost import parameter_count
from restore_jax.parallel import compilation, device_mesh, signals
from restore_jax.train import logs, loop
from restore_jax.train.on_device import dataset, resident
from restore_jax.train.on_device.pairs_file import Pairs

HALF_COSTS_DB = 0.01
"""Weights are stored as float16 if that lowers the PSNR by less than this."""

# Share of the time planned for steps; the rest is a margin for slowdowns.
_MARGIN = 0.93
# Overhead per epoch besides its steps: its line in the logs.
_EPOCH_S = 0.015
# Overhead of a training before its first step and after its last one.
_START_S = 4.0


class Costs(NamedTuple):
    """Seconds for an epoch's steps, compiling them, a validation and the final measuring."""

    epoch: float
    compiling: float
    validation: float
    last: float


def main(argv: list[str]) -> None:
    """Trains or checks; user errors are one line on standard error."""
    compilation.use_cache()
    out = sys.stdout

    def say(record: Mapping[str, Any]) -> None:
        print(json.dumps(record, allow_nan=False), file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr), errors.exit_on_failure():
        if argv[0] == "--check":
            for text in argv[1:]:
                say(check(Task.from_json(text)))
        else:
            run(Task.from_json(argv[0]), say, lambda: json.loads(sys.stdin.readline()))


def check(task: Task) -> dict[str, Any]:
    """Checks a task's configuration, model and pairs without training; returns a record."""
    try:
        if task.experiment.rendered:
            importlib.import_module("benchmarks.rendered")
        elif not task.pairs:
            size = f"{task.experiment.size} px" if task.experiment.size else "native size"
            raise UsageError(f"--pairs: none of {size} was given")
        else:
            compact_pairs.check(pathlib.Path(task.pairs))
        config = experiments.make_config(task.experiment, 1, task.dtype or "bfloat16")
        loss_terms.weighted_sum(config.loss)
        state.abstract_state(state.make_learner(config, 1, 1), None)
    except Exception as error:
        # Any error, since the other experiments can still be trained.
        return {"name": task.experiment.name, "problem": one_line(error)}
    return {"name": task.experiment.name, "problem": None}


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line, with its type unless it is meant for users."""
    text, kind = errors.one_line(error, 300), type(error).__name__
    told = isinstance(error, (UsageError, RunError))
    return text if told or text == kind else f"{kind}: {text}"


def run(
    task: Task,
    say: Callable[[Mapping[str, Any]], None],
    wait: Callable[[], Mapping[str, float]],
) -> None:
    """Prepares, waits for its turn, trains and reports.

    Args:
        task: the task.
        say: sends a record.
        wait: blocks until it is this process's turn; returns "seconds" and "limit".

    Raises:
        UsageError: the task is invalid.
        RunError: the training fails, or there is no time for a single epoch.
    """
    began = time.monotonic()
    device = jax.devices()[0]
    dtype = task.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    pairs, exact = read_pairs(task)
    config = experiments.make_config(task.experiment, 1, dtype)
    data = dataset.as_data(pairs, config)
    most = max(1, task.experiment.images // data.train_images)
    config = experiments.make_config(task.experiment, most, dtype)
    mesh = device_mesh.make_mesh([device])
    costs, time_epoch = prepare(config, data, mesh)
    say({"event": "ready", "prepared_s": round(time.monotonic() - began, 1), **costs._asdict()})

    given = wait()
    began = time.monotonic()
    # Timed again, now that no other training is running.
    costs = costs._replace(epoch=time_epoch())
    del time_epoch  # it holds the pairs on the device
    seconds = given["seconds"] - (time.monotonic() - began)
    epochs = fitting_epochs(seconds, most, costs)
    config = experiments.make_config(task.experiment, epochs, dtype)
    say({"event": "training", "epochs": epochs, **costs._asdict()})
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        limit = began + given["limit"] - time.monotonic() - costs.last
        before = time.perf_counter()
        trained, done, finished = train_until(limit, config, data, workdir, mesh)
        took = time.perf_counter() - before
        records = logs.read_records(workdir)
    record = {
        "op": "trained",
        "name": task.experiment.name,
        "command": experiments.command(task.experiment, config),
        "device": device.device_kind,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "dtype": dtype,
        "size": task.experiment.size,
        "batch": config.train.batch_size,
        "train_images": data.train_images,
        "steps": int(trained.step),
        "epochs": done,
        "finished": finished,
        "train_s": round(took, 2),
        "images_per_s": rounded(done * data.train_images / took),
        "parameters": parameter_count(trained.params),
        "validation": "pipeline" if exact else "drawn from compressed photographs",
    }
    record |= finish(task, config, state.inference_variables(trained), data, mesh)
    record["history"] = [
        [r["epoch"], rounded(r["psnr"]), rounded(r["ssim"])]
        for r in records
        if r["split"] == "val"
    ]
    say(record | {"total_s": round(time.monotonic() - began, 2)})


def read_pairs(task: Task) -> tuple[Pairs, bool]:
    """Reads or renders a task's pairs; also returns whether they are exactly the pipeline's."""
    if not (count := task.experiment.rendered):
        return compact_pairs.read(pathlib.Path(task.pairs))
    # Imported on demand, since most tasks do not need it.
    rendered = importlib.import_module("benchmarks.rendered")
    settings = experiments.make_config(task.experiment, 1, "float32").data
    law = settings.degradation
    return rendered.make_pairs(law.preset, law.clean_share, settings.sample_size, count), False


def prepare(
    config: ConfigDict, data: batches.Data, mesh: Mesh
) -> tuple[Costs, Callable[[], float]]:
    """Compiles and times the parts of a training; its steps are discarded.

    Args:
        config: the configuration for the maximum number of epochs. If there turns out to be
            time for all of them, the program compiled here is used again.
        data: the data.
        mesh: the device.

    Returns:
        The costs, and a function that times an epoch's steps again.
    """
    steps = math.ceil(data.train_images / config.train.batch_size)
    config = with_dispatches(config, mesh)
    learner = state.make_learner(config, steps, steps * config.train.epochs)
    loss = loss_terms.weighted_sum(config.loss)
    source = resident.make_resident(config, data, learner, loss, mesh)
    assert source is not None
    now = jax.device_put(state.create_state(learner, config.seed), device_mesh.replicated(mesh))

    def dispatch() -> None:
        nonlocal now
        now, scalars = source.dispatch(now, source.arrays, {}, source.longest)
        jax.block_until_ready((now, scalars))

    def time_epoch() -> float:
        times = [timed(dispatch)]
        while sum(times) < 1.0 and len(times) < 20:
            times.append(timed(dispatch))
        return float(np.median(times)) * steps / source.longest

    def validate() -> None:
        per_image.evaluate(
            learner.model,
            state.inference_variables(now),
            source.validation_batches(),
            mesh,
            terms=loss_terms.active(config.loss),
            loss_params={},
        )

    def measure_twice() -> None:
        for _ in range(2):
            measured(config, state.inference_variables(now), data, mesh)

    compiling = timed(dispatch)
    # The first call of each compiles. The constants allow for the checkpoint and the file.
    times = [[timed(work) for _ in range(2)][1] for work in (validate, measure_twice)]
    return Costs(time_epoch(), compiling, times[0] + 0.5, times[1] + 1.0), time_epoch


def timed(work: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_dispatches(config: ConfigDict, mesh: Mesh) -> ConfigDict:
    """Sets one dispatch per epoch (not on a CPU), so that there is one program to compile."""
    config = config.copy_and_resolve_references()
    if mesh.devices.flat[0].platform != "cpu":
        config.train.steps_per_dispatch = 1_000_000
    return config


def fitting_epochs(seconds: float, most: int, costs: Costs) -> int:
    """Returns the number of epochs that fit into the time, with all overhead included.

    Args:
        seconds: the available time.
        most: maximum number of epochs.
        costs: the measured costs.

    Raises:
        RunError: there is no time for a single epoch.
    """
    epoch = (costs.epoch + _EPOCH_S) / _MARGIN
    room = seconds - _START_S - costs.last
    validations = experiments.VALIDATIONS
    if room >= most * epoch + min(most, validations) * costs.validation:
        return most
    # With fewer epochs the schedule changes, so the program has to be compiled again.
    room -= costs.compiling
    fitting = int(room / (epoch + costs.validation))  # validated after each
    if fitting > validations:
        fitting = int((room - validations * costs.validation) / epoch)
    if fitting < 1:
        raise RunError(
            f"no time: an epoch takes {costs.epoch:.1f} s and {seconds:.0f} s are left"
        )
    return min(fitting, most)


def train_until(
    limit: float,
    config: ConfigDict,
    data: batches.Data,
    workdir: pathlib.Path,
    mesh: Mesh,
) -> tuple[state.TrainState, int, bool]:
    """Trains, and stops after `limit` seconds.

    Returns:
        The last state, the number of its epochs, and whether training was completed.
    """
    config = with_dispatches(config, mesh)
    # Ignored before and after the loop, which installs its own handler.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ended = threading.Event()

    def ask() -> None:
        left = max(0.0, limit)
        while not ended.wait(left):
            os.kill(os.getpid(), signal.SIGTERM)
            left = 1.0

    threading.Thread(target=ask, daemon=True).start()
    try:
        devices = list(mesh.devices.flat)
        found = loop.train(config, workdir, lambda _: data, devices)
    except signals.Interrupted:
        template = state.abstract_state(
            state.make_learner(config), device_mesh.replicated(mesh)
        )
        found, *_ = checkpoint.newest_intact(workdir, template)
        if found is None:
            raise
        # From its steps: an epoch that lacks only its validation has no record.
        steps_per_epoch = math.ceil(data.train_images / config.train.batch_size)
        return found, int(found.step) // steps_per_epoch, False
    finally:
        ended.set()
    return found, config.train.epochs, True


def measured(
    config: ConfigDict, variables: Mapping[str, Any], data: batches.Data, mesh: Mesh
) -> list[per_image.Row]:
    """Measures a model on the validation photographs, in full float32 on any device."""
    config = config.copy_and_resolve_references()
    config.dtype = "float32"
    variables = jax.device_put(variables, device_mesh.replicated(mesh))
    with jax.default_matmul_precision("highest"):
        return per_image.evaluate(
            models.from_config(config), variables, data.eval_batches("val"), mesh
        )


def finish(
    task: Task,
    config: ConfigDict,
    variables: Mapping[str, Any],
    data: batches.Data,
    mesh: Mesh,
) -> dict[str, Any]:
    """Measures a trained model and writes its weights; returns fields of the record."""
    variables = jax.device_get(variables)
    figures = fidelity.summarise(measured(config, variables, data, mesh))
    with np.errstate(over="ignore"):
        halved = jax.tree.map(
            lambda x: x.astype(np.float16).astype(np.float32), variables["params"]
        )
    stored, costs = "float32", None
    if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(halved)):
        rows = measured(config, {**variables, "params": halved}, data, mesh)
        costs = figures["micro"]["psnr"] - fidelity.summarise(rows)["micro"]["psnr"]
        stored = "float16" if costs < HALF_COSTS_DB else "float32"
    # The precision it was measured with; further training may choose another.
    config = config.copy_and_resolve_references()
    config.dtype = "float32"
    path = restore_jax.save_weights(task.weights, variables, config, dtype=stored)
    return {
        **{name: rounded(value) for name, value in figures.items()},
        "weights": {
            "dtype": stored,
            "float16_costs_db": rounded(costs),
            "bytes": path.stat().st_size,
        },
    }


def rounded(value: Any) -> Any:
    """Rounds the numbers of a record to five significant digits."""
    if isinstance(value, Mapping):
        return {name: rounded(entry) for name, entry in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main(sys.argv[1:])
