"""Training: a pure, jitted step, and the loop around it that has all the side effects."""

import dataclasses
import functools
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import (
    adversarial,
    assess,
    batches,
    checkpoint,
    evaluate,
    losses,
    metrics,
    optim,
    workdir,
)
from restore_jax.errors import RunError, UsageError
from restore_jax.logs import Logs, epochs_without_gain, read_records
from restore_jax.state import (
    System,
    TrainState,
    abstract_state,
    create_state,
    inference_variables,
    make_system,
)

Scalars = dict[str, jax.Array]
StepFn = Callable[
    [TrainState, Mapping[str, jax.Array], losses.Fixed], tuple[TrainState, Scalars]
]


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    fixed: losses.Fixed | None = None,
    *,
    system: System,
    loss_fn: losses.BatchLoss,
    seed: int,
    mask_dropout: float = 0.0,
) -> tuple[TrainState, Scalars]:
    """One step of gradient descent, a pure function.

    With an adversary, the model takes its step against the discriminator as it was before, and
    the discriminator its own on the images that the model restored before.

    Args:
        state: the state before.
        batch: the arrays of a batch (see `batches`).
        fixed: parameters of loss terms, which are not trained (see `losses`).
        system: what is trained.
        loss_fn: from `losses.weighted_sum`.
        seed: of the run; with the step it gives the key of everything random in the model.
        mask_dropout: share of the images whose mask the model is not shown.

    Returns:
        The state after, and scalars of this batch: "loss", "loss_NAME" for each term, "psnr"
        (dB), "ssim", "grad_norm" and "count" (valid images).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    valid = batch["valid"]
    shown = jax.random.bernoulli(
        jax.random.fold_in(key, 1), 1.0 - mask_dropout, (len(valid), 1, 1, 1)
    )

    def objective(params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        restored, updates = system.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["degraded"],
            mask=jnp.where(shown, batch["mask"], 0.0),
            train=True,
            valid=valid,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        total, terms = loss_fn(restored, batch["clean"], batch["mask"], valid, fixed)
        if system.adversary is not None:
            fooling = adversarial.fooling_loss(
                system.adversary, state.adversary, batch, restored
            )
            total += system.adversary.weight * fooling
            terms = terms | {"adversarial": fooling}
        return total, (terms, restored, updates.get("batch_stats", {}))

    gradient = jax.value_and_grad(objective, has_aux=True)
    (total, (terms, restored, batch_stats)), grads = gradient(state.params)
    updates, opt_state = system.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = optax.incremental_update(params, ema_params, 1.0 - system.ema_decay)
    adversary = state.adversary
    if system.adversary is not None:
        adversary, terms["discriminator"] = adversarial.update(
            system.adversary, state.adversary, batch, restored
        )
    after = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema_params,
        adversary=adversary,
    )
    scalars = {
        "loss": total,
        **{f"loss_{name}": value for name, value in terms.items()},
        "psnr": batches.mean_of_valid(metrics.psnr(restored, batch["clean"]), valid),
        "ssim": batches.mean_of_valid(metrics.ssim(restored, batch["clean"]), valid),
        "grad_norm": optax.tree.norm(grads),
        "count": jnp.sum(valid),
    }
    return after, scalars


def _check_finite(step: int, values: Mapping[str, float], kind: str = "") -> None:
    """Stops the run where a figure of a step is not finite."""
    # The terms before their sum, so that the message names the culprit.
    for name in sorted(values, key=lambda name: (not name.startswith("loss_"), name)):
        if not math.isfinite(values[name]):
            raise RunError(
                f"step {step}: {kind}{name} is {values[name]}, the run stops; its checkpoints "
                "are kept. In a new workdir, lower config.optimizer.learning_rate or set "
                "config.optimizer.clip_norm"
            )


def _epoch_means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the means over the images of an epoch's steps."""
    counts = np.array([step["count"] for step in steps])
    return {
        name: float(np.dot([step[name] for step in steps], counts) / counts.sum())
        for name in steps[0]
        if name != "count"
    }


