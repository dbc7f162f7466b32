"""The law at native size in JAX, against the host's pipeline and cases worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from data import degrade
from data.rendered import sample
from restore_jax.degradation import native_size, working_size
from restore_jax.degradation.definition import PRESETS, Law
from restore_jax.errors import UsageError
from tests.support import jpegs

BLURS = {
    "gaussian": Law(blur=("gaussian",), sigma_x=(5.0, 5.0), sigma_y=(1.5, 1.5)),
    "one axis": Law(blur=("gaussian",), sigma_x=(0.0, 0.0), sigma_y=(2.0, 2.0)),
    "motion": Law(blur=("motion",), motion_length=(9.0, 9.0), motion_angle=(33.0, 33.0)),
    "defocus": Law(blur=("defocus",), defocus_radius=(3.3, 3.3)),
}


def window_of(image, reach):
    return np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")


@pytest.mark.parametrize("blur", BLURS.values(), ids=BLURS)
def test_blurs_as_the_host_does(blur):
    image, _ = sample.render("tile", "crack", 3, 64)
    host = degrade.degrade(tf.constant(image), blur, [1, 2]).numpy()
    reach = native_size.radius(blur)
    found = native_size.degrade(jax.random.key(0), window_of(image, reach), blur)
    assert np.abs(np.asarray(found) - np.round(host)).max() <= 1
    kernel = native_size.draw_kernel(jax.random.key(0), blur)
    assert kernel.shape == (2 * reach + 1, 2 * reach + 1)
    window = jnp.asarray(window_of(image, reach), jnp.float32)
    np.testing.assert_allclose(native_size.filtered(window, kernel), host, atol=2e-3)


def test_noise_is_clipped_and_quantised_before_the_gain_and_after_it():
    # 100 is left by the noise step as it is; times 1.1 it is 110, times 2.7 it is clipped.
    plain = dataclasses.replace(Law(), quantise="truncate")
    window = np.full((8, 8, 3), 100, np.uint8)
    for gain, level in ((1.105, 110), (2.7, 255), (0.999, 99)):
        found = native_size.degrade(
            jax.random.key(0), window, dataclasses.replace(plain, gain=(gain, gain))
        )
        np.testing.assert_array_equal(found, level)


@pytest.mark.parametrize("preset", ["kla", pytest.param("mild", marks=pytest.mark.slow)])
def test_levels_have_the_hosts_mean_and_deviation(preset):
    drawn = PRESETS[preset]
    reach = native_size.radius(drawn)
    image = np.full((48, 48, 3), 180, np.uint8)
    keys = jax.random.split(jax.random.key(1), 200)
    window = window_of(image, reach)
    own = jax.jit(jax.vmap(lambda key: native_size.degrade(key, window, drawn)))(keys)
    own = np.asarray(own, float)
    host = np.stack(
        [degrade.degrade(tf.constant(image), drawn, [5, i]).numpy() for i in range(200)]
    )
    for found in (own, host):
        assert found.shape == (200, 48, 48, 3)
    # 600 draws of gain and noise level; the means of a channel scatter by 10 levels.
    assert abs(own.mean() - host.mean()) < 1.5
    assert abs(own.std((1, 2)).mean() / host.std((1, 2)).mean() - 1) < 0.03


@pytest.mark.parametrize("kind", ["grey", "demosaiced"])
def test_noise_has_the_hosts_covariance(kind):
    law = Law(noise=(kind,), noise_sigma=(20.0, 20.0), quantise="round")
    image = np.full((64, 64, 3), 128, np.uint8)
    keys = jax.random.split(jax.random.key(4), 30)
    own = jax.vmap(lambda key: native_size.degrade(key, image, law))(keys)
    host = [degrade.degrade(tf.constant(image), law, [7, i]).numpy() for i in range(30)]

    def covariance(images):
        """Of the channels of pixels that lie 0 or 1 px apart, [6, 6]."""
        noise = np.asarray(images, float) - 128
        pairs = np.concatenate([noise[:, :, :-1], noise[:, :, 1:]], axis=-1)
        return np.cov(pairs.reshape(-1, 6).T)

    np.testing.assert_allclose(covariance(own), covariance(host), atol=8)
    assert abs(covariance(own)[0, 3]) > 100 or kind == "grey"  # 225 and 0 of 400


def test_kinds_of_noise_are_drawn_as_often_as_they_are_named():
    law = Law(noise=("grey", "demosaiced", "grey", "independent"), noise_sigma=(9.0, 9.0))
    image = np.full((8, 8, 3), 128, np.uint8)
    keys = jax.random.split(jax.random.key(5), 400)
    found = np.asarray(jax.vmap(lambda key: native_size.degrade(key, image, law))(keys))
    grey = (found == found[..., :1]).all((1, 2, 3)).mean()
    assert abs(grey - 0.5) < 0.1


def test_a_step_at_the_working_size_draws_independent_noise_only():
    fields = vars(Law(noise=("independent", "grey"), noise_sigma=(9.0, 9.0)))
    with pytest.raises(UsageError, match=r"^config\.data\.degradation\.noise: .*within a step"):
        working_size.from_fields(fields, blurred=True)
    assert working_size.from_fields(vars(Law()), blurred=True)
    older = {name: value for name, value in fields.items() if name != "noise"}
    assert working_size.from_fields(older, blurred=True)


def test_the_blocks_of_a_jpeg_begin_anywhere():
    image, _ = sample.render("tile", "crack", 3, 56)
    law = Law(jpeg_quality=(60.0, 60.0))
    assert native_size.margin(law) == 16
    starts = [(row, column) for row in range(16) for column in range(16)]
    # The crop of 24 px as a part of each of 256 JPEGs, by Pillow.
    expected = [
        jpegs.by_pillow(image[row:, column:], 60)[
            16 - row : 40 - row, 16 - column : 40 - column
        ]
        for row, column in starts
    ]
    found = jax.vmap(lambda key: native_size.degrade(key, image, law))(
        jax.random.split(jax.random.key(8), 24)
    )
    nearest = []
    for crop in np.asarray(found, float):
        errors = [np.abs(crop - one).mean() for one in expected]
        nearest.append(starts[int(np.argmin(errors))])
        assert min(errors) < 0.2 * np.median(errors)
    assert len(set(nearest)) > 18


def test_a_share_is_stored_as_jpeg():
    image, _ = sample.render("tile", "crack", 3, 48)
    law = Law(jpeg_quality=(30.0, 30.0), jpeg_share=0.3)
    keys = jax.random.split(jax.random.key(9), 300)
    found = jax.vmap(lambda key: native_size.degrade(key, image, law))(keys)
    left = (np.asarray(found) == image[16:32, 16:32]).all((1, 2, 3))
    assert 0.6 < left.mean() < 0.8


def test_kinds_of_blur_are_drawn_as_often_as_they_are_named():
    drawn = Law(
        blur=("none", "defocus", "defocus", "motion"),
        defocus_radius=(4.0, 4.0),
        motion_length=(8.0, 8.0),
        motion_angle=(0.0, 0.0),
    )
    keys = jax.random.split(jax.random.key(2), 800)
    kernels = np.asarray(jax.vmap(lambda key: native_size.draw_kernel(key, drawn))(keys))
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-5)
    shares = [
        np.mean(kernels[:, 4, 4] > 0.99),
        np.mean((kernels > 0).sum((1, 2)) > 30),
        np.mean(kernels[:, 4].sum(1) > 0.99) - np.mean(kernels[:, 4, 4] > 0.99),
    ]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.05)


def test_a_share_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    drawn = Law(blur=("defocus",), defocus_radius=(2.0, 2.0), clean_share=0.3)
    window = window_of(image, native_size.radius(drawn))
    keys = jax.random.split(jax.random.key(3), 400)
    found = jax.vmap(lambda key: native_size.degrade(key, window, drawn))(keys)
    left = (np.asarray(found) == image).all((1, 2, 3))
    assert 0.2 < left.mean() < 0.4


def test_the_gain_is_the_one_that_was_applied():
    drawn = Law(blur=("none",), quantise="none", gain=(0.5, 0.9), clean_share=0.5)
    image = jnp.full((8, 8, 3), 200.0)
    shares = []
    for number in range(20):
        key = jax.random.key(number)
        degraded = np.asarray(native_size.degrade(key, image, drawn), float).mean((0, 1))
        gain = np.asarray(native_size.draw_gain(key, drawn))
        np.testing.assert_allclose(degraded, 200 * gain, atol=0.51)
        shares.append((gain == 1).all())
    assert 0.2 < np.mean(shares) < 0.8


def test_a_thumbnail_of_the_same_key_has_the_same_gain():
    drawn = dataclasses.replace(PRESETS["kla"], noise_sigma=(0.0, 0.0))
    at_working_size = working_size.from_fields(vars(drawn), blurred=False)
    reach = native_size.radius(drawn)
    window = np.full((8 + 2 * reach, 8 + 2 * reach, 3), 200, np.uint8)
    factors = working_size.correlations([(64, 64)], 16, "bilinear")[0]
    for number in range(5):
        key = jax.random.key(number)
        crop = native_size.degrade(key, window, drawn)
        thumbnail = working_size.degrade(
            key, np.full((16, 16, 3), 200.0), factors, np.full(2, 0.25), at_working_size
        )
        means = [np.asarray(x, float).mean((0, 1)) for x in (crop, thumbnail)]
        np.testing.assert_allclose(*means, atol=1.5)
        assert np.ptp(means[0]) > 2
