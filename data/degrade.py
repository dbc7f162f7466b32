"""How a clean photograph becomes a degraded one, in the host's pipeline.

Each step of a `Law` (see `degradation.definition`) is a function of an image (float32
[H, W, 3] in grey levels 0…255; H and W may be unknown while tracing), a seed (integer [2]) and
the ranges it draws from. None keeps state: a draw depends on its seed alone, in eager mode as
inside `tf.data`, whatever runs in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import tensorflow as tf

from restore_jax.degradation.definition import FLOAT_DUST, Law, Range

# One independent stream of random numbers each, so that switching a step off or changing its
# range leaves the draws of the others as they were.
_STREAMS = ("kind", "blur", "poisson", "noise", "gain", "clean")

# Values that are filtered side by side: whole vectors on any processor, and few enough for what
# a wide kernel covers of them to stay in a core's first cache.
_LANES = 96


def draw_seed(seed: int, image_id: tf.Tensor, realisation: tf.Tensor) -> tf.Tensor:
    """The seed of one draw: the same run, image and realisation give the same bits anywhere.

    Args:
        seed: the run's seed.
        image_id: string scalar, stable between runs (a relative path, not a position).
        realisation: integer scalar, the number of the draw for this image.

    Returns:
        int64 [2], for `degrade`.
    """
    hashed = tf.strings.to_hash_bucket_fast(image_id, 2**63 - 1)
    return _fold_in(tf.stack([tf.constant(seed, tf.int64), hashed]), realisation)


def _fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    # 64 bits: with 32, two of some ten thousand images are likely to share their noise.
    data = tf.cast(data, tf.int64)
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def degrade(image: tf.Tensor, law: Law, seed: tf.Tensor) -> tf.Tensor:
    """Applies a law to one photograph at its native size.

    Args:
        image: uint8 [H, W, 3] (or float in grey levels 0…255).
        law: the degradation; steps that it switches off cost nothing.
        seed: integer [2], as from `draw_seed`.

    Returns:
        float32 [H, W, 3] in [0, 255]; whole numbers unless `law.quantise` is "none".
    """
    image = tf.cast(tf.ensure_shape(image, [None, None, 3]), tf.float32)
    seeds = {name: _fold_in(seed, number) for number, name in enumerate(_STREAMS)}
    if not law.clean_share:
        return _degraded(image, law, seeds)
    clean = tf.random.stateless_uniform([], seeds["clean"], alg="philox") < law.clean_share
    return tf.cond(clean, lambda: image, lambda: _degraded(image, law, seeds))


def _degraded(image: tf.Tensor, law: Law, seeds: Mapping[str, tf.Tensor]) -> tf.Tensor:
    image = _drawn_blur(image, law, seeds["kind"], seeds["blur"])
    if law.poisson_peak[1] > 0:
        image = poisson_noise(image, seeds["poisson"], law.poisson_peak)
    if law.noise_sigma[1] > 0:
        image = gaussian_noise(image, seeds["noise"], law.noise_sigma, law.skew)
    image = quantise(image, law.quantise)
    if law.gain != (1, 1):
        image = quantise(gain(image, seeds["gain"], law.gain), law.quantise)
    return image


def _drawn_blur(image: tf.Tensor, law: Law, kind: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """One of the law's kinds of blur; only the one drawn is computed."""
    units = {
        "none": lambda: image,
        "gaussian": lambda: gaussian_blur(image, seed, law.sigma_x, law.sigma_y, law.skew),
        "motion": lambda: motion_blur(
            image, seed, law.motion_length, law.motion_angle, law.skew
        ),
        "defocus": lambda: defocus_blur(image, seed, law.defocus_radius, law.skew),
    }
    if len(set(law.blur)) == 1:
        return units[law.blur[0]]()
    count = len(law.blur)
    index = tf.random.stateless_uniform([], kind, 0, count, dtype=tf.int32, alg="philox")
    return tf.switch_case(index, [units[name] for name in law.blur])


