"""The batches of a training on pairs in device memory: order, flips and noise, drawn by keys.

An epoch's order is a permutation drawn from the seed and the epoch; a row's flips and its noise
are drawn from those and the row's place in the epoch.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from restore_jax.degradation import working_size
from restore_jax.train.on_device.pairs_file import Pairs

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
    law: working_size.StepLaw | None

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
    fresh = (
        None if pairs.draws else working_size.from_fields(pairs.law, "blurred" in train.arrays)
    )
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
        photographs that are degraded, where they are not the clean ones, and what
        `working_size.degrade` takes of each: "factors" and "ratio".

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
    found["factors"] = working_size.correlations(shapes, size, method)
    found["ratio"] = (size / stored["native"]).astype(np.float32)
    return found


def epoch_key(seed: int, epoch: jax.Array) -> jax.Array:
    """Returns the key of all draws of an epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), epoch)


def epoch_order(seed: int, rows: int, epoch: jax.Array) -> jax.Array:
    """Returns the order of an epoch's images, int32 [rows]."""
    return jax.random.permutation(epoch_key(seed, epoch), rows)


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
    keys = row_keys(drawing.seed, epoch, places, 2)
    clean, mask = arrays["clean"][images], arrays["mask"][images]
    if drawing.law is None:
        degraded = arrays["degraded"][rows]
    else:
        source = arrays["source"][images] if "source" in arrays else clean
        degraded = jax.vmap(functools.partial(working_size.degrade, law=drawing.law))(
            keys[:, 0], source, arrays["factors"][images], arrays["ratio"][images]
        )
    drawn = {"degraded": degraded, "clean": clean, "mask": mask}
    return turned(drawn, keys[:, 1], drawing.augment) | {
        "has_mask": arrays["has_mask"][images] > 0,
        "valid": places < drawing.rows,
    }


def row_keys(seed: int, epoch: jax.Array, places: jax.Array, count: int) -> jax.Array:
    """Returns the keys of rows by their places in an epoch, [B, count]."""
    base = jax.random.fold_in(epoch_key(seed, epoch), 0)
    return jax.vmap(lambda place: jax.random.split(jax.random.fold_in(base, place), count))(
        places
    )


def turned(drawn: Arrays, keys: jax.Array, augment: str) -> dict[str, jax.Array]:
    """Returns 8-bit images as a batch has them, those of a row flipped alike.

    Args:
        drawn: uint8 [B, S, S, ·] each.
        keys: [B], of the flips.
        augment: "none", "flips" or "all8".
    """
    if augment != "none":
        bits = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(3,)))(keys)
        drawn = {name: _flipped(image, bits, augment) for name, image in drawn.items()}
    return {
        name: image.astype(jnp.float32) if name == "mask" else as_floats(image)
        for name, image in drawn.items()
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
