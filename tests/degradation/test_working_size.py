"""The law at the working size, against the law at native size followed by the resize."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from data import degrade, resize
from data.rendered import sample
from restore_jax.degradation import definition, working_size
from restore_jax.errors import UsageError

DRAWS = 192


@functools.cache
def photograph(side):
    image, _ = sample.render("tile", "crack", 3, 160)
    image = tf.image.resize(image, [side, side], "bicubic", antialias=True).numpy()
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("native", "size", "method"),
    [
        (256, 64, "bilinear"), (225, 64, "bilinear"), (64, 64, "bilinear"),
        (75, 64, "area"), (256, 64, "area"),
    ],
)  # fmt: skip
def test_noise_has_the_covariance_that_the_resize_leaves(native, size, method):
    # Applied to unit vectors, the real resize shows its weights.
    unit = np.eye(native, dtype=np.float32)[:, :, None]
    weights = tf.image.resize(unit, [size, native], method, antialias=method == "bilinear")
    weights = weights.numpy()[..., 0].astype(np.float64)
    np.testing.assert_allclose(
        working_size.resize_weights(native, size, method), weights, atol=1e-6
    )
    own, before = working_size.correlation(native, size, method).astype(np.float64)
    factor = np.diag(own) + np.diag(before[1:], -1)
    np.testing.assert_allclose(factor @ factor.T, weights @ weights.T, atol=1e-6)


def test_each_axis_of_each_photograph_has_its_own():
    factors = working_size.correlations([(64, 64), (100, 64)], 32, "bilinear")
    assert factors.shape == (2, 2, 2, 32)
    np.testing.assert_array_equal(factors[0, 0], working_size.correlation(64, 32, "bilinear"))
    np.testing.assert_array_equal(factors[1, 0], working_size.correlation(100, 32, "bilinear"))
    np.testing.assert_array_equal(factors[1, 1], working_size.correlation(64, 32, "bilinear"))


@pytest.mark.parametrize("quantise", definition.QUANTISERS)
@pytest.mark.parametrize("gain", [None, 0.92, 1.08])
@pytest.mark.parametrize("sigma", [8.0, 65.0])
def test_moments_of_a_pixel(quantise, gain, sigma):
    levels = np.array([0.0, 5.0, 40.3, 128.0, 220.7, 255.0], np.float32)
    noise = tf.random.stateless_normal([60_000, 6], [1, 2])
    drawn = degrade.quantise(levels + sigma * noise, quantise)
    if gain is not None:
        drawn = degrade.quantise(gain * drawn, quantise)
    drawn = drawn.numpy().astype(np.float64)
    mean, deviation = working_size.moments(
        jnp.asarray(levels),
        jnp.float32(sigma**2),
        None if gain is None else jnp.float32(gain),
        quantise,
    )
    # Four standard errors, and what the fractions of whole levels times a gain add.
    np.testing.assert_allclose(mean, drawn.mean(0), atol=4 * sigma / 60_000**0.5 + 0.25)
    np.testing.assert_allclose(deviation, drawn.std(0), rtol=0.03, atol=0.2)


def native_draws(image, preset, size, method):
    """What the host's pipeline makes of one photograph, [DRAWS, size, size, 3]."""

    @tf.function
    def draw(number):
        key = degrade.draw_seed(0, tf.constant("a"), number)
        degraded = degrade.degrade(tf.constant(image), preset, key)
        return tf.round(resize.resize(degraded, size, method))

    return np.stack([draw(tf.constant(n)).numpy() for n in range(DRAWS)])


def working_draws(image, preset, size, method):
    fixed = preset.sigma_x[0] == preset.sigma_x[1] and preset.sigma_y[0] == preset.sigma_y[1]
    only_blur = definition.Law(preset.blur, preset.sigma_x, preset.sigma_y)
    source = degrade.degrade(tf.constant(image), only_blur, [0, 0]) if fixed else image
    source = np.round(resize.resize(source, size, method)).astype(np.uint8)
    drawn = working_size.from_fields(vars(preset), blurred=fixed)
    factors = working_size.correlations([image.shape[:2]], size, method)[0]
    ratio = np.array([size / side for side in image.shape[:2]], np.float32)
    degrade_one = functools.partial(working_size.degrade, law=drawn)
    keys = jax.random.split(jax.random.key(0), DRAWS)
    program = jax.jit(jax.vmap(degrade_one, in_axes=(0, None, None, None)))
    return np.asarray(program(keys, source, factors, ratio)).astype(np.float64)


def noise(draws):
    """What differs between draws of one photograph, without each draw's own mean."""
    centred = draws - draws.mean(axis=0)
    return centred - centred.mean(axis=(1, 2), keepdims=True)


def correlation(draws, axis, pixels):
    n = np.moveaxis(noise(draws), axis, 0)
    return np.mean(n[pixels:] * n[:-pixels]) / np.mean(n**2)


