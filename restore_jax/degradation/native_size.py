"""The complete degradation law at native size, in JAX, for crops drawn within a training step.

`data/degrade.py` implements the same law for whole photographs in the host's pipeline. Here it
acts on a window of a photograph that extends beyond the crop, on each side, by the radius of
the widest blur, and by a block where a JPEG may be written. The random keys differ, so
individual images differ too; their distribution is the same.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from restore_jax.degradation import jpeg, working_size
from restore_jax.degradation.definition import DEMOSAIC, FLOAT_DUST, Law, bayer
from restore_jax.degradation.working_size import uniform


def from_fields(fields: Mapping[str, Any]) -> Law:
    """Builds a law from its fields as stored in a file of pairs."""
    return Law(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in fields.items()})


def radius(law: Law) -> int:
    """Returns the radius of the widest blur kernel of a law, in px."""
    radii = {
        "none": 0,
        "gaussian": math.ceil(4 * max(law.sigma_x[1], law.sigma_y[1])),
        "motion": math.ceil(law.motion_length[1] / 2),
        "defocus": math.ceil(law.defocus_radius[1]),
    }
    return max(radii[kind] for kind in law.blur)


def margin(law: Law) -> int:
    """Returns by how many px the window of a photograph extends beyond the crop."""
    return radius(law) + (jpeg.MCU if law.jpeg_quality[1] else 0)


def degrade(key: jax.Array, window: jax.Array, law: Law) -> jax.Array:
    """Degrades the centre of a window of a photograph.

    Args:
        key: random key. Noise level and gain are drawn from it as in `working_size.degrade`, so
            that a thumbnail degraded with the same key has the same gain.
        window: [S + 2M, S + 2M, 3], grey levels 0…255, M = `margin(law)`.
        law: the degradation to sample.

    Returns:
        uint8 [S, S, 3].
    """
    keys = jax.random.split(key, 6)
    window = window.astype(jnp.float32)
    untouched = _without(window, margin(law))
    image = _blurred(key, window, law) if radius(law) else window
    channels = image.shape[-1:]
    if law.poisson_peak[1] > 0:
        peak = uniform(keys[3], law.poisson_peak)
        rate = jnp.maximum(image, 0.0) * (peak / 255.0)
        image = jax.random.poisson(jax.random.fold_in(keys[3], 1), rate) * (255.0 / peak)
    sigma = uniform(keys[2], law.noise_sigma, channels, law.skew)
    image = image + _noise(keys[5], image.shape, sigma, law.noise)
    image = _quantised(image, law.quantise)
    if law.gain != (1.0, 1.0):
        image = _quantised(image * working_size.draw_gain(key, law.gain), law.quantise)
    if law.jpeg_quality[1] > 0:
        image = _stored(jax.random.fold_in(key, 9), image, law)
    if law.clean_share:
        image = jnp.where(_is_clean(key, law), untouched, image)
    return jnp.clip(jnp.round(image), 0.0, 255.0).astype(jnp.uint8)


def draw_gain(key: jax.Array, law: Law) -> jax.Array:
    """Returns the gain of each channel, [3], that `degrade` applies with the same key.

    It is 1 for an image that the law leaves as it is.
    """
    gain = working_size.draw_gain(key, law.gain)
    return jnp.where(_is_clean(key, law), 1.0, gain) if law.clean_share else gain


def _is_clean(key: jax.Array, law: Law) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, 6)) < law.clean_share


def _without(image: jax.Array, border: int) -> jax.Array:
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def _stored(key: jax.Array, image: jax.Array, law: Law) -> jax.Array:
    """Stores a share of the images as JPEG, whose blocks begin anywhere.

    Args:
        key: random key.
        image: [S + 2B, S + 2B, 3], B = `jpeg.MCU`.
        law: the degradation.

    Returns:
        [S, S, 3].
    """
    quality_key, share_key, start_key = jax.random.split(key, 3)
    inside = _without(image, jpeg.MCU)
    side = inside.shape[0]
    # Of 1 to B px before the crop, and so many after it that the whole blocks cover it.
    start = jax.random.randint(start_key, (2,), 0, jpeg.MCU)
    length = -(-(side + jpeg.MCU) // jpeg.MCU) * jpeg.MCU
    image = jnp.pad(image, ((0, jpeg.MCU), (0, jpeg.MCU), (0, 0)), mode="edge")
    blocks = jax.lax.dynamic_slice(image, (*start, 0), (length, length, image.shape[-1]))
    read = jpeg.stored(blocks, uniform(quality_key, law.jpeg_quality))
    first = (*(jpeg.MCU - start), 0)
    read = jax.lax.dynamic_slice(read, first, inside.shape)
    if law.jpeg_share == 1.0:
        return read
    return jnp.where(jax.random.uniform(share_key) < law.jpeg_share, read, inside)


def _noise(
    key: jax.Array, shape: tuple[int, ...], sigma: jax.Array, kinds: tuple[str, ...]
) -> jax.Array:
    """Draws noise of one of the kinds, see `definition.Law`; `sigma` per channel, [3]."""
    white = jax.random.normal(key, shape)
    made = {
        "independent": lambda: sigma * white,
        "grey": lambda: jnp.broadcast_to(sigma[0] * white[..., :1], shape),
        "demosaiced": lambda: _demosaiced(sigma * white),
    }
    if len(set(kinds)) == 1:
        return made[kinds[0]]()
    drawn = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(kinds))
    return jax.lax.switch(drawn, [made[kind] for kind in kinds])


def _demosaiced(image: jax.Array) -> jax.Array:
    """Keeps the channel of each pixel of Bayer's pattern and interpolates the others."""
    rows, columns = (np.arange(length) % 2 for length in image.shape[:2])
    height, width = image.shape[:2]
    kept = np.stack(bayer(rows[:, None], columns), axis=-1)
    padded = jnp.pad(image * kept, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    kernels = np.stack(DEMOSAIC, axis=-1).astype(np.float32)
    return sum(
        kernels[i, j] * padded[i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
    )


def _blurred(key: jax.Array, window: jax.Array, law: Law) -> jax.Array:
    if set(law.blur) == {"gaussian"}:
        # Products with two band matrices take a tenth of the time of an FFT on a CPU.
        rows, columns = (_banded(axis, window.shape[0]) for axis in _gaussian_axes(key, law))
        highest = jax.lax.Precision.HIGHEST
        window = jnp.einsum("ij,jwc->iwc", rows, window, precision=highest)
        return jnp.einsum("ij,hjc->hic", columns, window, precision=highest)
    return filtered(window, draw_kernel(key, law))


def _banded(kernel: jax.Array, length: int) -> jax.Array:
    """Returns the matrix [length - K + 1, length] that correlates with a kernel [K]."""
    size = kernel.shape[0]
    offset = np.arange(length)[None, :] - np.arange(length - size + 1)[:, None]
    inside = (offset >= 0) & (offset < size)
    return jnp.where(inside, kernel[np.clip(offset, 0, size - 1)], 0.0)


def _gaussian_axes(key: jax.Array, law: Law) -> tuple[jax.Array, jax.Array]:
    """Draws the Gaussian kernels along y and x, [2R + 1] each."""
    key_y, key_x = jax.random.split(key, 6)[:2]
    offsets = jnp.arange(-radius(law), radius(law) + 1, dtype=jnp.float32)
    along_y, along_x = (
        gaussian_axis(offsets, uniform(k, bounds, skew=law.skew), math.ceil(4 * bounds[1]))
        for k, bounds in ((key_y, law.sigma_y), (key_x, law.sigma_x))
    )
    return along_y, along_x


def draw_kernel(key: jax.Array, law: Law) -> jax.Array:
    """Draws a kernel of one of the law's kinds of blur.

    Returns:
        float32 [2R + 1, 2R + 1], R = `radius(law)`; sums to 1.
    """
    key_y, key_x = jax.random.split(key, 6)[:2]
    offsets = jnp.arange(-radius(law), radius(law) + 1, dtype=jnp.float32)

    def gaussian() -> jax.Array:
        along_y, along_x = _gaussian_axes(key, law)
        return along_y[:, None] * along_x[None, :]

    def motion() -> jax.Array:
        path = uniform(key_y, law.motion_length, skew=law.skew)
        angle = uniform(key_x, law.motion_angle)
        return motion_kernel(offsets, path, angle, 2 * math.ceil(law.motion_length[1]) + 1)

    def defocus() -> jax.Array:
        return defocus_kernel(offsets, uniform(key_y, law.defocus_radius, skew=law.skew))

    def none() -> jax.Array:
        impulse = (offsets == 0).astype(jnp.float32)
        return impulse[:, None] * impulse[None, :]

    kinds = {"none": none, "gaussian": gaussian, "motion": motion, "defocus": defocus}
    used = sorted(set(law.blur))
    kernels = jnp.stack([kinds[kind]() for kind in used])
    if len(used) == 1:
        return kernels[0]
    number = jax.random.randint(jax.random.fold_in(key, 7), (), 0, len(law.blur))
    return kernels[jnp.array([used.index(kind) for kind in law.blur])[number]]


def gaussian_axis(offsets: jax.Array, sigma: jax.Array, reach: int) -> jax.Array:
    """Returns a Gaussian's weights at whole offsets [K] in px, of unit sum; 0 past `reach`."""
    weights = -0.5 * jnp.square(offsets / jnp.maximum(sigma, 1e-3))
    return jax.nn.softmax(jnp.where(jnp.abs(offsets) <= reach, weights, -jnp.inf))


def motion_kernel(
    offsets: jax.Array, path: jax.Array, angle: jax.Array, points: int
) -> jax.Array:
    """Returns the kernel [K, K] of a straight path.

    Args:
        offsets: whole px along both axes, [K].
        path: its length, px.
        angle: degrees, counter-clockwise from the x axis as the image is seen.
        points: on the path; at most half a pixel apart.
    """
    theta = angle * (math.pi / 180)
    steps = ((jnp.arange(points) + 0.5) / points - 0.5) * path
    # Rows count downwards, hence the plus.
    along_x = jax.nn.relu(1 - jnp.abs(offsets - (steps * jnp.cos(theta))[:, None]))
    along_y = jax.nn.relu(1 - jnp.abs(offsets + (steps * jnp.sin(theta))[:, None]))
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("py,px->yx", along_y, along_x, precision=highest) / points


def defocus_kernel(offsets: jax.Array, radius: jax.Array) -> jax.Array:
    """Returns the kernel [K, K] of a disc of a radius in px, with a rim one pixel soft."""
    distance = jnp.sqrt(offsets[:, None] ** 2 + offsets[None, :] ** 2)
    disc = jnp.clip(radius + 0.5 - distance, 0.0, 1.0)
    return disc / jnp.sum(disc)


def filtered(window: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlates each channel with a kernel by FFT, over the valid region only.

    Args:
        window: [H, W, C].
        kernel: [K, K], K odd.

    Returns:
        [H - K + 1, W - K + 1, C].
    """
    height, width = window.shape[:2]
    size = kernel.shape[0]
    spectrum = jnp.fft.rfft2(window, axes=(0, 1))
    # Correlation is convolution with the kernel rotated by 180°.
    response = jnp.fft.rfft2(kernel[::-1, ::-1], s=(height, width))
    found = jnp.fft.irfft2(spectrum * response[..., None], s=(height, width), axes=(0, 1))
    # The FFT wraps around: the first K - 1 rows and columns mix in the opposite border.
    return found[size - 1 :, size - 1 :]


def _quantised(image: jax.Array, mode: str) -> jax.Array:
    if mode == "truncate":
        image = jnp.floor(image + FLOAT_DUST)
    elif mode == "round":
        image = jnp.round(image)
    return jnp.clip(image, 0.0, 255.0)
