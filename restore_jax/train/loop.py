"""The training loop, which has all the side effects; its step is in `steps`.

Of several processes each runs this loop, and the first one alone writes (see `processes`).
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches, progress
from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.degradation import law_file
from restore_jax.evaluation import per_image
from restore_jax.learner import optim
from restore_jax.learner.state import (
    Learner,
    TrainState,
    abstract_state,
    create_state,
    inference_variables,
    make_learner,
    start_from,
)
from restore_jax.losses import loss_terms
from restore_jax.metrics import fidelity
from restore_jax.parallel import device_mesh, processes, signals
from restore_jax.train import setup, steps
from restore_jax.train.logs import Logs, NoLogs, epochs_without_gain, read_records
from restore_jax.train.on_device import resident


def _end_reached(folder: pathlib.Path, config: ConfigDict, done: int) -> str | None:
    """Says why a run is over, by its epochs done and records; None while it is not."""
    patience = config.train.early_stopping_patience
    if done >= config.train.epochs:
        return f"all {config.train.epochs} epochs are done"
    if patience and (epochs := _epochs_without_gain(folder, done)) >= patience:
        return f"the SSIM has not risen for {epochs} epochs"
    return None


def _epochs_without_gain(folder: pathlib.Path, done: int) -> int:
    """Counts them after so many epochs; as the first process reads it."""
    return processes.on_first(
        lambda: epochs_without_gain([r for r in read_records(folder) if r["epoch"] <= done])
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step of a run to its last.

    The first process alone has a `manager`.
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
    """Where a run stands.

    Attributes:
        state: after the last step.
        epoch: the epochs that are over, with all their records and their validation.
        sums: of the figures of the next epoch's steps so far, see `steps.add`.
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
    """Trains a run to its end, from wherever it stands.

    Validates every `config.eval.every_epochs` epochs and saves that state with its figures; in
    between, saves every `config.checkpoint.every_steps` steps. A run that was cut off goes on
    from its latest checkpoint and ends in the same bits; a finished one is left as it is. A
    checkpoint that is damaged is set aside, and the one before serves.

    SIGTERM and Ctrl-C end the step, or the validation, and save.

    Args:
        config: all fields, see configs/default.py; a law's file is replaced by what it holds.
        folder: the workdir.
        make_data: makes the data that a configuration asks for.
        devices: those to train on; those of `device_mesh.fitting_devices`, if None.

    Returns:
        The last state.

    Raises:
        UsageError: for a wrong field, or a workdir of another configuration.
        RunError: for a loss or gradient that is not finite, with its step and name; for
            checkpoints that cannot be read, and a disk that is full.
        signals.Interrupted: after SIGTERM or Ctrl-C.
    """
    law_file.take_in(config)
    sizes = (config.train.batch_size, config.eval.batch_size)
    mesh = device_mesh.make_mesh(devices or device_mesh.fitting_devices(*sizes))
    setup.check(config, mesh)
    loss_fn = loss_terms.weighted_sum(config.loss)
    template = abstract_state(make_learner(config), device_mesh.replicated(mesh))
    newest = processes.on_first(lambda: setup.look_at(folder, config))
    state, record, damaged = None, {"epoch": 0}, []
    if newest:
        state, record, damaged = checkpoint.newest_whole(folder, template)
        reason = _end_reached(folder, config, record["epoch"])
        if reason:
            if damaged and processes.is_first():
                with workdir.held(folder):
                    setup.set_aside(folder, damaged)
            print(f"{folder}: finished, {reason}; nothing to train.")
            return state

    initial = None if newest else setup.initial_variables(config)
    data = make_data(config)
    loaded = data.load_loss_params()
    loss_params = processes.replicate(loaded, mesh)
    counts = data.counts
    print(f"{data.name}: {counts['train']} images to train on, {counts['val']} to validate")
    # The first batch before the workdir: images may be refused only when they are read.
    stream: Iterator[batches.Batch] = iter(())
    if data.pairs is None:
        stream = data.train_batches(0 if state is None else int(state.step))
        stream = itertools.chain([next(stream)], stream)
    steps_per_epoch = math.ceil(data.train_images / config.train.batch_size)
    total = steps_per_epoch * config.train.epochs
    learner = make_learner(config, steps_per_epoch, total)
    in_memory = resident.make_resident(config, data, learner, loss_fn, mesh)
    if state is not None:
        step = int(state.step)
        setup.check_same_images(record, step, data, loaded, steps_per_epoch, folder)
        processes.on_first(lambda: setup.say_if_longer(folder, config, step, steps_per_epoch))
    with contextlib.ExitStack() as stack:
        processes.on_first(lambda: setup.take(stack, folder, config, newest, damaged))
        if state is None:
            state = create_state(learner, config.seed)
            if initial is not None:
                state = start_from(state, initial)
                print(f"{folder}: starts from the parameters of {config.init_from}")
            state = processes.replicate(state, mesh)
        else:
            print(f"{folder}: going on from step {int(state.step)}")
        opened = checkpoint.open_manager(folder) if processes.is_first() else None
        with opened or contextlib.nullcontext() as manager, signals.noted() as request:
            run = _Run(
                config=config,
                folder=folder,
                data=data,
                mesh=mesh,
                learner=learner,
                loss_params=loss_params,
                schedule=optim.make_schedule(config.optimizer, steps_per_epoch, total),
                step_fn=steps.compile_step(config, learner, loss_fn, mesh),
                resident=in_memory,
                steps_per_epoch=steps_per_epoch,
                manager=manager,
                stop=processes.Stop(request, mesh),
                identity=setup.identity_of(data, loaded),
            )
            start = _Position(state, record["epoch"], record.get("sums", {}))
            return _loop(run, start, stream)


