"""The degradation law, unit by unit, against SciPy, Pillow and NumPy."""

import dataclasses
import json
import math

import ml_collections
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf
from ml_collections import config_dict

from data import degrade
from data.rendered import sample
from restore_jax.degradation import definition
from restore_jax.degradation.definition import Law
from restore_jax.errors import UsageError
from tests.support import jpegs

PREFIX = "config.data.degradation."


def seed_of(number):
    return degrade.draw_seed(number, tf.constant("carpet/cut/000"), tf.constant(0))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)


def impulse(height, width):
    """A one in the middle of each channel, so that a linear unit returns its kernel."""
    image = np.zeros((height, width, 3), np.float32)
    image[height // 2, width // 2] = 1
    return image


def moments(kernel):
    """Variance along x, along y, and covariance, rows counted downwards."""
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]].astype(float)
    kernel = kernel / kernel.sum()
    x, y = x - (kernel * x).sum(), y - (kernel * y).sum()
    return (kernel * x * x).sum(), (kernel * y * y).sum(), (kernel * x * y).sum()


# The config


def placeholders(**given):
    """The section as a config file writes it."""
    section = ml_collections.ConfigDict({"preset": "kla"})
    for field in dataclasses.fields(definition.Law):
        kinds = dict.fromkeys(("clean_share", "jpeg_share", "skew"), float)
        kind = (kinds | {"quantise": str}).get(field.name, tuple)
        section[field.name] = config_dict.placeholder(kind)
    section.update(given)
    return section


def test_kla_is_the_recovered_law():
    law = definition.law_from_config(placeholders())
    assert law.blur == ("gaussian",)
    assert (law.sigma_x, law.sigma_y) == ((10, 10), (2, 2))
    assert law.noise_sigma == (50, 80)
    assert law.gain == (0.9, 1.1)
    assert law.quantise == "truncate"
    assert law.poisson_peak == (0, 0)


def test_overrides_win_over_the_preset_and_none_does_not():
    law = definition.law_from_config(
        placeholders(preset="mild", sigma_x=(1, 3), blur=("none", "gaussian"), quantise="none")
    )
    assert law == dataclasses.replace(
        definition.PRESETS["mild"],
        sigma_x=(1.0, 3.0),
        blur=("none", "gaussian"),
        quantise="none",
    )


@pytest.mark.parametrize("preset", ["kla", "mild", "blind"])
def test_a_law_survives_the_config_as_json(preset):
    law = definition.PRESETS[preset]
    stored = json.loads(json.dumps({"preset": "kla", **dataclasses.asdict(law)}))
    assert definition.law_from_config(stored) == law


def test_the_blind_preset_reaches_from_almost_nothing_to_beyond_kla():
    blind, kla = definition.PRESETS["blind"], definition.PRESETS["kla"]
    assert set(blind.blur) == {"none", "gaussian", "motion", "defocus"}
    for name in ("sigma_x", "sigma_y", "noise_sigma", "gain"):
        low, high = getattr(blind, name)
        assert low <= getattr(kla, name)[0] <= getattr(kla, name)[1] <= high
    assert blind.noise_sigma[0] == 0


def test_one_kind_of_blur_may_be_a_bare_word():
    assert definition.law_from_config({"blur": "none"}).blur == ("none",)


def test_an_angle_may_be_negative():
    law = definition.law_from_config(
        {"blur": ("motion",), "motion_length": (3, 9), "motion_angle": (-20, 20)}
    )
    assert law.motion_angle == (-20, 20)


