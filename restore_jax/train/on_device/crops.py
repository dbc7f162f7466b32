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

from restore_jax.batches import CONTEXT, CONTEXT_SIZE
from restore_jax.degradation import (
    definition,
    native_size,
    recolouring,
    working_size,
)
from restore_jax.errors import UsageError
from restore_jax.models.gain_unet import thumbnail
from restore_jax.train.on_device import whole_images
from restore_jax.train.on_device.pairs_file import Pairs

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
    law: definition.Law
    whole: working_size.StepLaw | None

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
        law=native_size.from_fields(pairs.law),
        whole=working_size.from_fields(pairs.law, blurred=False) if estimates else None,
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

    Namely "thumbnail", "factors" and "ratio", as `working_size.degrade` takes them.

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
        "factors": working_size.correlations(sizes, CONTEXT_SIZE, "bilinear"),
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
    """Draws the batch at a position of an epoch; arguments as of `whole_images.draw_batch`."""
    places = position * drawing_.batch_size + jnp.arange(drawing_.batch_size)
    images = order[jnp.minimum(places, drawing_.rows - 1)] % drawing_.images
    keys = whole_images.row_keys(drawing_.seed, epoch, places, 3)
    native = arrays["native"][images]
    room = (native - drawing_.crop_size + 1).astype(jnp.float32)
    starts = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys[:, 2]) * room
    # A draw next to 1 can round up to the excluded end.
    starts = jnp.minimum(starts.astype(jnp.int32), native - drawing_.crop_size)
    drawn = jax.vmap(functools.partial(draw_crop, arrays, drawing_))(keys[:, 0], images, starts)
    return whole_images.turned(drawn, keys[:, 1], drawing_.augment) | {
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
    reach, side = native_size.radius(drawing_.law), drawing_.crop_size
    height, width = arrays["native"][image]
    along = jnp.arange(-reach, side + reach)
    rows = _reflected(start[0] + along, height)[:, None]
    columns = _reflected(start[1] + along, width)[None, :]
    window = arrays["clean"][image, rows, columns]
    if drawing_.recolours:
        window = recolouring.recolour(jax.random.fold_in(key, 8), window)
    inner = slice(reach, reach + side)
    found = {
        "degraded": native_size.degrade(key, window, drawing_.law),
        "clean": window[inner, inner],
        "mask": arrays["mask"][image, rows[inner], columns[:, inner]],
    }
    if drawing_.whole is not None:
        found[CONTEXT] = working_size.degrade(
            key,
            arrays["thumbnail"][image],
            arrays["factors"][image],
            arrays["ratio"][image],
            drawing_.whole,
        )
    return found


def _reflected(places: jax.Array, length: jax.Array) -> jax.Array:
    """Places within an axis that is continued by reflection, its ends not repeated."""
    period = jnp.maximum(2 * (length - 1), 1)
    places = jnp.mod(places, period)
    return jnp.minimum(places, period - places)
