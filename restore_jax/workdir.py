"""A run's folder: what is where, and whose configuration it is."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from restore_jax.errors import UsageError

# Fields that a run may be gone on with in another place: where its data lie, how much is shown.
# None of them changes a parameter or a figure.
FREE_FIELDS = (
    "config.data.root",
    "config.data.cache_dir",
    "config.data.references",
    "config.eval.batch_size",
    "config.eval.pictures",
    "config.eval.protocol",
    "config.eval.split",
    "config.vgg16_weights",
    "config.train.log_every_steps",
)


# Held by the training of a workdir as long as it runs; its process's death releases it.
_LOCK = ".lock"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one step: a reader sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields as JSON has them: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def _flatten(tree: dict[str, Any], prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}.{name}"
        flat.update(_flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def check_finite(config: ConfigDict) -> None:
    """Checks that every number in a configuration is one.

    Raises:
        UsageError: naming the first field that is infinite or not a number.
    """
    for field, value in _flatten(as_json(config)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{field}: {value} is not a finite number")


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns a text for each field that differs, e.g. "config.seed (0, now 1)".

    The `FREE_FIELDS` are left out.
    """
    a, b = _flatten(as_json(old)), _flatten(as_json(new))
    return [
        f"{field} ({a.get(field, 'absent')}, now {b.get(field, 'absent')})"
        for field in sorted(a.keys() | b.keys())
        if field not in FREE_FIELDS
        and (field not in a or field not in b or a[field] != b[field])
    ]


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Reads the configuration that a workdir was made with.

    Raises:
        UsageError: where there is no workdir, or its config.json cannot be read.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UsageError(f"--workdir={workdir}: no run in it ({path.name} is missing)")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UsageError(
            f"{path}: not a configuration ({error}); restore the file or take another workdir"
        ) from error
    return ConfigDict(fields)


def is_claimed(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Tells whether a workdir is this configuration's already; false where there is none yet.

    Raises:
        UsageError: where the folder belongs to another configuration, field by field, or holds
            other files.
    """
    if (workdir / "config.json").exists():
        differing = differences(read_config(workdir), config)
        if differing:
            raise UsageError(
                f"--workdir={workdir}: belongs to a run of another configuration; take another "
                f"workdir, or the same fields: {', '.join(differing)}"
            )
        return True
    if workdir.exists() and (
        not workdir.is_dir() or any(path.name != _LOCK for path in workdir.iterdir())
    ):
        raise UsageError(
            f"--workdir={workdir}: exists and is not a run's folder; take an empty or a new one"
        )
    return False


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir for one training; makes the folder where there is none.

    Where the file system cannot lock files, nothing is held.

    Raises:
        UsageError: where another training holds it, or it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / _LOCK).open("a")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir}: cannot be written ({error.strerror})"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(workdir) from error
        except OSError:
            pass
        yield


def check_free(workdir: pathlib.Path) -> None:
    """Refuses a workdir in which a training is running.

    Raises:
        UsageError: then.
    """
    if is_held(workdir):
        raise _in_use(workdir)


def _in_use(workdir: pathlib.Path) -> UsageError:
    return UsageError(
        f"--workdir={workdir}: another training is running in it; wait for its end, or take "
        "another workdir"
    )


def is_held(workdir: pathlib.Path) -> bool:
    """Tells whether a training is running in a workdir."""
    try:
        with (workdir / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Makes a workdir for a configuration, or renews the free fields of its own.

    Raises:
        UsageError: where it cannot be written.
    """
    text = json.dumps(as_json(config), indent=2, allow_nan=False)
    try:
        write_text(workdir / "config.json", text + "\n")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir}: cannot be written ({error.strerror})"
        ) from error