def _loop(run: _Run, start: _Position, stream: Iterator[batches.Batch]) -> TrainState:
    """Trains, validates, records and saves until the last epoch, or until it gains no more."""
    config, images = run.config, run.data.train_images
    bar = progress.bar(
        total=config.train.epochs * images,
        initial=start.epoch * images + int(start.sums.get("count", 0)),
        title=config.name,
        shown=processes.is_first(),
    )
    with bar, _open_logs(run, start) as logs:
        shown: dict[str, str] = {}

        def show(values: Mapping[str, float], count: int) -> None:
            shown.update(loss=f"{values['loss']:.4f}", PSNR=f"{values['psnr']:.2f}")
            shown.update(SSIM=f"{values['ssim']:.3f}")
            bar.set_postfix(shown, refresh=False)
            bar.update(count)

        at = start
        for epoch in range(start.epoch + 1, config.train.epochs + 1):
            began, count = time.perf_counter(), at.sums.get("count", 0)
            if run.resident is None:
                at = _train_epoch(run, at, stream, show)
            else:
                at = _train_resident_epoch(run, run.resident, at, show)
            if (trained := at.sums.get("count", 0) - count) > 0:
                logs.write_speed(at.step, trained / (time.perf_counter() - began))
            # None where imported weights stand in for the only step of the first epoch.
            if at.sums:
                figures = {"learning_rate": float(run.schedule(at.step - 1))}
                logs.write(at.step, epoch, "train", steps.means(at.sums) | figures)
            over = _Position(at.state, epoch, {})
            validates = epoch % config.eval.every_epochs == 0 or epoch == config.train.epochs
            if validates:
                figures = _validate(run, at)
                shown["val"] = f"{figures['psnr']:.2f} dB/{figures['ssim']:.3f}"
                logs.write(at.step, epoch, "val", figures)
                logs.refresh()
                # After its evaluation, so that every checkpoint carries its own figures.
                _save(run, over, figures)
            elif _is_due(run, over.step):
                _save(run, over)
            at = over
            _obey(run, at)
            patience = config.train.early_stopping_patience * validates
            if patience and _epochs_without_gain(run.folder, epoch) >= patience:
                bar.write(f"stopped early: the SSIM has not risen for {patience} epochs")
                break
    # It may have failed.
    processes.on_first(lambda: run.manager.wait_until_finished())  # noqa: PLW0108 - None elsewhere
    return at.state


def _open_logs(run: _Run, start: _Position) -> Logs | NoLogs:
    if not processes.is_first():
        return NoLogs()
    return Logs(run.folder, start.step, start.epoch, run.steps_per_epoch)


