"""The training loop, which holds all the side effects; the pure train step is in `steps`.

With several processes, each runs this loop and only the first writes (see `processes`).
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.degradation import definition
from restore_jax.evaluation import per_image
from restore_jax.learner import optim
from restore_jax.learner.state import (
    Learner,
    TrainState,
    inference_variables,
    make_learner,
)
from restore_jax.losses import loss_terms
from restore_jax.metrics import fidelity
from restore_jax.parallel import device_mesh, processes, signals
from restore_jax.report import evaluation_lines
from restore_jax.train import preparation, setup, steps
from restore_jax.train.display import Display
from restore_jax.train.logs import Logs, NoLogs, epochs_without_gain, read_records
from restore_jax.train.on_device import resident


def _why_finished(folder: pathlib.Path, config: ConfigDict, done: int) -> str | None:
    """Returns why the run is finished after `done` epochs, or None if it is not."""
    patience = config.train.early_stopping_patience
    if done >= config.train.epochs:
        return f"all {config.train.epochs} epochs are done"
    if patience and (epochs := _epochs_without_gain(folder, done)) >= patience:
        return f"the SSIM has not risen for {epochs} epochs"
    return None


def _epochs_without_gain(folder: pathlib.Path, done: int) -> int:
    """Counts the epochs without a better SSIM, as of epoch `done`, in the first process."""
    return processes.on_first(
        lambda: epochs_without_gain([r for r in read_records(folder) if r["epoch"] <= done])
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays constant throughout a run.

    Only the first process has a `manager`.
    """

    config: ConfigDict
    folder: pathlib.Path
    data: batches.Data
    mesh: Mesh
    learner: Learner
    loss_params: loss_terms.LossParams
    schedule: optax.Schedule
    step_fn: steps.StepFn
    resident: resident.Resident | None
    steps_per_epoch: int
    manager: checkpoint.Manager | None
    stop: processes.Stop
    identity: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Position:
    """How far a run has come.

    Attributes:
        state: the state after the last step.
        epoch: number of completed epochs, including their records and validation.
        sums: metric sums over the steps taken so far in the next epoch, see `steps.add`.
    """

    state: TrainState
    epoch: int
    sums: Mapping[str, float]

    @property
    def step(self) -> int:
        return int(self.state.step)


