"""Training on pairs in device memory: batches drawn within the step, many steps per dispatch.

The batch of a step is a pure function of the seed and the step: an epoch's order is a
permutation drawn from the seed and the epoch, a row's flips and its noise are drawn from those
and the row's place in the epoch. So a run that goes on from any step ends in the same bits,
however its steps were divided among dispatches.
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

from restore_jax import batches, law, losses, steps
from restore_jax.errors import UsageError
from restore_jax.pairs_file import Pairs
from restore_jax.state import System, TrainState

Arrays = Mapping[str, jax.Array]

# No step has this number, so that no draw shares its key with the model's of a step.
_STREAM = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How batches are drawn.

    Attributes:
        seed: of the run.
        images: photographs.
        draws: fixed draws of each; 0: a new one in every epoch.
        batch_size: images of a batch, over all devices.
        augment: "none", "flips" or "all8".
        law: what is drawn anew in every epoch; None for fixed draws.
    """

    seed: int
    images: int
    draws: int
    batch_size: int
    augment: str
    law: law.Law | None

    @property
    def rows(self) -> int:
        """Images of an epoch."""
        return self.images * max(1, self.draws)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.rows / self.batch_size)


def make_drawing(pairs: Pairs, config: ConfigDict) -> Drawing:
    """Returns how a configuration draws its batches from a file of pairs.

    Raises:
        UsageError: for a law that cannot be drawn within a step.
    """
    train = pairs.splits["train"]
    fresh = None if pairs.draws else law.from_fields(pairs.law, "blurred" in train.arrays)
    return Drawing(
        seed=config.seed,
        images=len(train),
        draws=pairs.draws,
        batch_size=config.train.batch_size,
        augment=config.data.augment,
        law=fresh,
    )


def training_arrays(pairs: Pairs, method: str) -> dict[str, np.ndarray]:
    """Returns the arrays that batches are drawn from, [N, …] each.

    Args:
        pairs: of the file.
        method: `config.data.resize`.

    Returns:
        "clean", "mask" and "has_mask"; with fixed draws "degraded" [K·N, …]; else "source", the
        photographs that are degraded, where they are not the clean ones, and what `law.degrade`
        takes of each: "factors" and "ratio".

    Raises:
        UsageError: for photographs that would be enlarged, where draws are fresh.
    """
    stored = pairs.splits["train"].arrays
    found = {name: stored[name] for name in ("clean", "mask", "has_mask")}
    if pairs.draws:
        return found | {"degraded": stored["degraded"]}
    if "blurred" in stored:
        found["source"] = stored["blurred"]
    size = stored["clean"].shape[1]
    shapes = [(int(h), int(w)) for h, w in stored["native"]]
    found["factors"] = law.correlations(shapes, size, method)
    found["ratio"] = (size / stored["native"]).astype(np.float32)
    return found


def epoch_key(seed: int, epoch: jax.Array) -> jax.Array:
    """Returns the key of all draws of an epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), epoch)


def epoch_order(drawing: Drawing, epoch: jax.Array) -> jax.Array:
    """Returns the order of an epoch's images, int32 [rows]."""
    return jax.random.permutation(epoch_key(drawing.seed, epoch), drawing.rows)


def draw_batch(
    arrays: Arrays, drawing: Drawing, epoch: jax.Array, order: jax.Array, position: jax.Array
) -> dict[str, jax.Array]:
    """Draws the batch at a position of an epoch.

    Args:
        arrays: of `training_arrays`.
        drawing: how.
        epoch: its number, from 0.
        order: of `epoch_order`.
        position: of the batch in the epoch, from 0.

    Returns:
        The arrays of a batch, see `batches`; the last of an epoch is filled up with its last
        image, which is not valid then.
    """
    places = position * drawing.batch_size + jnp.arange(drawing.batch_size)
    rows = order[jnp.minimum(places, drawing.rows - 1)]
    images = rows % drawing.images
    base = jax.random.fold_in(epoch_key(drawing.seed, epoch), 0)
    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(base, place)))(places)
    clean, mask = arrays["clean"][images], arrays["mask"][images]
    if drawing.law is None:
        degraded = arrays["degraded"][rows]
    else:
        source = arrays["source"][images] if "source" in arrays else clean
        degraded = jax.vmap(functools.partial(law.degrade, law=drawing.law))(
            keys[:, 0], source, arrays["factors"][images], arrays["ratio"][images]
        )
    if drawing.augment != "none":
        bits = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(3,)))(keys[:, 1])
        degraded, clean, mask = (
            _flipped(x, bits, drawing.augment) for x in (degraded, clean, mask)
        )
    return {
        "degraded": as_floats(degraded),
        "clean": as_floats(clean),
        "mask": mask.astype(jnp.float32),
        "has_mask": arrays["has_mask"][images] > 0,
        "valid": places < drawing.rows,
    }


