"""Models to evaluate: a checkpoint of a workdir or a weights file, together with the data."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import shipped
from restore_jax.checkpoints import checkpoint, trust_file, weights_file
from restore_jax.config import schema, workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.evaluation import results
from restore_jax.learner.state import (
    Learner,
    TrainState,
    abstract_state,
    inference_variables,
    make_learner,
)
from restore_jax.parallel import device_mesh, processes
from restore_jax.trust.network import Trust

SPLITS = ("val", "train", "all")
PROTOCOLS = ("standard", "kla")

# A running training may remove a checkpoint, as it saves a newer one, before it has been read.
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, and the data and settings to evaluate it with.

    Attributes:
        given: the workdir, weights file or model name, as the user gave it.
        title: title of its results.
        home: the folder whose `evaluation/` receives the results.
        which: "best", "latest" or a step for a workdir; "shipped" or "weights" for a file.
        config: the configuration it was trained with, with the requested data and evaluation
            sections.
        data_config: the configuration that defines the data. For a workdir it is `config`; a
            weights file may only contain the model's fields, so there it is the override.
        trained_on: "name" and "split" of its training data, "" where not known.
        file: the weights file; None for a workdir.
    """

    given: str
    title: str
    home: pathlib.Path
    which: str
    config: ConfigDict
    data_config: ConfigDict
    trained_on: Mapping[str, str]
    file: pathlib.Path | None = None

    @property
    def sha256(self) -> str | None:
        """The SHA-256 digest of the weights file; None for a workdir."""
        return None if self.file is None else _digest(self.file)

    @property
    def results_folder(self) -> pathlib.Path:
        """The folder of the evaluation."""
        return results.folder_of(self.home, self.config, self.which)

    def stored(self) -> tuple[results.Summary, pathlib.Path] | None:
        """Reads the results of this evaluation if they exist, see `results.read_stored`."""
        return results.read_stored(self.home, self.config, self.which, self.sha256)


def find(
    given: str | pathlib.Path,
    which: str,
    override: ConfigDict | None = None,
    output: pathlib.Path | None = None,
) -> Trained:
    """Resolves a workdir, a weights file or the name of a shipped model.

    Args:
        given: one of these; an existing path takes precedence over a name.
        which: the checkpoint of a workdir: "best", "latest" or a step; ignored otherwise.
        override: a configuration that provides the data and evaluation sections; if None, those
            of the workdir are used.
        output: the folder for the results of a weights file or shipped model; if None,
            `runs/NAME`.

    Raises:
        UsageError: if it is none of these, or a weights file or shipped model without an
            override.
    """
    folder = pathlib.Path(given).expanduser()
    if folder.is_dir():
        return of_workdir(folder, which, override)
    file = weights_file.find_file(given)
    if override is None:
        raise UsageError(
            f"{given}: weights only, without data to evaluate on; give the data, "
            "for example --config=configs/sca_unet.py:mvtec_ad --config.data.root=DIR"
        )
    config = weights_file.read_weights(file)[2]
    data = config.get("data") or {}
    trained_on = {field: data.get(field) or "" for field in ("name", "split")}
    config.data, config.eval = _data_for(config, override), override.eval
    check(config.eval)
    data_config = override.copy_and_resolve_references()
    data_config.data = config.data
    is_shipped = file.parent == shipped.FOLDER
    return Trained(
        given=str(given),
        title=file.stem,
        home=output or pathlib.Path("runs", file.stem),
        which="shipped" if is_shipped else "weights",
        config=config,
        data_config=data_config,
        trained_on=trained_on,
        file=file,
    )


