"""One portable file per trained model: its parameters and the configuration they belong to.

The format is safetensors: a JSON header and plain arrays, so that opening a file of unknown
origin cannot run anything. Tensors are named by their path, "params/down1/conv1/kernel". They
are float32; in version 2 of the format the parameters are stored as float16, at half the size.
"""

import contextlib
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from restore_jax import files, models, shipped
from restore_jax.config import schema
from restore_jax.errors import UsageError

FORMAT = "restore_jax"
# The dtype of the stored parameters, by the version of the format; earlier releases read
# version 1 alone, and say so.
VERSIONS = {"1": "float32", "2": "float16"}
# What a file may say of itself beside what is needed to read it.
NOTES = ("name", "purpose", "training_data", "licence")
LICENCE_NOTE = "weights trained on MVTec AD: non-commercial (CC BY-NC-SA 4.0)"

# Where a machine keeps its files is of no use to anybody else.
_LOCAL_FIELDS = (
    "init_from",
    "data.root",
    "data.cache_dir",
    "data.resident_file",
    "vgg16_weights",
)

# A running training removes an older checkpoint as it saves a new one.
_ATTEMPTS = 5


def make_model(config: ConfigDict, source: str) -> Any:
    """Makes the architecture of a configuration of any age; only `config.model` is needed.

    Args:
        config: `model`, and `dtype` where it is not float32.
        source: the file or folder to name in a message.

    Raises:
        UsageError: where there is no `model`, or a field of it is wrong.
    """
    section = config.get("model")
    if not isinstance(section, ConfigDict) or not isinstance(section.get("name"), str):
        raise UsageError(f"{source}: its configuration names no model (config.model.name)")
    fields = ConfigDict({"model": section, "dtype": config.get("dtype", "float32")})
    try:
        return models.from_config(fields)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def check_variables(model: Any, variables: Mapping[str, Any], source: str) -> None:
    """Checks that variables are those of a model: their names, shapes and values.

    Args:
        model: the architecture.
        variables: "params", and "batch_stats" for models with BatchNorm.
        source: the file or folder to name in a message.

    Raises:
        UsageError: naming the first array that is missing, unknown, of another shape or type,
            or not finite.
    """
    _check_arrays(model, _flatten(variables), source)


def _check_arrays(model: Any, found: Mapping[str, Any], source: str) -> None:
    # No architecture's parameters depend on the image size.
    image = np.zeros((1, 32, 32, 3), np.float32)
    expected = _flatten(jax.eval_shape(model.init, jax.random.key(0), image))
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise UsageError(f"{source}: {name} is missing; the file fits another model")
        if name not in expected:
            raise UsageError(f"{source}: {name} is not of this model; the file fits another")
        want, have = expected[name], found[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise UsageError(
                f"{source}: {name} is {have.dtype} {list(have.shape)} and should be "
                f"{want.dtype} {list(want.shape)}; the file fits another model"
            )
        if not np.isfinite(np.asarray(have)).all():
            raise UsageError(
                f"{source}: {name} holds values that are not finite; take another checkpoint"
            )


def save_weights(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    config: ConfigDict,
    overwrite: bool = False,
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Writes a model to one `.safetensors` file, which `restore_jax.load` reads.

    The header carries the configuration as JSON, without this machine's paths; the format's
    version; the number of parameters; and what `metadata` tells. Without a licence there, that
    of weights trained on MVTec AD or the set made of it is noted. The file appears in one step,
    whole or not at all.

    Args:
        path: the file, ending in ".safetensors".
        variables: what `model.apply` takes: "params", and "batch_stats" where there are any;
            float32 arrays.
        config: the configuration; of its fields only `model` must be there.
        overwrite: whether a file that exists may be replaced.
        dtype: "float32", or "float16" to store the parameters at half the size; they are read
            as float32 either way.
        metadata: texts under "name", "purpose", "training_data" and "licence".

    Returns:
        The path.

    Raises:
        UsageError: for a name without that ending, a file that exists or cannot be written,
            another dtype or one whose range the parameters exceed, other metadata, or variables
            that are not those of the configuration's model.

    Examples:
        >>> import pathlib, tempfile
        >>> import jax, numpy as np
        >>> from ml_collections import ConfigDict
        >>> import restore_jax
        >>> from restore_jax import models
        >>> config = ConfigDict({"model": {"name": "pexels_cnn", "widths": (2,)}})
        >>> model = models.create("pexels_cnn", widths=(2,))
        >>> variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name) / "tiny.safetensors"
        >>> _ = restore_jax.save_weights(path, variables, config)
        >>> restorer = restore_jax.load(path)
        >>> restorer(np.full((20, 30, 3), 128, np.uint8)).shape
        (20, 30, 3)
        >>> folder.cleanup()
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: the name must end in .safetensors")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; take another name, or say overwrite=True")
    version = next((key for key, stored in VERSIONS.items() if stored == dtype), None)
    if version is None:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(VERSIONS.values())}")
    notes = with_licence(config, metadata or {})
    check_variables(make_model(config, str(path)), variables, str(path))
    arrays = {
        name: _stored(name, array, dtype, str(path))
        for name, array in sorted(_flatten(variables).items())
    }
    header = notes | {
        "format": FORMAT,
        "format_version": version,
        "parameters": str(_parameter_count(arrays)),
        "config": json.dumps(_portable(config), allow_nan=False),
    }
    try:
        with files.replacing(path) as temporary:
            temporary.write_bytes(safetensors.numpy.save(arrays, header))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def read_model(
    path: str | os.PathLike[str], checkpoint: str | int = "best"
) -> tuple[Any, dict[str, Any], ConfigDict]:
    """Reads a trained model, wherever it is.

    Args:
        path: a workdir; one checkpoint's folder in it, `checkpoints/STEP`; a `.safetensors`
            file; or, where there is no such path, the name of a shipped model.
        checkpoint: of a workdir: "best", "latest" or a step.

    Returns:
        The model; its variables, "params" (averaged where the training kept an average) and
        "batch_stats" ({} without BatchNorm), NumPy arrays; and the configuration.

    Raises:
        UsageError: for what is none of these, or cannot be read.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        return _read_run(place.resolve(), str(checkpoint))
    return read_weights(find_file(path))


def find_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the weights file that a path or the name of a shipped model stands for.

    Raises:
        UsageError: for a file of another kind, a name that is unknown, or a shipped file that
            is missing or changed.
    """
    place, name = pathlib.Path(path).expanduser(), os.fspath(path)
    if place.exists():
        if place.suffix != ".safetensors":
            raise UsageError(
                f"{place}: not a .safetensors file; give one, a workdir or a checkpoint in it"
            )
        return place
    if shipped.is_name(name):
        return shipped.verified(name).path
    names = ", ".join(shipped.models_available())
    raise UsageError(
        f"{place}: does not exist; give a workdir or a .safetensors file"
        + (f", or the name of a shipped model: {names}" if names else "")
    )


