"""Colour augmentation of training photographs in the host's pipeline; see `recolouring`."""

import tensorflow as tf

from restore_jax.degradation.recolouring import EXPONENT, FACTOR, GREY, KEPT


def recolour(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Permutes the channels of a photograph and changes their tones, or averages them.

    Args:
        image: uint8 [H, W, 3].
        seed: integer [2].

    Returns:
        uint8 [H, W, 3]; unchanged with probability `KEPT`, grey with probability `GREY`.
    """
    draws = tf.random.stateless_uniform([8], seed, alg="philox")
    low, high = FACTOR
    factor = low + (high - low) * draws[:3]
    low, high = EXPONENT
    exponent = low + (high - low) * draws[6]
    levels = tf.cast(image, tf.float32) / 255.0
    swapped = tf.gather(levels, tf.argsort(draws[3:6]), axis=-1)
    changed = tf.minimum(factor * swapped**exponent, 1.0)
    grey = tf.reduce_mean(levels, axis=-1, keepdims=True)
    changed = tf.round(255.0 * tf.where(draws[7] > 1.0 - GREY, grey, changed))
    return tf.where(draws[7] < KEPT, image, tf.cast(changed, tf.uint8))
