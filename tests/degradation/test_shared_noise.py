"""The noise that channels share, against noise that NumPy drew with a known covariance."""

import io

import numpy as np
import pytest
from PIL import Image

from restore_jax.degradation import shared_noise


def scene(side=256):
    """A ramp with a bright part, grey levels [side, side]."""
    levels = np.linspace(60, 140, side)[None, :] + np.zeros((side, 1))
    levels[side // 3 : side // 2] += 60
    return levels


def noisy(seed, own, shared, channels=3):
    """The scene with noise of its own for each channel and noise that all share."""
    rng = np.random.default_rng(seed)
    clean = scene()[..., None]
    noise = shared * rng.normal(size=clean.shape)
    noise = noise + own * rng.normal(size=(*clean.shape[:2], channels))
    return np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [4.0, 10.0, 30.0])
def test_all_noise_of_a_grey_photograph_is_shared(sigma):
    grey = np.repeat(noisy(1, 0.0, sigma, channels=1), 3, -1)
    assert shared_noise.of_photograph(grey) == pytest.approx(sigma, rel=0.15)


def test_of_both_kinds_only_the_shared_noise_is_found():
    assert shared_noise.of_photograph(noisy(2, 10.0, 10.0)) == pytest.approx(10.0, rel=0.15)


@pytest.mark.parametrize("sigma", [4.0, 30.0])
def test_independent_noise_is_not_shared(sigma):
    assert shared_noise.of_photograph(noisy(3, sigma, 0.0)) == 0.0


def test_noise_is_shared_after_a_jpeg_with_colours_of_half_the_size():
    file = io.BytesIO()
    Image.fromarray(noisy(4, 20.0, 0.0)).save(file, "JPEG", quality=95, subsampling=2)
    assert shared_noise.of_photograph(np.asarray(Image.open(file))) > 8.0


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((100, 100, 3), np.uint8),
        np.full((100, 100, 3), 255, np.uint8),
        noisy(5, 0.0, 1.0),
        noisy(5, 0.0, 20.0)[:40, :40],
        noisy(5, 0.0, 20.0)[:5],
    ],
    ids=["black", "white", "good", "small", "flat"],
)
def test_none_is_reported_where_there_is_none_or_nothing_to_measure(image):
    assert shared_noise.of_photograph(image) == 0.0
