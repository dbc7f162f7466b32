"""Random crops, flips and rotations of pairs, by stateless draws."""

import tensorflow as tf
from ml_collections import ConfigDict


def augment(
    pair: dict[str, tf.Tensor], settings: ConfigDict, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Crops, flips and rotates the images of a pair and its mask identically.

    Args:
        pair: uint8 images of one pair, with its other fields.
        settings: `config.data`.
        seed: int64 [2], of this pair in this epoch.

    Returns:
        The augmented pair. At native size (`settings.image_size` 0), its images are cropped to
        `settings.crop_size`, and its "context", the thumbnail of the whole degraded photograph,
        is flipped and rotated with them.
    """
    if settings.image_size and settings.augment == "none":
        return pair
    draws = tf.random.stateless_uniform([5], seed, alg="philox")
    channels = (3, 3, 1)
    stack = tf.concat([pair["degraded"], pair["clean"], pair["mask"]], axis=-1)
    found = {}
    if not settings.image_size:
        found["context"] = _flip_and_transpose(pair["context"], settings.augment, draws)
        stack = _random_crop(stack, settings.crop_size, draws, pair["id"])
    stack = _flip_and_transpose(stack, settings.augment, draws)
    degraded, clean, mask = tf.split(stack, channels, axis=-1)
    return pair | found | {"degraded": degraded, "clean": clean, "mask": mask}


def augmented_crops(
    pair: dict[str, tf.Tensor], settings: ConfigDict, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Takes `settings.crops_per_image` crops of one photograph, stacked on a new first axis."""
    seeds = [fold_in(seed, number) for number in range(settings.crops_per_image)]
    crops = [augment(pair, settings, seed) for seed in seeds]
    return {name: tf.stack([crop[name] for crop in crops]) for name in crops[0]}


def _random_crop(stack: tf.Tensor, side: int, draws: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Crops a square from an image, at the position given by the first two of `draws`."""
    room = tf.shape(stack)[:2] - side
    enough = tf.reduce_all(room >= 0)
    refusal = tf.strings.join(["config.data.crop_size: ", str(side), " is larger than ", name])
    with tf.control_dependencies([tf.debugging.Assert(enough, [refusal])]):
        start = tf.cast(draws[:2] * tf.cast(room + 1, tf.float32), tf.int32)
    # A draw just below 1 can round up to the excluded upper end.
    start = tf.minimum(start, room)
    return tf.slice(stack, [start[0], start[1], 0], [side, side, stack.shape[-1]])


def _flip_and_transpose(stack: tf.Tensor, augment: str, draws: tf.Tensor) -> tf.Tensor:
    """Flips an image, and for "all8" transposes it, each if its draw (2, 3, 4) is below 0.5."""
    if augment != "none":
        stack = tf.cond(draws[2] < 0.5, lambda: tf.reverse(stack, [0]), lambda: stack)
        stack = tf.cond(draws[3] < 0.5, lambda: tf.reverse(stack, [1]), lambda: stack)
    if augment == "all8":
        stack = tf.cond(draws[4] < 0.5, lambda: tf.transpose(stack, [1, 0, 2]), lambda: stack)
    return stack


def flatten_crops(values: tf.Tensor) -> tf.Tensor:
    """Reshapes [photographs, crops, …] to [crops · photographs, …], first crops first."""
    axes = [1, 0, *range(2, values.shape.rank)]
    return tf.reshape(tf.transpose(values, axes), tf.concat([[-1], tf.shape(values)[2:]], 0))


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """Returns the seed of a stream, int64 [2], numbered by `data`."""
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")
