"""Resizes photographs and defect masks to the working size."""

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
    defect = tf.cast(mask, tf.int32) > 0
    covered = _any_along(_any_along(defect, size, axis=0), size, axis=1)
    return tf.ensure_shape(tf.cast(covered, tf.float32), [size, size, 1])


def _any_along(mask: tf.Tensor, size: int, axis: int) -> tf.Tensor:
    # In integers: an averaging resize would leave rounding residue in pixels without defect.
    length = tf.shape(mask)[axis]
    cell = tf.range(size)
    first = cell * length // size
    end = ((cell + 1) * length + size - 1) // size
    before = [[int(a == axis), 0] for a in range(3)]
    counts = tf.cumsum(tf.pad(tf.cast(mask, tf.int32), before), axis)
    return tf.gather(counts, end, axis=axis) > tf.gather(counts, first, axis=axis)
