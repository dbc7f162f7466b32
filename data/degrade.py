"""Degrades clean photographs in the host's pipeline.

Each step of a `Law` (see `degradation.definition`) is a function of an image (float32
[H, W, 3] in grey levels 0…255; H and W may be unknown while tracing), a seed (integer [2]) and
the ranges it draws from. All are stateless: a draw depends on its seed alone, both in eager
mode and inside `tf.data`, regardless of parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import tensorflow as tf

from restore_jax.degradation.definition import DEMOSAIC, FLOAT_DUST, Law, Range, bayer

# Each step has an independent stream of random numbers, so that disabling a step or changing
# its range does not affect the draws of the others.
_STREAMS = ("kind", "blur", "poisson", "noise", "gain", "clean", "jpeg")

# Number of values filtered side by side: a multiple of the vector width of any processor, and
# few enough for the rows under a wide kernel to stay in a core's L1 cache.
_LANES = 96


def draw_seed(seed: int | tf.Tensor, image_id: tf.Tensor, realisation: tf.Tensor) -> tf.Tensor:
    """Returns the seed of one draw: the same run, image and draw give the same bits anywhere.

    Args:
        seed: the run's seed, int64.
        image_id: string scalar that is stable between runs (a relative path, not an index).
        realisation: integer scalar, the number of the draw for this image.

    Returns:
        int64 [2], for `degrade`.
    """
    hashed = tf.strings.to_hash_bucket_fast(image_id, 2**63 - 1)
    return _fold_in(tf.stack([tf.cast(seed, tf.int64), hashed]), realisation)


def _fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    # 64 bits: with 32, two images out of some ten thousand are likely to share their noise.
    data = tf.cast(data, tf.int64)
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def degrade(image: tf.Tensor, law: Law, seed: tf.Tensor) -> tf.Tensor:
    """Applies a law to one photograph at its native size.

    Args:
        image: uint8 [H, W, 3] (or float in grey levels 0…255).
        law: the degradation; disabled steps cost nothing.
        seed: integer [2], as from `draw_seed`.

    Returns:
        float32 [H, W, 3] in [0, 255]; integer-valued unless `law.quantise` is "none".
    """
    image = tf.cast(tf.ensure_shape(image, [None, None, 3]), tf.float32)
    seeds = {name: _fold_in(seed, number) for number, name in enumerate(_STREAMS)}
    if not law.clean_share:
        return _degraded(image, law, seeds)
    clean = tf.random.stateless_uniform([], seeds["clean"], alg="philox") < law.clean_share
    return tf.cond(clean, lambda: image, lambda: _degraded(image, law, seeds))


def _degraded(image: tf.Tensor, law: Law, seeds: Mapping[str, tf.Tensor]) -> tf.Tensor:
    image = _random_blur(image, law, seeds["kind"], seeds["blur"])
    if law.poisson_peak[1] > 0:
        image = poisson_noise(image, seeds["poisson"], law.poisson_peak)
    if law.noise_sigma[1] > 0:
        image = gaussian_noise(image, seeds["noise"], law.noise_sigma, law.skew, law.noise)
    image = quantise(image, law.quantise)
    if law.gain != (1, 1):
        image = quantise(gain(image, seeds["gain"], law.gain), law.quantise)
    if law.jpeg_quality[1] > 0:
        image = jpeg(image, seeds["jpeg"], law.jpeg_quality, law.jpeg_share)
    return image


def _random_blur(image: tf.Tensor, law: Law, kind: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Applies one of the law's kinds of blur; only the one drawn is computed."""
    blurs = {
        "none": lambda: image,
        "gaussian": lambda: gaussian_blur(image, seed, law.sigma_x, law.sigma_y, law.skew),
        "motion": lambda: motion_blur(
            image, seed, law.motion_length, law.motion_angle, law.skew
        ),
        "defocus": lambda: defocus_blur(image, seed, law.defocus_radius, law.skew),
    }
    if len(set(law.blur)) == 1:
        return blurs[law.blur[0]]()
    count = len(law.blur)
    index = tf.random.stateless_uniform([], kind, 0, count, dtype=tf.int32, alg="philox")
    return tf.switch_case(index, [blurs[name] for name in law.blur])


def _uniform(
    bounds: Range, seed: tf.Tensor, shape: tuple[int, ...] = (), skew: float = 1.0
) -> tf.Tensor:
    """Draws float32 values from (low, high); if low equals high, exactly that value."""
    low, high = bounds
    if low == high:
        return tf.fill(shape, tf.constant(low, tf.float32))
    if skew == 1.0:
        return tf.random.stateless_uniform(shape, seed, low, high, alg="philox")
    u = tf.random.stateless_uniform(shape, seed, dtype=tf.float64, alg="philox")
    return tf.cast(low + (high - low) * u**skew, tf.float32)


def _draw_scalar(bounds: Range, seed: tf.Tensor, skew: float = 1.0) -> tf.Tensor:
    # Scalar arithmetic is done in float64 and rounded at the end: graph optimisers reorder and
    # fold it, which would change the last bits in float32.
    return tf.cast(_uniform(bounds, seed, skew=skew), tf.float64)