def _check(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses wrong fields before anything is written or prepared."""
    workdir.check_finite(config)
    assess.check(config.eval)
    if not 0 <= config.seed < 2**31:
        raise UsageError(f"config.seed: {config.seed} must lie in 0 to 2147483647")
    for section, field in (
        ("train", "epochs"),
        ("train", "log_every_steps"),
        ("eval", "every_epochs"),
    ):
        if config[section][field] < 1:
            raise UsageError(f"config.{section}.{field}: {config[section][field]} is below 1")
    if config.train.early_stopping_patience < 0:
        raise UsageError(
            f"config.train.early_stopping_patience: {config.train.early_stopping_patience} is "
            "negative; 0 turns it off"
        )
    if not 0 <= config.train.mask_dropout <= 1:
        raise UsageError(
            f"config.train.mask_dropout: {config.train.mask_dropout} must lie in [0, 1]"
        )
    batches.check_batch_size(config.train.batch_size, mesh, "config.train.batch_size")
    batches.check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")


def end_reached(folder: pathlib.Path, config: ConfigDict) -> str | None:
    """Says why a run is over, by its checkpoints and records; None while it is not."""
    done, patience = checkpoint.epochs_done(folder), config.train.early_stopping_patience
    if done >= config.train.epochs:
        return f"all {config.train.epochs} epochs are done"
    records = [record for record in read_records(folder) if record["epoch"] <= done]
    if patience and epochs_without_gain(records) >= patience:
        return f"the SSIM has not risen for {epochs_without_gain(records)} epochs"
    return None


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step of a run to its last."""

    config: ConfigDict
    folder: pathlib.Path
    data: batches.Data
    mesh: Mesh
    system: System
    fixed: losses.Fixed
    schedule: optax.Schedule
    step_fn: StepFn
    steps_per_epoch: int


def train_and_evaluate(
    config: ConfigDict,
    folder: pathlib.Path,
    make_data: Callable[[ConfigDict], batches.Data],
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains a run to its end, from wherever it stands.

    Validates every `config.eval.every_epochs` epochs and saves that state with its figures. A
    run that was cut off goes on from its latest checkpoint and ends in the same bits; a
    finished one is left as it is.

    Args:
        config: all fields, see configs/default.py.
        folder: the workdir.
        make_data: makes the data that a configuration asks for.
        devices: those to train on; all there are, if None.

    Returns:
        The last state.

    Raises:
        UsageError: for a wrong field, or a workdir of another configuration.
        RunError: for a loss or gradient that is not finite, with its step and name.
    """
    mesh = batches.make_mesh(devices)
    _check(config, mesh)
    loss_fn = losses.weighted_sum(config.loss)
    template = abstract_state(make_system(config), batches.replicated(mesh))
    claimed = workdir.is_claimed(folder, config)
    if claimed and (reason := end_reached(folder, config)):
        print(f"{folder}: finished, {reason}; nothing to train.")
        with checkpoint.open_manager(folder, read_only=True) as manager:
            return checkpoint.restore(manager, manager.latest_step(), template)[0]

    workdir.check_free(folder)
    data = make_data(config)
    fixed = jax.device_put(data.load_fixed(), batches.replicated(mesh))
    counts = data.counts
    print(f"{data.name}: {counts['train']} images to train on, {counts['val']} to validate")
    # The first batch before the workdir: images may be refused only when they are read.
    step = checkpoint.latest_step(folder) if claimed else 0
    stream = data.train_batches(step)
    stream = itertools.chain([next(stream)], stream)
    steps_per_epoch = math.ceil(data.train_images / config.train.batch_size)
    schedule = optim.make_schedule(
        config.optimizer, steps_per_epoch, steps_per_epoch * config.train.epochs
    )
    system = make_system(config, steps_per_epoch, steps_per_epoch * config.train.epochs)
    step_fn = jax.jit(
        functools.partial(
            train_step,
            system=system,
            loss_fn=loss_fn,
            seed=config.seed,
            mask_dropout=config.train.mask_dropout,
        ),
        in_shardings=(
            batches.replicated(mesh),
            batches.split_over(mesh),
            batches.replicated(mesh),
        ),
        out_shardings=batches.replicated(mesh),
        donate_argnums=0,
    )
    with workdir.held(folder):
        # Once more: another training may have claimed it since.
        workdir.is_claimed(folder, config)
        if checkpoint.latest_step(folder) != step:
            raise UsageError(f"--workdir={folder}: changed while this began; start it again")
        workdir.claim(folder, config)
        run = _Run(
            config, folder, data, mesh, system, fixed, schedule, step_fn, steps_per_epoch
        )
        with checkpoint.open_manager(folder) as manager:
            if step == 0:
                state = create_state(system, config.seed)
                state = jax.device_put(state, batches.replicated(mesh))
            else:
                state, saved = checkpoint.restore(manager, step, template)
                if step != saved["epoch"] * steps_per_epoch:
                    raise UsageError(
                        f"--workdir={folder}: began with another number of images than "
                        f"{data.name} has now ({counts['train']}); take another workdir"
                    )
                print(f"{folder}: going on from step {step}")
            return _loop(run, manager, state, stream)


def _loop(
    run: _Run,
    manager: ocp.CheckpointManager,
    state: TrainState,
    stream: Iterator[batches.Batch],
) -> TrainState:
    """Trains, validates, records and saves until the last epoch, or until it gains no more."""
    config, images = run.config, run.data.train_images
    first = int(state.step) // run.steps_per_epoch
    bar = tqdm.tqdm(
        total=config.train.epochs * images,
        initial=first * images,
        unit=" images",
        desc=config.name,
        # A log file is no terminal: a line every ten seconds is enough there.
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
    )
    with bar, Logs(run.folder, int(state.step)) as logs:
        shown: dict[str, str] = {}

        def show(values: Mapping[str, float], count: int) -> None:
            shown.update(loss=f"{values['loss']:.4f}", PSNR=f"{values['psnr']:.2f}")
            shown.update(SSIM=f"{values['ssim']:.3f}")
            bar.set_postfix(shown, refresh=False)
            bar.update(count)

        for epoch in range(first + 1, config.train.epochs + 1):
            started = time.perf_counter()
            state, trained = _train_epoch(run, state, stream, show)
            step = int(state.step)
            logs.write_speed(step, images / (time.perf_counter() - started))
            trained["learning_rate"] = float(run.schedule(step - 1))
            logs.write(step, epoch, "train", trained)
            if epoch % config.eval.every_epochs == 0 or epoch == config.train.epochs:
                figures = _validate(run, state)
                shown["val"] = f"{figures['psnr']:.2f} dB/{figures['ssim']:.3f}"
                logs.write(step, epoch, "val", figures)
                logs.refresh()
                # After its evaluation, so that every checkpoint carries its own figures.
                checkpoint.save(manager, state, {"epoch": epoch, **figures})
                patience = config.train.early_stopping_patience
                if patience and epochs_without_gain(read_records(run.folder)) >= patience:
                    bar.write(f"stopped early: the SSIM has not risen for {patience} epochs")
                    break
    return state


def _train_epoch(
    run: _Run,
    state: TrainState,
    stream: Iterator[batches.Batch],
    show: Callable[[Mapping[str, float], int], None],
) -> tuple[TrainState, dict[str, float]]:
    """Takes the steps of one epoch; fetches their scalars only now and then."""
    fetched: list[dict[str, float]] = []
    pending: list[Scalars] = []
    first = int(state.step)
    for done in range(1, run.steps_per_epoch + 1):
        state, scalars = run.step_fn(
            state, batches.to_devices(next(stream), run.mesh), run.fixed
        )
        pending.append(scalars)
        if done in (1, run.steps_per_epoch) or done % run.config.train.log_every_steps == 0:
            for values in jax.device_get(pending):
                fetched.append({name: float(value) for name, value in values.items()})
                _check_finite(first + len(fetched), fetched[-1])
            show(fetched[-1], int(sum(step["count"] for step in fetched[-len(pending) :])))
            pending.clear()
    return state, _epoch_means(fetched)


def _validate(run: _Run, state: TrainState) -> dict[str, float | None]:
    """Returns the validation figures: the loss and its terms, and the means over the images."""
    rows = evaluate.evaluate(
        run.system.model,
        inference_variables(state),
        run.data.eval_batches("val"),
        run.mesh,
        terms=losses.active(run.config.loss),
        fixed=run.fixed,
    )
    figures = evaluate.mean_losses(rows, run.config.loss)
    _check_finite(int(state.step), figures, "validation ")
    return figures | metrics.summarise(rows)["micro"]
