import jax
import numpy as np
import pytest

from restore_jax.trust.network import LEVELS, ErrorBar, calibrated
from tests.support import trusting

RNG = np.random.default_rng(0)


def images(*shape):
    return (RNG.uniform(0, 1, (1, *shape, 3)).astype(np.float32) for _ in range(2))


def test_it_is_small():
    image = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(ErrorBar().init, jax.random.key(0), image, image)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == 18_496


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (32, 40)])
def test_every_size_gets_a_positive_value_per_pixel(shape):
    model, variables, _ = trusting.trust_map()
    half_width = jax.jit(model.apply)(variables, *images(*shape))
    assert half_width.shape == (1, *shape, 1)
    assert (np.asarray(half_width) > 0).all()


def test_calibration_is_linear_interpolation_between_levels():
    levels = np.sort(RNG.normal(size=LEVELS)).astype(np.float32)
    factors = RNG.normal(size=LEVELS).astype(np.float32)
    predicted = np.linspace(-4, 4, 101).astype(np.float32)
    expected = predicted + np.interp(predicted, levels, factors)
    np.testing.assert_allclose(calibrated(predicted, levels, factors), expected, atol=1e-5)


def test_a_part_gets_the_values_of_the_whole_away_from_its_border():
    model, variables, _ = trusting.trust_map()
    degraded, restored = images(192, 192)
    apply = jax.jit(model.apply)
    whole = apply(variables, degraded, restored)
    part = apply(variables, degraded[:, 16:176], restored[:, 16:176])
    np.testing.assert_allclose(part[:, 60:-60], whole[:, 76:-76], rtol=1e-5)
    assert np.abs(part[:, :8] - whole[:, 16:24]).max() > 1e-4