def as_floats(levels: jax.Array) -> jax.Array:
    """Returns 8-bit levels as float32 in [0, 1], to the bit those of the host's pipeline."""
    # XLA makes of a division by 255 a product, which rounds otherwise. 1/255 is 0.010101…, base
    # 256; its first three digits times a level are exact, and this sum rounds as a division.
    digits = levels.astype(jnp.float32) * ((2**16 + 2**8 + 1) / 2**24)
    return digits + digits * 2**-24


def _flipped(images: jax.Array, bits: jax.Array, augment: str) -> jax.Array:
    """Flips along y and x, and transposes for "all8", where the bits [B, 3] say so."""
    kinds = [lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x.swapaxes(1, 2)]
    for number, flip in enumerate(kinds[: 3 if augment == "all8" else 2]):
        images = jnp.where(bits[:, number, None, None, None], flip(images), images)
    return images


def host_batches(pairs: Pairs, config: ConfigDict, step: int) -> Iterator[batches.Batch]:
    """Yields the batches from a step on as NumPy arrays; a step draws the very same."""
    drawing = make_drawing(pairs, config)
    arrays = jax.device_put(training_arrays(pairs, config.data.resize))
    draw = jax.jit(functools.partial(draw_batch, drawing=drawing))
    train = pairs.splits["train"]
    while True:
        epoch, position = divmod(step, drawing.steps_per_epoch)
        order = epoch_order(drawing, jnp.int32(epoch))
        batch = jax.device_get(draw(arrays, epoch=epoch, order=order, position=position))
        places = position * drawing.batch_size + np.arange(drawing.batch_size)
        images = np.asarray(order)[np.minimum(places, drawing.rows - 1)] % drawing.images
        yield batch | {
            "id": np.array(train.ids)[images],
            "category": np.array(train.categories)[images],
            "defect_type": np.array(train.defect_types)[images],
        }
        step += 1


@dataclasses.dataclass(frozen=True)
class Resident:
    """Pairs in device memory, and the program that trains on them.

    Attributes:
        take: takes so many steps (its last argument) of one epoch; returns the state after, and
            the scalars of each, [steps].
        arrays: what `take` draws from.
        steps_per_epoch: of any epoch.
        longest: steps of a dispatch, at most.
        save_every: the steps that a dispatch must not go beyond; 0: none.
        validation: the batches of "val", 8-bit images on the devices.
    """

    take: Callable[[TrainState, Arrays, losses.Fixed, int], tuple[TrainState, steps.Scalars]]
    arrays: Arrays
    steps_per_epoch: int
    longest: int
    save_every: int
    validation: tuple[batches.Batch, ...]

    def validation_batches(self) -> Iterator[batches.Batch]:
        """Yields the batches of "val", as `batches` describes them, on the devices."""
        for batch in self.validation:
            yield batch | _as_floats_each({name: batch[name] for name in _IMAGES})


_IMAGES = ("degraded", "clean", "mask")


