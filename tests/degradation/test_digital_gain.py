"""Gains found in histograms, against photographs to which NumPy gave known ones."""

import numpy as np
import pytest

from restore_jax.degradation import digital_gain


def photograph(seed, noise, side=400):
    """Grey levels of a scene: a dark part, a ramp and clipped lights, float [side, side]."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 235, side)[None, :] + np.zeros((side, 1))
    ramp[: side // 3] = rng.uniform(0, 60)
    ramp[-side // 5 :] = 255
    return ramp + rng.normal(0, noise, ramp.shape)


def with_gain(image, gain, quantise):
    whole = np.floor if quantise == "truncate" else np.rint
    levels = np.clip(whole(image), 0, 255)
    return np.clip(whole(levels * np.float32(gain)), 0, 255).astype(np.uint8)


def counts(image):
    return np.bincount(image.ravel(), minlength=256)


@pytest.mark.parametrize("quantise", ["truncate", "round"])
@pytest.mark.parametrize("noise", [5.0, 65.0])
@pytest.mark.parametrize("gain", [0.86, 0.9, 0.9213, 0.9871, 1.0234, 1.06, 1.0777, 1.1, 1.142])
def test_a_gain_is_found_to_a_thousandth(gain, noise, quantise):
    found = digital_gain.estimate(counts(with_gain(photograph(1, noise), gain, quantise)))
    assert found is not None
    assert found.value == pytest.approx(gain, abs=1e-3)
    # Where k · gain lies between two levels, its last bit decides.
    assert found.low - 2e-4 <= gain <= found.high + 2e-4


def test_the_random_gains_of_a_law():
    rng = np.random.default_rng(2)
    gains = rng.uniform(0.9, 1.1, 12)
    found = [
        digital_gain.estimate(counts(with_gain(photograph(i, 60.0), gain, "truncate")))
        for i, gain in enumerate(gains)
    ]
    # Next to 1, 160,000 pixels leave a range that includes it.
    errors = [abs(one.value - gain) for one, gain in zip(found, gains, strict=True)]
    assert np.median(errors) < 1e-4
    assert max(errors) < 5e-3


def test_levels_without_comb_have_no_gain():
    found = digital_gain.estimate(counts(with_gain(photograph(3, 40.0), 1.0, "round")))
    assert found is not None
    assert found.value == 1.0


def test_a_comb_of_another_kind_is_not_a_gain():
    # A gamma leaves gaps where levels are stretched and none elsewhere.
    levels = np.clip(np.rint(photograph(4, 40.0)), 0, 255)
    curved = np.rint(255 * (levels / 255) ** 0.6).astype(np.uint8)
    assert digital_gain.estimate(counts(curved)) is None


def test_resizing_erases_the_comb():
    image = with_gain(photograph(5, 60.0), 1.08, "truncate").astype(np.float64)
    smaller = np.rint(image.reshape(200, 2, 200, 2).mean((1, 3))).astype(np.uint8)
    found = digital_gain.estimate(counts(smaller))
    assert found is None or found.value == 1.0


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_single_level_tells_nothing(level):
    flat = np.zeros(256, np.int64)
    flat[level] = 10_000
    assert digital_gain.estimate(flat) is None


def test_a_photograph_has_a_gain_per_channel():
    gains = (0.93, 1.0, 1.06)
    channels = [with_gain(photograph(i, 50.0), gain, "round") for i, gain in enumerate(gains)]
    image = np.stack(channels, -1)
    np.testing.assert_allclose(digital_gain.of_photograph(image), gains, atol=1e-3)
    with_alpha = np.concatenate([image, np.full_like(image[..., :1], 255)], -1)
    np.testing.assert_allclose(digital_gain.of_photograph(with_alpha), gains, atol=1e-3)
    np.testing.assert_allclose(digital_gain.of_photograph(channels[2]), gains[2:], atol=1e-3)
    assert digital_gain.of_photograph(image.astype(np.uint16) * 257).tolist() == [1, 1, 1]
