"""Noise and blur of single photographs, against what was put into them."""

import numpy as np
import pytest
from scipy import ndimage

from data.rendered import sample
from restore_jax.degradation import estimate
from restore_jax.degradation.calibration import Estimate


def dotted(size=512, seed=0):
    """Shapes with sharp edges, as a photograph of parts has them; [size, size]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size), 120.0)
    for _ in range(150):
        cy, cx, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(4, 40)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(60, 190)
    return image


def photographed(image, sigma, photons=0.0, gain=1.0, seed=1):
    deviation = np.sqrt(sigma**2 + photons * image)
    noise = np.random.default_rng(seed).standard_normal(image.shape)
    return np.clip(
        np.floor(gain * np.clip(np.floor(image + deviation * noise), 0, 255)), 0, 255
    )


@pytest.mark.parametrize("category", ["screw", "wood", "tile", "woven"])
@pytest.mark.parametrize(("sigma", "photons"), [(4.0, 0.0), (3.0, 1.0), (65.0, 0.0)])
def test_noise_is_found_within_ten_per_cent(category, sigma, photons):
    clean = sample.render(category, "good", 1, 256)[0].astype(float)
    blurred = ndimage.gaussian_filter(clean, (2.0, 4.0, 0.0), mode="mirror")
    found = estimate.noise(photographed(blurred, sigma, photons))
    for c, level in enumerate(clean.reshape(-1, 3).mean(0)):
        true = np.sqrt(sigma**2 + photons * level)
        assert found.at(level, c) == pytest.approx(true, rel=0.1)


def test_noise_that_grows_with_the_level_is_told_from_noise_that_does_not():
    ramp = np.broadcast_to(np.linspace(20, 200, 512), (512, 512))
    found = estimate.noise(photographed(ramp, 3.0, 0.8))
    assert found.photons[0].value == pytest.approx(0.8, rel=0.1)
    assert found.at(150.0) == pytest.approx(np.sqrt(9 + 0.8 * 150), rel=0.05)
    assert estimate.noise(photographed(ramp, 6.0)).photons[0].value < 0.02


def test_a_gain_after_clipping_is_part_of_the_noise():
    image = np.broadcast_to(np.linspace(20, 235, 512), (512, 512))
    found = estimate.noise(photographed(image, 60.0, gain=0.92))
    assert found.at(128.0) == pytest.approx(0.92 * 60, rel=0.1)


@pytest.mark.parametrize(
    ("along_x", "along_y"), [(1.5, 1.5), (4.0, 1.5), (2.0, 6.0), (10.0, 2.0)]
)
@pytest.mark.parametrize("sigma", [2.0, 10.0])
def test_blur_is_found_within_fifteen_per_cent_where_there_are_edges(along_x, along_y, sigma):
    image = ndimage.gaussian_filter(dotted(), (along_y, along_x), mode="mirror")
    image = photographed(image, sigma)
    found = estimate.blur(image, estimate.noise(image))
    assert found[0].value == pytest.approx(along_x, rel=0.15)
    assert found[1].value == pytest.approx(along_y, rel=0.15)


def test_blur_is_not_told_where_there_is_nothing_but_noise():
    image = photographed(np.full((256, 256), 128.0), 20.0)
    assert estimate.blur(image, estimate.noise(image)) == (None, None)


def test_what_tells_nothing_is_refused():
    with pytest.raises(ValueError, match="same level everywhere"):
        estimate.noise(np.full((128, 128, 3), 7.0))
    with pytest.raises(ValueError, match="clipped"):
        estimate.noise(np.where(np.arange(128 * 128).reshape(128, 128) == 5, 254.0, 255.0))


def test_takes_any_number_of_channels():
    image = photographed(np.broadcast_to(np.linspace(50, 200, 128), (128, 128)), 5.0)
    alone, three = estimate.noise(image), estimate.noise(np.repeat(image[..., None], 3, -1))
    assert three.sigma == alone.sigma * 3
    assert isinstance(three.channel(2)[0], Estimate)
