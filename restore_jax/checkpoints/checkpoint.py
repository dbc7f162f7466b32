"""Checkpoints in a workdir: the latest states and the one of the best validation SSIM.

`checkpoints/STEP` holds the state and a record: how far the run was, the figures of the
validation where there was one, and digests of the state and of the record itself. A file that
was cut off or changed is so found out when the checkpoint is read.

Of several processes the first one alone reads and writes: each holds the whole state.
"""

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

from restore_jax import files
from restore_jax.checkpoints import log_filters
from restore_jax.config import workdir as workdirs
from restore_jax.errors import RunError, UsageError
from restore_jax.learner.state import TrainState
from restore_jax.parallel import processes

Record = dict[str, Any]

# The second one to go on from, should the first be damaged.
_LATEST = 2
# Seconds to wait before reading once more what could not be read: a network file system that
# stumbles is no reason to end a run, let alone to give up a checkpoint.
_PAUSES = (0.2, 2.0)
# TensorStore raises a ValueError for anything, and puts the system's error into its text.
_SYSTEM_ERROR = re.compile(r"\[OS error (\d+)\b|\bRESOURCE_EXHAUSTED\b")
# Bytes that a checkpoint takes beside its arrays, and that the logs may take meanwhile.
_SLACK = 1 << 20


class Damaged(RunError):
    """A checkpoint is not as it was written.

    Args:
        folder: of the checkpoint.
        reason: what is wrong with it.
    """

    def __init__(self, folder: pathlib.Path, reason: str) -> None:
        super().__init__(f"{folder}: the checkpoint is damaged ({reason}); take another one")
        self.folder = folder
        self.reason = reason


class Unreadable(RunError):
    """A checkpoint may be whole, but the system does not let it be read.

    Args:
        folder: of the checkpoint.
        reason: what the system says.
    """

    def __init__(self, folder: pathlib.Path, reason: str) -> None:
        super().__init__(
            f"{folder}: cannot be read ({reason}); everything is left as it is. Once that is "
            "mended, the same command goes on; without this checkpoint, it does once you have "
            "moved that folder away"
        )
        self.reason = reason


