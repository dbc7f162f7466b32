"""What is checked and claimed before a training begins."""

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
from restore_jax.parallel import device_mesh
from restore_jax.train.on_device import resident


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses wrong fields before anything is written or prepared."""
    workdir.check_finite(config)
    trained.check(config.eval)
    resident.check(config)
    if config.data.get("recolour", False) and config.model.get("gain", False):
        raise UsageError(
            "config.data.recolour: a network that estimates the gain takes it from the "
            "photographs' own colours; set it to False, or config.model.gain"
        )
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


def initial_variables(config: ConfigDict) -> dict[str, Any] | None:
    """Reads the parameters that a training starts from; None where it draws its own.

    Returns:
        "params" and "batch_stats" of `config.model`.

    Raises:
        UsageError: where `config.init_from` cannot be read, or holds another architecture,
            naming the first array that is missing, unknown or of another shape.
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


def look_at(folder: pathlib.Path, config: ConfigDict) -> int:
    """Refuses a workdir that is not this run's; returns the step of its latest checkpoint."""
    claimed = workdir.is_claimed(folder, config)
    workdir.check_free(folder)
    return checkpoint.latest_step(folder) if claimed else 0


def take(
    stack: contextlib.ExitStack,
    folder: pathlib.Path,
    config: ConfigDict,
    newest: int,
    damaged: Sequence[checkpoint.Damaged],
) -> None:
    """Makes a workdir this training's alone, until the stack is left."""
    stack.enter_context(workdir.held(folder))
    stack.enter_context(workdir.reporting_disk_failures(folder))
    # Once more: another training may have claimed it since.
    workdir.is_claimed(folder, config)
    if checkpoint.latest_step(folder) != newest:
        raise UsageError(f"--workdir={folder}: changed while this began; start it again")
    workdir.claim(folder, config)
    set_aside(folder, damaged)


def say_if_longer(
    folder: pathlib.Path, config: ConfigDict, step: int, steps_per_epoch: int
) -> None:
    """Says what becomes of a run whose epochs are raised.

    Args:
        folder: the workdir, not yet claimed anew.
        config: of the longer run.
        step: that it goes on from.
        steps_per_epoch: of both.
    """
    raised = workdir.raised_epochs(workdir.read_config(folder), config)
    if raised is None:
        return
    before, now = raised
    print(f"{folder}: made for {before} epochs, goes on to {now}")
    of_before, of_now = (
        float(optim.make_schedule(config.optimizer, steps_per_epoch, n * steps_per_epoch)(step))
        for n in raised
    )
    if of_before != of_now:
        print(
            f"{folder}: the {config.optimizer.schedule} of its learning rate spans {now} "
            f"epochs now: {of_now:.3g} from here, not {of_before:.3g}; what comes of it is not "
            f"what {now} epochs from the start give"
        )


def set_aside(folder: pathlib.Path, damaged: Sequence[checkpoint.Damaged]) -> None:
    """Moves damaged checkpoints out of the way, and says so."""
    for error in damaged:
        place = workdir.set_aside(folder, error.folder)
        print(f"{error.folder}: damaged ({error.reason}); it lies in {place} now")


def identity_of(data: batches.Data, loss_params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tells a run's images and fixed parameters from others, as JSON has it.

    Args:
        data: of the run.
        loss_params: what its `load_loss_params` loaded.
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
    """Refuses to go on with other images, or fixed parameters, than a run began with.

    Args:
        record: of the run's checkpoint; one of an earlier version tells less, or nothing.
        step: of the checkpoint.
        data: that the run would go on with.
        loss_params: what its `load_loss_params` loaded.
        steps_per_epoch: with these data.
        folder: the workdir.

    Raises:
        UsageError: where they differ.
    """
    of_this_epoch = step - record["epoch"] * steps_per_epoch
    if (
        record.get("train_images", data.train_images) != data.train_images
        or not 0 <= of_this_epoch <= steps_per_epoch
    ):
        raise UsageError(
            f"--workdir={folder}: began with another number of images than {data.name} has now "
            f"({data.counts['train']}); take another workdir"
        )
    now = identity_of(data, loss_params)
    before = {**now, **record}
    for what, digest in now["images"].items():
        if before["images"].get(what, digest) != digest:
            raise UsageError(
                f"--workdir={folder}: began with other images than {data.name} has now (their "
                f"{what} differ: another config.data.root, or config.data.skip_bad); take the "
                "same images, or another workdir"
            )
    for what, digest in now["fixed"].items():
        if before["fixed"].get(what, digest) != digest:
            raise UsageError(
                f"--workdir={folder}: began with other weights in config.loss.{what} than "
                "config.vgg16_weights brings now; take the same file, or another workdir"
            )
