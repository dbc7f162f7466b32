"""One portable file per trained model: its parameters and the configuration they belong to.

The format is safetensors: a JSON header and plain arrays, so that opening a file of unknown
origin cannot execute code. Tensors are named by path, such as "params/down1/conv1/kernel". They
are float32; in version 2 of the format, parameters are stored as float16, at half the size.
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

from restore_jax import errors, files, models, shipped
from restore_jax.config import schema
from restore_jax.errors import UsageError

FORMAT = "restore_jax"
# The dtype of the stored parameters, by format version. Earlier releases read only version 1,
# and refuse version 2 with a clear message.
VERSIONS = {"1": "float32", "2": "float16"}
# Optional metadata, which is not needed to read a file.
NOTES = ("name", "purpose", "training_data", "licence", "known_range")
# In a workdir, the text that "known_range" of `NOTES` is in a weights file.
RANGE_FILE = "known_range.json"
TRUST_PREFIX, TRUST_KEY = "trust/", "trust"
"""Names of the tensors and of the metadata of a trust map, see `trust_file`."""
LICENCE_NOTE = "weights trained on MVTec AD: non-commercial (CC BY-NC-SA 4.0)"

# Paths of the machine that wrote the file, which are useless elsewhere.
_LOCAL_FIELDS = (
    "init_from",
    "data.root",
    "data.cache_dir",
    "data.resident_file",
    "vgg16_weights",
)

_VARIABLES = ("params", "batch_stats")

# A running training removes an older checkpoint as it saves a new one.
_READ_ATTEMPTS = 5


def make_model(config: ConfigDict, source: str) -> Any:
    """Makes the model of a configuration, which may be of an earlier version.

    Args:
        config: only `model` is required, and `dtype` if it is not float32.
        source: the file or folder, for error messages.

    Raises:
        UsageError: if `model` is missing or has an invalid field.
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
    """Checks that variables fit a model: names, shapes, dtypes and finite values.

    Args:
        model: the architecture.
        variables: "params", and "batch_stats" for models with BatchNorm.
        source: the file or folder, for error messages.

    Raises:
        UsageError: with the first array that is missing, unknown, of the wrong shape or dtype,
            or not finite.
    """
    check_arrays(_expected(model), _flatten(variables), source)


def _expected(model: Any) -> dict[str, Any]:
    # No architecture's parameters depend on the image size.
    image = np.zeros((1, 32, 32, 3), np.float32)
    return _flatten(jax.eval_shape(model.init, jax.random.key(0), image))


def check_arrays(expected: Mapping[str, Any], found: Mapping[str, Any], source: str) -> None:
    """Checks that arrays are those of a model: names, shapes, dtypes and finite values.

    Args:
        expected: what the model has, by path, each with a shape and a dtype.
        found: the arrays by path.
        source: the file or folder, for error messages.

    Raises:
        UsageError: as `check_variables`.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise UsageError(f"{source}: {name} is missing; the file belongs to another model")
        if name not in expected:
            raise UsageError(
                f"{source}: {name} is not in this model; the file belongs to another"
            )
        want, have = expected[name], found[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise UsageError(
                f"{source}: {name} is {have.dtype} {list(have.shape)} and should be "
                f"{want.dtype} {list(want.shape)}; the file belongs to another model"
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

    The header holds the configuration as JSON, without this machine's paths; the format
    version; the number of parameters; and `metadata`. If that has no licence and the weights
    were trained on MVTec AD or the `kla` data set derived from it, the licence of those data is
    added. The file is written atomically.

    Args:
        path: the file, ending in ".safetensors".
        variables: the variables of `model.apply`: "params", and "batch_stats" if any; float32
            arrays.
        config: the configuration; only its field `model` is required.
        overwrite: whether an existing file may be replaced.
        dtype: "float32", or "float16" to store the parameters at half the size; they are read
            as float32 either way.
        metadata: one-line texts under "name", "purpose", "training_data", "licence" or
            "known_range", see `degradation.known_range`.

    Returns:
        The path.

    Raises:
        UsageError: for a path with another suffix, a file that exists or cannot be written, an
            unknown dtype or one whose range the parameters exceed, other metadata, or
            variables that do not fit the configuration's model.

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
        raise UsageError(f"{path}: exists; take another name, or set overwrite=True")
    version = next((key for key, stored in VERSIONS.items() if stored == dtype), None)
    if version is None:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(VERSIONS.values())}")
    notes = with_licence(config, metadata or {})
    check_variables(make_model(config, str(path)), variables, str(path))
    arrays = {
        name: _to_stored(name, array, dtype, str(path))
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
    """Reads a trained model from a workdir, a checkpoint, a file or the shipped models.

    Args:
        path: a workdir; a checkpoint's folder in one, `checkpoints/STEP`; a `.safetensors`
            file; or, if there is no such path, the name of a shipped model.
        checkpoint: which checkpoint of a workdir: "best", "latest" or a step.

    Returns:
        The model; its variables as NumPy arrays, "params" (the moving average if the training
        kept one) and "batch_stats" ({} without BatchNorm); and the configuration.

    Raises:
        UsageError: if the path is none of these, or cannot be read.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        return _read_run(place.resolve(), str(checkpoint))
    return read_weights(find_file(path))