def read_weights(
    path: str | os.PathLike[str],
) -> tuple[Any, dict[str, Any], ConfigDict]:
    """Reads a file of `save_weights`.

    Args:
        path: the file.

    Returns:
        The model; its variables, "params" and "batch_stats" ({} without BatchNorm), NumPy
        arrays; and the configuration.

    Raises:
        UsageError: for a file that cannot be read, is damaged, of another program or of a later
            version of this one.
    """
    path = pathlib.Path(path).expanduser()
    arrays, metadata = _read_file(path)
    version = metadata["format_version"]
    try:
        fields = schema.read(metadata["config"], str(path))
        total = int(metadata["parameters"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path}: damaged header ({error!r}); copy the file again") from error
    config = ConfigDict(fields)
    model = make_model(config, str(path))
    arrays = {name: _widened(name, array, version) for name, array in arrays.items()}
    _check_arrays(model, arrays, str(path))
    if total != _parameter_count(arrays):
        raise UsageError(
            f"{path}: {_parameter_count(arrays)} parameters, and its header says {total}; copy "
            "the file again"
        )
    variables = {"batch_stats": {}} | traverse_util.unflatten_dict(arrays, sep="/")
    return model, variables, config


def _read_run(folder: pathlib.Path, which: str) -> tuple[Any, dict[str, Any], ConfigDict]:
    """Reads the model, variables and configuration of a workdir, or of a checkpoint in one."""
    # Imported here: a weights file needs neither Orbax nor an optimizer.
    from restore_jax.checkpoints import checkpoint  # noqa: PLC0415
    from restore_jax.config import workdir  # noqa: PLC0415

    if folder.parent.name == "checkpoints" and folder.name.isdecimal():
        folder, which = folder.parent.parent, folder.name
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: no config.json in it; give a training's workdir, a folder "
            "checkpoints/STEP in one, or a .safetensors file"
        )
    config = workdir.read_config(folder)
    model = make_model(config, f"{folder}/config.json")
    for _ in range(_ATTEMPTS):
        with _quiet(), checkpoint.open_manager(folder, read_only=True) as manager:
            step = checkpoint.find_step(manager, which, folder)
            record = manager.metrics(step) or {}
        saved = folder / "checkpoints" / str(step)
        try:
            parts = _read_parts(files.plain_path(saved.parent) / saved.name / "state")
            if changed := checkpoint.changed(record, parts):
                raise ValueError(f"its {', '.join(changed)} changed")
        except (OSError, ValueError, KeyError, TypeError) as error:
            # A running training removes an older checkpoint as it saves a new one.
            if not checkpoint.exists(folder, step):
                continue
            raise UsageError(
                f"{saved}: cannot be read ({' '.join(str(error).split())[:200]}); take another "
                "checkpoint"
            ) from error
        params = parts["params"] if "params" in parts else parts["ema_params"]
        variables = {"params": params, "batch_stats": parts["batch_stats"]}
        check_variables(model, variables, str(saved))
        return model, variables, config
    raise UsageError(f"{folder}: its training removes checkpoints faster than they can be read")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from warning that a folder opened read-only is read-only."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Reads what restores of a saved `TrainState`, and nothing of its optimizer.

    That is "batch_stats", and "ema_params" where there are any, else "params".
    So a run restores whatever it was trained with, in this version or an earlier one.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415

    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder).tree
    params = "ema_params" if saved.get("ema_params") else "params"
    wanted = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved[name]
        )
        for name in (params, "batch_stats")
    }
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    read = handler.restore(
        folder,
        args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
    )
    return {name: read[name] for name in wanted}


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads what a file of `save_weights` says of itself, of the `NOTES`.

    Raises:
        UsageError: as `read_weights`, for a file that is none of them.
    """
    _, metadata = _read_file(pathlib.Path(path).expanduser())
    return {key: metadata[key] for key in NOTES if key in metadata}


def read_source_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads what the file says of itself that a path or name stands for; {} for a folder."""
    return {} if pathlib.Path(path).expanduser().is_dir() else read_notes(find_file(path))