@pytest.mark.parametrize(
    ("section", "field", "words"),
    [
        ({"preset": "strong"}, "preset", "'strong' is unknown; choose from kla, mild, blind"),
        ({"preset": ["kla"]}, "preset", "unknown"),
        ({"sigma": (1, 2)}, "sigma", "no such field"),
        ({"sigma": None}, "sigma", "no such field"),
        ({"blur": ("gauss",)}, "blur", "none, gaussian, motion, defocus"),
        ({"blur": ()}, "blur", "one or more"),
        ({"blur": 3}, "blur", "one or more"),
        ({"sigma_x": (3, 1)}, "sigma_x", "low is above high"),
        ({"sigma_y": (-1, 1)}, "sigma_y", "negative"),
        ({"noise_sigma": (-5, 1)}, "noise_sigma", "negative"),
        ({"noise_sigma": (1,)}, "noise_sigma", "give two numbers"),
        ({"noise_sigma": (1, 2, 3)}, "noise_sigma", "give two numbers"),
        ({"noise_sigma": 20.0}, "noise_sigma", "give two numbers"),
        ({"noise_sigma": "12"}, "noise_sigma", "give two numbers"),
        ({"defocus_radius": (0, math.inf)}, "defocus_radius", "give two numbers"),
        ({"motion_length": (0, math.nan)}, "motion_length", "give two numbers"),
        ({"motion_angle": (30, -30)}, "motion_angle", "low is above high"),
        ({"gain": (0, 1)}, "gain", "starts at 0"),
        ({"poisson_peak": (0, 9)}, "poisson_peak", "starts at 0"),
        ({"quantise": "floor"}, "quantise", "choose from truncate, round, none"),
        ({"jpeg_quality": (0, 90)}, "jpeg_quality", "must lie in [1, 100], or be (0, 0)"),
        ({"jpeg_quality": (50, 101)}, "jpeg_quality", "must lie in [1, 100]"),
        ({"blur": ("motion",)}, "motion_length", "has no range; give (low, high) in px"),
        ({"blur": ("none", "defocus")}, "defocus_radius", "has no range"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(section, field, words):
    with pytest.raises(UsageError) as caught:
        definition.law_from_config(section)
    message = str(caught.value)
    assert message.startswith(f"{PREFIX}{field}: ")
    assert words in message
    assert "\n" not in message


def test_a_kind_may_be_switched_off_by_its_own_range():
    law = definition.law_from_config({"blur": ("defocus",), "defocus_radius": (0, 0)})
    assert law.defocus_radius == (0, 0)


# Gaussian blur


def test_kla_blur_has_its_two_widths():
    law = definition.PRESETS["kla"]
    blurred = degrade.gaussian_blur(impulse(61, 121), seed_of(0), law.sigma_x, law.sigma_y)
    for channel in range(3):
        along_x, along_y, covariance = moments(blurred.numpy()[..., channel])
        assert along_x == pytest.approx(100, rel=0.01)
        assert along_y == pytest.approx(4, rel=0.01)
        assert covariance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "shape",
    [
        (50, 60), (9, 7), (1, 30), (30, 1), (2, 3), (1, 1),
        # Whole blocks of 32 px that are filtered side by side, and a pixel more or less.
        (32, 64), (31, 33), (65, 31), (33, 1), (129, 97),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sigmas", [(10.0, 2.0), (0.75, 3.0)])
def test_gaussian_blur_is_scipys_with_mirrored_borders(shape, sigmas):
    image = picture(*shape)
    expected = image.astype(np.float64)
    for axis, sigma in ((1, sigmas[0]), (0, sigmas[1])):
        expected = scipy.ndimage.gaussian_filter1d(
            expected, sigma, axis=axis, mode="mirror", truncate=4.0
        )
    got = degrade.gaussian_blur(image, seed_of(0), (sigmas[0],) * 2, (sigmas[1],) * 2)
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_gaussian_widths_are_drawn_within_their_ranges_and_apart():
    def drawn(number):
        blurred = degrade.gaussian_blur(impulse(49, 49), seed_of(number), (1, 4), (2, 6))
        return np.sqrt(moments(blurred.numpy()[..., 0])[:2])

    widths = np.array([drawn(number) for number in range(40)])
    for column, (low, high) in zip(widths.T, [(1, 4), (2, 6)], strict=True):
        assert low * 0.99 < column.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < column.max() < high * 1.01
    assert abs(np.corrcoef(widths.T)[0, 1]) < 0.4


@pytest.mark.parametrize("sigma", [(0, 0), (0, 1e-6)])
def test_gaussian_blur_of_no_width_is_the_identity(sigma):
    image = picture(12, 9)
    np.testing.assert_array_equal(degrade.gaussian_blur(image, seed_of(0), sigma, sigma), image)


@pytest.mark.parametrize("level", [77.0, 128.0, 255.0])
@pytest.mark.parametrize("kind", ["gaussian", "motion", "defocus"])
def test_a_flat_image_stays_flat_under_every_blur(kind, level):
    law = Law(
        blur=(kind,),
        sigma_x=(10, 10),
        sigma_y=(2, 2),
        motion_length=(15, 15),
        motion_angle=(30, 30),
        defocus_radius=(8, 8),
    )
    flat = np.full((30, 20, 3), level, np.float32)
    np.testing.assert_allclose(degrade.degrade(flat, law, seed_of(0)), flat, atol=1e-3)
    truncated = degrade.degrade(flat, dataclasses.replace(law, quantise="truncate"), seed_of(0))
    np.testing.assert_array_equal(truncated, flat)


# Motion and defocus


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135, 160])
def test_motion_spreads_a_point_along_its_angle(angle):
    length = 20
    image = impulse(41, 41)
    blurred = degrade.motion_blur(image, seed_of(0), (length,) * 2, (angle,) * 2).numpy()
    kernel = blurred[..., 1]
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    xx, yy, xy = moments(kernel)
    theta = math.radians(angle)
    # Rows count downwards, so the direction as seen is (cos θ, −sin θ).
    ux, uy = math.cos(theta), -math.sin(theta)
    along = ux * ux * xx + 2 * ux * uy * xy + uy * uy * yy
    across = uy * uy * xx - 2 * ux * uy * xy + ux * ux * yy
    # A uniform line, plus at most a quarter px² from spreading it over the grid.
    assert length**2 / 12 * 0.99 < along < length**2 / 12 * 1.01 + 0.25
    assert across < 0.26


def test_motion_along_x_is_a_box_on_one_row():
    kernel = degrade.motion_blur(impulse(31, 31), seed_of(0), (9, 9), (0, 0)).numpy()[..., 0]
    np.testing.assert_allclose(kernel[15, 12:19], 1 / 9, rtol=0.06)
    assert kernel[15].sum() == pytest.approx(1, abs=1e-5)
    assert np.all(kernel[15, [9, 21]] == 0)


def test_motion_draws_angle_and_length_within_their_ranges():
    def drawn(number):
        image = impulse(41, 41)
        kernel = degrade.motion_blur(image, seed_of(number), (10, 20), (20, 70)).numpy()
        xx, yy, xy = moments(kernel[..., 0])
        angle = 0.5 * math.degrees(math.atan2(-2 * xy, xx - yy))
        return angle, math.sqrt(12 * (xx + yy))

    angles, lengths = np.array([drawn(number) for number in range(30)]).T
    assert 19 < angles.min() < 35
    assert 55 < angles.max() < 71
    assert 10 < lengths.min() < 13
    assert 17 < lengths.max() < 20.5


def test_motion_of_no_length_is_the_identity():
    image = picture(9, 12)
    for length in ((0, 0), (0, 1e-6)):
        moved = degrade.motion_blur(image, seed_of(0), length, (0, 180))
        np.testing.assert_allclose(moved, image, atol=1e-3)


@pytest.mark.parametrize("radius", [2.0, 4.3, 8.0])
def test_defocus_is_a_disc_of_unit_sum(radius):
    image = impulse(31, 31)
    disc = degrade.defocus_blur(image, seed_of(0), (radius, radius)).numpy()[..., 2]
    y, x = np.mgrid[-15:16, -15:16]
    distance = np.hypot(x, y)
    assert disc.sum() == pytest.approx(1, abs=1e-5)
    inside = disc[distance <= radius - 0.5]
    np.testing.assert_allclose(inside, inside[0], rtol=1e-5)
    assert 1 / inside[0] == pytest.approx(math.pi * radius**2, rel=0.05)
    assert np.all(disc[distance >= radius + 0.5] == 0)
    np.testing.assert_allclose(disc, disc.T, atol=1e-7)


def test_defocus_is_drawn_within_its_range_and_vanishes_at_half_a_pixel():
    def area(number):
        disc = degrade.defocus_blur(impulse(21, 21), seed_of(number), (2, 6)).numpy()[..., 0]
        return 1 / disc[10, 10]

    radii = np.sqrt(np.array([area(number) for number in range(30)]) / math.pi)
    assert 1.9 < radii.min() < 2.8
    assert 5.2 < radii.max() < 6.1
    image = picture(8, 8)
    np.testing.assert_array_equal(degrade.defocus_blur(image, seed_of(0), (0.5, 0.5)), image)
    np.testing.assert_array_equal(degrade.defocus_blur(image, seed_of(0), (0, 0)), image)


# Noise, gain, quantisation


def test_noise_is_white_and_its_sigma_is_drawn_per_image_and_channel():
    grey = np.full((96, 100, 3), 128, np.float32)
    noise = np.stack(
        [degrade.gaussian_noise(grey, seed_of(n), (50, 80)).numpy() - grey for n in range(12)]
    )
    sigmas = noise.std(axis=(1, 2)).ravel()
    # 9,600 pixels know a σ to 0.7 %.
    assert 49 < sigmas.min() < 55
    assert 75 < sigmas.max() < 82
    # Three draws from 30 levels lie 15 apart on average, between channels as between images.
    assert np.ptp(sigmas.reshape(12, 3), axis=1).mean() > 10
    assert np.ptp(sigmas.reshape(4, 3, 3), axis=1).mean() > 10
    assert scipy.stats.kstest(sigmas, "uniform", (50, 30)).pvalue > 0.01
    white = noise / sigmas.reshape(12, 1, 1, 3)
    for a, b in (
        (white[..., 0], white[..., 1]),
        (white[..., 1], white[..., 2]),
        (white[:, 1:], white[:, :-1]),
        (white[:, :, 1:], white[:, :, :-1]),
        (white[1:], white[:-1]),
    ):
        assert abs(np.mean(a * b)) < 0.015
    assert abs(white.mean()) < 0.01
    assert scipy.stats.kstest(white[0, ..., 0].ravel(), "norm").pvalue > 0.01


def test_photon_noise_keeps_the_mean_and_has_the_stated_variance():
    levels = np.array([0, 40, 120, 250], np.float32)
    image = np.broadcast_to(levels[None, :, None, None], (200, 4, 20, 3)).reshape(200, 80, 3)
    peak = 30
    noisy = degrade.poisson_noise(image, seed_of(0), (peak, peak)).numpy()
    for column, level in zip(np.split(noisy, 4, axis=1), levels, strict=True):
        assert column.mean() == pytest.approx(level, rel=0.01)
        assert column.var() == pytest.approx(255 * level / peak, rel=0.05)
    np.testing.assert_allclose(noisy * peak / 255, np.rint(noisy * peak / 255), atol=1e-3)


def test_the_photon_count_is_drawn_within_its_range():
    white = np.full((60, 60, 3), 255, np.float32)
    peaks = np.array(
        [
            255**2 / degrade.poisson_noise(white, seed_of(n), (20, 100)).numpy().var()
            for n in range(30)
        ]
    )
    assert 18 < peaks.min() < 40
    assert 80 < peaks.max() < 107


def test_gain_is_one_factor_per_channel_within_its_range():
    image = picture(10, 8) + 1
    factors = []
    for number in range(30):
        ratio = degrade.gain(image, seed_of(number), (0.9, 1.1)).numpy() / image
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0, 0], ratio.shape), rtol=1e-5)
        factors.append(ratio[0, 0])
    factors = np.array(factors)
    assert 0.9 <= factors.min() < 0.91
    assert 1.09 < factors.max() <= 1.1
    assert np.abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.45
    assert scipy.stats.kstest(factors.ravel(), "uniform", (0.9, 0.2)).pvalue > 0.01


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("truncate", [0, 0, 7, 7, 254, 255, 255]),
        ("round", [0, 1, 7, 8, 255, 255, 255]),
        ("none", [0, 0.75, 7.25, 7.75, 254.75, 255, 255]),
    ],
)
def test_quantise_clips_and_goes_to_whole_numbers(mode, expected):
    values = np.array([-3.5, 0.75, 7.25, 7.75, 254.75, 255.5, 300], np.float32)
    np.testing.assert_array_equal(degrade.quantise(values, mode), expected)


