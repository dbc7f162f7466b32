"""JPEGs of a training step, against libjpeg's through Pillow."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from data.rendered import sample
from restore_jax.degradation import jpeg


def by_pillow(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), float)


@pytest.mark.parametrize("quality", [8, 50, 75, 92, 100])
@pytest.mark.parametrize("sigma", [0, 20])
def test_levels_are_libjpegs(quality, sigma):
    image, _ = sample.render("tile", "crack", 3, 128)
    noise = np.random.default_rng(1).normal(size=image.shape) * sigma
    image = np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
    expected = by_pillow(image, quality)
    found = np.asarray(jax.jit(jpeg.stored)(image.astype(np.float32), quality))
    error, loss = np.abs(found - expected).mean(), np.abs(expected - image).mean()
    assert error < 0.1 * loss or error < 0.7
    assert abs((found - expected).mean()) < 0.05


@pytest.mark.parametrize("quality", [40, 90])
@pytest.mark.parametrize("levels", [(0, 0, 0), (255, 255, 255), (200, 40, 90)])
def test_a_flat_image_is_libjpegs(levels, quality):
    image = np.full((16, 32, 3), levels, np.uint8)
    found = jpeg.stored(image.astype(np.float32), quality)
    np.testing.assert_allclose(found, by_pillow(image, quality), atol=1)