class Manager(ocp.CheckpointManager):
    """Orbax's manager, with failures that are told instead of thrown.

    Args:
        folder: of the checkpoints, as the user calls it; Orbax may know it by another path.
        options: as Orbax has them.
    """

    def __init__(self, folder: pathlib.Path, options: ocp.CheckpointManagerOptions) -> None:
        self.folder = folder
        # Whether a checkpoint that it wrote has been read back.
        self.proven = False
        super().__init__(files.plain_path(folder), options=options)

    def metrics(self, step: int) -> Record | None:
        """Returns the record of a step; None where there is none that makes sense.

        Raises:
            Unreadable: where the system does not let it be read: without its record, the best
                checkpoint would be none, and removed.
        """
        for pause in (*_PAUSES, None):
            try:
                found = super().metrics(step)
                break
            except (*_ABSENT, ValueError):
                return None
            except OSError as error:
                if pause is None:
                    raise Unreadable(self.folder / str(step), _said(error)) from error
                time.sleep(pause)
        if not isinstance(found, dict) or not isinstance(_ssim(found), (int, float)):
            return None
        return found

    def reached_preemption(self, step: int) -> bool:
        """Tells that no host is about to be taken away: `signals` and `processes` see to that.

        Some releases of Orbax ask a service of JAX's that is off in jobs of several processes.
        """
        del step
        return False

    def wait_until_finished(self) -> None:
        """Waits for the save that is going on; a RunError where it failed."""
        try:
            super().wait_until_finished()
        except Exception as error:
            raise _not_written(self.folder, _one_line(error)) from error

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Starts a save; a RunError where it, or the one before, failed."""
        try:
            return super().save(step, *args, **kwargs)
        except RunError:
            raise
        except Exception as error:
            raise _not_written(self.folder, _one_line(error)) from error


# What says that a file is not there, where others say that it cannot be read.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def _said(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _not_written(folder: os.PathLike[str], reason: str) -> RunError:
    return RunError(
        f"{folder}: no checkpoint can be written ({reason}); the training stops and the "
        "earlier ones are kept. Once that is mended, the same command goes on from the latest"
    )


def _ssim(record: Mapping[str, Any]) -> float:
    """What the best checkpoint has most of; one without a validation is never better."""
    return record.get("ssim", -math.inf)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def open_manager(workdir: pathlib.Path, read_only: bool = False) -> Manager:
    """Opens the checkpoints of a workdir; `checkpoints/STEP` each.

    Three are kept: the two latest, to go on from, and the one of the highest validation SSIM
    (the later one of equals). Saves are asynchronous; close the manager to wait for them.

    Args:
        workdir: the run's folder.
        read_only: never writes or deletes, for a second process beside a running training.

    Returns:
        The manager; use it as a context manager. It raises a RunError where it cannot write.
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
    alone = {jax.process_index()} if jax.process_count() > 1 else None
    options = ocp.CheckpointManagerOptions(
        best_fn=_ssim,
        create=False,
        # With these it waits for no other process.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes=alone,
            barrier_sync_key_prefix=None if alone is None else "alone",
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
    return Manager(folder, options=options)


def save(
    manager: Manager,
    state: TrainState,
    figures: Mapping[str, Any],
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Starts saving a state with the validation figures of that very state.

    The first one that a manager saves is waited for and read back: whatever keeps checkpoints
    from being read is known then, and not at the end of a long training.

    Args:
        manager: from `open_manager`.
        state: the state; it may be donated to the next step at once.
        figures: "epoch", the epochs that are over; and "ssim" and the others, unless the state
            was not validated.
        progress: what else the run needs to go on, as JSON has it.

    Raises:
        RunError: where this checkpoint, or the one before, cannot be written, or the first one
            does not come back as it was.
    """
    folder = manager.folder
    # Orbax would find out as well, but in its threads and with a traceback for each array.
    free, needed = shutil.disk_usage(folder).free, _SLACK + _size(state)
    if free < needed:
        raise _not_written(folder, f"{free >> 10} KiB are free and it takes {needed >> 10}")
    record: Record = {**figures, **(progress or {}), "digests": digests(vars(state))}
    record["digest"] = _digest_of_record(record)
    if jax.process_count() > 1:
        # Orbax would have the others take part in writing what lies on their devices as well.
        state = jax.tree.map(np.array, state)
    manager.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
        metrics=record,
    )
    if not manager.proven:
        manager.wait_until_finished()
        _prove(manager, int(state.step), state)
        manager.proven = True


def _prove(manager: Manager, step: int, state: TrainState) -> None:
    """Reads back a checkpoint that was just written.

    Raises:
        RunError: where it does not come back.
    """
    try:
        read(manager, step, state)
    except (Damaged, Unreadable, FileNotFoundError) as error:
        reason = getattr(error, "reason", "it is gone")
        raise RunError(
            f"{manager.folder / str(step)}: was just written and cannot be read back "
            f"({reason}); the training stops, since its checkpoints would be worth nothing. "
            "Take a --workdir on another file system"
        ) from error


def digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Returns a digest of each part of a state: "params", "opt_state" and so on.

    It is over the names, types, shapes and bytes of the part's arrays.
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


def changed(record: Mapping[str, Any], parts: Mapping[str, Any]) -> list[str]:
    """Names the parts of a state that are not those which a record was made of.

    Args:
        record: of a checkpoint, from the manager's `metrics`; one of an earlier version, which
            has no digests, cannot tell.
        parts: some parts of the state by name, for example {"params": …}.
    """
    expected = record.get("digests")
    if expected is None:
        return []
    return [name for name, digest in digests(parts).items() if expected.get(name) != digest]


def _size(state: TrainState) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _digest_of_record(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def latest_step(workdir: pathlib.Path) -> int:
    """Returns the step of the latest checkpoint; 0 where there is none."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    with open_manager(workdir, read_only=True) as manager:
        return manager.latest_step() or 0


def exists(workdir: pathlib.Path, step: int) -> bool:
    """Tells whether the checkpoint of a step is there (a training may remove it any time)."""
    return (workdir / "checkpoints" / str(step)).is_dir()


def epochs_done(workdir: pathlib.Path) -> int:
    """Returns the epochs behind the latest checkpoint that tells; 0 where there is none."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    with open_manager(workdir, read_only=True) as manager:
        records = [manager.metrics(step) or {} for step in manager.all_steps()]
        return max((int(record.get("epoch", 0)) for record in records), default=0)


def find_step(manager: Manager, which: str, workdir: pathlib.Path) -> int:
    """Finds the step that a user means.

    Args:
        manager: from `open_manager`.
        which: "best", "latest" or a step.
        workdir: named in the message.

    Returns:
        The step of a checkpoint that exists.

    Raises:
        UsageError: where there is none, with those there are.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise UsageError(f"--workdir={workdir}: no checkpoint in it yet; train it first")
    if which == "latest":
        return steps[-1]
    best = manager.best_step()
    if best is not None and "ssim" not in (manager.metrics(best) or {}):
        best = None
    if which == "best":
        if best is None:
            raise UsageError(
                f"--checkpoint=best: nothing in {workdir} was validated yet; take latest"
            )
        return best
    if not which.isdecimal() or int(which) not in steps:
        raise UsageError(
            f"--checkpoint={which}: not in {workdir}; there are best ({best}), "
            f"latest ({steps[-1]}) and the steps {steps}"
        )
    return int(which)


def restore(manager: Manager, step: int, template: TrainState) -> tuple[TrainState, Record]:
    """Reads a checkpoint and checks that it is as it was written; with one process only.

    Args:
        manager: from `open_manager`.
        step: an existing step, from `find_step`.
        template: a state of the same structure whose leaves have shape, dtype and sharding
            (arrays, or `jax.ShapeDtypeStruct`); the result takes them on.

    Returns:
        The state, and the figures and progress it was saved with.

    Raises:
        Damaged: where a file of it is missing, cut off or changed, as often as it is read.
        Unreadable: where the system does not let it be read, as often as it is tried.
        FileNotFoundError: where the whole checkpoint is gone: a running training removes the
            older ones.
    """
    state, record = read(manager, step, template)
    return to_devices(state, template), record


def to_devices(state: TrainState | None, template: TrainState) -> TrainState:
    """Puts a state on the devices of all processes.

    Args:
        state: from `read`; only the first process has it.
        template: as for `restore`.
    """
    state = processes.broadcast(state, template)
    if jax.process_count() > 1:
        return jax.tree.map(
            lambda leaf, like: jax.make_array_from_process_local_data(like.sharding, leaf),
            state,
            template,
        )
    # Not in the memory it was read to: the step gives its state away.
    return jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding, may_alias=False), state, template
    )


