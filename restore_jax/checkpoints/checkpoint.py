"""Checkpoints in a workdir: the latest states and the one with the best validation SSIM.

`checkpoints/STEP` holds the state and a record: the run's progress, the validation metrics if
the state was validated, and digests of the state and of the record itself. Thus truncated or
modified files are detected on reading.

With several processes, each holds the whole state, and only the first reads and writes.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from restore_jax import errors, files
from restore_jax.checkpoints import log_filters
from restore_jax.config import workdir as workdirs
from restore_jax.errors import RunError, UsageError
from restore_jax.learner.state import TrainState
from restore_jax.parallel import processes

Record = dict[str, Any]

# The second is a fallback in case the first is damaged.
_LATEST = 2
# How often the checkpoints of a running training are listed again.
_LISTINGS = 5
# Seconds to wait before each retry of a failed read: a passing failure of a network file system
# must neither end a run nor cost a checkpoint.
_RETRY_PAUSES = (0.2, 2.0)
# TensorStore raises ValueError for any failure, with the system's error in the message.
_SYSTEM_ERROR = re.compile(r"\[OS error (\d+)\b|\bRESOURCE_EXHAUSTED\b")
# Bytes reserved for what a checkpoint holds besides arrays, and for logs written meanwhile.
_MARGIN = 1 << 20


class Damaged(RunError):
    """A checkpoint differs from what was written.

    Args:
        folder: the checkpoint's folder.
        reason: what is wrong with it.
    """

    def __init__(self, folder: pathlib.Path, reason: str) -> None:
        super().__init__(f"{folder}: the checkpoint is damaged ({reason}); take another one")
        self.folder = folder
        self.reason = reason


class Unreadable(RunError):
    """A checkpoint may be intact, but the operating system fails to read it.

    Args:
        folder: the checkpoint's folder.
        reason: the system's error.
    """

    def __init__(self, folder: pathlib.Path, reason: str) -> None:
        super().__init__(
            f"{folder}: cannot be read ({reason}); everything is left unchanged. Once that is "
            "fixed, the same command resumes; to resume without this checkpoint, move its "
            "folder away first"
        )
        self.reason = reason


class Manager(ocp.CheckpointManager):
    """Orbax's checkpoint manager, raising a RunError with a one-line message when it fails.

    Args:
        folder: the folder of the checkpoints as the user named it, for messages; Orbax gets
            the path from `files.plain_path`.
        options: Orbax's options.
    """

    def __init__(self, folder: pathlib.Path, options: ocp.CheckpointManagerOptions) -> None:
        self.folder = folder
        # Whether the first checkpoint it wrote has been read back, see `save`.
        self.verified = False
        super().__init__(files.plain_path(folder), options=options)

    def metrics(self, step: int) -> Record | None:
        """Returns the record of a step; None if it is missing or damaged.

        Raises:
            Unreadable: if the system fails to read it. The best checkpoint without its record
                would no longer count as the best, and be removed.
        """
        for pause in (*_RETRY_PAUSES, None):
            try:
                found = super().metrics(step)
                break
            except (*_MISSING, ValueError):
                return None
            except OSError as error:
                if pause is None:
                    raise Unreadable(self.folder / str(step), _os_reason(error)) from error
                time.sleep(pause)
        if not isinstance(found, dict) or not isinstance(_ssim(found), (int, float)):
            return None
        return found

    def reached_preemption(self, step: int) -> bool:
        """Returns False: preemption is handled by `signals` and `processes`.

        Some releases of Orbax query JAX's preemption service, which is off in our jobs of
        several processes.
        """
        del step
        return False

    def wait_until_finished(self) -> None:
        """Waits for the save in progress; raises a RunError if it failed."""
        try:
            super().wait_until_finished()
        except Exception as error:
            raise _write_error(self.folder, errors.one_line(error)) from error

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Starts a save; raises a RunError if it or the previous one failed."""
        try:
            return super().save(step, *args, **kwargs)
        except RunError:
            raise
        except Exception as error:
            raise _write_error(self.folder, errors.one_line(error)) from error


# Errors that mean a file does not exist, rather than that it cannot be read.
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def _os_reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _write_error(folder: os.PathLike[str], reason: str) -> RunError:
    return RunError(
        f"{folder}: no checkpoint can be written ({reason}); the training stops and earlier "
        "checkpoints are kept. Once that is fixed, the same command resumes from the latest"
    )


