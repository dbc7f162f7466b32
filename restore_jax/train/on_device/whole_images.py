"""Batches of whole photographs in device memory: their order, flips and noise.

Each epoch's order is a permutation whose random key comes from the seed and the epoch; the keys
of a row's flips and noise come from these and the row's place in the epoch.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from restore_jax.batches import GAIN
from restore_jax.config import schema
from restore_jax.degradation import working_size
from restore_jax.train.on_device.pairs_file import Pairs

Arrays = Mapping[str, jax.Array]

# No step has this number, so that no key is shared with the model's in some step.
_STREAM = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """How batches are drawn.

    Attributes:
        seed: the run's seed.
        images: number of photographs.
        draws: fixed realisations of each photograph; 0 for a new one in every epoch.
        batch_size: images per batch, over all devices.
        augment: "none", "flips" or "all8".
        law: the degradation drawn anew in every epoch; None with fixed realisations.
        undo_gain: whether batches have the gain.
    """

    seed: int
    images: int
    draws: int
    batch_size: int
    augment: str
    law: working_size.StepLaw | None
    undo_gain: bool

    @property
    def rows(self) -> int:
        """Images per epoch."""
        return self.images * max(1, self.draws)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return math.ceil(self.rows / self.batch_size)


def make_plan(pairs: Pairs, config: ConfigDict) -> SamplingPlan:
    """Returns the plan by which a configuration draws batches from a pairs file.

    Raises:
        UsageError: for a degradation that cannot be drawn on the device.
    """
    train = pairs.splits["train"]
    fresh = (
        None if pairs.draws else working_size.from_fields(pairs.law, "blurred" in train.arrays)
    )
    return SamplingPlan(
        seed=config.seed,
        images=len(train),
        draws=pairs.draws,
        batch_size=config.train.batch_size,
        augment=config.data.augment,
        law=fresh,
        undo_gain=schema.undoes_gain(config),
    )


def training_arrays(pairs: Pairs, method: str) -> dict[str, np.ndarray]:
    """Returns the arrays that batches are drawn from, [N, …] each.

    Args:
        pairs: the pairs file.
        method: `config.data.resize`.

    Returns:
        "clean", "mask" and "has_mask". With K fixed realisations, also "degraded" [K·N, …].
        Otherwise the inputs of `working_size.degrade`: "factors", "ratio" and, if blurred
        photographs are stored, "source", which is degraded in place of "clean".

    Raises:
        UsageError: for photographs that would be enlarged, without fixed realisations.
    """
    stored = pairs.splits["train"].arrays
    found = {name: stored[name] for name in ("clean", "mask", "has_mask")}
    if pairs.draws:
        return found | {name: stored[name] for name in ("degraded", GAIN) if name in stored}
    if "blurred" in stored:
        found["source"] = stored["blurred"]
    size = stored["clean"].shape[1]
    shapes = [(int(h), int(w)) for h, w in stored["native"]]
    found["factors"] = working_size.correlations(shapes, size, method)
    found["ratio"] = (size / stored["native"]).astype(np.float32)
    return found


def epoch_key(seed: int, epoch: jax.Array) -> jax.Array:
    """Returns the random key of an epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), epoch)


def epoch_order(seed: int, rows: int, epoch: jax.Array) -> jax.Array:
    """Returns the order of an epoch's images, int32 [rows]."""
    return jax.random.permutation(epoch_key(seed, epoch), rows)


def draw_batch(
    arrays: Arrays, plan: SamplingPlan, epoch: jax.Array, order: jax.Array, position: jax.Array
) -> dict[str, jax.Array]:
    """Draws the batch at a position of an epoch.

    Args:
        arrays: from `training_arrays`.
        plan: how batches are drawn.
        epoch: the epoch, from 0.
        order: from `epoch_order`.
        position: the position of the batch in the epoch, from 0.

    Returns:
        The arrays of a batch, see `batches`. An epoch's last batch is padded with copies of
        the epoch's last image, with "valid" false.
    """
    places = position * plan.batch_size + jnp.arange(plan.batch_size)
    rows = order[jnp.minimum(places, plan.rows - 1)]
    images = rows % plan.images
    keys = row_keys(plan.seed, epoch, places, 2)
    clean, mask = arrays["clean"][images], arrays["mask"][images]
    if plan.law is None:
        degraded = arrays["degraded"][rows]
    else:
        source = arrays["source"][images] if "source" in arrays else clean
        degraded = jax.vmap(functools.partial(working_size.degrade, law=plan.law))(
            keys[:, 0], source, arrays["factors"][images], arrays["ratio"][images]
        )
    drawn = {"degraded": degraded, "clean": clean, "mask": mask}
    found = to_floats(augmented(drawn, keys[:, 1], plan.augment)) | {
        "has_mask": arrays["has_mask"][images] > 0,
        "valid": places < plan.rows,
    }
    if not plan.undo_gain:
        return found
    if plan.law is None:
        return found | {GAIN: arrays[GAIN][rows]}
    draw_gain = functools.partial(working_size.draw_gain, bounds=plan.law.gain)
    return found | {GAIN: jax.vmap(draw_gain)(keys[:, 0])}


def row_keys(seed: int, epoch: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """Returns random keys for rows at some places in an epoch, [B, count]."""
    base = jax.random.fold_in(epoch_key(seed, epoch), 0)
    return jax.vmap(lambda place: jax.random.split(jax.random.fold_in(base, place), count))(
        places
    )


def augmented(images: Arrays, keys: jax.Array, augment: str) -> Arrays:
    """Returns images flipped at random, all those of a row in the same way.

    Args:
        images: [B, S, S, ·] each.
        keys: [B], random keys of the flips.
        augment: "none", "flips" or "all8".
    """
    if augment == "none":
        return images
    bits = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(3,)))(keys)
    return {name: _flipped(image, bits, augment) for name, image in images.items()}


def to_floats(images: Arrays) -> dict[str, jax.Array]:
    """Returns 8-bit images as the float32 arrays of a batch, see `batches`."""
    return {
        name: image.astype(jnp.float32) if name in ("mask", GAIN) else as_floats(image)
        for name, image in images.items()
    }


def as_floats(levels: jax.Array) -> jax.Array:
    """Returns 8-bit levels as float32 in [0, 1], bitwise equal to the host pipeline's."""
    # XLA turns a division by 255 into a multiplication, which rounds differently. In base 256,
    # 1/255 is 0.010101…: its first three digits times a level are exact, and the sum below
    # rounds like the division.
    digits = levels.astype(jnp.float32) * ((2**16 + 2**8 + 1) / 2**24)
    return digits + digits * 2**-24


def _flipped(images: jax.Array, bits: jax.Array, augment: str) -> jax.Array:
    """Flips images along y and x, and transposes them for "all8", where bits [B, 3] are set."""
    flips = [lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x.swapaxes(1, 2)]
    for number, flip in enumerate(flips[: 3 if augment == "all8" else 2]):
        images = jnp.where(bits[:, number, None, None, None], flip(images), images)
    return images
