"""Training on pairs in device memory: batches drawn on the device, many steps per dispatch.

The batch of a step is a pure function of the seed and the step (see `sampler`), so a run that
resumes from any step ends with a bitwise identical state, whatever the dispatches were.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.errors import UsageError
from restore_jax.learner.state import Learner, TrainState
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh
from restore_jax.train import steps
from restore_jax.train.on_device import sampler, whole_images
from restore_jax.train.on_device.pairs_file import Pairs, batch_at

Arrays = Mapping[str, jax.Array]

_to_floats = jax.jit(whole_images.to_floats)

DispatchFn = Callable[
    [TrainState, Arrays, loss_terms.LossParams, int], tuple[TrainState, steps.Scalars]
]


@dataclasses.dataclass(frozen=True)
class Resident:
    """Pairs in device memory, and the program that trains on them.

    Attributes:
        dispatch: takes the number of steps of its last argument within one epoch; returns the
            state after them and their scalars, [steps] each.
        arrays: the arrays that `dispatch` draws batches from.
        steps_per_epoch: steps in one epoch.
        longest: largest number of steps in a dispatch.
        save_every: a dispatch ends at multiples of this step, for a checkpoint; 0 for none.
        validation: the batches of "val", 8-bit images on the devices.
    """

    dispatch: DispatchFn
    arrays: Arrays
    steps_per_epoch: int
    longest: int
    save_every: int
    validation: tuple[batches.Batch, ...]

    def validation_batches(self) -> Iterator[batches.Batch]:
        """Yields the batches of "val", as `batches` describes them, on the devices."""
        for batch in self.validation:
            yield batch | _to_floats(_images(batch))


def _images(arrays: Mapping[str, Any]) -> dict[str, Any]:
    images = ("degraded", "clean", "mask", batches.CONTEXT, batches.GAIN)
    return {name: x for name, x in arrays.items() if name in images}


def check(config: ConfigDict) -> None:
    """Checks the fields that can be checked without data.

    Raises:
        UsageError: for a negative number of steps per dispatch, or several processes.
    """
    if not config.data.get("resident", False):
        return
    if config.train.get("steps_per_dispatch", 0) < 0:
        raise UsageError(
            f"config.train.steps_per_dispatch: {config.train.steps_per_dispatch} is negative; "
            "0 chooses automatically"
        )
    if jax.process_count() > 1:
        raise UsageError(
            f"config.data.resident: supports one process, not {jax.process_count()}; set "
            "config.data.resident=False"
        )


def make_resident(
    config: ConfigDict,
    data: batches.Data,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> Resident | None:
    """Copies a run's pairs to its devices; training pairs are replicated, validation sharded.

    Returns:
        The pairs and their program; None without `config.data.resident`.

    Raises:
        UsageError: if the pairs do not fit, or the degradation cannot be drawn on the device.
    """
    if not config.data.get("resident", False):
        return None
    if data.pairs is None:
        raise UsageError(f"config.data.resident: {data.name} has no file of pairs")
    plan = sampler.make_plan(data.pairs, config)
    arrays = sampler.training_arrays(data.pairs, config)
    validation = data.pairs.splits["val"].arrays
    size = sum(x.nbytes for x in arrays.values()) + sum(
        x.nbytes for x in _images(validation).values()
    )
    if size > (capacity := _capacity(mesh.devices.flat[0])):
        raise UsageError(
            f"config.data.resident: the pairs take {size / 1e9:.1f} GB and the device has "
            f"{capacity / 1e9:.1f} GB; set config.data.resident=False"
        )
    return Resident(
        dispatch=compile_dispatch(config, plan, learner, loss_fn, mesh),
        arrays=jax.device_put(arrays, device_mesh.replicated(mesh)),
        steps_per_epoch=plan.steps_per_epoch,
        longest=longest_dispatch(config, plan.steps_per_epoch, mesh.devices.flat[0].platform),
        save_every=config.checkpoint.every_steps,
        validation=tuple(_validation(data.pairs, config.eval.batch_size, mesh)),
    )


def _capacity(device: jax.Device) -> float:
    """Returns the bytes of a device's memory; infinity if it does not report them."""
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


def _validation(pairs: Pairs, batch_size: int, mesh: Mesh) -> Iterator[batches.Batch]:
    split, sharding = pairs.splits["val"], device_mesh.split_over(mesh)
    for start in range(0, len(split), batch_size):
        batch = batch_at(split, start, batch_size)
        yield batch | jax.device_put(_images(batch), sharding)