def _ssim(record: Mapping[str, Any]) -> float:
    """Returns the SSIM that ranks checkpoints; without a validation, minus infinity."""
    return record.get("ssim", -math.inf)


def open_manager(workdir: pathlib.Path, read_only: bool = False) -> Manager:
    """Opens the checkpoints of a workdir, in `checkpoints/STEP`.

    Up to three are kept: the two latest, to resume from, and the one with the highest
    validation SSIM (the later one in a tie). Saves are asynchronous; closing the manager waits
    for them.

    Args:
        workdir: the run's folder.
        read_only: never write or delete, for a second process beside a running training.

    Returns:
        The manager; use it as a context manager. It raises a RunError if it cannot write.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(_LATEST),
            checkpoint_managers.BestN(
                get_metric_fn=_ssim, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    folder = (workdir / "checkpoints").absolute()
    own_process = {jax.process_index()} if jax.process_count() > 1 else None
    options = ocp.CheckpointManagerOptions(
        best_fn=_ssim,
        create=False,
        # These options keep Orbax from waiting for other processes.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes=own_process,
            barrier_sync_key_prefix=None if own_process is None else "alone",
        ),
        **(
            {"read_only": True}
            if read_only
            else {"preservation_policy": policy, "cleanup_tmp_directories": True}
        ),
    )
    if not read_only:
        folder.mkdir(parents=True, exist_ok=True)
    log_filters.quieten_orbax()
    for _ in range(_LISTINGS if read_only else 0):
        # A running training may remove a checkpoint between its listing and the look at it.
        with contextlib.suppress(FileNotFoundError):
            return Manager(folder, options=options)
    return Manager(folder, options=options)


def save(
    manager: Manager,
    state: TrainState,
    metrics: Mapping[str, Any],
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Starts saving a state and the validation metrics of that state.

    The first checkpoint that a manager saves is waited for and read back, so that checkpoints
    that cannot be read are noticed then and not at the end of a long training.

    Args:
        manager: from `open_manager`.
        state: the state; it may be donated to the next step as soon as this returns.
        metrics: "epoch", the number of completed epochs; and "ssim" and the other validation
            metrics if the state was validated.
        progress: what else the run needs to resume, as JSON values.

    Raises:
        RunError: if this checkpoint or the previous one cannot be written, or the first one
            cannot be read back.
    """
    folder = manager.folder
    # Orbax would notice a full disk too, but in threads and with a traceback for each array.
    free, needed = shutil.disk_usage(folder).free, _MARGIN + _size(state)
    if free < needed:
        raise _write_error(folder, f"{free >> 10} KiB free, {needed >> 10} KiB needed")
    record: Record = {**metrics, **(progress or {}), "digests": digests(vars(state))}
    record["digest"] = _digest_of_record(record)
    if jax.process_count() > 1:
        # As NumPy arrays: Orbax would otherwise have the other processes take part in the save.
        state = jax.tree.map(np.array, state)
    manager.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
        metrics=record,
    )
    if not manager.verified:
        manager.wait_until_finished()
        _verify_saved(manager, int(state.step), state)
        manager.verified = True


def _verify_saved(manager: Manager, step: int, state: TrainState) -> None:
    """Reads back a checkpoint that was just written.

    Raises:
        RunError: if that fails.
    """
    try:
        read(manager, step, state)
    except (Damaged, Unreadable, FileNotFoundError) as error:
        reason = getattr(error, "reason", "it is gone")
        raise RunError(
            f"{manager.folder / str(step)}: was just written and cannot be read back "
            f"({reason}); the training stops, as its checkpoints would be useless. Take a "
            "workdir on another file system"
        ) from error


def digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Returns a digest of each part of a state: "params", "opt_state" and so on.

    The digest covers the names, dtypes, shapes and bytes of the part's arrays.
    """
    found = {}
    for name, part in parts.items():
        digest = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            array = np.asarray(leaf)
            header = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
            digest.update(header.encode())
            digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        found[name] = digest.hexdigest()
    return found


def changed_parts(record: Mapping[str, Any], parts: Mapping[str, Any]) -> list[str]:
    """Returns the names of the parts of a state that do not match their recorded digests.

    Args:
        record: a checkpoint's record, from the manager's `metrics`. Earlier versions recorded
            no digests; the result is then [].
        parts: some parts of the state by name, for example {"params": …}.
    """
    expected = record.get("digests")
    if expected is None:
        return []
    # A part without arrays may be one that the version which saved the checkpoint did not have.
    nothing = digests({"": {}})[""]
    found = digests(parts).items()
    return [name for name, digest in found if expected.get(name, nothing) != digest]


def _size(state: TrainState) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _digest_of_record(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def latest_step(workdir: pathlib.Path) -> int:
    """Returns the step of the latest checkpoint; 0 if there is none."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    with open_manager(workdir, read_only=True) as manager:
        return manager.latest_step() or 0


def exists(workdir: pathlib.Path, step: int) -> bool:
    """Returns whether a step has a checkpoint; a running training may remove it at any time."""
    return (workdir / "checkpoints" / str(step)).is_dir()


def epochs_done(workdir: pathlib.Path) -> int:
    """Returns the largest number of completed epochs of any checkpoint; 0 if there is none."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    with open_manager(workdir, read_only=True) as manager:
        records = [manager.metrics(step) or {} for step in manager.all_steps()]
        return max((int(record.get("epoch", 0)) for record in records), default=0)


def find_step(manager: Manager, which: str, workdir: pathlib.Path) -> int:
    """Finds the step of the checkpoint that the user asks for.

    Args:
        manager: from `open_manager`.
        which: "best", "latest" or a step.
        workdir: the workdir, for messages.

    Returns:
        The step of an existing checkpoint.

    Raises:
        UsageError: if there is no such checkpoint, with the existing ones.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UsageError(f"{workdir}: no checkpoint in it yet; train it first")
    if which == "latest":
        return steps[-1]
    best = manager.best_step()
    if best is not None and "ssim" not in (manager.metrics(best) or {}):
        best = None
    if which == "best":
        if best is None:
            raise UsageError(
                f"--checkpoint=best: nothing in {workdir} was validated yet; use latest"
            )
        return best
    if not which.isdecimal() or int(which) not in steps:
        raise UsageError(
            f"--checkpoint={which}: not in {workdir}; there are best ({best}), "
            f"latest ({steps[-1]}) and the steps {steps}"
        )
    return int(which)


def to_devices(state: TrainState | None, template: TrainState) -> TrainState:
    """Puts a state on the devices of all processes.

    Args:
        state: from `read` in the first process; None in the others.
        template: as for `read`.
    """
    state = processes.broadcast(state, template)
    if jax.process_count() > 1:
        return jax.tree.map(
            lambda leaf, like: jax.make_array_from_process_local_data(like.sharding, leaf),
            state,
            template,
        )
    # Must not alias the host memory it was read into: the train step donates the state.
    return jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding, may_alias=False), state, template
    )


def read(manager: Manager, step: int, template: TrainState) -> tuple[TrainState, Record]:
    """Reads a checkpoint into host memory and checks its digests.

    Args:
        manager: from `open_manager`.
        step: an existing step, from `find_step`.
        template: a state of the same structure whose leaves give shape, dtype and sharding
            (arrays or `jax.ShapeDtypeStruct`).

    Returns:
        The state, and the metrics and progress it was saved with.

    Raises:
        Damaged: if one of its files is missing, truncated or changed, on every attempt.
        Unreadable: if the system fails to read it, on every attempt.
        FileNotFoundError: if the whole checkpoint is gone; a running training removes older
            ones.
    """
    folder = manager.folder / str(step)
    pauses = iter(_RETRY_PAUSES)
    while True:
        try:
            return _read_checked(manager, step, template)
        except (MemoryError, Unreadable):
            raise
        # On a damaged file, the libraries raise nearly anything.
        except Exception as error:
            if _is_removed(folder):
                raise FileNotFoundError(f"{folder}: removed") from error
            problem = _system_error(error, folder)
            pause = next(pauses, None)
            if pause is None and problem:
                raise Unreadable(folder, problem) from error
            if pause is None:
                raise Damaged(folder, errors.one_line(error)) from error
            # Only a failure of every attempt counts as damage.
            time.sleep(pause if problem else 0)


