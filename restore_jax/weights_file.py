"""One portable file per trained model: its parameters and the configuration they belong to.

The format is safetensors: a JSON header and plain arrays, so that opening a file of unknown
origin cannot run anything. Tensors are named by their path, "params/down1/conv1/kernel".
"""

import contextlib
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from restore_jax import config_check, models
from restore_jax.errors import UsageError

FORMAT = "restore_jax"
VERSION = 1
LICENCE_NOTE = "weights trained on MVTec AD: non-commercial (CC BY-NC-SA 4.0)"

# Where a machine keeps its files is of no use to anybody else.
_LOCAL_FIELDS = (
    "init_from",
    "data.root",
    "data.cache_dir",
    "data.resident_file",
    "vgg16_weights",
)


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
) -> pathlib.Path:
    """Writes a model to one `.safetensors` file, which `restore_jax.load` reads.

    The header carries the configuration as JSON, without this machine's paths; the format's
    version; the number of parameters; and, for weights trained on MVTec AD or the set made of
    it, a note on their licence. The file appears in one step, whole or not at all.

    Args:
        path: the file, ending in ".safetensors".
        variables: what `model.apply` takes: "params", and "batch_stats" where there are any;
            float32 arrays.
        config: the configuration; of its fields only `model` must be there.
        overwrite: whether a file that exists may be replaced.

    Returns:
        The path.

    Raises:
        UsageError: for a name without that ending, a file that exists or cannot be written, or
            variables that are not those of the configuration's model.

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
    check_variables(make_model(config, str(path)), variables, str(path))
    arrays = {
        name: np.ascontiguousarray(array) for name, array in sorted(_flatten(variables).items())
    }
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "parameters": str(_parameter_count(arrays)),
        "config": json.dumps(_portable(config), allow_nan=False),
    }
    data = config.get("data")
    if isinstance(data, ConfigDict) and data.get("name") in ("mvtec_ad", "kla"):
        metadata["licence"] = LICENCE_NOTE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    return path


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
    if metadata.get("format_version") != str(VERSION):
        raise UsageError(
            f"{path}: format version {metadata.get('format_version')}; this restore_jax reads "
            f"version {VERSION}, so install a newer one"
        )
    try:
        fields = config_check.read(metadata["config"], str(path))
        total = int(metadata["parameters"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path}: damaged header ({error!r}); copy the file again") from error
    config = ConfigDict(fields)
    model = make_model(config, str(path))
    _check_arrays(model, arrays, str(path))
    if total != _parameter_count(arrays):
        raise UsageError(
            f"{path}: {_parameter_count(arrays)} parameters, and its header says {total}; copy "
            "the file again"
        )
    variables = {"batch_stats": {}} | traverse_util.unflatten_dict(arrays, sep="/")
    return model, variables, config


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