# The whole law


def simulated(clean, rng):
    """The recovered law in NumPy and SciPy, on uint8 as its authors must have had it."""
    image = scipy.ndimage.gaussian_filter1d(clean.astype(float), 10, axis=1, mode="mirror")
    image = scipy.ndimage.gaussian_filter1d(image, 2, axis=0, mode="mirror")
    image = image + rng.normal(size=clean.shape) * rng.uniform(50, 80, 3)
    image = np.clip(image, 0, 255).astype(np.uint8)
    return np.clip(image * rng.uniform(0.9, 1.1, 3), 0, 255).astype(np.uint8)


def scene():
    """A flat ground with a bright bar and a dark disc, and a little texture."""
    y, x = np.mgrid[:48, :64]
    grey = 110 + 90 * (abs(x - 20) < 4) - 80 * (np.hypot(x - 45, y - 25) < 9)
    texture = np.random.default_rng(5).normal(0, 12, (48, 64, 3))
    return np.clip(grey[..., None] + texture, 0, 255).astype(np.uint8)


def mean_psnr(degraded, clean):
    errors = np.mean((np.asarray(degraded, float) - clean) ** 2, axis=(1, 2, 3))
    return np.mean(10 * np.log10(255**2 / errors))


def test_kla_costs_as_much_psnr_as_its_simulation():
    clean, rng, draws = scene(), np.random.default_rng(1), 120
    law = definition.PRESETS["kla"]
    drawn = tf.function(lambda n: degrade.degrade(clean, law, degrade.draw_seed(3, "scene", n)))
    ours = np.stack([drawn(tf.constant(number)) for number in range(draws)])
    theirs = np.stack([simulated(clean, rng) for _ in range(draws)])
    assert abs(mean_psnr(ours, clean) - mean_psnr(theirs, clean)) < 0.2
    assert ours.mean() == pytest.approx(theirs.mean(), abs=1)
    # The mean over draws and channels is the blurred and clipped scene: what is left of the
    # noise, 65 / √360 on either side, comes to a mean difference of 4 grey levels.
    assert np.abs(ours.mean((0, 3)) - theirs.mean((0, 3))).mean() < 5


