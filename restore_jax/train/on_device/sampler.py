"""Draws batches from pairs in device memory: whole photographs or native crops."""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.train.on_device import crops, whole_images
from restore_jax.train.on_device.pairs_file import Pairs

SamplingPlan = whole_images.SamplingPlan | crops.SamplingPlan


def make_plan(pairs: Pairs, config: ConfigDict) -> SamplingPlan:
    """Returns the plan by which a configuration draws batches from pairs.

    Raises:
        UsageError: for a degradation that cannot be drawn on the device.
    """
    return (whole_images if config.data.image_size else crops).make_plan(pairs, config)


def training_arrays(pairs: Pairs, config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns the arrays that batches are drawn from, [N, …] each."""
    if config.data.image_size:
        return whole_images.training_arrays(pairs, config.data.resize)
    return crops.training_arrays(pairs, config)


def draw_batch(
    arrays: Mapping[str, jax.Array],
    plan: SamplingPlan,
    epoch: jax.Array,
    order: jax.Array,
    position: jax.Array,
) -> dict[str, jax.Array]:
    """Draws the batch at a position of an epoch, see `whole_images.draw_batch`."""
    if isinstance(plan, whole_images.SamplingPlan):
        return whole_images.draw_batch(arrays, plan, epoch, order, position)
    return crops.draw_batch(arrays, plan, epoch, order, position)


def host_batches(pairs: Pairs, config: ConfigDict, step: int) -> Iterator[batches.Batch]:
    """Yields the batches from a step on as NumPy arrays, identical to those of training."""
    plan = make_plan(pairs, config)
    arrays = jax.device_put(training_arrays(pairs, config))
    draw = jax.jit(functools.partial(draw_batch, plan=plan))
    train = pairs.splits["train"]
    while True:
        epoch, position = divmod(step, plan.steps_per_epoch)
        order = whole_images.epoch_order(plan.seed, plan.rows, jnp.int32(epoch))
        batch = jax.device_get(draw(arrays, epoch=epoch, order=order, position=position))
        places = position * plan.batch_size + np.arange(plan.batch_size)
        images = np.asarray(order)[np.minimum(places, plan.rows - 1)] % plan.images
        yield batch | {
            "id": np.array(train.ids)[images],
            "category": np.array(train.categories)[images],
            "defect_type": np.array(train.defect_types)[images],
        }
        step += 1