def check_output(output: pathlib.Path | None) -> None:
    """Checks the folder that evaluations are written to, before they take their time.

    Raises:
        UsageError: if it is a file.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"--output={output}: is a file; name a folder")


def of_workdir(folder: pathlib.Path, which: str, override: ConfigDict | None = None) -> Trained:
    """Resolves a checkpoint of a workdir; the arguments are those of `find`.

    Raises:
        UsageError: if there is no run in the folder, or a config field is invalid.
    """
    config = workdir.read_config(folder)
    trained_on = {"name": config.data.name, "split": config.data.split}
    config = with_override(config, override)
    return Trained(str(folder), config.name, folder, which, config, config, trained_on)


def read(model: Trained, mesh: Mesh) -> tuple[nn.Module, dict[str, Any], results.Summary]:
    """Reads a model and replicates its variables on the devices.

    Args:
        model: the model to read.
        mesh: the devices.

    Returns:
        A tuple of the architecture, its variables, and the "checkpoint" section of
        metrics.json: "step", "epoch" and "which" of a checkpoint; for a weights file also
        "file" and "sha256", and a step and epoch of None.

    Raises:
        UsageError: if there is no such checkpoint, or the weights file is damaged.
        RunError: if a checkpoint cannot be read.
    """
    if model.file is None:
        learner = make_learner(model.config)
        state, found = read_checkpoint(model.home, model.which, learner, mesh)
        return learner.model, inference_variables(state), found
    module, variables, _ = weights_file.read_weights(model.file)
    found = {
        "step": None,
        "epoch": None,
        "which": model.which,
        "file": model.file.name,
        "sha256": model.sha256,
    }
    return module, processes.replicate(variables, mesh), found


def read_trust(model: Trained, variables: Mapping[str, Any]) -> Trust | None:
    """Reads the trust map of a model with these variables, see `trust_file.of_model`."""
    return trust_file.of_model(model.file or model.home, jax.device_get(variables))


def _digest(file: pathlib.Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error


def check(settings: ConfigDict) -> None:
    """Checks the split and protocol of `config.eval`.

    Raises:
        UsageError: if either is unknown.
    """
    for field, known in (("split", SPLITS), ("protocol", PROTOCOLS)):
        if settings[field] not in known:
            raise UsageError(
                f"config.eval.{field}: {settings[field]!r} is not one of {', '.join(known)}"
            )


def with_override(config: ConfigDict, override: ConfigDict | None) -> ConfigDict:
    """Applies the data and evaluation sections of an override to a config, and checks it.

    Args:
        config: the configuration of a workdir; modified in place.
        override: a configuration that provides these sections; None changes nothing.

    Returns:
        `config`.

    Raises:
        UsageError: if a field is missing, or `config.eval` is invalid.
    """
    if override is not None:
        config.data, config.eval = _data_for(config, override), override.eval
    schema.require(config, "config.json")
    check(config.eval)
    return config


def _data_for(config: ConfigDict, override: ConfigDict) -> ConfigDict:
    """Returns an override's data section, with the gain undone if the model expects that."""
    data = override.data.copy_and_resolve_references()
    data.undo_gain = schema.undoes_gain(override) or schema.undoes_gain(config)
    return data


def read_checkpoint(
    folder: pathlib.Path, which: str, learner: Learner, mesh: Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint; retries if a running training removes it in the meantime.

    Args:
        folder: the workdir.
        which: "best", "latest" or a step.
        learner: defines the structure of the checkpoint's state.
        mesh: the devices to replicate the state on.

    Returns:
        The state, and a dict of its "step", "epoch" and "which".

    Raises:
        UsageError: if there is no such checkpoint.
        RunError: if it cannot be read.
    """
    template = abstract_state(learner, device_mesh.replicated(mesh))
    states: list[TrainState] = []

    def read() -> dict[str, Any]:
        state, found = _read(folder, which, template)
        states.append(state)
        return found

    found = processes.on_first(read)
    return checkpoint.to_devices(states[0] if states else None, template), found


def _read(
    folder: pathlib.Path, which: str, template: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint into host memory; see `read_checkpoint`."""
    for _ in range(_ATTEMPTS):
        with checkpoint.open_manager(folder, read_only=True) as manager:
            step = checkpoint.find_step(manager, which, folder)
            try:
                state, saved = checkpoint.read(manager, step, template)
            except FileNotFoundError:  # removed by the running training
                continue
        return state, {"step": step, "epoch": saved["epoch"], "which": which}
    raise RunError(
        f"{folder}: the running training removes checkpoints faster than they can be read"
    )