def test_steps_follow_the_order_of_the_law():
    clean = picture(40, 50).astype(np.uint8)
    seed = seed_of(11)
    law = Law(
        blur=("gaussian",),
        sigma_x=(1.5, 1.5),
        sigma_y=(0.75, 0.75),
        noise_sigma=(10, 20),
        gain=(0.8, 1.2),
        quantise="truncate",
    )
    # Each step alone shows its own draw, for no step's draws depend on another's presence.
    grey = np.full(clean.shape, 128, np.float32)
    only_noise = Law(noise_sigma=law.noise_sigma)
    noise = degrade.degrade(grey, only_noise, seed).numpy() - grey
    factor = degrade.degrade(grey, Law(gain=law.gain), seed).numpy() / grey
    assert np.ptp(factor[0, 0]) > 0.05

    def blur(image):
        image = scipy.ndimage.gaussian_filter1d(image, 1.5, axis=1, mode="mirror")
        return scipy.ndimage.gaussian_filter1d(image, 0.75, axis=0, mode="mirror")

    def whole(image):
        return np.floor(np.clip(image, 0, 255))

    got = degrade.degrade(clean, law, seed).numpy()
    image = clean.astype(np.float64)
    expected = whole(whole(blur(image) + noise) * factor)
    assert np.mean(got != expected) < 0.005
    assert np.abs(got - expected).max() <= 1
    for other in (
        whole(blur(image) * factor + noise),
        whole(whole(blur(image + noise)) * factor),
        whole((blur(image) + noise) * factor),
        np.rint(np.rint(blur(image) + noise) * factor),
    ):
        assert np.mean(got != other) > 0.05


