"""The degradation law at the working size, in JAX, as sampled within a training step.

The law acts at a photograph's native size and the pair is resized afterwards; a step has only
the resized photograph. Its samples match the law in their first and second moments:

- *Blur* of fixed widths is already in the pixels (the file of pairs holds the blurred
  photograph). Random widths are scaled by the ratio of the sizes, and the discrete Gaussian of
  that variance is applied to the resized photograph.
- *Noise, clipping, quantisation, gain* turn a grey level x of a native pixel into
  clip(a X − c, 0, h) with X ~ N(x, σ²), whose mean and variance are known in closed form. An
  antialiased resize averages many such pixels: the mean is unchanged, the variance is
  multiplied by the sum of the squared weights, neighbours overlap and are correlated, and the
  sum is close to Gaussian. It is therefore sampled as mean + deviation · n, where n has exactly
  the covariance of resized white noise.

Two approximations remain. x is taken as constant under one weight of the resize, so that at an
edge that is sharp after the blur and close to black or white, the clipped mean is off by a few
grey levels. And at equal sizes, where nothing is averaged, clipped noise is sampled as
Gaussian. Motion and defocus blur, and enlarged photographs, are rejected.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from restore_jax.degradation.definition import Range
from restore_jax.errors import UsageError

_REMEDY = (
    "set config.data.realisations to a number of fixed draws, or config.data.resident=False"
)


@dataclasses.dataclass(frozen=True)
class StepLaw:
    """The part of a law that is sampled within a step. Ranges are (low, high), at native size.

    Attributes:
        sigma_x: standard deviation of the blur along x, native px, per image; None if the
            pixels are already blurred, or the law has no blur.
        sigma_y: the same along y; None exactly when `sigma_x` is.
        noise_sigma: standard deviation of the noise in grey levels, per image and channel.
        poisson_peak: photon count at white, per image; (0, 0): no photon noise.
        gain: factor per image and channel; (1, 1): none.
        quantise: "truncate", "round" or "none".
    """

    sigma_x: Range | None
    sigma_y: Range | None
    noise_sigma: Range
    poisson_peak: Range
    gain: Range
    quantise: str


def from_fields(fields: Mapping[str, Any], blurred: bool) -> StepLaw:
    """Returns the part of a law that remains to be sampled within a step.

    Args:
        fields: the fields of the law, see `definition.Law`; none of them None.
        blurred: whether the photographs are already blurred.

    Raises:
        UsageError: if a step cannot sample the law's blur, kinds of noise, JPEG, `clean_share`
            or `skew`.
    """
    neutrals = {
        "clean_share": 0.0,
        "skew": 1.0,
        "noise": ["independent"],
        "jpeg_quality": [0.0, 0.0],
    }
    for name, neutral in neutrals.items():
        given = fields.get(name, neutral)
        if (list(given) if isinstance(given, tuple) else given) != neutral:
            raise UsageError(
                f"config.data.degradation.{name}: {given} cannot be drawn within a "
                f"step, only {neutral}; {_REMEDY}"
            )
    kinds = set(fields["blur"])
    if not blurred and kinds not in ({"none"}, {"gaussian"}):
        raise UsageError(
            f"config.data.degradation.blur: {sorted(kinds)} cannot be drawn within a step, "
            f"only gaussian or none; {_REMEDY}"
        )
    draws_blur = not blurred and kinds == {"gaussian"}
    return StepLaw(
        sigma_x=tuple(fields["sigma_x"]) if draws_blur else None,
        sigma_y=tuple(fields["sigma_y"]) if draws_blur else None,
        noise_sigma=tuple(fields["noise_sigma"]),
        poisson_peak=tuple(fields["poisson_peak"]),
        gain=tuple(fields["gain"]),
        quantise=fields["quantise"],
    )


def resize_weights(native: int, size: int, method: str) -> np.ndarray:
    """Returns the weights of an antialiased resize along one axis.

    Args:
        native: the length before, px.
        size: the length after, px; at most `native`.
        method: "bilinear" (a triangle two new pixels wide) or "area" (shares of overlap).

    Returns:
        float64 [size, native]; each row sums to 1.
    """
    ratio = native / size
    if method == "area":
        starts, pixels = ratio * np.arange(size)[:, None], np.arange(native)[None, :]
        overlap = np.minimum(starts + ratio, pixels + 1) - np.maximum(starts, pixels)
        weights = np.maximum(overlap, 0.0)
    else:
        centres = ratio * (np.arange(size)[:, None] + 0.5)
        distance = np.abs(np.arange(native)[None, :] + 0.5 - centres)
        weights = np.maximum(1.0 - distance / ratio, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def correlation(native: int, size: int, method: str) -> np.ndarray:
    """Returns the Cholesky factor of the covariance of resized white noise along one axis.

    Each row of the resize weights overlaps only with its neighbours, so that the covariance is
    tridiagonal and its Cholesky factor is bidiagonal.

    Returns:
        float32 [2, size]: the diagonal, which multiplies a pixel's own noise, and the
        subdiagonal, which multiplies that of the pixel before it.

    Raises:
        UsageError: if the image would be enlarged.
    """
    if native < size:
        raise UsageError(
            f"config.data.image_size: {size} px would enlarge a photograph of {native} px, "
            f"whose noise cannot be drawn within a step; {_REMEDY}"
        )
    weights = resize_weights(native, size, method)
    variance = np.sum(weights**2, axis=1)
    shared = np.sum(weights[1:] * weights[:-1], axis=1)
    own, before = np.zeros(size), np.zeros(size)
    own[0] = np.sqrt(variance[0])
    for i in range(1, size):
        before[i] = shared[i - 1] / own[i - 1]
        own[i] = np.sqrt(variance[i] - before[i] ** 2)
    return np.stack([own, before]).astype(np.float32)


def correlations(shapes: Sequence[tuple[int, int]], size: int, method: str) -> np.ndarray:
    """Returns `correlation` along y and x for native shapes (H, W), float32 [N, 2, 2, size]."""
    by_length = {
        length: correlation(length, size, method) for shape in shapes for length in shape
    }
    return np.stack([[by_length[h], by_length[w]] for h, w in shapes])


def degrade(
    key: jax.Array, image: jax.Array, factors: jax.Array, ratio: jax.Array, law: StepLaw
) -> jax.Array:
    """Draws a random degradation of a photograph.

    Args:
        key: random key.
        image: [S, S, 3], grey levels 0…255; already blurred where the law's blur is fixed.
        factors: [2, 2, S], the factors of `correlation` along y and x.
        ratio: [2], working size over native size along y and x.
        law: the degradation to sample.

    Returns:
        uint8 [S, S, 3].
    """
    keys = jax.random.split(key, 6)
    image = image.astype(jnp.float32)
    if law.sigma_x is not None and law.sigma_y is not None:
        image = blur(
            image,
            ratio[0] * uniform(keys[0], law.sigma_y),
            ratio[1] * uniform(keys[1], law.sigma_x),
        )
    channels = image.shape[-1:]
    variance = jnp.square(uniform(keys[2], law.noise_sigma, channels))
    if law.poisson_peak[1] > 0:
        peak = uniform(keys[3], law.poisson_peak)
        variance = variance + jnp.maximum(image, 0.0) * (255.0 / peak)
    gain = None if law.gain == (1.0, 1.0) else draw_gain(key, law.gain)
    mean, deviation = moments(image, variance, gain, law.quantise)
    noise = jax.random.normal(keys[5], image.shape)
    for axis in (0, 1):
        own, before = (x.reshape((-1, 1, 1) if axis == 0 else (-1, 1)) for x in factors[axis])
        # The wrap-around of `roll` is harmless: the first pixel's factor is 0.
        noise = own * noise + before * jnp.roll(noise, 1, axis)
    drawn = jnp.round(mean + deviation * noise)
    return jnp.clip(drawn, 0.0, 255.0).astype(jnp.uint8)


def draw_gain(key: jax.Array, bounds: Range) -> jax.Array:
    """Returns the gain of each channel, [3], that `degrade` draws with the same key."""
    return uniform(jax.random.split(key, 6)[4], bounds, (3,))


def moments(
    level: jax.Array, variance: jax.Array, gain: jax.Array | None, quantise: str
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and deviation of a native pixel after noise, clipping, quantisation, gain.

    Args:
        level: grey levels before the noise.
        variance: variance of the noise, broadcast against `level`.
        gain: factors; None: no gain.
        quantise: "truncate", "round" or "none"; clipping and quantisation follow the noise, and
            again the gain.

    Returns:
        Mean and standard deviation in grey levels, each of the shape of `level`.
    """
    # Truncation lowers the mean by half a level; either rounding error is taken as uniform over
    # one level, of variance 1/12.
    bias = 0.5 if quantise == "truncate" else 0.0
    error = 0.0 if quantise == "none" else 1.0 / 12.0
    if gain is None:
        centre, spread, top = level - bias, variance + error, jnp.float32(255.0)
    else:
        centre = gain * (level - bias) - bias
        spread = jnp.square(gain) * (variance + error) + error
        top = jnp.minimum(255.0, 255.0 * gain - bias)
    deviation = jnp.maximum(jnp.sqrt(spread), 1e-3)
    low, high = -centre / deviation, (top - centre) / deviation
    inside = stats.norm.cdf(high) - stats.norm.cdf(low)
    density_low, density_high = stats.norm.pdf(low), stats.norm.pdf(high)
    above = stats.norm.cdf(-high)
    mean = centre * inside + deviation * (density_low - density_high) + top * above
    mean_square = (
        (jnp.square(centre) + jnp.square(deviation)) * inside
        + deviation * (centre * density_low - (centre + top) * density_high)
        + jnp.square(top) * above
    )
    return mean, jnp.sqrt(jnp.maximum(mean_square - jnp.square(mean), 0.0))


