"""Training on pairs in device memory: batches drawn within the step, many steps per dispatch.

The batch of a step is a pure function of the seed and the step (see `sampler`), so a run that
goes on from any step ends in the same bits, however its steps were divided among dispatches.
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

DispatchFn = Callable[
    [TrainState, Arrays, loss_terms.LossParams, int], tuple[TrainState, steps.Scalars]
]


@dataclasses.dataclass(frozen=True)
class Resident:
    """Pairs in device memory, and the program that trains on them.

    Attributes:
        dispatch: takes as many steps of one epoch as its last argument says; returns the state
            after them and the scalars of each, [steps].
        arrays: what `dispatch` draws from.
        steps_per_epoch: of any epoch.
        longest: steps of a dispatch, at most.
        save_every: the steps that a dispatch must not go beyond; 0: none.
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
            yield batch | _as_floats_each(_images(batch))


def _images(arrays: Mapping[str, Any]) -> dict[str, Any]:
    images = ("degraded", "clean", "mask", batches.CONTEXT)
    return {name: x for name, x in arrays.items() if name in images}


@jax.jit
def _as_floats_each(images: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {
        name: image.astype(jnp.float32) if name == "mask" else whole_images.as_floats(image)
        for name, image in images.items()
    }


def check(config: ConfigDict) -> None:
    """Checks what needs no data.

    Raises:
        UsageError: for a negative number of steps, or several processes.
    """
    if not config.data.get("resident", False):
        return
    if config.train.get("steps_per_dispatch", 0) < 0:
        raise UsageError(
            f"config.train.steps_per_dispatch: {config.train.steps_per_dispatch} is negative; "
            "0 chooses itself"
        )
    if jax.process_count() > 1:
        raise UsageError(
            f"config.data.resident: {jax.process_count()} processes train together; it is for "
            "one alone, set config.data.resident=False"
        )


def make_resident(
    config: ConfigDict,
    data: batches.Data,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> Resident | None:
    """Puts the pairs of a run on its devices, a copy on each; None without resident data.

    Raises:
        UsageError: where they do not fit, or the law cannot be drawn within a step.
    """
    if not config.data.get("resident", False):
        return None
    if data.pairs is None:
        raise UsageError(f"config.data.resident: {data.name} has no file of pairs")
    draws = sampler.make_drawing(data.pairs, config)
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
        dispatch=compile_dispatch(config, draws, learner, loss_fn, mesh),
        arrays=jax.device_put(arrays, device_mesh.replicated(mesh)),
        steps_per_epoch=draws.steps_per_epoch,
        longest=longest_dispatch(config, draws.steps_per_epoch, mesh.devices.flat[0].platform),
        save_every=config.checkpoint.every_steps,
        validation=tuple(_validation(data.pairs, config.eval.batch_size, mesh)),
    )


def _capacity(device: jax.Device) -> float:
    """Bytes of a device's memory; infinite where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


def _validation(pairs: Pairs, batch_size: int, mesh: Mesh) -> Iterator[batches.Batch]:
    split, sharding = pairs.splits["val"], device_mesh.split_over(mesh)
    for start in range(0, len(split), batch_size):
        batch = batch_at(split, start, batch_size)
        yield batch | jax.device_put(_images(batch), sharding)


def compile_dispatch(
    config: ConfigDict,
    draws: sampler.Drawing,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> DispatchFn:
    """Returns the program that takes several steps of one epoch; it gives the state away."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    compile_form = compile_single if on_cpu else compile_scan
    return compile_form(config, draws, learner, loss_fn, mesh)


def compile_scan(
    config: ConfigDict,
    draws: sampler.Drawing,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> DispatchFn:
    """Returns a program that takes its steps in one dispatch, compiled for each number."""
    step_fn = _drawing_step(config, draws, learner, loss_fn, mesh)

    def dispatch(
        state: TrainState, arrays: Arrays, loss_params: loss_terms.LossParams, count: int
    ) -> tuple[TrainState, steps.Scalars]:
        epoch = state.step // draws.steps_per_epoch
        order = whole_images.epoch_order(draws.seed, draws.rows, epoch)

        def body(state: TrainState, _: Any) -> tuple[TrainState, steps.Scalars]:
            # Nothing moves across: each step is compiled alike, whatever is around it.
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
    draws: sampler.Drawing,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> DispatchFn:
    """Returns a program that dispatches its steps one by one, the drawing apart.

    XLA's loops on a CPU run convolutions in a plain form that takes many times as long, and so
    does a program that draws crops and trains on them.
    """
    step_fn = jax.jit(
        _train_step(config, learner, loss_fn, mesh),
        out_shardings=device_mesh.replicated(mesh),
        donate_argnums=0,
    )

    @functools.partial(jax.jit, out_shardings=device_mesh.split_over(mesh))
    def draw(arrays: Arrays, step: jax.Array) -> dict[str, jax.Array]:
        epoch = step // draws.steps_per_epoch
        order = whole_images.epoch_order(draws.seed, draws.rows, epoch)
        position = step - epoch * draws.steps_per_epoch
        return sampler.draw_batch(arrays, draws, epoch, order, position)

    def dispatch(
        state: TrainState, arrays: Arrays, loss_params: loss_terms.LossParams, count: int
    ) -> tuple[TrainState, steps.Scalars]:
        found = []
        for _ in range(count):
            state, scalars = step_fn(state, draw(arrays, state.step), loss_params)
            found.append(scalars)
        return state, {name: jnp.stack([s[name] for s in found]) for name in found[0]}

    return dispatch


def _train_step(
    config: ConfigDict, learner: Learner, loss_fn: loss_terms.BatchLoss, mesh: Mesh
) -> Callable[..., tuple[TrainState, steps.Scalars]]:
    """Returns `steps.train_step` of a run."""
    return steps.divided_over(
        mesh,
        functools.partial(
            steps.train_step,
            learner=learner,
            loss_fn=loss_fn,
            seed=config.seed,
            mask_dropout=config.train.mask_dropout,
        ),
    )


def _drawing_step(
    config: ConfigDict,
    draws: sampler.Drawing,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, steps.Scalars]]:
    """Returns a step that draws its batch itself."""
    train_step = _train_step(config, learner, loss_fn, mesh)

    def step(
        state: TrainState,
        arrays: Arrays,
        loss_params: loss_terms.LossParams,
        epoch: jax.Array,
        order: jax.Array,
    ) -> tuple[TrainState, steps.Scalars]:
        position = state.step - epoch * draws.steps_per_epoch
        batch = sampler.draw_batch(arrays, draws, epoch, order, position)
        # Drawn once: what is cheap to say is otherwise drawn anew wherever it is used.
        batch = jax.lax.optimization_barrier(batch)
        batch = jax.lax.with_sharding_constraint(batch, device_mesh.split_over(mesh))
        return train_step(state, batch, loss_params)

    return steps.divided_over(mesh, step)


def longest_dispatch(config: ConfigDict, steps_per_epoch: int, platform: str) -> int:
    """Returns the steps of a dispatch: as the configuration has it, an epoch's at most."""
    automatic = 1 if platform == "cpu" else config.train.log_every_steps
    return min(config.train.get("steps_per_dispatch", 0) or automatic, steps_per_epoch)


def train_epoch(
    source: Resident,
    state: TrainState,
    step: int,
    loss_params: loss_terms.LossParams,
    saves: Callable[[int], bool],
) -> Iterator[tuple[TrainState, list[dict[str, float]], bool]]:
    """Takes the steps that an epoch still has, a dispatch at a time.

    The scalars of a dispatch are fetched while the next one runs, but for those of the last one
    and before a save.

    Args:
        source: the pairs.
        state: before; given away.
        step: of the state.
        loss_params: as `steps.train_step` takes it.
        saves: tells whether the state after a step is to be saved; asked after each dispatch.

    Yields:
        The state after a dispatch; the scalars of the steps that were fetched, in their order;
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
        save = saves(step)
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
    """Returns how many steps to take next.

    Each number is a program of its own to compile: those of `longest` steps, that of an epoch's
    rest, and single steps for whatever else is between a step and a stop.

    Args:
        step: where the run stands.
        stop: the step to stop at next, at most `end`.
        end: the last step of the epoch.
        steps_per_epoch: of any epoch.
        longest: see `longest_dispatch`.
    """
    left = stop - step
    if left >= longest:
        return longest
    return left if stop == end and left == steps_per_epoch % longest else 1