def test_photons_are_counted_before_the_gaussian_noise():
    image, seed = np.full((20, 20, 3), 90, np.uint8), seed_of(4)
    law = Law(poisson_peak=(40, 40), noise_sigma=(5, 5))
    both = degrade.degrade(image, law, seed).numpy()
    photons = degrade.degrade(image, Law(poisson_peak=(40, 40)), seed).numpy()
    noise = degrade.degrade(image, Law(noise_sigma=(5, 5)), seed).numpy() - 90
    inside = (both > 0) & (both < 255)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(both[inside], (photons + noise)[inside], atol=1e-3)


def test_a_law_that_does_nothing_returns_the_image():
    image = picture(6, 5).astype(np.uint8)
    got = degrade.degrade(image, Law(), seed_of(0))
    assert got.dtype == tf.float32
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize("preset", ["kla", "mild", "blind"])
def test_presets_give_whole_grey_levels(preset):
    got = degrade.degrade(scene(), definition.PRESETS[preset], seed_of(2)).numpy()
    assert got.shape == (48, 64, 3)
    assert got.min() >= 0
    assert got.max() <= 255
    np.testing.assert_array_equal(got, np.rint(got))
    assert np.abs(got - scene()).mean() > 1


def test_kinds_of_blur_are_drawn_about_equally_often():
    image = picture(16, 16).astype(np.uint8)
    law = Law(blur=("none", "gaussian"), sigma_x=(2, 2))
    drawn = tf.function(lambda n: degrade.degrade(image, law, degrade.draw_seed(0, "a", n)))
    sharp = sum(np.array_equal(drawn(tf.constant(n)), image) for n in range(60))
    assert 18 <= sharp <= 42