def _is_removed(folder: pathlib.Path) -> bool:
    """Returns whether a folder is known not to exist; False if the system cannot tell."""
    try:
        folder.stat()
    except _MISSING:
        return True
    except OSError:
        pass
    return False


def _system_error(error: BaseException | None, folder: pathlib.Path) -> str | None:
    """Returns the system error that keeps a checkpoint from being read; None if none does.

    Args:
        error: the exception of the library that failed to read it; it or one of its causes may
            be a system error. A damaged file can be the reason as well.
        folder: the checkpoint's folder; all its files are read once to find out.
    """
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, _MISSING):
            return _os_reason(error)
        if found := _SYSTEM_ERROR.search(str(error)):
            return os.strerror(int(found[1])) if found[1] else "out of memory"
        error = error.__cause__
    try:
        for above, _, names in os.walk(folder, onerror=_raise):
            for name in names:
                with pathlib.Path(above, name).open("rb") as file:
                    while file.read(1 << 24):
                        pass
    except _MISSING:
        return None
    except OSError as failure:
        return _os_reason(failure)
    return None


def _raise(error: OSError) -> None:
    raise error


def _read_checked(
    manager: Manager, step: int, template: TrainState
) -> tuple[TrainState, Record]:
    """Reads a checkpoint into host memory and checks it; may raise any exception."""
    record = manager.metrics(step)
    if record is None or "epoch" not in record:
        raise ValueError("its record cannot be read")
    record = dict(record)
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(empty))
    state = manager.restore(step, args=args)["state"]
    expected = record.pop("digest", None)
    if expected is None:  # earlier versions wrote none
        return state, record
    if _digest_of_record(record) != expected:
        raise ValueError("its record changed")
    if names := changed_parts(record, vars(state)):
        raise ValueError(f"its {', '.join(names)} changed")
    del record["digests"]
    return state, record


def newest_intact(
    workdir: pathlib.Path, template: TrainState
) -> tuple[TrainState | None, Record, list[Damaged]]:
    """Reads the newest checkpoint that is not damaged, and checks the best one.

    All processes must call this together, and get the same result.

    Args:
        workdir: the run's folder.
        template: as for `read`.

    Returns:
        The state, its record, and the damaged checkpoints that were found. The state is None
        and the record {} if there is no checkpoint.

    Raises:
        RunError: if there are checkpoints and none can be read.
    """
    states: list[TrainState] = []

    def read_newest() -> tuple[Record | None, list[tuple[pathlib.Path, str]]]:
        state, record, damaged = _newest_intact(workdir, template)
        states.extend([state] if state is not None else [])
        return record if states else None, [(error.folder, error.reason) for error in damaged]

    record, damaged = processes.on_first(read_newest)
    found = [Damaged(folder, reason) for folder, reason in damaged]
    if record is None:
        return None, {}, found
    return to_devices(states[0] if states else None, template), record, found


def _newest_intact(
    workdir: pathlib.Path, template: TrainState
) -> tuple[TrainState | None, Record, list[Damaged]]:
    """Like `newest_intact`, into host memory and for a single process."""
    if not (workdir / "checkpoints").is_dir():
        return None, {}, []
    damaged: list[Damaged] = []
    with open_manager(workdir, read_only=True) as manager:
        steps, best = sorted(manager.all_steps()), manager.best_step()
        for step in reversed(steps):
            try:
                state, record = read(manager, step, template)
            except Damaged as error:
                damaged.append(error)
                continue
            if best is not None and best < step:
                try:
                    read(manager, best, template)
                except Damaged as error:
                    damaged.append(error)
            return state, record, damaged
    if damaged:
        raise RunError(
            f"{workdir}: none of its checkpoints can be read "
            f"({'; '.join(f'{error.folder.name}: {error.reason}' for error in damaged)}); "
            "train in another workdir"
        )
    return None, {}, []


def remove_existing(manager: Manager, workdir: pathlib.Path, step: int) -> None:
    """Removes the checkpoint of a step, if there is one, so that it can be saved again."""
    manager.wait_until_finished()
    if exists(workdir, step):
        workdirs.remove(workdir, workdir / "checkpoints" / str(step))
        manager.reload()