def _uniform(
    bounds: Range, seed: tf.Tensor, shape: tuple[int, ...] = (), skew: float = 1.0
) -> tf.Tensor:
    """float32 draws from (low, high); a range of one value is that value exactly."""
    low, high = bounds
    if low == high:
        return tf.fill(shape, tf.constant(low, tf.float32))
    if skew == 1.0:
        return tf.random.stateless_uniform(shape, seed, low, high, alg="philox")
    u = tf.random.stateless_uniform(shape, seed, dtype=tf.float64, alg="philox")
    return tf.cast(low + (high - low) * u**skew, tf.float32)


def _drawn(bounds: Range, seed: tf.Tensor, skew: float = 1.0) -> tf.Tensor:
    # What is worked out from one number goes in float64 and is rounded at the end: graph
    # optimisers reorder and fold such arithmetic, which would change the last bits of float32.
    return tf.cast(_uniform(bounds, seed, skew=skew), tf.float64)


def gaussian_blur(
    image: tf.Tensor, seed: tf.Tensor, sigma_x: Range, sigma_y: Range, skew: float = 1.0
) -> tf.Tensor:
    """Gaussian blur with widths in px drawn along x and y; 0 leaves that axis as it is.

    The kernel is sampled at whole pixels out to ceil(4 σ) of the range's upper end and has unit
    sum; borders are reflected without repeating the edge pixel (OpenCV's default, SciPy's
    "mirror"), as often as a small image needs.
    """
    image = _blur_along(image, _fold_in(seed, 0), sigma_x, 1, skew)
    return _blur_along(image, _fold_in(seed, 1), sigma_y, 0, skew)


def _blur_along(
    image: tf.Tensor, seed: tf.Tensor, sigma: Range, axis: int, skew: float
) -> tf.Tensor:
    if sigma[1] == 0:
        return image
    # Far below one pixel the kernel is a one among zeros; 0 itself would divide by zero.
    width = tf.maximum(_drawn(sigma, seed, skew), 1e-3)
    kernel = tf.nn.softmax(-0.5 * (_offsets(math.ceil(4 * sigma[1])) / width) ** 2)
    return _filter_along(image, kernel, axis)


def motion_blur(
    image: tf.Tensor, seed: tf.Tensor, length: Range, angle: Range, skew: float = 1.0
) -> tf.Tensor:
    """Blur along a straight path of drawn length (px) and angle (degrees).

    The angle runs counter-clockwise from the x axis as the image is seen. The kernel is a
    uniform line centred on the pixel, bilinearly spread over the grid, with unit sum; length 0
    leaves the image as it is. Its cost grows with the square of the longest length.
    """
    if length[1] == 0:
        return image
    path = _drawn(length, _fold_in(seed, 0), skew)
    theta = _drawn(angle, _fold_in(seed, 1)) * (math.pi / 180)
    points = 2 * math.ceil(length[1]) + 1  # at most half a pixel apart
    steps = ((tf.range(points, dtype=tf.float64) + 0.5) / points - 0.5) * path
    offsets = _offsets(math.ceil(length[1] / 2))
    # Rows count downwards, hence the minus.
    along_x = tf.nn.relu(1 - tf.abs(offsets - (steps * tf.cos(theta))[:, None]))
    along_y = tf.nn.relu(1 - tf.abs(offsets + (steps * tf.sin(theta))[:, None]))
    return _filter(image, tf.matmul(along_y, along_x, transpose_a=True) / points)


def defocus_blur(
    image: tf.Tensor, seed: tf.Tensor, radius: Range, skew: float = 1.0
) -> tf.Tensor:
    """Blur by a uniform disc of drawn radius (px) with unit sum and a rim one pixel soft.

    Up to half a pixel it leaves the image as it is. Its cost grows with the square of the
    largest radius.
    """
    if radius[1] == 0:
        return image
    offsets = _offsets(math.ceil(radius[1]))
    distance = tf.sqrt(offsets[:, None] ** 2 + offsets[None, :] ** 2)
    disc = tf.clip_by_value(_drawn(radius, seed, skew) + 0.5 - distance, 0, 1)
    return _filter(image, disc / tf.reduce_sum(disc))


def _offsets(radius: int) -> tf.Tensor:
    return tf.range(-radius, radius + 1, dtype=tf.float64)