def test_steps_draw_independently_of_each_other():
    point, grey = 255 * impulse(1, 33), np.full((20, 20, 3), 100, np.float32)

    def draws(image, measure, **fields):
        law = Law(**fields)
        drawn = tf.function(lambda n: degrade.degrade(image, law, degrade.draw_seed(2, "a", n)))
        return [measure(drawn(tf.constant(n)).numpy()[..., 0]) for n in range(40)]

    two_kinds = {"blur": ("none", "defocus"), "defocus_radius": (3, 3)}
    columns = [
        draws(point, np.max, **two_kinds),
        draws(point, np.max, blur=("gaussian",), sigma_x=(1, 4)),
        draws(grey, np.std, noise_sigma=(2, 20)),
        draws(grey, np.std, poisson_peak=(20, 100)),
        draws(grey, np.mean, gain=(0.5, 1.5)),
    ]
    correlation = np.corrcoef(columns)
    assert np.abs(correlation[np.triu_indices(5, 1)]).max() < 0.5


# Determinism


def test_a_draw_has_the_same_bits_eagerly_and_in_a_parallel_map():
    law = dataclasses.replace(definition.PRESETS["blind"], quantise="none")
    ids = [f"tile/crack/{number:03d}" for number in range(6)]
    images = [picture(20 + n, 30 - n, seed=n).astype(np.uint8) for n in range(6)]

    def draw(image, image_id, realisation):
        return degrade.degrade(image, law, degrade.draw_seed(7, image_id, realisation))

    dataset = tf.data.Dataset.from_generator(
        lambda: zip(images, ids, range(6), strict=True),
        output_signature=(
            tf.TensorSpec([None, None, 3], tf.uint8),
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.int64),
        ),
    ).map(draw, num_parallel_calls=2)
    assert dataset.element_spec.shape.as_list() == [None, None, 3]
    mapped, again = list(dataset.as_numpy_iterator()), list(dataset.as_numpy_iterator())
    for number, (image, image_id) in enumerate(zip(images, ids, strict=True)):
        eager = draw(image, tf.constant(image_id), tf.constant(number)).numpy()
        np.testing.assert_array_equal(mapped[number], eager)
        np.testing.assert_array_equal(again[number], eager)


@pytest.mark.parametrize("kind", ["kla", "gaussian", "motion", "defocus"])
def test_graph_optimisers_do_not_change_a_bit(kind):
    law = definition.PRESETS["kla" if kind == "kla" else "blind"]
    blur = law.blur if kind == "kla" else (kind,)
    law = dataclasses.replace(law, quantise="none", blur=blur)
    compiled = tf.function(
        lambda image, seed: degrade.degrade(image, law, seed),
        input_signature=(
            tf.TensorSpec([None, None, 3], tf.uint8),
            tf.TensorSpec([2], tf.int64),
        ),
    )
    image = picture(64, 60).astype(np.uint8)
    for number in range(2):
        eager = degrade.degrade(image, law, seed_of(number)).numpy()
        np.testing.assert_array_equal(compiled(image, seed_of(number)), eager)


def test_another_seed_image_or_realisation_is_another_draw():
    law, image = definition.PRESETS["kla"], scene()

    def draw(seed, image_id, realisation):
        key = degrade.draw_seed(seed, tf.constant(image_id), tf.constant(realisation))
        return degrade.degrade(image, law, key).numpy()

    first = draw(0, "a", 0)
    np.testing.assert_array_equal(draw(0, "a", 0), first)
    for other in (draw(1, "a", 0), draw(0, "b", 0), draw(0, "a", 1), draw(1, "a", 1)):
        # Clipping leaves some 5 % at 0 or 255 on both.
        assert np.mean(other == first) < 0.1


def test_draw_seeds_do_not_collide():
    keys = tf.map_fn(
        lambda n: degrade.draw_seed(0, tf.strings.as_string(n // 2), n % 2),
        tf.range(200),
        fn_output_signature=tf.int64,
    ).numpy()
    assert keys.shape == (200, 2)
    assert len({tuple(key) for key in keys}) == 200
    assert len(set(keys[:, 0])) == 100


# Symmetries


MOTION = {"blur": ("none", "motion"), "motion_length": (3, 9)}


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (definition.PRESETS["kla"], "flips"),
        (definition.PRESETS["mild"], "all8"),
        (definition.PRESETS["blind"], "all8"),
        (Law(), "all8"),
        (Law(blur=("gaussian",), sigma_x=(1, 3), sigma_y=(1, 3)), "all8"),
        (Law(blur=("gaussian",), sigma_x=(1, 3), sigma_y=(1, 2)), "flips"),
        (Law(blur=("none",), sigma_x=(1, 3), sigma_y=(1, 2)), "all8"),
        (Law(blur=("defocus",), defocus_radius=(1, 3), noise_sigma=(9, 9)), "all8"),
        (
            Law(blur=("motion",), motion_length=(0, 0), motion_angle=(30, 30)),
            "all8",
        ),
        (Law(**MOTION, motion_angle=(30, 30)), "none"),
        (
            Law(blur=("gaussian",), motion_length=(3, 9), motion_angle=(5, 6)),
            "all8",
        ),
        (
            Law(
                blur=("gaussian", "motion"),
                sigma_x=(2, 2),
                sigma_y=(1, 1),
                motion_length=(3, 9),
                motion_angle=(0, 180),
            ),
            "flips",
        ),
    ],
)
def test_symmetries_of_a_law(law, expected):
    assert definition.symmetries(law) == expected


