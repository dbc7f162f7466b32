"""The working directory of a run: its configuration, its lock and its damaged files."""

import contextlib
import errno
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

try:
    import fcntl
except ImportError:  # Windows, where a workdir is not locked
    fcntl = None

# Fields that may change when a run is resumed: where its data are, how much is displayed. They
# can affect the parameters or the metrics of training only by selecting other images or other
# fixed parameters, which `setup.check_same_images` detects.
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

# May be raised on resuming: everything that a shorter run has done, a longer one does too.
_EPOCHS = "config.train.epochs"

# How runs behaved before these fields were introduced.
_DEFAULTS_OF_OLDER_RUNS = {
    "config.data.resident": False,
    "config.data.crops_per_image": 1,
    "config.data.white": schema.WHITE_OF_OLDER_RUNS,
    "config.data.recolour": False,
    "config.data.shrink": (1.0, 1.0),
    "config.data.undo_gain": False,
    "config.data.degradation.clean_share": None,
    "config.data.degradation.skew": None,
    "config.data.degradation.noise": None,
    "config.data.degradation.jpeg_quality": None,
    "config.data.degradation.jpeg_share": None,
    "config.data.degradation.file": "",
    "config.init_from": "",
}

# Damaged files are moved here, so that they can still be inspected.
DAMAGED = "damaged"

# Locked by a training run until it ends; the lock is released when its process dies.
_LOCK = ".lock"

_DISK_FAILURES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV,
)  # fmt: skip


def set_aside(workdir: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Moves a damaged file or folder into the workdir's `damaged/`.

    Returns:
        Its new path.
    """
    folder = workdir / DAMAGED
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(2)))
    place = next(folder / name for name in names if not (folder / name).exists())
    return path.rename(place)


def remove(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Removes a folder of a workdir atomically: it is never left there half deleted."""
    temporary = folder.rename(workdir / f"{files.TEMPORARY}{os.getpid()}-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def reporting_disk_failures(workdir: pathlib.Path) -> Iterator[None]:
    """Turns the OSError of a full or failing disk during training into a RunError.

    Raises:
        RunError: if the disk is full or fails; any other exception passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAILURES:
            raise
        raise RunError(
            f"{error.filename or workdir}: {error.strerror}; the training stops and its "
            "checkpoints are kept. Once this is fixed, the same command resumes from the latest"
        ) from error


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields as they are after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def _flatten(tree: dict[str, Any], prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}.{name}"
        flat.update(_flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def check_finite(config: ConfigDict) -> None:
    """Checks that every number in a configuration is finite.

    Raises:
        UsageError: naming the first field that is infinite or NaN.
    """
    for field, value in _flatten(as_json(config)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{field}: {value} is not a finite number")


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Describes each field that differs, for example "config.seed (0, now 1)".

    `FREE_FIELDS` are ignored, and so is an increase of `config.train.epochs`.
    """
    a, b = (_DEFAULTS_OF_OLDER_RUNS | _flatten(as_json(config)) for config in (old, new))
    if raised_epochs(old, new):
        del a[_EPOCHS], b[_EPOCHS]
    return [
        f"{field} ({a.get(field, 'absent')}, now {b.get(field, 'absent')})"
        for field in sorted(a.keys() | b.keys())
        if field not in FREE_FIELDS
        and (field not in a or field not in b or a[field] != b[field])
    ]


def raised_epochs(old: ConfigDict, new: ConfigDict) -> tuple[int, int] | None:
    """Returns the old and new number of epochs if it was increased; None otherwise."""
    before, now = (_flatten(as_json(config)).get(_EPOCHS) for config in (old, new))
    if isinstance(before, int) and isinstance(now, int) and now > before:
        return before, now
    return None


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """Reads the configuration that a workdir was created with.

    Raises:
        UsageError: if there is no run in it, or its config.json cannot be read or has a field
            of a wrong type.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UsageError(f"{workdir}: no run in it ({path.name} is missing)")
    return schema.read_file(path)


def white_level(workdir: pathlib.Path, config: ConfigDict) -> int:
    """Returns the white level given or, by default, the one a run found when it began.

    Args:
        workdir: the workdir; it need not exist.
        config: the configuration to start or to resume with.

    Returns:
        `config.data.white`; 0 if it is still to be found.
    """
    given = config.data.get("white", 0)
    if given or not (workdir / "config.json").exists():
        return given
    data = read_config(workdir).get("data") or {}
    return data.get("white", schema.WHITE_OF_OLDER_RUNS)


def is_claimed(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Returns whether a workdir already belongs to this configuration.

    False if the folder does not exist or holds no run yet.

    Raises:
        UsageError: if the folder belongs to another configuration (naming the fields that
            differ), or holds other files.
    """
    if (workdir / "config.json").exists():
        differing = differences(read_config(workdir), config)
        if differing:
            raise UsageError(
                f"{workdir}: belongs to a run of another configuration; use another "
                f"workdir, or the same fields: {', '.join(differing)}"
            )
        return True
    if workdir.exists() and (not workdir.is_dir() or any(map(_is_foreign, workdir.iterdir()))):
        raise UsageError(
            f"{workdir}: exists and is not a run's folder; use an empty or a new one"
        )
    return False


def _is_foreign(path: pathlib.Path) -> bool:
    """Returns whether a file is not one that a run killed at its very start leaves behind."""
    return path.name != _LOCK and not path.name.startswith(files.TEMPORARY)


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Locks a workdir for one training run; creates the folder if it does not exist.

    Temporary files that a killed run left half written are removed. On a file system without
    file locks, the workdir is not locked.

    Raises:
        UsageError: if another training run holds the lock, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / _LOCK).open("a")
    except OSError as error:
        raise UsageError(f"{workdir}: cannot be written ({error.strerror})") from error
    with lock:
        try:
            if fcntl is not None:
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
    """Checks that no training is running in a workdir.

    Raises:
        UsageError: if one is.
    """
    if is_held(workdir):
        raise _in_use(workdir)


def _in_use(workdir: pathlib.Path) -> UsageError:
    return UsageError(
        f"{workdir}: another training is running in it; wait for it to end, or use "
        "another workdir"
    )


def is_held(workdir: pathlib.Path) -> bool:
    """Returns whether a training is running in a workdir; False where files are not locked."""
    if fcntl is None:
        return False
    try:
        with (workdir / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes a configuration into its workdir, which is created if it does not exist.

    In a workdir that already belongs to the configuration, this updates the `FREE_FIELDS`.

    Raises:
        UsageError: if the folder cannot be written.
    """
    text = json.dumps(as_json(config), indent=2, allow_nan=False)
    try:
        files.write_text(workdir / "config.json", text + "\n")
    except OSError as error:
        raise UsageError(f"{workdir}: cannot be written ({error.strerror})") from error
