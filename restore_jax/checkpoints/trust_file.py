"""Where a trust map's network is kept: in a weights file, or beside the checkpoints of a run.

Its tensors are named "trust/params/…" and "trust/calibration/…", always float32; the metadata
"trust" holds the notes as JSON. In a weights file they stand beside those of the restorer. In a
workdir they are the file `trust.safetensors`, with a digest of the restorer's parameters: other
checkpoints of the same run make other errors.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from restore_jax import files
from restore_jax.checkpoints import weights_file
from restore_jax.errors import UsageError
from restore_jax.trust.network import VERSION, ErrorBar, Trust

FILE = "trust.safetensors"
"""Name of the file in a workdir."""

_PREFIX = weights_file.TRUST_PREFIX
_KEY = weights_file.TRUST_KEY


def of_model(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> Trust | None:
    """Reads the trust map of a model.

    Args:
        path: as for `weights_file.read_model`.
        variables: the variables of the restorer, as read from there.

    Returns:
        None if it has none: for a workdir, also if that was made for another checkpoint.

    Raises:
        UsageError: for a damaged file.
    """
    place = pathlib.Path(path).expanduser()
    if not place.is_dir():
        return read(weights_file.find_file(path))
    place, _ = weights_file.workdir_of(place)
    if not (place / FILE).is_file():
        return None
    found = read(place / FILE)
    return found if found and found.notes.get("parameters") == digest(variables) else None


def read(path: pathlib.Path) -> Trust | None:
    """Reads the trust map in a file; None if it holds none, or one of another version.

    Raises:
        UsageError: for a damaged file.
    """
    arrays, metadata = weights_file.read_file(path)
    found = {
        name.removeprefix(_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_PREFIX)
    }
    if not found:
        return None
    try:
        notes = json.loads(metadata[_KEY])
        if notes.get("version") != VERSION:
            return None
        model = ErrorBar(width=int(notes["width"]))
        float(notes["alarm"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged header ({error!r}); copy the file again") from error
    image = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, image)
    expected = traverse_util.flatten_dict(shapes, sep="/")
    weights_file.check_arrays(expected, found, f"{path}: {_PREFIX.rstrip('/')}")
    return Trust(model, traverse_util.unflatten_dict(found, sep="/"), notes)


def write_beside(
    folder: pathlib.Path, trust: Trust, variables: Mapping[str, Any]
) -> pathlib.Path:
    """Writes the trust map of a checkpoint into its workdir, replacing an earlier one.

    Args:
        folder: the workdir.
        trust: the trust map.
        variables: the variables of the restorer that it was made for.

    Returns:
        The path of the file.

    Raises:
        UsageError: if it cannot be written.
    """
    notes = trust.notes | {"parameters": digest(variables)}
    header = {"format": weights_file.FORMAT, "format_version": "1"}
    return _write(folder / FILE, {}, header, trust._replace(notes=notes))


def add(source: pathlib.Path, trust: Trust, target: pathlib.Path) -> pathlib.Path:
    """Writes a weights file together with a trust map, in place of one that it may have.

    Everything else in the file stays as it is.

    Args:
        source: the weights file.
        trust: the trust map.
        target: the file to write; may be `source`.

    Returns:
        `target`.

    Raises:
        UsageError: if one cannot be read, or the other not be written.
    """
    arrays, metadata = weights_file.read_file(source)
    others = {name: array for name, array in arrays.items() if not name.startswith(_PREFIX)}
    return _write(target, others, metadata, trust)


def _tensors(trust: Trust) -> dict[str, np.ndarray]:
    """Returns the arrays of a trust map under the names that they have in a file."""
    flat = traverse_util.flatten_dict(dict(trust.variables), sep="/")
    return {
        _PREFIX + name: np.ascontiguousarray(array, np.float32) for name, array in flat.items()
    }


def digest(variables: Mapping[str, Any]) -> str:
    """Returns a digest of a restorer's parameters, the same in every format of storage."""
    flat = traverse_util.flatten_dict(dict(variables.get("params", {})), sep="/")
    found = hashlib.sha256()
    for name in sorted(flat):
        found.update(name.encode())
        found.update(np.ascontiguousarray(flat[name], np.float32).tobytes())
    return found.hexdigest()


def _write(
    path: pathlib.Path, others: Mapping[str, Any], metadata: Mapping[str, str], trust: Trust
) -> pathlib.Path:
    header = {**metadata, _KEY: json.dumps(trust.notes, sort_keys=True)}
    content = safetensors.numpy.save({**others, **_tensors(trust)}, header)
    try:
        with files.replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    return path