@pytest.mark.parametrize(
    "angle",
    [
        (0, 0), (90, 90), (45, 45), (-20, 20), (70, 110), (0, 90), (0, 45), (0, 180), (-90, 90),
        (20, 200), (0, 200), (-100, 100), (-10, 350), (5, 365), (0, 270), (10, 280), (0, 360),
    ],
)  # fmt: skip
def test_symmetries_of_motion_are_those_of_its_histogram_of_angles(angle):
    low, high = angle
    # Midpoints of half-degree steps, folded to the half circle and binned by five degrees.
    count = max(2 * (high - low), 1)
    angles = low + (np.arange(count) + 0.5) * (high - low) / count

    def histogram(values):
        bins = np.floor(np.mod(values, 180) / 5).astype(int)
        return np.bincount(bins, minlength=36)

    here = histogram(angles)
    flipped = np.array_equal(histogram(-angles), here)
    turned = np.array_equal(histogram(angles + 90), here)
    expected = ("all8" if turned else "flips") if flipped else "none"
    assert definition.symmetries(Law(**MOTION, motion_angle=angle)) == expected


# Kinds of noise


def noise_of(kinds, number=0, side=96, sigma=(20.0, 20.0)):
    flat = np.full((side, side, 3), 100.0, np.float32)
    return degrade.gaussian_noise(flat, seed_of(number), sigma, kinds=kinds).numpy() - flat


def test_grey_noise_is_alike_in_all_channels():
    noise = noise_of(("grey",))
    assert (noise == noise[..., :1]).all()
    assert noise.std() == pytest.approx(20, rel=0.03)


def test_demosaiced_noise_is_that_of_a_bayer_sensor_interpolated_by_scipy():
    sensor = noise_of(("independent",))
    y, x = np.mgrid[:96, :96] % 2
    kept = np.stack([(y == 0) & (x == 0), y != x, (y == 1) & (x == 1)], axis=-1)
    # The mean of the nearest pixels that have the channel.
    count = scipy.ndimage.convolve(kept.astype(float), np.ones((3, 3, 1)), mode="mirror")
    assert set(np.unique(count)) <= {1, 2, 4, 5}
    expected = np.where(kept, sensor, 0)
    for channel, around in enumerate(((1, 1), (0, 1), (1, 1))):
        values = expected[..., channel].copy()
        cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
        near = np.ones((3, 3)) if around[0] else cross
        total, number = (
            scipy.ndimage.convolve(part, near.astype(float), mode="mirror")
            for part in (values, kept[..., channel].astype(float))
        )
        missing = ~kept[..., channel]
        expected[..., channel][missing] = total[missing] / number[missing]
    found = noise_of(("demosaiced",))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    deviations = found.std((0, 1)) / 20
    np.testing.assert_allclose(deviations, np.sqrt([9 / 16, 5 / 8, 9 / 16]), rtol=0.05)


def test_kinds_of_noise_are_drawn_as_often_as_they_are_named():
    kinds = ("grey", "independent", "grey")
    apply = tf.function(
        lambda seed: degrade.gaussian_noise(
            np.zeros((4, 4, 3), np.float32), seed, (9.0, 9.0), kinds=kinds
        )
    )
    drawn = [apply(seed_of(number)).numpy() for number in range(300)]
    grey = np.mean([(noise == noise[..., :1]).all() for noise in drawn])
    assert abs(grey - 2 / 3) < 4 * math.sqrt(2 / 9 / 300)


@pytest.mark.parametrize("value", ["pink", (), ("grey", "pink"), 3])
def test_an_unknown_kind_of_noise_is_refused(value):
    with pytest.raises(UsageError, match=r"noise: .* not one or more of independent, grey, d"):
        definition.law_from_config({"preset": "kla", "noise": value})


# Storage as JPEG