# Four standard errors of as many draws, of which those of the draws' own gain are the largest.
STATISTICS = {
    "mean of the residual": (lambda x, clean: (x - clean).mean(axis=(0, 1, 2)), 3.0, 0.0),
    "deviation of the residual": (lambda x, clean: (x - clean).std(axis=(0, 1, 2)), 0.0, 0.04),
    "deviation of the noise": (lambda x, _: noise(x).std(axis=(0, 1, 2)), 0.0, 0.04),
    "correlation along y": (lambda x, _: correlation(x, 1, 1), 0.02, 0.0),
    "correlation along x": (lambda x, _: correlation(x, 2, 1), 0.02, 0.0),
    "correlation at two pixels": (lambda x, _: correlation(x, 1, 2), 0.02, 0.0),
    "deviations of the draws": (lambda x, _: quantiles(noise(x).std(axis=(1, 2))), 0.0, 0.05),
    "means of the draws": (lambda x, clean: quantiles((x - clean).mean(axis=(1, 2))), 3.0, 0.0),
}


def quantiles(values):
    return np.quantile(values, [0.1, 0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize(
    ("preset", "native", "size", "method"),
    [("kla", 160, 40, "bilinear"), ("kla", 150, 64, "area"), ("mild", 128, 64, "bilinear")],
)
def test_statistics_are_those_of_the_host(preset, native, size, method):
    preset = definition.PRESETS[preset]
    image = photograph(native)
    clean = np.round(resize.resize(image, size, method))
    host = native_draws(image, preset, size, method)
    device = working_draws(image, preset, size, method)
    for name, (statistic, atol, rtol) in STATISTICS.items():
        found, expected = statistic(device, clean), statistic(host, clean)
        np.testing.assert_allclose(found, expected, rtol, atol, err_msg=name)


@pytest.mark.parametrize("gain", [0.92, 1.08])
@pytest.mark.parametrize("size", [40, 64])
def test_each_pixel_has_the_mean_and_deviation_of_the_host(gain, size):
    # With the same draw of sigma and gain every time, only the noise is left to chance.
    fixed = dataclasses.replace(
        definition.PRESETS["kla"], noise_sigma=(70.0, 70.0), gain=(gain, gain)
    )
    image = photograph(160)
    host = native_draws(image, fixed, size, "bilinear")
    device = working_draws(image, fixed, size, "bilinear")
    error = host.std(axis=0) * np.sqrt(2 / DRAWS)
    difference = device.mean(axis=0) - host.mean(axis=0)
    # As if chance alone were at work, to a tenth; and no bias anywhere that would show.
    assert np.sqrt(np.mean((difference / error) ** 2)) < 1.1
    assert abs(difference.mean()) < 0.15
    # But at edges of cracks, where the mean of clipped levels is not that of a clipped mean.
    levels = resize.resize(image, size, "bilinear").numpy()
    assert abs(difference[levels < 90].mean()) < 1.0
    assert abs(difference[levels > 200].mean()) < 0.5
    np.testing.assert_allclose(device.std(axis=0).mean(), host.std(axis=0).mean(), rtol=0.01)
    spread = device.std(axis=0) / host.std(axis=0)
    assert np.quantile(np.abs(spread - 1), 0.95) < 0.25


def test_a_blur_has_its_width():
    impulse = np.zeros((65, 65, 1), np.float32)
    impulse[32, 32] = 1.0
    positions = np.arange(65) - 32.0
    for sigma_y, sigma_x in ((0.9, 2.0), (0.0, 1.0), (4.0, 1.2)):
        blurred = np.asarray(
            working_size.blur(impulse, jnp.float32(sigma_y), jnp.float32(sigma_x))
        )
        assert blurred.sum() == pytest.approx(1.0, abs=1e-3)
        for axis, sigma in ((1, sigma_y), (0, sigma_x)):
            profile = blurred[..., 0].sum(axis=axis)
            assert profile @ positions**2 == pytest.approx(sigma**2, abs=5e-2)
    flat = np.full((12, 20, 3), 40.0, np.float32)
    np.testing.assert_allclose(
        working_size.blur(flat, jnp.float32(4), jnp.float32(3)), flat, rtol=1e-5
    )


def test_a_blur_is_the_native_one_where_nothing_is_resized():
    image = photograph(64).astype(np.float32)
    ours = working_size.blur(image, jnp.float32(1.5), jnp.float32(3.0))
    theirs = degrade.gaussian_blur(image, [0, 0], (3.0, 3.0), (1.5, 1.5))
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.mark.parametrize("blur", [("motion",), ("gaussian", "defocus"), ("none", "gaussian")])
def test_a_blur_that_cannot_be_drawn_is_refused(blur):
    fields = vars(definition.Law()) | {"blur": blur}
    with pytest.raises(UsageError, match=r"^config\.data\.degradation\.blur: .*realisations"):
        working_size.from_fields(fields, blurred=False)


def test_an_enlarged_photograph_is_refused():
    with pytest.raises(
        UsageError, match=r"^config\.data\.image_size: 64 px would enlarge .* 40 px"
    ):
        working_size.correlations([(64, 40)], 64, "bilinear")


def test_a_law_that_does_nothing_draws_the_photograph_itself():
    image = photograph(40)
    factors = working_size.correlations([(40, 40)], 40, "bilinear")[0]
    drawn = working_size.from_fields(vars(definition.Law()), blurred=False)
    made = working_size.degrade(
        jax.random.key(0), image, factors, np.ones(2, np.float32), drawn
    )
    np.testing.assert_allclose(np.asarray(made).astype(int), image, atol=1)
