"""Colour augmentation of training photographs in the host's pipeline; see `recolouring`."""

import tensorflow as tf

from restore_jax.degradation.recolouring import EXPONENT, FACTOR, KEPT


def recolour(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Permutes the channels of a photograph and changes the tone curve of each.

    Args:
        image: uint8 [H, W, 3].
        seed: integer [2].

    Returns:
        uint8 [H, W, 3]; a quarter of the photographs are returned unchanged.
    """
    draws = tf.random.stateless_uniform([8], seed, alg="philox")
    low, high = FACTOR
    factor = low + (high - low) * draws[:3]
    low, high = EXPONENT
    exponent = low + (high - low) * draws[6]
    swapped = tf.gather(tf.cast(image, tf.float32) / 255.0, tf.argsort(draws[3:6]), axis=-1)
    changed = tf.round(255.0 * tf.minimum(factor * swapped**exponent, 1.0))
    return tf.where(draws[7] < KEPT, image, tf.cast(changed, tf.uint8))