@pytest.mark.parametrize("quality", [30, 75, 96])
def test_a_jpeg_is_the_one_that_pillow_writes(quality):
    image, _ = sample.render("tile", "crack", 3, 70)
    law = Law(jpeg_quality=(quality, quality))
    found = degrade.degrade(tf.constant(image), law, seed_of(1)).numpy()
    np.testing.assert_array_equal(found, jpegs.by_pillow(image, quality))
    assert np.abs(found - image).max() > 3


def test_the_quality_and_the_share_of_jpegs_are_drawn():
    image, _ = sample.render("tile", "crack", 3, 40)
    law = Law(jpeg_quality=(60.0, 63.0), jpeg_share=0.4, noise_sigma=(0.0, 0.0))
    known = {jpegs.by_pillow(image, quality).tobytes(): quality for quality in range(58, 66)}
    known[image.tobytes()] = None
    apply = tf.function(lambda seed: degrade.degrade(tf.constant(image), law, seed))
    drawn = [
        known[apply(seed_of(number)).numpy().astype(np.uint8).tobytes()]
        for number in range(200)
    ]
    assert set(drawn) == {None, 60, 61, 62, 63}
    assert abs(drawn.count(None) / 200 - 0.6) < 4 * math.sqrt(0.24 / 200)


# Laws for models that are to leave good photographs alone


def drawn_from(law, count=400):
    """Whether each of some draws left the image as it is."""
    image = tf.constant(picture(8, 9))
    apply = tf.function(lambda seed: degrade.degrade(image, law, seed))
    return [(apply(seed_of(number)).numpy() == image.numpy()).all() for number in range(count)]


def test_a_share_of_the_images_is_left_as_it_is():
    law = Law(noise_sigma=(5.0, 5.0), clean_share=0.25)
    share = np.mean(drawn_from(law))
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)
    assert not any(drawn_from(dataclasses.replace(law, clean_share=0.0), 20))
    assert all(drawn_from(dataclasses.replace(law, clean_share=1.0), 20))


def test_a_share_of_clean_images_changes_nothing_of_the_others():
    law = definition.PRESETS["kla"]
    shared = dataclasses.replace(law, clean_share=0.5)
    image = picture(20, 30)
    kept = 0
    for number in range(12):
        expected = degrade.degrade(image, law, seed_of(number)).numpy()
        found = degrade.degrade(image, shared, seed_of(number)).numpy()
        kept += (found == image).all()
        assert (found == image).all() or (found == expected).all()
    assert 0 < kept < 12


def test_a_skew_makes_small_noise_and_little_blur_usual():
    # Of u², u uniform, the mean is 1/3 and the median 1/4.
    noise, spread = [], []
    for number in range(300):
        flat = degrade.gaussian_noise(
            np.full((64, 64, 1), 99.0), seed_of(number), (2.0, 8.0), 2
        )
        noise.append(np.std(flat))
        kernel = degrade.gaussian_blur(
            impulse(41, 3), seed_of(number), (0.0, 0.0), (1.0, 4.0), 2
        )
        spread.append(math.sqrt(moments(kernel.numpy()[..., 0])[1]))
    assert np.mean(noise) == pytest.approx(2 + 6 / 3, abs=0.35)
    assert np.median(noise) == pytest.approx(2 + 6 / 4, abs=0.5)
    assert np.mean(spread) == pytest.approx(1 + 3 / 3, abs=0.2)
    assert min(spread) >= 0.97
    assert max(spread) <= 4.05


def test_the_wide_preset_keeps_colours_and_contains_clean_and_kla():
    wide, kla = definition.PRESETS["wide"], definition.PRESETS["kla"]
    assert wide.gain == (1, 1)
    assert wide.clean_share > 0.1
    assert "none" in wide.blur
    for name in ("sigma_x", "sigma_y", "noise_sigma"):
        low, high = getattr(wide, name)
        assert low == 0
        assert high >= getattr(kla, name)[1]
    assert definition.symmetries(wide) == "all8"


@pytest.mark.parametrize(
    ("field", "value"),
    [("clean_share", 1.1), ("clean_share", -0.1), ("clean_share", True), ("skew", 0.0),
     ("skew", "much"), ("skew", 11), ("jpeg_share", 2)],
)  # fmt: skip
def test_a_share_or_skew_that_cannot_be_is_refused(field, value):
    with pytest.raises(UsageError, match=rf"{field}: .* must lie in"):
        definition.law_from_config({"preset": "kla", field: value})