def blur(image: jax.Array, sigma_y: jax.Array, sigma_x: jax.Array) -> jax.Array:
    """Blurs by discrete Gaussians, whose variance is exact at any width; borders are reflected.

    Args:
        image: [H, W, C].
        sigma_y: standard deviation along y, px.
        sigma_x: standard deviation along x, px.
    """
    rows, columns = (
        _blur_matrix(length, sigma)
        for length, sigma in zip(image.shape[:2], (sigma_y, sigma_x), strict=True)
    )
    highest = jax.lax.Precision.HIGHEST
    image = jnp.einsum("ij,jwc->iwc", rows, image, precision=highest)
    return jnp.einsum("ij,hjc->hic", columns, image, precision=highest)


def _blur_matrix(length: int, sigma: jax.Array) -> jax.Array:
    """Returns the matrix [length, length] that blurs along one axis."""
    # By inverse Fourier transform: a Gaussian sampled in space has a wrong width below one px.
    angles = jnp.linspace(0.0, jnp.pi, 2 * length + 1)
    kernel = jnp.fft.irfft(jnp.exp(-0.5 * jnp.square(sigma * angles)), 4 * length)
    i, j = np.arange(length)[:, None], np.arange(length)[None, :]
    last = length - 1
    # Reflect about the outermost pixels without repeating them.
    matrix = (
        kernel[np.abs(i - j)]
        + np.where(j > 0, 1.0, 0.0) * kernel[i + j]
        + np.where(j < last, 1.0, 0.0) * kernel[2 * last - i - j]
    )
    # Tails beyond one whole reflected image are dropped; normalising keeps the brightness.
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(jnp.float32)


def uniform(
    key: jax.Array, bounds: Range, shape: tuple[int, ...] = (), skew: float = 1.0
) -> jax.Array:
    """Draws float32 `low + (high - low) · u^skew`, u from U(0, 1); a constant if low = high."""
    low, high = bounds
    if low == high:
        return jnp.full(shape, low, jnp.float32)
    if skew == 1.0:
        return jax.random.uniform(key, shape, minval=low, maxval=high)
    return low + (high - low) * jax.random.uniform(key, shape) ** skew