def _filter_along(image: tf.Tensor, kernel: tf.Tensor, axis: int) -> tf.Tensor:
    """As `_filter`, with a [k] kernel along one axis, to the same bits and much faster.

    TensorFlow's depthwise convolution is vectorised over channels, which three fill badly. So
    the pixels of the other axis, whose lines are filtered alike, are channels here.
    """
    if axis == 1:
        image = tf.transpose(image, [1, 0, 2])
    shape = tf.shape(image)
    length, values = shape[0], shape[1] * shape[2]
    lines = tf.reshape(image, [length, values])
    lines = tf.pad(lines, [[0, 0], [0, -values % _LANES]])
    lines = _mirrored(lines, kernel.shape[0] // 2, axis=0)
    lines = tf.reshape(lines, [1, tf.shape(lines)[0], -1, _LANES])
    filters = tf.tile(tf.cast(kernel, tf.float32)[:, None, None, None], [1, 1, _LANES, 1])
    filtered = tf.nn.depthwise_conv2d(lines, filters, [1, 1, 1, 1], "VALID")
    filtered = tf.reshape(filtered, [length, -1])[:, :values]
    filtered = tf.ensure_shape(tf.reshape(filtered, shape), image.shape)
    return tf.transpose(filtered, [1, 0, 2]) if axis == 1 else filtered


def _filter(image: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Correlates each channel with an odd-sized [kH, kW] kernel, borders reflected."""
    padded = image
    for axis in (0, 1):
        padded = _mirrored(padded, kernel.shape[axis] // 2, axis)
    filters = tf.cast(kernel, tf.float32)[:, :, None, None]
    filters = tf.tile(filters, [1, 1, image.shape[-1], 1])
    filtered = tf.nn.depthwise_conv2d(padded[None], filters, [1, 1, 1, 1], "VALID")[0]
    return tf.ensure_shape(filtered, image.shape)


def _mirrored(image: tf.Tensor, radius: int, axis: int) -> tf.Tensor:
    """Continues an axis by reflection; `tf.pad` refuses more than the image is long."""
    if radius == 0:
        return image
    length = tf.shape(image)[axis]
    period = tf.maximum(2 * (length - 1), 1)

    def folded(start: tf.Tensor) -> tf.Tensor:
        position = tf.math.floormod(tf.range(start, start + radius), period)
        return tf.gather(image, tf.minimum(position, period - position), axis=axis)

    return tf.concat([folded(tf.constant(-radius)), image, folded(length)], axis)


def gaussian_noise(
    image: tf.Tensor, seed: tf.Tensor, sigma: Range, skew: float = 1.0
) -> tf.Tensor:
    """Adds white Gaussian noise, independent per pixel and channel, without clipping.

    Its standard deviation, in grey levels, is drawn per channel.
    """
    scale = _uniform(sigma, _fold_in(seed, 0), (image.shape[-1],), skew)
    shape = tf.shape(image)
    return image + scale * tf.random.stateless_normal(shape, _fold_in(seed, 1), alg="philox")


def poisson_noise(image: tf.Tensor, seed: tf.Tensor, peak: Range) -> tf.Tensor:
    """Replaces each value by a Poisson count of photons, scaled back, without clipping.

    With `peak` photons at white, drawn per image, a grey level g keeps its mean g and gets the
    variance 255 g / peak.
    """
    white = _drawn(peak, _fold_in(seed, 0))
    rate = tf.maximum(image, 0) * tf.cast(white / 255, tf.float32)
    counts = tf.random.stateless_poisson(tf.shape(image), _fold_in(seed, 1), rate, tf.float32)
    return tf.ensure_shape(counts * tf.cast(255 / white, tf.float32), image.shape)


def gain(image: tf.Tensor, seed: tf.Tensor, bounds: Range) -> tf.Tensor:
    """Multiplies each channel by a factor drawn for it, without clipping."""
    return image * _uniform(bounds, seed, (image.shape[-1],))


def quantise(image: tf.Tensor, mode: str) -> tf.Tensor:
    """Clips to [0, 255], then goes to whole numbers by "truncate" or "round", or "none"."""
    if mode == "truncate":
        image = tf.floor(image + FLOAT_DUST)
    elif mode == "round":
        image = tf.round(image)
    return tf.clip_by_value(image, 0.0, 255.0)
