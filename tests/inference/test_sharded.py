import jax
import numpy as np
import pytest

from restore_jax import models
from restore_jax.inference import sharded
from tests.support.networks import apply, variables_of

SMALL = {
    "sca_unet": {"widths": (2, 4, 6)},
    "rcan": {"width": 4, "blocks": 1},
    "cbam_unet": {"widths": (2, 4), "skips": (True,)},
    "pexels_cnn": {"widths": (2, 3, 3, 2)},
}


@pytest.fixture(scope="module")
def made():
    """Every model with its variables."""

    def make(name):
        model = models.create(name, **SMALL[name])
        return model, variables_of(model)

    return {name: make(name) for name in SMALL}


AN_IMAGE_EACH = pytest.param((4, 32, 40), (1, 32, 40), id="an image each")
ROWS = pytest.param((1, 256, 32), (1, 64, 32), id="rows of one image")


@pytest.mark.parametrize(("shape", "split"), [AN_IMAGE_EACH, ROWS])
@pytest.mark.parametrize("name", SMALL)
def test_devices_together_give_what_one_does(made, name, shape, split):
    model, variables = made[name]
    images = np.random.default_rng(0).random((*shape, 3), np.float32)
    found = sharded.make_apply(model, variables)(images)
    assert found.sharding.shard_shape(found.shape)[:3] == split
    np.testing.assert_allclose(found, apply(model, variables, images), atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "split"),
    [
        pytest.param((6, 32, 40), (2, 32, 40), id="two images each"),
        pytest.param((5, 32, 40), (5, 32, 40), id="a prime number of small images"),
        pytest.param((1, 160, 32), (1, 80, 32), id="two halves of one image"),
        pytest.param((1, 127, 32), (1, 127, 32), id="rows that do not divide"),
        pytest.param((1, 1, 1), (1, 1, 1), id="one pixel"),
    ],
)
def test_all_that_there_is_to_divide_is_divided(made, shape, split):
    model, variables = made["pexels_cnn"]
    images = np.random.default_rng(0).random((*shape, 3), np.float32)
    found = sharded.make_apply(model, variables)(images)
    assert found.sharding.shard_shape(found.shape)[:3] == split
    np.testing.assert_allclose(found, apply(model, variables, images), atol=2e-6)


def test_images_may_lie_on_a_device(made):
    model, variables = made["pexels_cnn"]
    images = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))
    found = sharded.make_apply(model, variables)(images)
    np.testing.assert_allclose(found, apply(model, variables, images), atol=2e-6)