def compile_dispatch(
    config: ConfigDict,
    plan: sampler.SamplingPlan,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> DispatchFn:
    """Returns the program that takes several steps of one epoch; it donates the state."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    compile_form = compile_single if on_cpu else compile_scan
    return compile_form(config, plan, learner, loss_fn, mesh)


def compile_scan(
    config: ConfigDict,
    plan: sampler.SamplingPlan,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> DispatchFn:
    """Returns a program that scans over its steps in one dispatch, compiled for each count."""
    step_fn = _drawing_step(config, plan, learner, loss_fn, mesh)

    def dispatch(
        state: TrainState, arrays: Arrays, loss_params: loss_terms.LossParams, count: int
    ) -> tuple[TrainState, steps.Scalars]:
        epoch = state.step // plan.steps_per_epoch
        order = whole_images.epoch_order(plan.seed, plan.rows, epoch)

        def body(state: TrainState, _: Any) -> tuple[TrainState, steps.Scalars]:
            # XLA moves nothing across the barriers, so each step is compiled the same way and
            # gives the same bits, whatever the length of the scan.
            state = jax.lax.optimization_barrier(state)
            return jax.lax.optimization_barrier(
                step_fn(state, arrays, loss_params, epoch, order)
            )

        return jax.lax.scan(body, state, None, length=count)

    return jax.jit(
        dispatch,
        static_argnums=3,
        out_shardings=device_mesh.replicated(mesh),
        donate_argnums=0,
    )


def compile_single(
    config: ConfigDict,
    plan: sampler.SamplingPlan,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> DispatchFn:
    """Returns a program that dispatches its steps one by one, and their batches separately.

    On a CPU, XLA runs convolutions many times slower inside a loop, or in a program that both
    draws crops and trains on them.
    """
    step_fn = jax.jit(
        steps.configured_step(config, learner, loss_fn, mesh),
        out_shardings=device_mesh.replicated(mesh),
        donate_argnums=0,
    )

    @functools.partial(jax.jit, out_shardings=device_mesh.split_over(mesh))
    def draw(arrays: Arrays, step: jax.Array) -> dict[str, jax.Array]:
        epoch = step // plan.steps_per_epoch
        order = whole_images.epoch_order(plan.seed, plan.rows, epoch)
        position = step - epoch * plan.steps_per_epoch
        return sampler.draw_batch(arrays, plan, epoch, order, position)

    def dispatch(
        state: TrainState, arrays: Arrays, loss_params: loss_terms.LossParams, count: int
    ) -> tuple[TrainState, steps.Scalars]:
        found = []
        for _ in range(count):
            state, scalars = step_fn(state, draw(arrays, state.step), loss_params)
            found.append(scalars)
        return state, {name: jnp.stack([s[name] for s in found]) for name in found[0]}

    return dispatch


def _drawing_step(
    config: ConfigDict,
    plan: sampler.SamplingPlan,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, steps.Scalars]]:
    """Returns a train step that draws its own batch."""
    train_step = steps.configured_step(config, learner, loss_fn, mesh)

    def step(
        state: TrainState,
        arrays: Arrays,
        loss_params: loss_terms.LossParams,
        epoch: jax.Array,
        order: jax.Array,
    ) -> tuple[TrainState, steps.Scalars]:
        position = state.step - epoch * plan.steps_per_epoch
        batch = sampler.draw_batch(arrays, plan, epoch, order, position)
        # Draw once: XLA would otherwise recompute cheap values wherever they are used.
        batch = jax.lax.optimization_barrier(batch)
        batch = jax.lax.with_sharding_constraint(batch, device_mesh.split_over(mesh))
        return train_step(state, batch, loss_params)

    return steps.with_mesh(mesh, step)


def longest_dispatch(config: ConfigDict, steps_per_epoch: int, platform: str) -> int:
    """Returns the largest number of steps in a dispatch, at most one epoch."""
    automatic = 1 if platform == "cpu" else config.train.log_every_steps
    return min(config.train.get("steps_per_dispatch", 0) or automatic, steps_per_epoch)


def train_epoch(
    source: Resident,
    state: TrainState,
    step: int,
    loss_params: loss_terms.LossParams,
    needs_save: Callable[[int], bool],
) -> Iterator[tuple[TrainState, list[dict[str, float]], bool]]:
    """Takes the remaining steps of an epoch, one dispatch at a time.

    The scalars of a dispatch are fetched while the next one runs, except before a save and at
    the end of the epoch.

    Args:
        source: the pairs.
        state: the state to start from; it is donated.
        step: its step.
        loss_params: as for `steps.train_step`.
        needs_save: returns whether the state after a step must be saved; called after each
            dispatch.

    Yields:
        The state after a dispatch; the scalars fetched since the last one, one dict per step;
        and whether to save.
    """
    pending: list[steps.Scalars] = []
    end = (step // source.steps_per_epoch + 1) * source.steps_per_epoch
    while step < end:
        stop = end
        if source.save_every:
            stop = min(end, (step // source.save_every + 1) * source.save_every)
        count = next_dispatch(step, stop, end, source.steps_per_epoch, source.longest)
        state, scalars = source.dispatch(state, source.arrays, loss_params, count)
        step += count
        pending.append(scalars)
        save = needs_save(step)
        fetched: list[dict[str, float]] = []
        while len(pending) > (0 if save or step == end else 1):
            fetched += _by_step(jax.device_get(pending.pop(0)))
        yield state, fetched, save


def _by_step(stacked: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    return [
        {name: float(values[i]) for name, values in stacked.items()}
        for i in range(len(stacked["loss"]))
    ]


def next_dispatch(step: int, stop: int, end: int, steps_per_epoch: int, longest: int) -> int:
    """Returns the number of steps in the next dispatch.

    Every number must be compiled, so there are three at most: `longest`, the rest of an epoch,
    and 1 for any other steps before a stop.

    Args:
        step: the current step.
        stop: the next step to stop at, at most `end`.
        end: the last step of the epoch.
        steps_per_epoch: steps in one epoch.
        longest: see `longest_dispatch`.
    """
    left = stop - step
    if left >= longest:
        return longest
    return left if stop == end and left == steps_per_epoch % longest else 1