@jax.jit
def _as_floats_each(images: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {
        name: image.astype(jnp.float32) if name == "mask" else as_floats(image)
        for name, image in images.items()
    }


def make_resident(
    config: ConfigDict,
    data: batches.Data,
    system: System,
    loss_fn: losses.BatchLoss,
    mesh: Mesh,
) -> Resident | None:
    """Puts the pairs of a run on its devices, a copy on each; None without resident data.

    Raises:
        UsageError: where they do not fit, the law cannot be drawn within a step, or there are
            several processes.
    """
    if not config.data.get("resident", False):
        return None
    if config.train.get("steps_per_dispatch", 0) < 0:
        raise UsageError(
            f"config.train.steps_per_dispatch: {config.train.steps_per_dispatch} is negative; "
            "0 takes those of config.train.log_every_steps"
        )
    if jax.process_count() > 1:
        raise UsageError(
            f"config.data.resident: {jax.process_count()} processes train together; it is for "
            "one alone, set config.data.resident=False"
        )
    if data.pairs is None:
        raise UsageError(f"config.data.resident: {data.name} has no file of pairs")
    drawing = make_drawing(data.pairs, config)
    arrays = training_arrays(data.pairs, config.data.resize)
    validation = data.pairs.splits["val"].arrays
    size = sum(x.nbytes for x in arrays.values()) + sum(validation[n].nbytes for n in _IMAGES)
    if size > (capacity := _capacity(mesh.devices.flat[0])):
        raise UsageError(
            f"config.data.resident: the pairs take {size / 1e9:.1f} GB and the device has "
            f"{capacity / 1e9:.1f} GB; set config.data.resident=False"
        )
    return Resident(
        take=compile_dispatch(config, drawing, system, loss_fn, mesh),
        arrays=jax.device_put(arrays, batches.replicated(mesh)),
        steps_per_epoch=drawing.steps_per_epoch,
        longest=longest_dispatch(config, drawing.steps_per_epoch),
        save_every=config.checkpoint.every_steps,
        validation=tuple(_validation(data.pairs, config.eval.batch_size, mesh)),
    )


def _capacity(device: jax.Device) -> float:
    """Bytes of a device's memory; infinite where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


def _validation(pairs: Pairs, batch_size: int, mesh: Mesh) -> Iterator[batches.Batch]:
    split, sharding = pairs.splits["val"], batches.split_over(mesh)
    for start in range(0, len(split), batch_size):
        places = np.arange(start, start + batch_size)
        rows = np.minimum(places, len(split) - 1)
        arrays = {name: split.arrays[name][rows] for name in _IMAGES}
        yield jax.device_put(arrays, sharding) | {
            "has_mask": split.arrays["has_mask"][rows] > 0,
            "valid": places < len(split),
            "category": np.array(split.categories)[rows],
            "defect_type": np.array(split.defect_types)[rows],
            "id": np.array(split.ids)[rows],
        }


def compile_dispatch(
    config: ConfigDict,
    drawing: Drawing,
    system: System,
    loss_fn: losses.BatchLoss,
    mesh: Mesh,
) -> Callable[[TrainState, Arrays, losses.Fixed, int], tuple[TrainState, steps.Scalars]]:
    """Returns the program that takes several steps, compiled for each number of them.

    The steps must be of one epoch. The state is given away.
    """
    step_fn = functools.partial(
        steps.train_step,
        system=system,
        loss_fn=loss_fn,
        seed=config.seed,
        mask_dropout=config.train.mask_dropout,
    )

    def take(
        state: TrainState, arrays: Arrays, fixed: losses.Fixed, count: int
    ) -> tuple[TrainState, steps.Scalars]:
        epoch = state.step // drawing.steps_per_epoch
        order = epoch_order(drawing, epoch)

        def body(state: TrainState, _: Any) -> tuple[TrainState, steps.Scalars]:
            # Nothing moves across: each step is compiled alike, whatever is around it.
            state = jax.lax.optimization_barrier(state)
            position = state.step - epoch * drawing.steps_per_epoch
            batch = draw_batch(arrays, drawing, epoch, order, position)
            batch = jax.lax.with_sharding_constraint(batch, batches.split_over(mesh))
            return jax.lax.optimization_barrier(step_fn(state, batch, fixed))

        return jax.lax.scan(body, state, None, length=count)

    return jax.jit(
        take,
        static_argnums=3,
        out_shardings=batches.replicated(mesh),
        donate_argnums=0,
    )


def longest_dispatch(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the steps of a dispatch: as the configuration has it, an epoch's at most."""
    asked = config.train.get("steps_per_dispatch", 0) or config.train.log_every_steps
    return min(asked, steps_per_epoch)


def train_epoch(
    source: Resident,
    state: TrainState,
    step: int,
    fixed: losses.Fixed,
    saves: Callable[[int], bool],
) -> Iterator[tuple[TrainState, list[dict[str, float]], bool]]:
    """Takes the steps that an epoch still has, a dispatch at a time.

    The scalars of a dispatch are fetched while the next one runs, but for those of the last one
    and before a save.

    Args:
        source: the pairs.
        state: before; given away.
        step: of the state.
        fixed: as `steps.train_step` takes it.
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
        state, scalars = source.take(state, source.arrays, fixed, count)
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