def gaussian_blur(
    image: tf.Tensor, seed: tf.Tensor, sigma_x: Range, sigma_y: Range, skew: float = 1.0
) -> tf.Tensor:
    """Applies a Gaussian blur whose widths (px) along x and y are drawn; 0 skips that axis.

    The kernel is sampled at integer offsets up to ceil(4 σ), with σ the upper end of the range,
    and normalised to unit sum. Borders are reflected without repeating the edge pixel (OpenCV's
    default, SciPy's "mirror"), repeatedly if the image is smaller than the kernel.
    """
    image = _blur_along(image, _fold_in(seed, 0), sigma_x, 1, skew)
    return _blur_along(image, _fold_in(seed, 1), sigma_y, 0, skew)


def _blur_along(
    image: tf.Tensor, seed: tf.Tensor, sigma: Range, axis: int, skew: float
) -> tf.Tensor:
    if sigma[1] == 0:
        return image
    # Far below one pixel the kernel is a unit impulse anyway; 0 itself would divide by zero.
    width = tf.maximum(_draw_scalar(sigma, seed, skew), 1e-3)
    kernel = tf.nn.softmax(-0.5 * (_offsets(math.ceil(4 * sigma[1])) / width) ** 2)
    return _filter_along(image, kernel, axis)


def motion_blur(
    image: tf.Tensor, seed: tf.Tensor, length: Range, angle: Range, skew: float = 1.0
) -> tf.Tensor:
    """Blurs along a straight path whose length (px) and angle (degrees) are drawn.

    The angle is counter-clockwise from the x axis of the displayed image. The kernel is a
    uniform line centred on the pixel, bilinearly spread over the grid, with unit sum; length 0
    leaves the image unchanged. The cost grows with the square of the longest length.
    """
    if length[1] == 0:
        return image
    path = _draw_scalar(length, _fold_in(seed, 0), skew)
    theta = _draw_scalar(angle, _fold_in(seed, 1)) * (math.pi / 180)
    points = 2 * math.ceil(length[1]) + 1  # at most half a pixel apart
    steps = ((tf.range(points, dtype=tf.float64) + 0.5) / points - 0.5) * path
    offsets = _offsets(math.ceil(length[1] / 2))
    # The y axis points down, hence the opposite sign.
    along_x = tf.nn.relu(1 - tf.abs(offsets - (steps * tf.cos(theta))[:, None]))
    along_y = tf.nn.relu(1 - tf.abs(offsets + (steps * tf.sin(theta))[:, None]))
    return _filter(image, tf.matmul(along_y, along_x, transpose_a=True) / points)


def defocus_blur(
    image: tf.Tensor, seed: tf.Tensor, radius: Range, skew: float = 1.0
) -> tf.Tensor:
    """Blurs with a uniform disc of drawn radius (px) and unit sum; its rim is one pixel soft.

    Radii up to half a pixel leave the image unchanged. The cost grows with the square of the
    largest radius.
    """
    if radius[1] == 0:
        return image
    offsets = _offsets(math.ceil(radius[1]))
    distance = tf.sqrt(offsets[:, None] ** 2 + offsets[None, :] ** 2)
    disc = tf.clip_by_value(_draw_scalar(radius, seed, skew) + 0.5 - distance, 0, 1)
    return _filter(image, disc / tf.reduce_sum(disc))


def _offsets(radius: int) -> tf.Tensor:
    return tf.range(-radius, radius + 1, dtype=tf.float64)


