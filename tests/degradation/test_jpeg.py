"""JPEGs of a training step, against libjpeg's through Pillow."""

import jax
import numpy as np
import pytest

from data.rendered import sample
from restore_jax.degradation import jpeg
from tests.support import jpegs


@pytest.mark.parametrize("quality", [8, 50, 75, 92, 100])
@pytest.mark.parametrize("sigma", [0, 20])
def test_levels_are_libjpegs(quality, sigma):
    image, _ = sample.render("tile", "crack", 3, 128)
    noise = np.random.default_rng(1).normal(size=image.shape) * sigma
    image = np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
    expected = jpegs.by_pillow(image, quality).astype(float)
    found = np.asarray(jax.jit(jpeg.stored)(image.astype(np.float32), quality))
    error, loss = np.abs(found - expected).mean(), np.abs(expected - image).mean()
    assert error < 0.1 * loss or error < 0.7
    assert abs((found - expected).mean()) < 0.05


@pytest.mark.parametrize("quality", [40, 90])
@pytest.mark.parametrize("levels", [(0, 0, 0), (255, 255, 255), (200, 40, 90)])
def test_a_flat_image_is_libjpegs(levels, quality):
    image = np.full((16, 32, 3), levels, np.uint8)
    found = jpeg.stored(image.astype(np.float32), quality)
    np.testing.assert_allclose(found, jpegs.by_pillow(image, quality), atol=1)
