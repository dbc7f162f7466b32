"""Other colours for photographs to train on, so that a network does not take any for granted.

Few rendered surfaces have few colours. A network that has seen no blue ground takes a blue one
for a grey one in a wrong light.
"""

import tensorflow as tf

# Exponents and factors of the channels; and the share of photographs that are left as they are.
_EXPONENT, _FACTOR, _KEPT = (0.8, 1.25), (0.5, 1.15), 0.25


def recolour(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Swaps the channels of a photograph and gives each another tone curve.

    Args:
        image: uint8 [H, W, 3].
        seed: integer [2].

    Returns:
        uint8 [H, W, 3]; a quarter of the photographs as they were.
    """
    draws = tf.random.stateless_uniform([8], seed, alg="philox")
    low, high = _FACTOR
    factor = low + (high - low) * draws[:3]
    low, high = _EXPONENT
    exponent = low + (high - low) * draws[6]
    swapped = tf.gather(tf.cast(image, tf.float32) / 255.0, tf.argsort(draws[3:6]), axis=-1)
    changed = tf.round(255.0 * tf.minimum(factor * swapped**exponent, 1.0))
    return tf.where(draws[7] < _KEPT, image, tf.cast(changed, tf.uint8))
