"""Noise and blur of photographs and the limits they are compared with."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from restore_jax.degradation import definition, known_range
from restore_jax.degradation.calibration import Estimate
from restore_jax.degradation.known_range import KnownRange, Measured
from restore_jax.errors import UsageError


def shapes(size=512, seed=0):
    """Discs with sharp edges in three channels, [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 3), 120.0)
    for _ in range(size // 4):
        cy, cx, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(4, 40)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(60, 190, 3)
    return image


def degraded(image, sigma, along_x=0.0, along_y=0.0, seed=1):
    blurred = ndimage.gaussian_filter(image, (along_y, along_x, 0.0), mode="mirror")
    noise = np.random.default_rng(seed).standard_normal(image.shape) * sigma
    return np.clip(np.round(blurred + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [(3.0, 3.0, 3.0), (10.0, 30.0, 60.0)])
def test_noise_is_that_which_was_added(sigma):
    found = known_range.measure(degraded(shapes(), sigma, 2.0, 2.0))
    for channel, true in zip(found.noise, sigma, strict=True):
        assert channel.value == pytest.approx(true, rel=0.1)
    assert found.overall_noise.value == pytest.approx(
        np.sqrt(np.mean(np.square(sigma))), rel=0.1
    )


def test_levels_are_scaled():
    image = degraded(shapes(256), 12.0)
    as_floats = known_range.measure(image / np.float32(255), 255.0)
    assert as_floats.overall_noise.value == pytest.approx(12.0, rel=0.1)


@pytest.mark.parametrize(
    ("sigma", "along_x", "along_y"),
    [(2.0, 1.5, 3.0), ((60.0, 70.0, 20.0), 10.0, 3.0), ((0.0, 70.0, 40.0), 6.0, 8.0)],
)
def test_blur_is_that_which_was_applied(sigma, along_x, along_y):
    found = known_range.measure(degraded(shapes(), sigma, along_x, along_y))
    assert found.blur[0].value == pytest.approx(along_x, rel=0.3)
    assert found.blur[1].value == pytest.approx(along_y, rel=0.3)


def test_a_blur_wider_than_thirty_pixels_is_found_too():
    image = ndimage.zoom(shapes(256), (3, 3, 1), order=1)
    found = known_range.measure(degraded(image, 5.0, 35.0, 35.0))
    assert found.blur[0].value == pytest.approx(35.0, rel=0.3)


@pytest.mark.parametrize("shrinking", ["BILINEAR", "BOX"])
def test_blur_of_a_shrunk_photograph_is_told_from_its_correlated_noise(shrinking):
    def measured(image):
        side = image.shape[0] // 3
        image = Image.fromarray(image).resize((side, side), Image.Resampling[shrinking])
        return known_range.measure(np.asarray(image), is_resized=True)

    for width in (6.0, 15.0):
        found = measured(degraded(shapes(576), 40.0, width, width))
        for along in found.blur:
            assert along.value == pytest.approx(width / 3, rel=0.45)
    even = np.full((576, 576, 3), 128.0)
    assert measured(degraded(even, 40.0)).blur == (None, None)


def test_of_a_large_photograph_the_part_that_shows_something_counts():
    image = np.full((1030, 2200, 3), 128.0)
    image[-400:, -400:] = shapes(400)
    found = known_range.measure(degraded(image, 4.0, 3.0, 3.0))
    assert found.overall_noise.value == pytest.approx(4.0, rel=0.1)
    assert found.blur[0].value == pytest.approx(3.0, rel=0.3)


@pytest.mark.parametrize(
    "image", [np.zeros((63, 300), np.uint8), np.full((200, 200, 3), 255, np.uint8)]
)
def test_of_what_tells_nothing_nothing_is_known(image):
    assert known_range.measure(image) == Measured()


def test_an_unknown_blur_is_no_reason():
    noise = np.full((256, 256, 3), 128.0)
    found = known_range.measure(degraded(noise, 20.0))
    assert found.blur == (None, None)
    assert KnownRange((15.0, 25.0), (1.0, 2.0), (1.0, 2.0)).reasons(found) == ()


def test_only_what_lies_outside_with_its_whole_interval_is_a_reason():
    known = KnownRange((10.0, 20.0), (0.0, 5.0), (2.0, 5.0))

    def reasons(noise, along_x, along_y):
        return known.reasons(Measured((noise,), (along_x, along_y)))

    sure, unsure = Estimate(22.0, 1.0), Estimate(22.0, 2.0)  # 90 %: ± 1.64 errors
    assert reasons(unsure, Estimate(7.0, 1.3), Estimate(1.0, 0.7)) == ()
    assert reasons(sure, None, None) == ("noise of 22 grey levels (known: 10 to 20)",)
    assert len(reasons(Estimate(5.0, 0.1), Estimate(7.0, 1.0), Estimate(1.0, 0.5))) == 3


def test_measured_limits_are_kept_by_nearly_all():
    rng = np.random.default_rng(0)
    values = rng.uniform(50, 80, 2000)
    found = [Measured((Estimate(value, 0.5),), (Estimate(3.0, 0.5), None)) for value in values]
    known = known_range.of_photographs(found)
    assert known.photographs == 2000
    low, high = known.noise
    assert low == pytest.approx(np.quantile(values + 0.5 * 1.6449, 0.01), abs=0.1)
    assert high == pytest.approx(np.quantile(values - 0.5 * 1.6449, 0.99), abs=0.1)
    flagged = sum(bool(known.reasons(one)) for one in found)
    assert 0.01 * 2000 <= flagged <= 0.03 * 2000
    # Nobody knows its widths along y: any is known.
    assert known.reasons(Measured((Estimate(65.0, 1.0),), (None, Estimate(30.0, 1.0)))) == ()
    assert known_range.of_photographs(found[:9]) is None
    assert known_range.of_photographs([Measured()] * 20) is None


def of_law(**fields):
    return known_range.of_config({"name": "clean", "degradation": fields})


def test_limits_by_a_law_hold_the_law_and_not_twice_of_it():
    known = of_law(preset="kla")

    def is_flagged(noise, along_x, along_y):
        noise, *widths = (Estimate(x, 0.01 * x) for x in (noise, along_x, along_y))
        return bool(known.reasons(Measured((noise,), tuple(widths))))

    assert not any(is_flagged(noise, 10.0, 2.0) for noise in (45.0, 65.0, 88.0))
    assert is_flagged(160.0, 10.0, 2.0) and is_flagged(2.0, 10.0, 2.0)
    assert is_flagged(65.0, 20.0, 2.0) and is_flagged(65.0, 10.0, 4.0)


def test_a_law_that_leaves_photographs_alone_knows_those_of_little_noise():
    known = of_law(preset="wide")
    assert known.noise[0] == known.blur_x[0] == known.blur_y[0] == 0.0
    assert 80 < known.noise[1] < 160 and 12 < known.blur_x[1] < 24
    kinds = of_law(preset="none", blur=("motion", "defocus"), motion_length=(0.0, 24.0),
                   defocus_radius=(4.0, 20.0), noise_sigma=(5.0, 9.0))  # fmt: skip
    # A disc has the variance r² / 4 along an axis, a path l² / 12.
    assert 10.0 < kinds.blur_x[1] < 13.0


def test_photon_noise_counts_at_white():
    assert of_law(preset="none", poisson_peak=(100.0, 200.0)).noise[1] > 255 / np.sqrt(100)


def test_a_shrunk_photograph_may_have_lost_noise():
    small = known_range.of_config(
        {"name": "mvtec_ad", "image_size": 256, "degradation": {"preset": "kla"}}
    )
    assert small.noise[0] < 45 / 16


@pytest.mark.parametrize(
    "data", [{}, {"name": "pairs", "degradation": {"preset": "kla"}},
             {"name": "shots", "degradation": {"preset": "wide"}},
             {"degradation": {"preset": "of a later version"}}]
)  # fmt: skip
def test_without_a_law_no_limits_are_known(data):
    assert known_range.of_config(data) is None


def test_limits_are_read_back_and_widened():
    known = KnownRange((1.0, 2.0), (0.0, 3.0), (0.0, 4.0), 45)
    assert known_range.read(known.as_text(), "a.safetensors") == known
    other = known_range.of_config({"degradation": {"preset": "kla"}})
    both = known.widened(other)
    assert both.noise == (1.0, other.noise[1]) and both.blur_y == (0.0, 4.0)
    assert both.photographs == 45


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps({"noise": [1], "blur_x": [0, 1], "blur_y": [0, 1]}),
     KnownRange((2.0, 1.0), (0.0, 1.0), (0.0, 1.0)).as_text()],
)  # fmt: skip
def test_another_text_is_refused_in_one_line(text):
    with pytest.raises(
        UsageError, match=r"^a\.safetensors: known_range cannot be read"
    ) as found:
        known_range.read(text, "a.safetensors")
    assert "\n" not in str(found.value)


def test_every_preset_has_limits():
    assert all(of_law(preset=preset) is not None for preset in definition.PRESETS)
