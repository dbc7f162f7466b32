"""Values as bytes, for other processes of the job: JSON and NumPy arrays.

Not a pickle, which runs whatever it is told to: a port of the job may be open to others.
"""

import importlib
import io
import json
import pathlib
from typing import Any

import numpy as np

# The one place whose classes come back; they are made of their attributes, and nothing is run.
_PACKAGE = "restore_jax"


def encode(value: Any) -> bytes:
    """Turns a value into bytes.

    Args:
        value: of numbers, strings, None, paths, arrays, and objects of this project that hold
            such; in lists, tuples and dicts (of any kind; a dict comes back).

    Raises:
        TypeError: for anything else.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_to_plain(value, arrays))
    named = {str(number): array for number, array in enumerate(arrays)}
    buffer = io.BytesIO()
    np.savez(buffer, text=np.frombuffer(text.encode(), np.uint8), **named)
    return buffer.getvalue()


def decode(content: bytes) -> Any:
    """Turns bytes of `encode` into the value."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _from_plain(json.loads(arrays["text"].tobytes()), arrays)


def _to_plain(value: Any, arrays: list[np.ndarray]) -> Any:
    def plain(values: Any) -> list[Any]:
        return [_to_plain(each, arrays) for each in values]

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
        return ["dict", [plain(item) for item in value.items()]]
    kind = type(value)
    if kind in (list, tuple):
        return [kind.__name__, plain(value)]
    if kind.__module__.split(".")[0] != _PACKAGE:
        raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot be sent")
    # A NamedTuple has its fields in order, another object its attributes.
    held = tuple(value) if isinstance(value, tuple) else dict(vars(value))
    return ["object", kind.__module__, kind.__qualname__, _to_plain(held, arrays)]


def _from_plain(value: Any, arrays: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, *content = value
    if kind == "array":
        array = arrays[str(content[0])]
        return array if array.ndim else array[()]
    if kind == "path":
        return pathlib.Path(content[0])
    if kind == "object":
        module, name, held = content
        return _made(module, name, _from_plain(held, arrays))
    if kind == "dict":
        return {_from_plain(key, arrays): _from_plain(each, arrays) for key, each in content[0]}
    items = [_from_plain(each, arrays) for each in content[0]]
    return items if kind == "list" else tuple(items)


def _made(module: str, name: str, held: Any) -> Any:
    if module.split(".", maxsplit=1)[0] != _PACKAGE:
        raise TypeError(f"a {module}.{name} cannot be received")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise TypeError(f"{module}.{name} is no class")
    if isinstance(held, tuple):
        return tuple.__new__(found, held)
    made = object.__new__(found)
    for attribute, each in held.items():
        object.__setattr__(made, attribute, each)
    return made
