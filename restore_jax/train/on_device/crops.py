"""Batches of crops of native-size photographs in device memory, degraded on the device.

The photographs differ in size and are padded to one array, each in the upper left corner. A row
of a batch is a crop of one of them, which may be shrunk at random. The window that is degraded
exceeds the crop by the blur's radius on each side and is reflected at the photograph's borders.
If the network estimates the gain, the crop comes with a thumbnail of the whole photograph,
degraded at the thumbnail's size with the same gain.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from restore_jax.batches import CONTEXT, CONTEXT_SIZE, GAIN
from restore_jax.config import schema
from restore_jax.degradation import (
    definition,
    native_size,
    recolouring,
    working_size,
)
from restore_jax.errors import UsageError
from restore_jax.models.gain_unet import thumbnail
from restore_jax.train.on_device import shrinking, whole_images
from restore_jax.train.on_device.pairs_file import Pairs

Arrays = Mapping[str, jax.Array]

_LARGEST_VALIDATED = 512


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """How batches are drawn.

    Attributes:
        seed: the run's seed.
        images: number of photographs.
        crops_per_image: crops per epoch from each photograph.
        batch_size: crops per batch, over all devices.
        crop_size: side of a crop, px.
        augment: "none", "flips" or "all8".
        recolours: whether photographs are recoloured at random.
        shrink: range of the factor by which each photograph is shrunk.
        law: how crops are degraded.
        undo_gain: whether batches have the gain.
        whole: how the thumbnails of whole photographs are degraded; None for no thumbnails.
    """

    seed: int
    images: int
    crops_per_image: int
    batch_size: int
    crop_size: int
    augment: str
    recolours: bool
    shrink: definition.Range
    law: definition.Law
    undo_gain: bool
    whole: working_size.StepLaw | None

    @property
    def rows(self) -> int:
        """Crops per epoch."""
        return self.images * self.crops_per_image

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return math.ceil(self.rows / self.batch_size)


def make_plan(pairs: Pairs, config: ConfigDict) -> SamplingPlan:
    """Returns the plan by which a configuration draws crops of native photographs.

    Raises:
        UsageError: for crops larger than a photograph, or a network that estimates the gain
            with a degradation, or with shrinking, whose thumbnails cannot be drawn.
    """
    train = pairs.splits["train"]
    smallest = train.arrays["native"].min(axis=1)
    if (shortest := int(smallest.min())) < config.data.crop_size:
        raise UsageError(
            f"config.data.crop_size: {config.data.crop_size} is larger than the shorter side "
            f"of {train.ids[int(smallest.argmin())]}, {shortest} px"
        )
    estimates = _estimates_gain(config)
    shrink = shrinking.factors(config.data)
    if estimates and shrink != shrinking.UNCHANGED:
        raise UsageError(
            f"config.data.shrink: {shrink} cannot be combined with config.data.resident for a "
            f"network that estimates the gain; use {shrinking.UNCHANGED}, or set "
            "config.data.resident=False"
        )
    return SamplingPlan(
        seed=config.seed,
        images=len(train),
        crops_per_image=config.data.crops_per_image,
        batch_size=config.train.batch_size,
        crop_size=config.data.crop_size,
        augment=config.data.augment,
        recolours=config.data.get("recolour", False),
        shrink=shrink,
        law=native_size.from_fields(pairs.law),
        undo_gain=schema.undoes_gain(config),
        whole=working_size.from_fields(pairs.law, blurred=False) if estimates else None,
    )


def training_arrays(pairs: Pairs, config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns the arrays that crops are drawn from, [N, …] each.

    These are "clean" [N, S, S, 3] and "mask" [N, S, S, 1], padded to the size of the largest
    photograph; "native" [N, 2], heights and widths; "has_mask" [N]; and, if the network
    estimates the gain, the arrays of `thumbnail_inputs`.
    """
    stored = pairs.splits["train"].arrays
    found = {name: stored[name] for name in ("clean", "mask", "has_mask", "native")}
    if _estimates_gain(config):
        found |= thumbnail_inputs(stored["clean"], stored["native"])
    return found


def _estimates_gain(config: ConfigDict) -> bool:
    return config.model.get("gain", False)


