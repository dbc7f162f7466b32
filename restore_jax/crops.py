"""Batches of crops of native photographs in device memory, degraded within the step.

The photographs of different sizes lie in one array, each in the upper left corner. A row of a
batch is a window of one of them, wider than the crop by the reach of the blur and reflected at
the photograph's borders. Where the law has a gain that the network is to estimate, the crop
comes with the thumbnail of the whole photograph, degraded at its own size with the same gain.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from restore_jax import degradation, drawing, law, native_law
from restore_jax.batches import CONTEXT, CONTEXT_SIZE
from restore_jax.errors import UsageError
from restore_jax.models.gain_unet import thumbnail
from restore_jax.pairs_file import Pairs

Arrays = Mapping[str, jax.Array]

_LARGEST_VALIDATED = 512


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How batches are drawn.

    Attributes:
        seed: of the run.
        images: photographs.
        crops_per_image: rows of an epoch that each of them is drawn for.
        batch_size: crops of a batch, over all devices.
        crop_size: their side, px.
        augment: "none", "flips" or "all8".
        recolours: shows the photographs in other colours, too.
        law: how a crop is degraded.
        whole: how the thumbnail of its photograph is; None: it comes without.
    """

    seed: int
    images: int
    crops_per_image: int
    batch_size: int
    crop_size: int
    augment: str
    recolours: bool
    law: degradation.Law
    whole: law.Law | None

    @property
    def rows(self) -> int:
        """Crops of an epoch."""
        return self.images * self.crops_per_image

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.rows / self.batch_size)


def make_drawing(pairs: Pairs, config: ConfigDict) -> Drawing:
    """Returns how a configuration draws crops of native photographs.

    Raises:
        UsageError: for crops larger than a photograph; for a network that estimates the gain,
            under a law whose thumbnails cannot be drawn.
    """
    train = pairs.splits["train"]
    smallest = train.arrays["native"].min(axis=1)
    if (shortest := int(smallest.min())) < config.data.crop_size:
        raise UsageError(
            f"config.data.crop_size: {config.data.crop_size} is larger than "
            f"{train.ids[int(smallest.argmin())]}, which has {shortest} px"
        )
    estimates = _estimates_gain(config)
    return Drawing(
        seed=config.seed,
        images=len(train),
        crops_per_image=config.data.crops_per_image,
        batch_size=config.train.batch_size,
        crop_size=config.data.crop_size,
        augment=config.data.augment,
        recolours=config.data.get("recolour", False),
        law=native_law.from_fields(pairs.law),
        whole=law.from_fields(pairs.law, blurred=False) if estimates else None,
    )


def training_arrays(pairs: Pairs, config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns the arrays that crops are drawn from, [N, …] each.

    "clean" [N, S, S, 3] and "mask" of photographs in their corner, "native" [N, 2], "has_mask";
    where thumbnails are drawn, what `of_whole` returns.
    """
    stored = pairs.splits["train"].arrays
    found = {name: stored[name] for name in ("clean", "mask", "has_mask", "native")}
    if _estimates_gain(config):
        found |= of_whole(stored["clean"], stored["native"])
    return found


def _estimates_gain(config: ConfigDict) -> bool:
    return config.model.get("gain", False)


def of_whole(clean: np.ndarray, native: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the thumbnails of degraded photographs are drawn from.

    Namely "thumbnail", "factors" and "ratio", as `law.degrade` takes them.

    Args:
        clean: uint8 [N, S, S, 3].
        native: [N, 2], the photographs' heights and widths.
    """
    shrink = jax.jit(thumbnail)
    sizes: Sequence[tuple[int, int]] = [(int(h), int(w)) for h, w in native]
    thumbnails = [
        np.asarray(shrink(image[None, :height, :width]))[0]
        for image, (height, width) in zip(clean, sizes, strict=True)
    ]
    return {
        "thumbnail": np.stack(thumbnails),
        "factors": law.correlations(sizes, CONTEXT_SIZE, "bilinear"),
        "ratio": (CONTEXT_SIZE / native).astype(np.float32),
    }


def in_corners(images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Puts images [h, w, C] into the upper left corners of an array [N, side, side, C]."""
    found = np.zeros((len(images), side, side, images[0].shape[-1]), images[0].dtype)
    for place, image in zip(found, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return found


def validation_side(native: np.ndarray) -> int:
    """Returns the side of the middles of photographs that are validated on, px.

    Args:
        native: [N, 2], heights and widths.
    """
    shortest = int(native.min())
    return min(_LARGEST_VALIDATED, shortest // 32 * 32 or shortest)


def draw_batch(
    arrays: Arrays, drawing_: Drawing, epoch: jax.Array, order: jax.Array, position: jax.Array
) -> dict[str, jax.Array]:
    """Draws the batch at a position of an epoch; the arguments are those of `drawing`'s."""
    places = position * drawing_.batch_size + jnp.arange(drawing_.batch_size)
    images = order[jnp.minimum(places, drawing_.rows - 1)] % drawing_.images
    base = jax.random.fold_in(drawing.epoch_key(drawing_.seed, epoch), 0)
    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(base, place), 3))(places)
    native = arrays["native"][images]
    room = (native - drawing_.crop_size + 1).astype(jnp.float32)
    starts = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys[:, 2]) * room
    # A draw next to 1 can round up to the excluded end.
    starts = jnp.minimum(starts.astype(jnp.int32), native - drawing_.crop_size)
    drawn = jax.vmap(functools.partial(draw_crop, arrays, drawing_))(keys[:, 0], images, starts)
    if drawing_.augment != "none":
        bits = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(3,)))(keys[:, 1])
        drawn = {
            name: drawing.flipped(image, bits, drawing_.augment)
            for name, image in drawn.items()
        }
    return as_batch(drawn) | {
        "has_mask": arrays["has_mask"][images] > 0,
        "valid": places < drawing_.rows,
    }


