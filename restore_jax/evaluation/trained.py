"""What can be evaluated: a checkpoint of a workdir, or a file of weights, on given data."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import shipped
from restore_jax.checkpoints import checkpoint, weights_file
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

SPLITS = ("val", "train", "all")
PROTOCOLS = ("standard", "kla")

# A running training removes an older checkpoint as it saves a new one.
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, and what it is to be evaluated on.

    Attributes:
        given: the workdir, file or name, as the user gave it.
        title: what its results are called.
        home: the folder whose `evaluation/` they go to.
        which: "best", "latest" or a step of a workdir; of a file "shipped" or "weights".
        config: as it was trained, with the data and evaluation that are asked for.
        data_config: what the data are made with: the same for a workdir; for a file, whose
            configuration may hold the model's fields alone, the one that asks for them.
        trained_on: "name" and "split" of the data of its training, "" where it is not known.
        file: its weights; None for a workdir.
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
        """The digest of its file; None for a workdir."""
        return None if self.file is None else _digest(self.file)

    @property
    def where(self) -> pathlib.Path:
        """The folder of the evaluation."""
        return results.folder_of(self.home, self.config, self.which)

    def stored(self) -> tuple[results.Summary, pathlib.Path] | None:
        """Reads this evaluation where it is there already, see `results.read_stored`."""
        return results.read_stored(self.home, self.config, self.which, self.sha256)


def find(
    given: str | pathlib.Path,
    which: str,
    override: ConfigDict | None = None,
    output: pathlib.Path | None = None,
) -> Trained:
    """Finds what a workdir, a weights file or the name of a shipped model stands for.

    Args:
        given: one of them; a path that exists goes before a name.
        which: of a workdir "best", "latest" or a step.
        override: a configuration whose data and evaluation sections are asked for; None: those
            of the workdir.
        output: the folder that gets the results of a file or a name; None: `runs/NAME`.

    Raises:
        UsageError: for what is none of them; or a file or name without data.
    """
    folder = pathlib.Path(given).expanduser()
    if folder.is_dir():
        return of_workdir(folder, which, override)
    file = weights_file.find_file(given)
    if override is None:
        raise UsageError(
            f"--workdir={given}: weights alone, which need data to be evaluated on; give them, "
            "for example --config=configs/sca_unet.py:mvtec_ad --config.data.root=DIR"
        )
    config = weights_file.read_weights(file)[2]
    data = config.get("data") or {}
    trained_on = {field: data.get(field) or "" for field in ("name", "split")}
    config.data, config.eval = override.data, override.eval
    check(config.eval)
    is_shipped = file.parent == shipped.FOLDER
    return Trained(
        given=str(given),
        title=file.stem,
        home=output or pathlib.Path("runs", file.stem),
        which="shipped" if is_shipped else "weights",
        config=config,
        data_config=override,
        trained_on=trained_on,
        file=file,
    )


def of_workdir(folder: pathlib.Path, which: str, override: ConfigDict | None = None) -> Trained:
    """Returns a workdir's checkpoint, as `find` otherwise.

    Raises:
        UsageError: where there is no run, or a field is wrong.
    """
    config = workdir.read_config(folder)
    trained_on = {"name": config.data.name, "split": config.data.split}
    config = with_override(config, override)
    return Trained(str(folder), config.name, folder, which, config, config, trained_on)


def read(model: Trained, mesh: Mesh) -> tuple[nn.Module, dict[str, Any], results.Summary]:
    """Reads a model onto devices.

    Args:
        model: which.
        mesh: the devices.

    Returns:
        The architecture; its variables; and what metrics.json says of them: the "step", "epoch"
        and `which` of a checkpoint, or the "file" and "sha256" of weights, whose step and epoch
        are None.

    Raises:
        UsageError: where there is no such checkpoint, or the file is damaged.
        RunError: where a checkpoint cannot be read.
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


def _digest(file: pathlib.Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error


def check(settings: ConfigDict) -> None:
    """Checks `config.eval`.

    Raises:
        UsageError: for an unknown split or protocol.
    """
    for field, known in (("split", SPLITS), ("protocol", PROTOCOLS)):
        if settings[field] not in known:
            raise UsageError(
                f"config.eval.{field}: {settings[field]!r} is not one of {', '.join(known)}"
            )


def with_override(config: ConfigDict, override: ConfigDict | None) -> ConfigDict:
    """Returns a workdir's configuration with the data and evaluation of another, checked."""
    if override is not None:
        config.data, config.eval = override.data, override.eval
    schema.require(config, "config.json")
    check(config.eval)
    return config


def read_checkpoint(
    folder: pathlib.Path, which: str, learner: Learner, mesh: Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint; looks again where a running training removed it meanwhile.

    Args:
        folder: the workdir.
        which: "best", "latest" or a step.
        learner: what the checkpoint is of.
        mesh: the devices that the state goes to.

    Returns:
        The state; and its "step", its "epoch" and `which`.

    Raises:
        UsageError: where there is no such checkpoint.
        RunError: where it cannot be read.
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
    """Reads it into the host's memory, as `read_checkpoint` otherwise."""
    for _ in range(_ATTEMPTS):
        with checkpoint.open_manager(folder, read_only=True) as manager:
            step = checkpoint.find_step(manager, which, folder)
            try:
                state, saved = checkpoint.read(manager, step, template)
            except (OSError, ValueError, KeyError) as error:
                if checkpoint.exists(folder, step):
                    raise RunError(
                        f"{folder}: the checkpoint of step {step} cannot be read "
                        f"({' '.join(str(error).split())[:200]})"
                    ) from error
                continue
        return state, {"step": step, "epoch": saved["epoch"], "which": which}
    raise RunError(f"{folder}: its training removes checkpoints faster than they can be read")
