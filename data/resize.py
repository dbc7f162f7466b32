"""Resizes photographs and defect masks to the working size, or shrinks them at random."""

import math

import tensorflow as tf

from restore_jax.errors import UsageError


def resize(image: tf.Tensor, size: int, method: str) -> tf.Tensor:
    """Resizes an image to a square; other aspect ratios are stretched.

    Args:
        image: [H, W, C], float or uint8, any range. Both images of a pair must be resized with
            the same method.
        size: side length of the result in px.
        method: "bilinear" is antialiased like Pillow's BILINEAR resize; "area" averages the
            pixels covered by each new pixel, weighted by their overlap, as OpenCV's INTER_AREA
            does when shrinking (when enlarging, pixels become blocks).

    Returns:
        float32 [size, size, C] in the input's range.

    Raises:
        UsageError: the method is neither of these.
    """
    if method not in ("bilinear", "area"):
        raise UsageError(f"config.data.resize: {method!r} is unknown; choose bilinear or area")
    image = tf.cast(image, tf.float32)
    resized = tf.image.resize(image, [size, size], method, antialias=method == "bilinear")
    # The weights sum to one only up to rounding, so that white could become 255.0001.
    resized = tf.clip_by_value(resized, tf.reduce_min(image), tf.reduce_max(image))
    return tf.ensure_shape(resized, [size, size, image.shape[-1]])


def resize_mask(mask: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a defect mask such that no defect vanishes, however small.

    Args:
        mask: [H, W, 1], uint8 or bool; values above 0 are defect.
        size: side length of the result in px; the mask is stretched as in `resize`.

    Returns:
        float32 [size, size, 1]: 1 where any defect pixel overlaps the new pixel, else 0.
    """
    return tf.ensure_shape(tf.cast(_any(mask, (size, size)), tf.float32), [size, size, 1])


def shrink(
    photograph: tf.Tensor,
    mask: tf.Tensor,
    factors: tuple[float, float],
    shortest: int,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Shrinks a photograph and its mask at random, as if it were taken from farther away.

    Each new pixel is the mean of those that it covers, as on a sensor with larger ones.

    Args:
        photograph: uint8 [H, W, 3].
        mask: uint8 [H, W, 1]; values above 0 are defect.
        factors: (low, high), at least 1; the logarithm of the factor is uniform.
        shortest: the sides do not become shorter than this, px; shorter ones stay.
        seed: integer [2].

    Returns:
        The photograph, uint8, and its mask, uint8 in {0, 1}.
    """
    low, high = map(math.log, factors)
    factor = tf.exp(low + (high - low) * tf.random.stateless_uniform([], seed, alg="philox"))
    native = tf.shape(photograph)[:2]
    size = tf.cast(tf.round(tf.cast(native, tf.float32) / factor), tf.int32)
    size = tf.maximum(size, tf.minimum(native, shortest))
    means = tf.image.resize(photograph, size, "area")
    return tf.cast(tf.round(means), tf.uint8), tf.cast(_any(mask, (size[0], size[1])), tf.uint8)


def _any(mask: tf.Tensor, size: tuple[int | tf.Tensor, int | tf.Tensor]) -> tf.Tensor:
    """Returns whether any pixel above 0 overlaps each new pixel, bool [*size, 1]."""
    defect = tf.cast(mask, tf.int32) > 0
    return _any_along(_any_along(defect, size[0], axis=0), size[1], axis=1)


def _any_along(mask: tf.Tensor, size: int | tf.Tensor, axis: int) -> tf.Tensor:
    # In integers: an averaging resize would leave rounding residue in pixels without defect.
    length = tf.shape(mask)[axis]
    cell = tf.range(size)
    first = cell * length // size
    end = ((cell + 1) * length + size - 1) // size
    before = [[int(a == axis), 0] for a in range(3)]
    counts = tf.cumsum(tf.pad(tf.cast(mask, tf.int32), before), axis)
    return tf.gather(counts, end, axis=axis) > tf.gather(counts, first, axis=axis)
