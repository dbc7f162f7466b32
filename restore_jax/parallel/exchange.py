"""Serialises values for the other processes of a job, as JSON and NumPy arrays.

Not with pickle, which executes code from its input: a port of the job may be open to others.
"""

import importlib
import io
import json
import pathlib
from typing import Any

import numpy as np

# Only classes of this package are decoded; they are rebuilt from their attributes without
# calling any of their code.
_PACKAGE = "restore_jax"


def encode(value: Any) -> bytes:
    """Serialises a value.

    Args:
        value: numbers, strings, None, paths, arrays, and objects of this project made of
            these, in lists, tuples and dicts (subclasses of dict are decoded as dicts).

    Raises:
        TypeError: for anything else.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_to_json(value, arrays))
    named = {str(number): array for number, array in enumerate(arrays)}
    buffer = io.BytesIO()
    np.savez(buffer, text=np.frombuffer(text.encode(), np.uint8), **named)
    return buffer.getvalue()


def decode(content: bytes) -> Any:
    """Restores a value from the bytes that `encode` returned."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _from_json(json.loads(arrays["text"].tobytes()), arrays)


def _to_json(value: Any, arrays: list[np.ndarray]) -> Any:
    """Returns a JSON value, with arrays moved to `arrays` and replaced by their index."""

    def converted(values: Any) -> list[Any]:
        return [_to_json(each, arrays) for each in values]

    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject:
            raise TypeError("an array of objects cannot be sent")
        arrays.append(np.asarray(value))
        return ["array", len(arrays) - 1]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, pathlib.Path):
        return ["path", str(value)]
    if isinstance(value, dict):
        return ["dict", [converted(item) for item in value.items()]]
    kind = type(value)
    if kind in (list, tuple):
        return [kind.__name__, converted(value)]
    if kind.__module__.split(".")[0] != _PACKAGE:
        raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be sent")
    # A NamedTuple is sent as a tuple, any other object as a dict of its attributes.
    fields = tuple(value) if isinstance(value, tuple) else dict(vars(value))
    return ["object", kind.__module__, kind.__qualname__, _to_json(fields, arrays)]


def _from_json(value: Any, arrays: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *content = value
    if kind == "array":
        array = arrays[str(content[0])]
        return array if array.ndim else array[()]
    if kind == "path":
        return pathlib.Path(content[0])
    if kind == "object":
        module, name, fields = content
        return _make_object(module, name, _from_json(fields, arrays))
    if kind == "dict":
        return {_from_json(key, arrays): _from_json(each, arrays) for key, each in content[0]}
    items = [_from_json(each, arrays) for each in content[0]]
    return items if kind == "list" else tuple(items)


def _make_object(module: str, name: str, fields: Any) -> Any:
    """Creates an object of a class of this package without calling its constructor."""
    if module.split(".", maxsplit=1)[0] != _PACKAGE:
        raise TypeError(f"a {module}.{name} cannot be received")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise TypeError(f"{module}.{name} is not a class")
    if isinstance(fields, tuple):
        return tuple.__new__(found, fields)
    made = object.__new__(found)
    for attribute, each in fields.items():
        object.__setattr__(made, attribute, each)
    return made