def read(manager: Manager, step: int, template: TrainState) -> tuple[TrainState, Record]:
    """Reads a checkpoint into the host's memory; as `restore` otherwise."""
    folder = manager.folder / str(step)
    pauses = iter(_PAUSES)
    while True:
        try:
            return _read_checked(manager, step, template)
        except (MemoryError, Unreadable):
            raise
        # A damaged file makes the libraries that read it raise nearly anything.
        except Exception as error:
            if _is_gone(folder):
                raise FileNotFoundError(f"{folder}: removed") from error
            problem = _system_problem(error, folder)
            pause = next(pauses, None)
            if pause is None and problem:
                raise Unreadable(folder, problem) from error
            if pause is None:
                raise Damaged(folder, _one_line(error)) from error
            # Damage is only what is found again and again.
            time.sleep(pause if problem else 0)


def _is_gone(folder: pathlib.Path) -> bool:
    """Tells that a folder is not there; one that cannot be looked at may be."""
    try:
        folder.stat()
    except _ABSENT:
        return True
    except OSError:
        pass
    return False


def _system_problem(error: BaseException | None, folder: pathlib.Path) -> str | None:
    """Says what the system has against reading a checkpoint; None: its files are read.

    Args:
        error: what a library made of it, which may be a cut-off file just as well.
        folder: of the checkpoint; all that is in it is read once.
    """
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, _ABSENT):
            return _said(error)
        if found := _SYSTEM_ERROR.search(str(error)):
            return os.strerror(int(found[1])) if found[1] else "out of memory"
        error = error.__cause__
    try:
        for above, _, names in os.walk(folder, onerror=_raise):
            for name in names:
                with pathlib.Path(above, name).open("rb") as file:
                    while file.read(1 << 24):
                        pass
    except _ABSENT:
        return None
    except OSError as failure:
        return _said(failure)
    return None


def _raise(error: OSError) -> None:
    raise error


def _read_checked(
    manager: Manager, step: int, template: TrainState
) -> tuple[TrainState, Record]:
    """Reads a checkpoint into the host's memory; any exception where it is damaged."""
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
    if names := changed(record, vars(state)):
        raise ValueError(f"its {', '.join(names)} changed")
    del record["digests"]
    return state, record


def newest_whole(
    workdir: pathlib.Path, template: TrainState
) -> tuple[TrainState | None, Record, list[Damaged]]:
    """Reads the newest checkpoint that is not damaged, and looks whether the best one is.

    All processes call it at once, and get the same.

    Args:
        workdir: the run's folder.
        template: as for `restore`.

    Returns:
        The state and its record, None and {} where there is no checkpoint; and those found
        damaged.

    Raises:
        RunError: where there are checkpoints and not one can be read.
    """
    states: list[TrainState] = []

    def read_it() -> tuple[Record | None, list[tuple[pathlib.Path, str]]]:
        state, record, damaged = _newest_whole(workdir, template)
        states.extend([state] if state is not None else [])
        return record if states else None, [(error.folder, error.reason) for error in damaged]

    record, damaged = processes.on_first(read_it)
    found = [Damaged(folder, reason) for folder, reason in damaged]
    if record is None:
        return None, {}, found
    return to_devices(states[0] if states else None, template), record, found


def _newest_whole(
    workdir: pathlib.Path, template: TrainState
) -> tuple[TrainState | None, Record, list[Damaged]]:
    """Reads it into the host's memory, as `newest_whole` otherwise."""
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


def make_way(manager: Manager, workdir: pathlib.Path, step: int) -> None:
    """Removes the checkpoint of a step, if there is one, so that it can be saved once more."""
    manager.wait_until_finished()
    if exists(workdir, step):
        workdirs.remove(workdir, workdir / "checkpoints" / str(step))
        manager.reload()
