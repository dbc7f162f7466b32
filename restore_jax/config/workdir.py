"""A run's folder: what is where, and whose configuration it is."""

import contextlib
import errno
import fcntl
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from restore_jax import files
from restore_jax.config import schema
from restore_jax.errors import RunError, UsageError

# Fields that a run may be gone on with in another place: where its data lie, how much is shown.
# None of them changes a parameter or a figure of the training but by other images, or other
# fixed parameters, and those are told by themselves (`setup.check_same_images`).
FREE_FIELDS = (
    "config.data.root",
    "config.data.cache_dir",
    "config.data.resident_file",
    "config.data.skip_bad",
    "config.data.max_megapixels",
    "config.data.references",
    "config.eval.batch_size",
    "config.eval.pictures",
    "config.eval.protocol",
    "config.eval.split",
    "config.vgg16_weights",
    "config.train.log_every_steps",
    "config.train.steps_per_dispatch",
    "config.checkpoint.every_steps",
)

# Which may be raised: there is nothing in a shorter run that a longer one does not have.
_EPOCHS = "config.train.epochs"

# What runs did that are older than the field.
_BEFORE = {
    "config.data.resident": False,
    "config.data.crops_per_image": 1,
    "config.data.recolour": False,
    "config.data.degradation.clean_share": None,
    "config.data.degradation.skew": None,
    "config.data.degradation.file": "",
    "config.init_from": "",
}

# Where files go that were found damaged, for whoever wants to look at them.
DAMAGED = "damaged"

# Held by the training of a workdir as long as it runs; its process's death releases it.
_LOCK = ".lock"

_DISK_FAILURES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV,
)  # fmt: skip


def set_aside(workdir: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Moves a damaged file or folder into the workdir's `damaged/`; returns where it is now."""
    folder = workdir / DAMAGED
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(2)))
    place = next(folder / name for name in names if not (folder / name).exists())
    return path.rename(place)


def remove(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Removes a folder of a workdir in one step: it is there whole, or not at all."""
    temporary = folder.rename(workdir / f"{files.TEMPORARY}{os.getpid()}-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def full_disk_told(workdir: pathlib.Path) -> Iterator[None]:
    """Turns what a disk that is full or fails does to a training into one line.

    Raises:
        RunError: for it; any other failure is left as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAILURES:
            raise
        raise RunError(
            f"{error.filename or workdir}: {error.strerror}; the training stops and its "
            "checkpoints are kept. Once mended, the same command goes on from the latest"
        ) from error


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

    The `FREE_FIELDS` are left out, and so is a `config.train.epochs` that is raised.
    """
    a, b = (_BEFORE | _flatten(as_json(config)) for config in (old, new))
    if raised_epochs(old, new):
        del a[_EPOCHS], b[_EPOCHS]
    return [
        f"{field} ({a.get(field, 'absent')}, now {b.get(field, 'absent')})"
        for field in sorted(a.keys() | b.keys())
        if field not in FREE_FIELDS
        and (field not in a or field not in b or a[field] != b[field])
    ]


def raised_epochs(old: ConfigDict, new: ConfigDict) -> tuple[int, int] | None:
    """Returns the epochs before and now where a run is to be longer than it was; else None."""
    before, now = (_flatten(as_json(config)).get(_EPOCHS) for config in (old, new))
    if isinstance(before, int) and isinstance(now, int) and now > before:
        return before, now
    return None


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Reads the configuration that a workdir was made with.

    Raises:
        UsageError: where there is no workdir, or its config.json cannot be read, or
            holds a field of a wrong type.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UsageError(f"--workdir={workdir}: no run in it ({path.name} is missing)")
    return schema.read_file(path)


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
    if workdir.exists() and (not workdir.is_dir() or any(map(_is_foreign, workdir.iterdir()))):
        raise UsageError(
            f"--workdir={workdir}: exists and is not a run's folder; take an empty or a new one"
        )
    return False


def _is_foreign(path: pathlib.Path) -> bool:
    """Tells the files of others from what a run leaves that was killed as it began."""
    return path.name != _LOCK and not path.name.startswith(files.TEMPORARY)


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir for one training; makes the folder where there is none.

    What a killed training had only half written is removed. Where the file system cannot lock
    files, nothing is held.

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
        for path in workdir.glob(f"{files.TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
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
        files.write_text(workdir / "config.json", text + "\n")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir}: cannot be written ({error.strerror})"
        ) from error