def train(
    config: ConfigDict,
    folder: pathlib.Path,
    make_data: Callable[[ConfigDict], batches.Data],
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains a run to its end, resuming from its latest checkpoint if there is one.

    Validates every `config.eval.every_epochs` epochs and saves a checkpoint with the metrics;
    in between, saves every `config.checkpoint.every_steps` steps. An interrupted run resumes
    from its latest checkpoint and ends with a bitwise identical state; a finished run is left
    unchanged. A damaged checkpoint is moved aside and the previous one is used.

    On SIGTERM or Ctrl-C, stops after the current step or validation batch and saves.

    Args:
        config: all fields, see configs/default.py; a law's file is replaced by what it holds,
            and the white level by the one found in the images.
        folder: the workdir.
        make_data: makes the data that a configuration asks for.
        devices: the devices to train on; None for those of `device_mesh.fitting_devices`.

    Returns:
        The final state.

    Raises:
        UsageError: for an invalid field, or a workdir that belongs to another configuration.
        RunError: for a loss or gradient that is not finite, with its step and name; for
            checkpoints that cannot be read; for a full disk.
        signals.Interrupted: after SIGTERM or Ctrl-C.
    """
    definition.inline_file(config)
    sizes = (config.train.batch_size, config.eval.batch_size)
    mesh = device_mesh.make_mesh(devices or device_mesh.fitting_devices(*sizes))
    setup.check(config, mesh)
    loss_fn = loss_terms.weighted_sum(config.loss)
    learner = make_learner(config)
    config.data.white = processes.on_first(lambda: workdir.white_level(folder, config))
    saved = preparation.read_saved(config, folder, learner, mesh)
    if saved.state is not None:
        reason = _why_finished(folder, config, saved.record["epoch"])
        if reason:
            preparation.leave_finished(folder, saved, reason)
            return saved.state

    new_state = preparation.NewState(config, learner) if saved.state is None else None
    images = preparation.prepare_images(config, make_data, mesh, saved.step)
    learner = make_learner(config, images.steps_per_epoch, images.total_steps)
    in_memory = resident.make_resident(config, images.data, learner, loss_fn, mesh)
    if saved.state is not None:
        preparation.check_continuation(config, folder, saved, images)
    with contextlib.ExitStack() as stack:
        processes.on_first(
            lambda: setup.claim_workdir(stack, folder, config, saved.newest, saved.damaged)
        )
        if new_state is not None:
            state = processes.replicate(new_state.finished(folder), mesh)
        else:
            state = saved.state
            print(f"{folder}: resuming from step {saved.step}")
        run = _open_run(stack, config, folder, images, mesh, learner, loss_fn, in_memory)
        start = _Position(state, saved.record["epoch"], saved.record.get("sums", {}))
        return _loop(run, start, images.stream)


def _open_run(
    stack: contextlib.ExitStack,
    config: ConfigDict,
    folder: pathlib.Path,
    images: preparation.Images,
    mesh: Mesh,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    in_memory: resident.Resident | None,
) -> _Run:
    """Opens the checkpoints and heeds signals, until the stack is closed."""
    manager = None
    if processes.is_first():
        manager = stack.enter_context(checkpoint.open_manager(folder))
    request = stack.enter_context(signals.as_requests())
    return _Run(
        config=config,
        folder=folder,
        data=images.data,
        mesh=mesh,
        learner=learner,
        loss_params=images.loss_params,
        schedule=optim.make_schedule(
            config.optimizer, images.steps_per_epoch, images.total_steps
        ),
        step_fn=steps.compile_step(config, learner, loss_fn, mesh),
        resident=in_memory,
        steps_per_epoch=images.steps_per_epoch,
        manager=manager,
        stop=processes.Stop(request, mesh),
        identity=setup.identity_of(images.data, images.fixed),
    )


def _loop(run: _Run, start: _Position, stream: Iterator[batches.Batch]) -> TrainState:
    """Trains, validates, logs and saves until the last epoch or until early stopping."""
    config, images = run.config, run.data.train_images
    print("compiling the training step, or reading it from the cache", flush=True)
    display = Display(
        config,
        images,
        start.epoch * images + int(start.sums.get("count", 0)),
        run.mesh.devices.flat[0].platform,
    )
    position = start
    with contextlib.closing(display), _open_logs(run, start) as logs:
        for epoch in range(start.epoch + 1, config.train.epochs + 1):
            trained = _train_and_log(run, position, stream, display, logs)
            position = _Position(trained.state, epoch, {})
            validates = epoch % config.eval.every_epochs == 0 or epoch == config.train.epochs
            if validates:
                metrics = _validate_and_log(run, trained, display, logs)
                # After the validation, so that every checkpoint carries its own metrics.
                _save(run, position, metrics)
            elif _is_due(run, position.step):
                _save(run, position)
            _stop_if_asked(run, position)
            patience = config.train.early_stopping_patience if validates else 0
            if patience and _epochs_without_gain(run.folder, epoch) >= patience:
                display.write(f"stopped early: the SSIM has not risen for {patience} epochs")
                break
    # The last asynchronous save may have failed, which this raises.
    processes.on_first(lambda: run.manager.wait_until_finished())  # noqa: PLW0108 - None elsewhere
    return position.state


def _train_and_log(
    run: _Run,
    position: _Position,
    stream: Iterator[batches.Batch],
    display: Display,
    logs: Logs | NoLogs,
) -> _Position:
    """Takes the remaining steps of an epoch, and logs their means and their speed.

    Returns:
        The position after the last step; its epoch is not complete before the validation.
    """
    started, count = time.perf_counter(), position.sums.get("count", 0)
    if run.resident is None:
        position = _train_epoch(run, position, stream, display.show_steps)
    else:
        position = _train_resident_epoch(run, run.resident, position, display.show_steps)
    if (trained := position.sums.get("count", 0) - count) > 0:
        logs.write_speed(position.step, trained / (time.perf_counter() - started))
    # Empty if imported weights count as the only step of the first epoch.
    if position.sums:
        metrics = {"learning_rate": float(run.schedule(position.step - 1))}
        means = steps.means(position.sums)
        logs.write(position.step, position.epoch + 1, "train", means | metrics)
    return position


def _validate_and_log(
    run: _Run, position: _Position, display: Display, logs: Logs | NoLogs
) -> dict[str, float | None]:
    """Validates the state after the last step of an epoch; returns and logs the metrics."""
    display.start_validation()
    metrics, warning = _validate(run, position)
    display.show_validation(metrics, warning)
    logs.write(position.step, position.epoch + 1, "val", metrics)
    logs.refresh()
    return metrics


def _open_logs(run: _Run, start: _Position) -> Logs | NoLogs:
    if not processes.is_first():
        return NoLogs()
    return Logs(run.folder, start.step, start.epoch, run.steps_per_epoch)


def _train_epoch(
    run: _Run,
    position: _Position,
    stream: Iterator[batches.Batch],
    show: Callable[[Mapping[str, float], int], None],
) -> _Position:
    """Takes the remaining steps of an epoch.

    Scalars are fetched every `config.train.log_every_steps` steps, since each fetch waits for
    the devices.
    """
    state, sums = position.state, position.sums
    pending: list[steps.Scalars] = []
    steps_taken = position.step - position.epoch * run.steps_per_epoch
    for done in range(steps_taken + 1, run.steps_per_epoch + 1):
        state, scalars = run.step_fn(
            state, device_mesh.to_devices(next(stream), run.mesh), run.loss_params
        )
        pending.append(scalars)
        step = position.epoch * run.steps_per_epoch + done
        last = done == run.steps_per_epoch
        stop = run.stop.requested_before() is not None
        save = (_is_due(run, step) and not last) or stop
        if last or save or done == 1 or done % run.config.train.log_every_steps == 0:
            before = sums.get("count", 0)
            for number, values in enumerate(jax.device_get(pending), step - len(pending) + 1):
                values = {name: float(value) for name, value in values.items()}
                steps.check_finite(number, values)
                sums = steps.add(sums, values)
            show(values, int(sums["count"] - before))
            pending.clear()
        current = dataclasses.replace(position, state=state, sums=sums)
        if save:
            _save(run, current)
            _stop_if_asked(run, current)
    return dataclasses.replace(position, state=state, sums=sums)


def _train_resident_epoch(
    run: _Run,
    source: resident.Resident,
    position: _Position,
    show: Callable[[Mapping[str, float], int], None],
) -> _Position:
    """Like `_train_epoch`, for pairs in device memory and with many steps per dispatch."""

    def needs_save(step: int) -> bool:
        last = step == (position.epoch + 1) * run.steps_per_epoch
        return (_is_due(run, step) and not last) or run.stop.requested_before() is not None

    state, sums, step = position.state, position.sums, position.step
    dispatches = resident.train_epoch(source, state, step, run.loss_params, needs_save)
    for state, fetched, save in dispatches:
        before = sums.get("count", 0)
        for values in fetched:
            step += 1
            steps.check_finite(step, values)
            sums = steps.add(sums, values)
        if fetched:
            show(fetched[-1], int(sums["count"] - before))
        if save:
            current = dataclasses.replace(position, state=state, sums=sums)
            _save(run, current)
            _stop_if_asked(run, current)
    return dataclasses.replace(position, state=state, sums=sums)


def _is_due(run: _Run, step: int) -> bool:
    """Returns whether `config.checkpoint.every_steps` asks for a checkpoint at a step."""
    every = run.config.checkpoint.every_steps
    return every > 0 and step % every == 0


def _save(run: _Run, position: _Position, metrics: Mapping[str, Any] | None = None) -> None:
    """Starts saving a checkpoint, with the validation metrics if the state was validated."""
    if run.manager is None:
        return
    # A run stopped between an epoch's last step and its validation has already saved this step.
    checkpoint.remove_existing(run.manager, run.folder, position.step)
    checkpoint.save(
        run.manager,
        position.state,
        {"epoch": position.epoch, **(metrics or {})},
        {"sums": position.sums, **run.identity},
    )


def _stop_if_asked(run: _Run, position: _Position) -> None:
    """Stops the training if a signal asked for it; all processes must call this together.

    Raises:
        signals.Interrupted: if asked to stop, once the checkpoint is on disk.
    """
    received = run.stop.requested()
    if received is None:
        return
    processes.on_first(lambda: _save_and_wait(run, position))
    epoch = min(position.epoch + 1, run.config.train.epochs)
    raise signals.Interrupted(
        f"stopped by {received.name} after step {position.step}, in epoch {epoch} of "
        f"{run.config.train.epochs}; everything is saved in {run.folder}, and the same command "
        "resumes from there",
        received,
    )


def _save_and_wait(run: _Run, position: _Position) -> None:
    """Saves a checkpoint unless this step has one, and waits until it is on disk."""
    # The save in progress may be of this very step.
    run.manager.wait_until_finished()
    if not checkpoint.exists(run.folder, position.step):
        _save(run, position)
        run.manager.wait_until_finished()


def _validate(run: _Run, position: _Position) -> tuple[dict[str, float | None], str]:
    """Validates a state.

    Returns:
        The loss, its terms, and the metrics averaged over the images; a warning if the images
        are no measure of it, else "".

    Raises:
        signals.Interrupted: if asked to stop; the state is saved first.
        RunError: for a loss that is not finite.
    """

    def until_asked_to_stop() -> Iterator[batches.Batch]:
        source = run.resident
        found = source.validation_batches() if source else run.data.eval_batches("val")
        for batch in processes.in_lockstep(found):
            _stop_if_asked(run, position)
            if batch is not None:
                yield batch

    rows = per_image.evaluate(
        run.learner.model,
        inference_variables(position.state),
        until_asked_to_stop(),
        run.mesh,
        terms=loss_terms.active(run.config.loss),
        loss_params=run.loss_params,
    )
    metrics = per_image.mean_losses(rows, run.config.loss)
    steps.check_finite(position.step, metrics, "validation ")
    warning = evaluation_lines.undegraded_line(rows)
    return metrics | fidelity.summarise(rows)["micro"], warning