def thumbnail_inputs(clean: np.ndarray, native: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays from which thumbnails of degraded photographs are drawn.

    These are the inputs of `working_size.degrade`: "thumbnail", "factors" and "ratio".

    Args:
        clean: uint8 [N, S, S, 3], padded photographs.
        native: [N, 2], their heights and widths.
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


def pad_to_square(images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Zero-pads images [h, w, C] at the bottom and right to one array [N, side, side, C]."""
    found = np.zeros((len(images), side, side, images[0].shape[-1]), images[0].dtype)
    for place, image in zip(found, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return found


def validation_side(native: np.ndarray) -> int:
    """Returns the side of the centre crops for validation, px.

    It is 512 at most, fits into every photograph, and is a multiple of 32 where possible.

    Args:
        native: [N, 2], the photographs' heights and widths.
    """
    shortest = int(native.min())
    return min(_LARGEST_VALIDATED, shortest // 32 * 32 or shortest)


def draw_batch(
    arrays: Arrays, plan: SamplingPlan, epoch: jax.Array, order: jax.Array, position: jax.Array
) -> dict[str, jax.Array]:
    """Draws the batch at a position of an epoch; see `whole_images.draw_batch`."""
    places = position * plan.batch_size + jnp.arange(plan.batch_size)
    images = order[jnp.minimum(places, plan.rows - 1)] % plan.images
    keys = whole_images.row_keys(plan.seed, epoch, places, 3)
    draw_size = functools.partial(
        shrinking.draw_size, bounds=plan.shrink, shortest=plan.crop_size
    )
    size_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys[:, 2])
    sizes = jax.vmap(draw_size)(size_keys, arrays["native"][images])
    room = (sizes - plan.crop_size + 1).astype(jnp.float32)
    starts = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys[:, 2]) * room
    # A random number just below 1 can round up to the excluded end.
    starts = jnp.minimum(starts.astype(jnp.int32), sizes - plan.crop_size)
    draw = functools.partial(draw_crop, arrays, plan)
    drawn = jax.vmap(draw)(keys[:, 0], images, sizes, starts)
    drawn = whole_images.augmented(drawn, keys[:, 1], plan.augment)
    found = whole_images.to_floats(drawn) | {
        "has_mask": arrays["has_mask"][images] > 0,
        "valid": places < plan.rows,
    }
    if plan.undo_gain:
        draw_gain = functools.partial(native_size.draw_gain, law=plan.law)
        found[GAIN] = jax.vmap(draw_gain)(keys[:, 0])
    return found


def draw_crop(
    arrays: Arrays,
    plan: SamplingPlan,
    key: jax.Array,
    image: jax.Array,
    size: jax.Array,
    start: jax.Array,
) -> dict[str, jax.Array]:
    """Draws one crop.

    Args:
        arrays: from `training_arrays`.
        plan: how crops are drawn.
        key: the random key of its degradation.
        image: the index of its photograph.
        size: [2], height and width to which the plan shrinks the photograph.
        start: [2], the crop's first row and column in the photograph of that size.

    Returns:
        "degraded", "clean" and "mask", uint8 [C, C, ·], and "context" if the plan has
        thumbnails.
    """
    reach, side = native_size.margin(plan.law), plan.crop_size
    height, width = size
    along = jnp.arange(-reach, side + reach)
    rows = _reflected(start[0] + along, height)
    columns = _reflected(start[1] + along, width)
    clean, mask = arrays["clean"][image], arrays["mask"][image]
    if plan.shrink == shrinking.UNCHANGED:
        window, mask = (x[rows[:, None], columns[None, :]] for x in (clean, mask))
    else:
        window, mask = shrinking.window(
            clean, mask, arrays["native"][image], size, rows, columns
        )
    if plan.recolours:
        window = recolouring.recolour(jax.random.fold_in(key, 8), window)
    inner = slice(reach, reach + side)
    found = {
        "degraded": native_size.degrade(key, window, plan.law),
        "clean": window[inner, inner],
        "mask": mask[inner, inner],
    }
    if plan.whole is not None:
        found[CONTEXT] = working_size.degrade(
            key,
            arrays["thumbnail"][image],
            arrays["factors"][image],
            arrays["ratio"][image],
            plan.whole,
        )
    return found


def _reflected(places: jax.Array, length: jax.Array) -> jax.Array:
    """Reflects places beyond an axis back into it, without repeating the ends."""
    period = jnp.maximum(2 * (length - 1), 1)
    places = jnp.mod(places, period)
    return jnp.minimum(places, period - places)