def _train_epoch(
    run: _Run,
    at: _Position,
    stream: Iterator[batches.Batch],
    show: Callable[[Mapping[str, float], int], None],
) -> _Position:
    """Takes the steps that an epoch still has; fetches their scalars only now and then."""
    state, sums = at.state, at.sums
    pending: list[steps.Scalars] = []
    begun = at.step - at.epoch * run.steps_per_epoch
    for done in range(begun + 1, run.steps_per_epoch + 1):
        state, scalars = run.step_fn(
            state, device_mesh.to_devices(next(stream), run.mesh), run.loss_params
        )
        pending.append(scalars)
        step = at.epoch * run.steps_per_epoch + done
        last = done == run.steps_per_epoch
        stop = run.stop.asked_lately() is not None
        save = (_is_due(run, step) and not last) or stop
        if last or save or done == 1 or done % run.config.train.log_every_steps == 0:
            before = sums.get("count", 0)
            for number, values in enumerate(jax.device_get(pending), step - len(pending) + 1):
                values = {name: float(value) for name, value in values.items()}
                steps.check_finite(number, values)
                sums = steps.add(sums, values)
            show(values, int(sums["count"] - before))
            pending.clear()
        at_step = dataclasses.replace(at, state=state, sums=sums)
        if save:
            _save(run, at_step)
            _obey(run, at_step)
    return dataclasses.replace(at, state=state, sums=sums)


def _train_resident_epoch(
    run: _Run,
    source: resident.Resident,
    at: _Position,
    show: Callable[[Mapping[str, float], int], None],
) -> _Position:
    """As `_train_epoch`, on pairs in device memory and with many steps per dispatch."""

    def saves(step: int) -> bool:
        last = step == (at.epoch + 1) * run.steps_per_epoch
        return (_is_due(run, step) and not last) or run.stop.asked_lately() is not None

    state, sums, seen = at.state, at.sums, at.step
    dispatches = resident.train_epoch(source, state, seen, run.loss_params, saves)
    for state, fetched, save in dispatches:
        before = sums.get("count", 0)
        for values in fetched:
            seen += 1
            steps.check_finite(seen, values)
            sums = steps.add(sums, values)
        if fetched:
            show(fetched[-1], int(sums["count"] - before))
        if save:
            at_step = dataclasses.replace(at, state=state, sums=sums)
            _save(run, at_step)
            _obey(run, at_step)
    return dataclasses.replace(at, state=state, sums=sums)


def _is_due(run: _Run, step: int) -> bool:
    """Tells whether a step is one of `config.checkpoint.every_steps`."""
    every = run.config.checkpoint.every_steps
    return every > 0 and step % every == 0


def _save(run: _Run, at: _Position, figures: Mapping[str, Any] | None = None) -> None:
    """Starts saving where a run stands, with the figures of the validation if there was one."""
    if run.manager is None:
        return
    # There is one where the run was stopped after the epoch's last step, before its validation.
    checkpoint.make_way(run.manager, run.folder, at.step)
    checkpoint.save(
        run.manager,
        at.state,
        {"epoch": at.epoch, **(figures or {})},
        {"sums": at.sums, **run.identity},
    )


def _obey(run: _Run, at: _Position) -> None:
    """Ends a training that was asked to stop; all processes ask at once.

    Raises:
        signals.Interrupted: then, when everything is on the disk.
    """
    received = run.stop.asked()
    if received is None:
        return
    processes.on_first(lambda: _save_to_stop(run, at))
    epoch = min(at.epoch + 1, run.config.train.epochs)
    raise signals.Interrupted(
        f"stopped by {received.name} after step {at.step}, in epoch {epoch} of "
        f"{run.config.train.epochs}; {run.folder} holds it all, and the same command goes on "
        "from there",
        received,
    )


def _save_to_stop(run: _Run, at: _Position) -> None:
    """Returns when a checkpoint of where a run stands is on the disk."""
    # The one that is being written may be of this very step.
    run.manager.wait_until_finished()
    if not checkpoint.exists(run.folder, at.step):
        _save(run, at)
        run.manager.wait_until_finished()


def _validate(run: _Run, at: _Position) -> dict[str, float | None]:
    """Returns the validation figures: the loss and its terms, and the means over the images."""

    def until_asked_to_stop() -> Iterator[batches.Batch]:
        source = run.resident
        found = source.validation_batches() if source else run.data.eval_batches("val")
        for batch in processes.in_step(found):
            _obey(run, at)
            if batch is not None:
                yield batch

    rows = per_image.evaluate(
        run.learner.model,
        inference_variables(at.state),
        until_asked_to_stop(),
        run.mesh,
        terms=loss_terms.active(run.config.loss),
        loss_params=run.loss_params,
    )
    figures = per_image.mean_losses(rows, run.config.loss)
    steps.check_finite(at.step, figures, "validation ")
    return figures | fidelity.summarise(rows)["micro"]