def with_licence(config: ConfigDict, notes: Mapping[str, str]) -> dict[str, str]:
    """Checks what a file is to say of itself, and adds the licence that follows from the data.

    Args:
        config: the configuration that the weights were trained with.
        notes: texts by some of the `NOTES`; a licence among them has the last word.

    Raises:
        UsageError: for a key that is none of the `NOTES`, or what is no text of one line.
    """
    for key, value in notes.items():
        if key not in NOTES:
            raise UsageError(f"metadata: {key!r} is not one of {', '.join(NOTES)}")
        if not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1:
            raise UsageError(f"metadata: {key} must be a text of one line, not {value!r}")
    data = config.get("data")
    from_mvtec = isinstance(data, ConfigDict) and data.get("name") in ("mvtec_ad", "kla")
    return ({"licence": LICENCE_NOTE} if from_mvtec else {}) | dict(notes)


def _read_file(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays and the metadata of a file of this project."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        arrays = safetensors.numpy.load(content)
        # The parser above has checked the header: its length, then so many bytes of JSON.
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not a safetensors file, or a damaged one ({error}); copy it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path}: weights of another program; restore_jax did not write it")
    if metadata.get("format_version") not in VERSIONS:
        raise UsageError(
            f"{path}: format version {metadata.get('format_version')}; this restore_jax reads "
            f"versions {' and '.join(VERSIONS)}, so install a newer one"
        )
    return arrays, metadata


def _is_halved(name: str, dtype: str) -> bool:
    """Tells whether an array is stored as float16; the few statistics of BatchNorm are not."""
    return dtype == "float16" and name.startswith("params/")


def _stored(name: str, array: Any, dtype: str, source: str) -> np.ndarray:
    """Returns an array as it goes into a file."""
    array = np.asarray(array)
    if _is_halved(name, dtype):
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
        if not np.isfinite(array).all():
            raise UsageError(
                f"{source}: {name} holds values beyond those of float16; store it as float32"
            )
    return np.ascontiguousarray(array)


def _widened(name: str, array: np.ndarray, version: str) -> np.ndarray:
    """Returns an array of a file as float32; one of a wrong type as it is."""
    halved = _is_halved(name, VERSIONS[version]) and array.dtype == np.float16
    return array.astype(np.float32) if halved else array


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(variables), sep="/")


def _parameter_count(arrays: Mapping[str, Any]) -> int:
    return sum(
        math.prod(array.shape) for name, array in arrays.items() if name.startswith("params/")
    )


def _portable(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields as JSON has them, without the paths of this machine."""
    fields = json.loads(json.dumps(config.to_dict()))
    for field in _LOCAL_FIELDS:
        *sections, name = field.split(".")
        section = fields
        for part in sections:
            section = section.get(part, {})
        if name in section:
            section[name] = ""
    return fields
