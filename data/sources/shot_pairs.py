"""Pairs made of several bad shots of one part, for training by Noise2Noise.

Where the noise of two shots is independent and has zero mean, a network that is to predict one
from the other cannot know the noise of its target. What minimises the squared error is then the
mean of all such targets: the photograph without noise, but with the blur that all shots share.
Source: J. Lehtinen et al., "Noise2Noise: Learning Image Restoration without Clean Data", ICML
2018.
"""

import tensorflow as tf

from data.sources import images

TARGET = "mean of the other shots"
"""What an evaluation compares with in place of a clean photograph."""


def drawn(record: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws two different shots of a part.

    Args:
        record: with `image` and `shots`, see `data.records`.
        seed: int64 [2], of this part and draw.

    Returns:
        The input and the target, uint8 [H, W, 3].
    """
    shots = _shots(record)
    chosen, step = _draws(seed, tf.size(shots))
    return _decode(shots, chosen), _decode(shots, chosen + step)


def to_the_mean(record: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws a shot of a part, and averages all others.

    Args:
        record: as for `drawn`.
        seed: as for `drawn`.

    Returns:
        The shot, uint8 [H, W, 3], and the mean of the others, float32 [H, W, 3] in grey levels.
    """
    shots = _shots(record)
    count = tf.size(shots)
    chosen, _ = _draws(seed, count)

    def add(total: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        return total + tf.cast(_decode(shots, chosen + step), tf.float32)

    degraded = _decode(shots, chosen)
    # One after another: all shots of a large part do not fit in memory.
    total = tf.foldl(
        add, tf.range(1, count), tf.zeros_like(degraded, tf.float32), parallel_iterations=1
    )
    return degraded, total / tf.cast(count - 1, tf.float32)


def _shots(record: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns all encoded shots of a part, string [N]."""
    return tf.concat([record["image"][None], tf.io.parse_tensor(record["shots"], tf.string)], 0)


def _draws(seed: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws the position of a shot, and how many places after it another one lies."""
    draws = tf.random.stateless_uniform([2], seed, 0, 2**31 - 1, tf.int32, alg="philox")
    return draws[0] % count, 1 + draws[1] % (count - 1)


def _decode(shots: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Decodes a shot; positions go round."""
    return images.decode(shots[position % tf.size(shots)], 3)