def find_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the weights file of a path or of the name of a shipped model.

    Raises:
        UsageError: for a file of another type, an unknown name, or a shipped file that is
            missing or changed.
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
    """Reads a file written by `save_weights`.

    Args:
        path: the file.

    Returns:
        The model; its variables as NumPy arrays, "params" and "batch_stats" ({} without
        BatchNorm); and the configuration.

    Raises:
        UsageError: for a file that cannot be read, is damaged, or was written by another
            program or a later version of this one.
    """
    path = pathlib.Path(path).expanduser()
    arrays, metadata = read_file(path)
    version = metadata["format_version"]
    try:
        fields = schema.read(metadata["config"], str(path))
        total = int(metadata["parameters"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path}: damaged header ({error!r}); copy the file again") from error
    config = ConfigDict(fields)
    model = make_model(config, str(path))
    arrays = {
        name: _to_float32(name, array, version)
        for name, array in arrays.items()
        if not name.startswith(TRUST_PREFIX)
    }
    check_arrays(_expected(model), arrays, str(path))
    if total != _parameter_count(arrays):
        raise UsageError(
            f"{path}: {_parameter_count(arrays)} parameters, but its header says {total}; copy "
            "the file again"
        )
    variables = {"batch_stats": {}} | traverse_util.unflatten_dict(arrays, sep="/")
    return model, variables, config


def workdir_of(folder: pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """Returns the workdir that a folder is or is a checkpoint of, and the checkpoint's step."""
    place = folder.resolve()
    if place.parent.name == "checkpoints" and place.name.isdecimal():
        return place.parent.parent, place.name
    return folder, None


def _read_run(folder: pathlib.Path, which: str) -> tuple[Any, dict[str, Any], ConfigDict]:
    """Reads the model, variables and configuration of a workdir, or of a checkpoint in one."""
    # Imported here: a weights file needs neither Orbax nor an optimizer.
    from restore_jax.checkpoints import checkpoint  # noqa: PLC0415
    from restore_jax.config import workdir  # noqa: PLC0415

    folder, step = workdir_of(folder)
    which = step or which
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: no config.json in it; give a training's workdir, a folder "
            "checkpoints/STEP in one, or a .safetensors file"
        )
    config = workdir.read_config(folder)
    model = make_model(config, f"{folder}/config.json")
    for _ in range(_READ_ATTEMPTS):
        with _orbax_errors_only(), checkpoint.open_manager(folder, read_only=True) as manager:
            step = checkpoint.find_step(manager, which, folder)
            record = manager.metrics(step) or {}
        saved = folder / "checkpoints" / str(step)
        try:
            parts = _read_parts(files.plain_path(saved.parent) / saved.name / "state")
            if changed := checkpoint.changed_parts(record, parts):
                raise ValueError(f"its {', '.join(changed)} changed")
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Removed by a running training, which may have saved a newer one: look again.
            if not checkpoint.exists(folder, step):
                continue
            raise UsageError(
                f"{saved}: cannot be read ({errors.one_line(error)}); take another checkpoint"
            ) from error
        variables = {name.removeprefix("ema_"): part for name, part in parts.items()}
        check_variables(model, variables, str(saved))
        return model, variables, config
    raise UsageError(f"{folder}: its training removes checkpoints faster than they can be read")


@contextlib.contextmanager
def _orbax_errors_only() -> Iterator[None]:
    """Silences Orbax's warning that a folder opened read-only is read-only."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read_parts(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the parts of a saved `TrainState` that inference needs, not its optimizer state.

    These are "params" and "batch_stats", or their moving averages, which begin with "ema_", if
    they were saved. A run can thus be used whatever optimizer it was trained with, in this
    version or an earlier one.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415

    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder).tree
    names = (f"ema_{name}" if saved.get(f"ema_{name}") else name for name in _VARIABLES)
    wanted = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved[name]
        )
        for name in names
    }
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    read = handler.restore(
        folder,
        args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
    )
    return {name: read[name] for name in wanted}


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the metadata of a file written by `save_weights`, of the keys in `NOTES`.

    Raises:
        UsageError: for a file that cannot be read, is damaged, or was written by another
            program or a later version of this one.
    """
    _, metadata = read_file(pathlib.Path(path).expanduser())
    return {key: metadata[key] for key in NOTES if key in metadata}


def read_source_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the `NOTES` metadata of a weights file or shipped model.

    A workdir, or the folder of one of its checkpoints, has "known_range" at most.
    """
    place = pathlib.Path(path).expanduser()
    if not place.is_dir():
        return read_notes(find_file(path))
    folder, _ = workdir_of(place)
    try:
        return {"known_range": (folder / RANGE_FILE).read_text(encoding="utf-8")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder / RANGE_FILE}: cannot be read ({error}); remove it"
        ) from error


def with_licence(config: ConfigDict, notes: Mapping[str, str]) -> dict[str, str]:
    """Checks a file's metadata and adds the licence that follows from the training data.

    Args:
        config: the configuration that the weights were trained with.
        notes: texts by keys of `NOTES`; a licence given here takes precedence.

    Raises:
        UsageError: for a key that is not in `NOTES`, or a value that is not a one-line text.
    """
    for key, value in notes.items():
        if key not in NOTES:
            raise UsageError(f"metadata: {key!r} is not one of {', '.join(NOTES)}")
        if not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1:
            raise UsageError(f"metadata: {key} must be a one-line text, not {value!r}")
    data = config.get("data")
    from_mvtec = isinstance(data, ConfigDict) and data.get("name") in ("mvtec_ad", "kla")
    return ({"licence": LICENCE_NOTE} if from_mvtec else {}) | dict(notes)


def read_file(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays and the metadata of a weights file, as they are stored.

    Raises:
        UsageError: for a file that cannot be read, is damaged, or was written by another
            program or a later version of this one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        arrays = safetensors.numpy.load(content)
        # The parser above has checked the header: its length, then as many bytes of JSON.
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not a safetensors file, or damaged ({error}); copy it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path}: a safetensors file, but not written by restore_jax")
    if metadata.get("format_version") not in VERSIONS:
        raise UsageError(
            f"{path}: format version {metadata.get('format_version')}; this restore_jax reads "
            f"versions {' and '.join(VERSIONS)}; install a newer one"
        )
    return arrays, metadata


def _is_half(name: str, dtype: str) -> bool:
    """Returns whether an array is stored as float16; the few BatchNorm statistics never are."""
    return dtype == "float16" and name.startswith("params/")


def _to_stored(name: str, array: Any, dtype: str, source: str) -> np.ndarray:
    """Returns an array with the dtype in which it is stored.

    Raises:
        UsageError: for values beyond the range of float16.
    """
    array = np.asarray(array)
    if _is_half(name, dtype):
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
        if not np.isfinite(array).all():
            raise UsageError(
                f"{source}: {name} holds values beyond the range of float16; use float32"
            )
    return np.ascontiguousarray(array)


def _to_float32(name: str, array: np.ndarray, version: str) -> np.ndarray:
    """Returns a stored array as float32; one of an unexpected dtype unchanged."""
    halved = _is_half(name, VERSIONS[version]) and array.dtype == np.float16
    return array.astype(np.float32) if halved else array


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(variables), sep="/")


def _parameter_count(arrays: Mapping[str, Any]) -> int:
    return sum(
        math.prod(array.shape) for name, array in arrays.items() if name.startswith("params/")
    )


def _portable(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields as JSON values, with this machine's paths emptied."""
    fields = json.loads(json.dumps(config.to_dict()))
    for field in _LOCAL_FIELDS:
        *sections, name = field.split(".")
        section = fields
        for part in sections:
            section = section.get(part, {})
        if name in section:
            section[name] = ""
    return fields