def _filter_along(image: tf.Tensor, kernel: tf.Tensor, axis: int) -> tf.Tensor:
    """Applies a [k] kernel along one axis: bit-identical to `_filter` and much faster.

    TensorFlow's depthwise convolution is vectorised over channels, and three channels make poor
    use of that. Since all lines are filtered alike, the pixels along the other axis are treated
    as channels here.
    """
    if axis == 1:
        image = tf.transpose(image, [1, 0, 2])
    shape = tf.shape(image)
    length, values = shape[0], shape[1] * shape[2]
    lines = tf.reshape(image, [length, values])
    lines = tf.pad(lines, [[0, 0], [0, -values % _LANES]])
    lines = _reflect_pad(lines, kernel.shape[0] // 2, axis=0)
    lines = tf.reshape(lines, [1, tf.shape(lines)[0], -1, _LANES])
    filters = tf.tile(tf.cast(kernel, tf.float32)[:, None, None, None], [1, 1, _LANES, 1])
    filtered = tf.nn.depthwise_conv2d(lines, filters, [1, 1, 1, 1], "VALID")
    filtered = tf.reshape(filtered, [length, -1])[:, :values]
    filtered = tf.ensure_shape(tf.reshape(filtered, shape), image.shape)
    return tf.transpose(filtered, [1, 0, 2]) if axis == 1 else filtered


def _filter(image: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Correlates each channel with an odd-sized [kH, kW] kernel, with reflected borders."""
    padded = image
    for axis in (0, 1):
        padded = _reflect_pad(padded, kernel.shape[axis] // 2, axis)
    filters = tf.cast(kernel, tf.float32)[:, :, None, None]
    filters = tf.tile(filters, [1, 1, image.shape[-1], 1])
    filtered = tf.nn.depthwise_conv2d(padded[None], filters, [1, 1, 1, 1], "VALID")[0]
    return tf.ensure_shape(filtered, image.shape)


def _reflect_pad(image: tf.Tensor, radius: int, axis: int) -> tf.Tensor:
    """Pads an axis by reflection, also by more than its length, which `tf.pad` refuses."""
    if radius == 0:
        return image
    length = tf.shape(image)[axis]
    period = tf.maximum(2 * (length - 1), 1)

    def border(start: tf.Tensor) -> tf.Tensor:
        position = tf.math.floormod(tf.range(start, start + radius), period)
        return tf.gather(image, tf.minimum(position, period - position), axis=axis)

    return tf.concat([border(tf.constant(-radius)), image, border(length)], axis)


def gaussian_noise(
    image: tf.Tensor,
    seed: tf.Tensor,
    sigma: Range,
    skew: float = 1.0,
    kinds: tuple[str, ...] = ("independent",),
) -> tf.Tensor:
    """Adds Gaussian noise of one of the kinds, see `Law.noise`, without clipping.

    The standard deviation, in grey levels, is drawn per channel.
    """
    scale = _uniform(sigma, _fold_in(seed, 0), (image.shape[-1],), skew)
    shape = tf.shape(image)
    white = tf.random.stateless_normal(shape, _fold_in(seed, 1), alg="philox")
    made = {
        "independent": lambda: scale * white,
        "grey": lambda: tf.broadcast_to(scale[0] * white[..., :1], shape),
        "demosaiced": lambda: _demosaiced(scale * white),
    }
    if len(set(kinds)) == 1:
        return image + made[kinds[0]]()
    drawn = tf.random.stateless_uniform(
        [], _fold_in(seed, 2), 0, len(kinds), dtype=tf.int32, alg="philox"
    )
    return image + tf.switch_case(drawn, [made[kind] for kind in kinds])


def _demosaiced(image: tf.Tensor) -> tf.Tensor:
    """Keeps the channel of each pixel of Bayer's pattern and interpolates the others."""
    rows, columns = (tf.range(tf.shape(image)[axis]) % 2 for axis in (0, 1))
    kept = tf.cast(tf.stack(bayer(rows[:, None], columns), axis=-1), tf.float32)
    padded = tf.pad(image * kept, ((1, 1), (1, 1), (0, 0)), mode="REFLECT")
    kernel = tf.stack([tf.constant(one) for one in DEMOSAIC], axis=-1)[..., None]
    return tf.nn.depthwise_conv2d(padded[None], kernel, (1, 1, 1, 1), "VALID")[0]


def poisson_noise(image: tf.Tensor, seed: tf.Tensor, peak: Range) -> tf.Tensor:
    """Replaces each value by a rescaled Poisson photon count, without clipping.

    `peak`, drawn per image, is the number of photons at white (255); a grey level g keeps its
    mean g and gets the variance 255 g / peak.
    """
    white = _draw_scalar(peak, _fold_in(seed, 0))
    rate = tf.maximum(image, 0) * tf.cast(white / 255, tf.float32)
    counts = tf.random.stateless_poisson(tf.shape(image), _fold_in(seed, 1), rate, tf.float32)
    return tf.ensure_shape(counts * tf.cast(255 / white, tf.float32), image.shape)


def gain(image: tf.Tensor, seed: tf.Tensor, bounds: Range) -> tf.Tensor:
    """Multiplies each channel by its own drawn factor, without clipping."""
    return image * _uniform(bounds, seed, (image.shape[-1],))


def quantise(image: tf.Tensor, mode: str) -> tf.Tensor:
    """Clips to [0, 255]; the modes "truncate" and "round" (not "none") also give integers."""
    if mode == "truncate":
        image = tf.floor(image + FLOAT_DUST)
    elif mode == "round":
        image = tf.round(image)
    return tf.clip_by_value(image, 0.0, 255.0)


def jpeg(image: tf.Tensor, seed: tf.Tensor, quality: Range, share: float = 1.0) -> tf.Tensor:
    """Stores a share of the images as JPEG (4:2:0) of a drawn quality, and reads them again.

    Returns:
        float32 [H, W, 3] of whole grey levels; an image that is not stored is returned as is.
    """
    drawn = tf.cast(tf.round(_uniform(quality, _fold_in(seed, 0))), tf.int32)

    def stored() -> tf.Tensor:
        levels = tf.cast(quantise(image, "round"), tf.uint8)
        read = tf.image.adjust_jpeg_quality(levels, drawn, dct_method="INTEGER_ACCURATE")
        return tf.cast(tf.ensure_shape(read, image.shape), tf.float32)

    if share == 1.0:
        return stored()
    chosen = tf.random.stateless_uniform([], _fold_in(seed, 1), alg="philox") < share
    return tf.cond(chosen, stored, lambda: image)
