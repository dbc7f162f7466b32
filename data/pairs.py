"""From a record to a pair of 8-bit images: decode, shrink, recolour, degrade, resize."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from data import augmentation, degrade, recolour, resize
from data.sources import images, shot_pairs
from restore_jax import batches
from restore_jax.degradation import definition, digital_gain
from restore_jax.train.on_device import shrinking

STRINGS = ("category", "defect_type", "id")

# A pair of 8-bit images, as it is cached and batched.
PAIR = {
    "degraded": tf.TensorSpec([None, None, 3], tf.uint8),
    "clean": tf.TensorSpec([None, None, 3], tf.uint8),
    "mask": tf.TensorSpec([None, None, 1], tf.uint8),
    "has_mask": tf.TensorSpec([], tf.bool),
    **{name: tf.TensorSpec([], tf.string) for name in STRINGS},
}

GAIN = {batches.GAIN: tf.TensorSpec([3], tf.float32)}

# Streams of the random augmentation; the streams of the degradation are numbered from 0.
_RECOLOURS = 100
_SHRINKS = 101

Fields = dict[str, tf.Tensor]

# Makes a pair from a record, the seed of the run and the number of the draw.
MakePair = Callable[[Fields, tf.Tensor | int, tf.Tensor | int], Fields]

as_written = tf.autograph.experimental.do_not_convert
"""Has TensorFlow trace a function as it is written, with the functions that it calls.

Otherwise it first translates their source code for control flow on tensors, of which there is
none here: that takes two seconds of a start."""


def pair_maker(
    settings: ConfigDict,
    law: definition.Law,
    trains: bool = False,
    averages: bool = False,
) -> MakePair:
    """Returns a function that degrades a photograph at native size and resizes the pair.

    A record that has its own degraded photograph is only resized. Of several shots, two are
    drawn, or one with the mean of all others as its pair. TensorFlow traces the
    function once, however many datasets use it.

    Args:
        settings: `config.data`.
        law: the degradation.
        trains: whether the clean photograph is first changed at random as `settings` say: its
            size and its colours.
        averages: of several shots, whether the second of a pair is the mean of all others.
    """
    shrinks = shrinking.factors(settings)

    @tf.function(autograph=False)
    def traced(record: Fields, seed: tf.Tensor, draw: tf.Tensor) -> Fields:
        clean, mask = _decode(record)
        if "shots" in record:
            draw_pair = shot_pairs.to_the_mean if averages else shot_pairs.drawn
            key = degrade.draw_seed(seed, record["id"], draw)
            degraded, clean = draw_pair(record, key)
        elif "degraded" in record:
            degraded = images.decode(record["degraded"], 3)
        else:
            key = degrade.draw_seed(seed, record["id"], draw)
            # Separate streams, so that noise and blur are the same as without augmentation.
            if trains and shrinks != shrinking.UNCHANGED:
                stream = augmentation.fold_in(key, _SHRINKS)
                clean, mask = resize.shrink(clean, mask, shrinks, settings.crop_size, stream)
            if trains and settings.get("recolour", False):
                clean = recolour.recolour(clean, augmentation.fold_in(key, _RECOLOURS))
            degraded = degrade.degrade(clean, law, key)
        pair = _resize_pair(record, degraded, clean, mask, settings)
        if settings.get("undo_gain", False):
            pair[batches.GAIN] = _digital_gain(degraded)
        return pair

    def make_pair(record: Fields, seed: tf.Tensor | int, draw: tf.Tensor | int) -> Fields:
        # As tensors, since a Python number would be traced anew for every value.
        return traced(record, tf.cast(seed, tf.int64), tf.cast(draw, tf.int64))

    return make_pair


def changes_photographs(settings: ConfigDict) -> bool:
    """Whether training changes the size or the colours of clean photographs at random."""
    shrinks = shrinking.factors(settings) != shrinking.UNCHANGED
    return shrinks or settings.get("recolour", False)


def realise(
    source: tf.data.Dataset, make_pair: MakePair, seed: int, draw: int
) -> tf.data.Dataset:
    """Makes the pairs of one draw: uint8 images of the working size, with the other fields."""
    return source.map(
        as_written(lambda record: make_pair(record, seed, draw)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def clean_pairs(source: tf.data.Dataset, settings: ConfigDict) -> tf.data.Dataset:
    """Makes pairs whose degraded image is the clean one."""

    @as_written
    def pair(record: Fields) -> Fields:
        clean, mask = _decode(record)
        return _resize_pair(record, clean, clean, mask, settings)

    return source.map(pair, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


@as_written
def as_floats(pair: dict[str, Any]) -> dict[str, Any]:
    """Converts images and mask to float32: images from 0…255 to [0, 1], the mask to 0 or 1."""
    names = [name for name in ("degraded", "clean", "context") if name in pair]
    floats = {name: tf.cast(pair[name], tf.float32) / 255.0 for name in names}
    return pair | floats | {"mask": tf.cast(pair["mask"], tf.float32)}


def to_bytes(image: tf.Tensor) -> tf.Tensor:
    """Rounds grey levels to uint8, clipped to 0…255."""
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)


def _decode(record: Fields) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the photograph, uint8 [H, W, 3], and its mask, uint8 [H, W, 1]."""
    return images.decode(record["image"], 3), images.decode(record["mask"], 1)


def _digital_gain(photograph: tf.Tensor) -> tf.Tensor:
    """Measures the gain of each channel of a photograph at its native size, float32 [3]."""
    levels = to_bytes(tf.cast(photograph, tf.float32))
    gain = tf.numpy_function(digital_gain.of_photograph, [levels], tf.float32, stateful=False)
    return tf.ensure_shape(gain, [3])


def _resize_pair(
    record: Fields,
    degraded: tf.Tensor,
    clean: tf.Tensor,
    mask: tf.Tensor,
    settings: ConfigDict,
) -> Fields:
    size = settings.image_size
    if size:
        degraded = resize.resize(degraded, size, settings.resize)
        clean = resize.resize(clean, size, settings.resize)
        mask = resize.resize_mask(mask, size)
    return {
        "degraded": to_bytes(tf.cast(degraded, tf.float32)),
        "clean": to_bytes(tf.cast(clean, tf.float32)),
        "mask": tf.cast(mask > 0, tf.uint8),
        **{name: record[name] for name in ("has_mask", *STRINGS)},
    }
