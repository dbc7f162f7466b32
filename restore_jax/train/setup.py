"""Checks before training starts, and claiming the workdir."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches, models
from restore_jax.checkpoints import checkpoint, weights_file
from restore_jax.config import workdir
from restore_jax.errors import UsageError
from restore_jax.evaluation import trained
from restore_jax.learner import optim
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh
from restore_jax.train.on_device import resident


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Checks the fields before anything is written or prepared.

    Raises:
        UsageError: for an invalid field.
    """
    workdir.check_finite(config)
    trained.check(config.eval)
    optim.check_schedule(config.optimizer)
    resident.check(config)
    if config.data.get("recolour", False) and config.model.get("gain", False):
        raise UsageError(
            "config.data.recolour: cannot be combined with a network that estimates the gain "
            "from the photographs' own colours; set it to False, or config.model.gain"
        )
    if config.data.name == "shots":
        _check_noisy_targets(config)
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
    if config.checkpoint.every_steps < 0:
        raise UsageError(
            f"config.checkpoint.every_steps: {config.checkpoint.every_steps} is negative; 0 "
            "saves after validations only"
        )
    if not 0 <= config.train.mask_dropout <= 1:
        raise UsageError(
            f"config.train.mask_dropout: {config.train.mask_dropout} must lie in [0, 1]"
        )
    device_mesh.check_batch_size(config.train.batch_size, mesh, "config.train.batch_size")
    device_mesh.check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")


def _check_noisy_targets(config: ConfigDict) -> None:
    """Refuses what would learn the noise of the targets."""
    weights = {f"loss.{term}": config.loss.get(term, 0) for term in loss_terms.NEED_CLEAN}
    weights["adversarial.weight"] = config.adversarial.weight
    for field, weight in weights.items():
        if weight:
            raise UsageError(
                f"config.{field}: {weight} needs clean targets and would learn the noise of "
                "those of the data 'shots'; set it to 0"
            )


def initial_variables(config: ConfigDict) -> dict[str, Any] | None:
    """Reads the variables of `config.init_from`.

    Returns:
        "params" and "batch_stats" of `config.model`; None if `config.init_from` is not set.

    Raises:
        UsageError: if `config.init_from` cannot be read or holds another architecture, with
            the first array that is missing, unknown or of the wrong shape.
    """
    if not config.init_from:
        return None
    source = f"config.init_from={config.init_from}"
    try:
        _, variables, _ = weights_file.read_model(config.init_from)
    except UsageError as error:
        raise UsageError(f"config.init_from: {error}") from error
    weights_file.check_variables(models.from_config(config), variables, source)
    return variables


def check_workdir(folder: pathlib.Path, config: ConfigDict) -> int:
    """Checks that a workdir is free and not of another configuration.

    Returns:
        The step of its latest checkpoint; 0 if there is none.

    Raises:
        UsageError: if it is in use or belongs to another configuration.
    """
    claimed = workdir.is_claimed(folder, config)
    workdir.check_free(folder)
    return checkpoint.latest_step(folder) if claimed else 0


def claim_workdir(
    stack: contextlib.ExitStack,
    folder: pathlib.Path,
    config: ConfigDict,
    newest: int,
    damaged: Sequence[checkpoint.Damaged],
) -> None:
    """Claims a workdir for this training alone until the stack is closed.

    Args:
        stack: holds the workdir's lock.
        folder: the workdir.
        config: all fields, which are written to the workdir.
        newest: step of the latest checkpoint when this training looked; 0 if there was none.
        damaged: checkpoints to move aside.

    Raises:
        UsageError: if the workdir is in use, or has changed since this training looked.
    """
    stack.enter_context(workdir.held(folder))
    stack.enter_context(workdir.reporting_disk_failures(folder))
    # Check again: another training may have claimed it since `check_workdir`.
    workdir.is_claimed(folder, config)
    if checkpoint.latest_step(folder) != newest:
        raise UsageError(f"{folder}: changed while this training was starting; start it again")
    workdir.claim(folder, config)
    set_aside(folder, damaged)


def report_raised_epochs(
    folder: pathlib.Path, config: ConfigDict, step: int, steps_per_epoch: int
) -> None:
    """Prints how a larger `config.train.epochs` changes a run that is resumed.

    Prints nothing if the number of epochs is the same.

    Args:
        folder: the workdir, which still holds the earlier configuration.
        config: the configuration with more epochs.
        step: the step to resume from.
        steps_per_epoch: steps in one epoch, the same for both configurations.
    """
    raised = workdir.raised_epochs(workdir.read_config(folder), config)
    if raised is None:
        return
    before, now = raised
    print(f"{folder}: started with {before} epochs, continues to {now}")
    rate_before, rate_now = (
        float(optim.make_schedule(config.optimizer, steps_per_epoch, n * steps_per_epoch)(step))
        for n in raised
    )
    if rate_before != rate_now:
        print(
            f"{folder}: its {config.optimizer.schedule} learning-rate schedule now spans {now} "
            f"epochs: {rate_now:.3g} from here, not {rate_before:.3g}; the result will differ "
            f"from a run of {now} epochs from the start"
        )


def set_aside(folder: pathlib.Path, damaged: Sequence[checkpoint.Damaged]) -> None:
    """Moves damaged checkpoints out of the way and prints where to."""
    for error in damaged:
        place = workdir.set_aside(folder, error.folder)
        print(f"{error.folder}: damaged ({error.reason}); moved to {place}")


def identity_of(data: batches.Data, loss_params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what identifies a run's images and fixed parameters, as JSON values.

    Args:
        data: the run's data.
        loss_params: the parameters that `data.load_loss_params` loaded.
    """
    return {
        "train_images": data.train_images,
        "images": dict(data.identity),
        "fixed": checkpoint.digests(loss_params),
    }


def check_same_images(
    record: Mapping[str, Any],
    step: int,
    data: batches.Data,
    loss_params: Mapping[str, Any],
    steps_per_epoch: int,
    folder: pathlib.Path,
) -> None:
    """Checks that a resumed run has the images and fixed parameters that it started with.

    Args:
        record: the checkpoint's record; what earlier versions did not record is not checked.
        step: the checkpoint's step.
        data: the data to resume with.
        loss_params: the parameters that `data.load_loss_params` loaded.
        steps_per_epoch: steps in one epoch of `data`.
        folder: the workdir.

    Raises:
        UsageError: if they differ.
    """
    steps_in_epoch = step - record["epoch"] * steps_per_epoch
    if (
        record.get("train_images", data.train_images) != data.train_images
        or not 0 <= steps_in_epoch <= steps_per_epoch
    ):
        raise UsageError(
            f"{folder}: started with a different number of images than {data.name} "
            f"has now ({data.counts['train']}); take another workdir"
        )
    now = identity_of(data, loss_params)
    before = {**now, **record}
    for what, digest in now["images"].items():
        if before["images"].get(what, digest) != digest:
            raise UsageError(
                f"{folder}: started with other images than {data.name} has now "
                f"(their {what} differ: another config.data.root, or config.data.skip_bad); "
                "take the same images, or another workdir"
            )
    for what, digest in now["fixed"].items():
        if before["fixed"].get(what, digest) != digest:
            raise UsageError(
                f"{folder}: started with other weights for config.loss.{what} than "
                "config.vgg16_weights has now; take the same file, or another workdir"
            )