def draw_crop(
    arrays: Arrays, drawing_: Drawing, key: jax.Array, image: jax.Array, start: jax.Array
) -> dict[str, jax.Array]:
    """Draws one crop.

    Args:
        arrays: of `training_arrays`.
        drawing_: how.
        key: of its degradation.
        image: the number of its photograph.
        start: [2], its first row and column.

    Returns:
        "degraded", "clean" and "mask", uint8 [C, C, ·], and perhaps "context".
    """
    reach, side = native_law.radius(drawing_.law), drawing_.crop_size
    height, width = arrays["native"][image]
    along = jnp.arange(-reach, side + reach)
    rows = _reflected(start[0] + along, height)[:, None]
    columns = _reflected(start[1] + along, width)[None, :]
    window = arrays["clean"][image, rows, columns]
    if drawing_.recolours:
        window = recolour(jax.random.fold_in(key, 8), window)
    inner = slice(reach, reach + side)
    found = {
        "degraded": native_law.degrade(key, window, drawing_.law),
        "clean": window[inner, inner],
        "mask": arrays["mask"][image, rows[inner], columns[:, inner]],
    }
    if drawing_.whole is not None:
        found[CONTEXT] = law.degrade(
            key,
            arrays["thumbnail"][image],
            arrays["factors"][image],
            arrays["ratio"][image],
            drawing_.whole,
        )
    return found


def recolour(key: jax.Array, window: jax.Array) -> jax.Array:
    """Shows a photograph in other colours, as data/recolour.py does.

    Args:
        key: of the draw.
        window: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]; a quarter of the windows as they were.
    """
    keys = jax.random.split(key, 4)
    factor = jax.random.uniform(keys[0], (3,), minval=0.5, maxval=1.15)
    exponent = jax.random.uniform(keys[1], minval=0.8, maxval=1.25)
    swapped = jax.random.permutation(keys[2], window.astype(jnp.float32) / 255.0, axis=-1)
    changed = jnp.round(255.0 * jnp.minimum(factor * swapped**exponent, 1.0))
    kept = jax.random.uniform(keys[3]) < 0.25
    return jnp.where(kept, window, changed.astype(jnp.uint8))


def as_batch(drawn: Arrays) -> dict[str, jax.Array]:
    """Returns 8-bit images as a batch has them."""
    return {
        name: image.astype(jnp.float32) if name == "mask" else drawing.as_floats(image)
        for name, image in drawn.items()
    }


def _reflected(places: jax.Array, length: jax.Array) -> jax.Array:
    """Places within an axis that is continued by reflection, its ends not repeated."""
    period = jnp.maximum(2 * (length - 1), 1)
    places = jnp.mod(places, period)
    return jnp.minimum(places, period - places)
