"""What noise and blur hide, against blur that was applied and the best linear filter."""

import numpy as np
import pytest
from scipy import ndimage

from restore_jax.folders import hidden
from tests.degradation.test_estimate import dotted

SIDE = 320


def frequencies():
    return np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None, :]


def fractal(level, fall, seed):
    """An object whose spectrum is a power of the frequency; with that spectrum."""
    distance = np.hypot(*frequencies())
    distance[0, 0] = 1.0
    power = level * (distance / 0.03) ** -fall
    power[0, 0] = 0.0
    white = np.random.default_rng(seed).standard_normal((SIDE, SIDE))
    return 128 + np.fft.ifft2(np.sqrt(power) * np.fft.fft2(white)).real, power


def wiener(before, power, along_x, along_y, sigma):
    """The best linear restoration of an object of known spectrum."""
    fy, fx = frequencies()
    blur = np.exp(-2 * np.pi**2 * ((along_x * fx) ** 2 + (along_y * fy) ** 2))
    best = blur * power / (blur**2 * power + sigma**2)
    return 128 + np.fft.ifft2(best * np.fft.fft2(before - 128)).real


def degraded(image, along_x, along_y, sigma, seed=1):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return ndimage.gaussian_filter(image, (along_y, along_x), mode="wrap") + noise


@pytest.mark.parametrize(("along_x", "along_y"), [(0.0, 0.0), (1.5, 1.5), (4.0, 1.0)])
@pytest.mark.parametrize("sigma", [2.0, 20.0])
def test_the_blur_that_was_undone_is_found(along_x, along_y, sigma):
    image = dotted(SIDE)
    power = np.abs(np.fft.fft2(image - 128)) ** 2 / image.size
    power = ndimage.gaussian_filter(power, 2, mode="wrap")
    before = degraded(image, along_x, along_y, sigma)
    after = wiener(before, power, along_x, along_y, sigma)
    found = hidden.find(before, after, sigma)
    for width, true in zip(found.widths, (along_x, along_y), strict=True):
        assert width == pytest.approx(true, rel=0.15, abs=0.25)


@pytest.mark.parametrize(("along_x", "along_y", "sigma"), [(0, 0, 20), (2, 2, 5), (8, 2, 15)])
@pytest.mark.parametrize(("level", "fall"), [(2000.0, 2.3), (2000.0, 2.9), (20000.0, 2.6)])
def test_the_error_is_that_of_the_best_linear_filter(along_x, along_y, sigma, level, fall):
    image, power = fractal(level, fall, seed=int(level + 10 * fall))
    before = degraded(image, along_x, along_y, sigma)
    after = wiener(before, power, along_x, along_y, sigma)
    found, true = hidden.find(before, after, sigma).error, np.mean((image - after) ** 2)
    # Much of the detail is not in the photograph, so that this is a guess.
    assert 0.6 * true < found < 1.5 * true
