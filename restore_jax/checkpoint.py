"""Checkpoints in a workdir: the latest state and the one of the best validation SSIM."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from restore_jax.errors import UsageError
from restore_jax.state import TrainState


def open_manager(workdir: pathlib.Path, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens the checkpoints of a workdir; `checkpoints/STEP` each.

    Two are kept: the latest, to go on from, and the one of the highest validation SSIM (the
    later one of equals). Saves are asynchronous; close the manager to wait for them.

    Args:
        workdir: the run's folder.
        read_only: never writes or deletes, for a second process beside a running training.

    Returns:
        The manager; use it as a context manager.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics["ssim"], n=1),
        ]
    )
    if read_only:
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, best_fn=lambda metrics: metrics["ssim"]
        )
    else:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics["ssim"],
            cleanup_tmp_directories=True,
        )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, metrics: Mapping[str, Any]) -> None:
    """Starts saving a state with the validation metrics of that very state.

    Args:
        manager: from `open_manager`.
        state: the state; it may be donated to the next step at once.
        metrics: holds "ssim", and "epoch".
    """
    manager.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
        metrics=dict(metrics),
    )


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
    """Returns the epochs behind the latest checkpoint; 0 where there is none."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    with open_manager(workdir, read_only=True) as manager:
        step = manager.latest_step()
        return int(manager.metrics(step)["epoch"]) if step else 0


def find_step(manager: ocp.CheckpointManager, which: str, workdir: pathlib.Path) -> int:
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
    if which == "best":
        return manager.best_step()
    if not which.isdecimal() or int(which) not in steps:
        raise UsageError(
            f"--checkpoint={which}: not in {workdir}; there are best ({manager.best_step()}), "
            f"latest ({steps[-1]}) and the steps {steps}"
        )
    return int(which)


def restore(
    manager: ocp.CheckpointManager, step: int, template: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
        manager: from `open_manager`.
        step: an existing step, from `find_step`.
        template: a state of the same structure whose leaves have shape, dtype and sharding
            (arrays, or `jax.ShapeDtypeStruct`); the result takes them on.

    Returns:
        The state and the metrics it was saved with.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    )
    return restored["state"], dict(manager.metrics(step) or {})
