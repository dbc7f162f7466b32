import jax
import numpy as np
import pytest

from restore_jax import models
from restore_jax.inference import sharded

SMALL = {
    "sca_unet": {"widths": (2, 4, 6)},
    "rcan": {"width": 4, "blocks": 1},
    "cbam_unet": {"widths": (2, 4), "skips": (True,)},
    "pexels_cnn": {"widths": (2, 3, 3, 2)},
}


@pytest.fixture(scope="module")
def made():
    """Every model with its variables, and what it gives on one device."""

    def make(name):
        model = models.create(name, **SMALL[name])
        variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
        return model, variables

    return {name: make(name) for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("shape", "split"),
    [
        pytest.param((4, 32, 40), (1, 32, 40), id="an image each"),
        pytest.param((6, 32, 40), (2, 32, 40), id="two images each"),
        pytest.param((5, 32, 40), (5, 32, 40), id="a prime number of small images"),
        pytest.param((1, 256, 32), (1, 64, 32), id="rows of one image"),
        pytest.param((1, 160, 32), (1, 80, 32), id="two halves of one image"),
        pytest.param((1, 127, 32), (1, 127, 32), id="rows that do not divide"),
        pytest.param((1, 1, 1), (1, 1, 1), id="one pixel"),
    ],
)
def test_devices_together_give_what_one_does(made, name, shape, split):
    model, variables = made[name]
    images = np.random.default_rng(0).random((*shape, 3), np.float32)
    found = sharded.make_apply(model, variables)(images)
    assert found.sharding.shard_shape(found.shape)[:3] == split
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_images_may_lie_on_a_device(made):
    model, variables = made["pexels_cnn"]
    images = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))
    found = sharded.make_apply(model, variables)(images)
    np.testing.assert_allclose(found, model.apply(variables, images), atol=2e-6)
