import jax
import numpy as np
import pytest
from scipy import ndimage

from restore_jax.trust import network
from restore_jax.trust.network import LEVELS, ErrorBar, calibrated
from tests.support import trusting

RNG = np.random.default_rng(0)


def images(*shape):
    return (RNG.uniform(0, 1, (1, *shape, 3)).astype(np.float32) for _ in range(2))


def test_it_is_small():
    image = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(ErrorBar().init, jax.random.key(0), image, image)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == 9_120


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
    np.testing.assert_allclose(part[:, 47:-47], whole[:, 63:-63], rtol=1e-4)
    assert np.abs(part[:, :8] - whole[:, 16:24]).max() > 1e-4


def test_a_border_is_no_different_from_the_inside():
    model, variables, _ = trusting.trust_map()
    flat = np.broadcast_to(np.float32([0.2, 0.5, 0.7]), (1, 64, 64, 3))
    half_width = np.asarray(jax.jit(model.apply)(variables, flat, flat))[0, ..., 0]
    period = half_width[:4, :4]  # a block of pixels, which may differ
    np.testing.assert_allclose(half_width, np.tile(period, (16, 16)), rtol=1e-5)


def _evidence(degraded, restored):
    seen, shown = (network.unshuffle(x, 4) for x in (degraded, restored))
    means = (x.reshape(*x.shape[:3], 16, 3).mean(axis=3) for x in (seen - shown, shown))
    return network._evidence(network._Blocks.of(seen, shown, *means))


def evidence(degraded, restored):
    """Means of the residual in standard errors, per window and colour, and its deviation."""
    found = np.asarray(jax.jit(_evidence)(degraded, restored))[0]
    return np.sinh(2 * found[..., :9]).reshape(*found.shape[:2], 3, 3), np.exp(
        2 * (found[..., 9:] - 2)
    )


def test_a_residual_is_measured_in_standard_errors_of_white_noise():
    flat = np.full((1, 256, 256, 3), 0.5, np.float32)
    noise = RNG.normal(0, 0.1, flat.shape).astype(np.float32)
    in_errors, deviation = evidence(flat + noise, flat)
    # Less the mean of 7×7 blocks, which is a part of them.
    expected = np.sqrt([[1 - 1 / 49], [1 - 9 / 49], [1]]).repeat(3, axis=1)
    np.testing.assert_allclose(in_errors.std(axis=(0, 1)), expected, atol=0.12)
    np.testing.assert_allclose(deviation, 0.1, rtol=0.15)


def test_an_erased_spot_stands_out_of_the_noise():
    flat = np.full((1, 96, 96, 3), 0.5, np.float32)
    degraded = flat + RNG.normal(0, 0.1, flat.shape).astype(np.float32)
    degraded[0, 40:52, 40:52, 1] += 0.1  # 3×3 blocks, at the strength of the noise
    in_errors, _ = evidence(degraded, flat)
    near = in_errors[..., 1, :]
    assert near[11, 11, 1] > 7  # 12, but for what lies in the larger window
    assert np.abs(near[..., [0, 2]]).max() < 5


def test_a_gain_is_no_evidence_but_an_invented_spot_is():
    restored = RNG.uniform(0.2, 0.8, (1, 24, 24, 3)).repeat(4, 1).repeat(4, 2)
    restored = restored.astype(np.float32)
    noise = RNG.normal(0, 0.02, restored.shape).astype(np.float32)
    invented = restored.copy()
    invented[0, 40:52, 40:52] += 0.1
    (of_gain, _), (of_spot, _) = (
        evidence(1.1 * restored + noise, restored),
        evidence(restored + noise, invented),
    )
    assert np.quantile(np.abs(of_gain[..., :2, :]), 0.99) < 6
    assert np.abs(of_spot[11, 11, 1]).min() > 20


def test_windows_are_sums_over_the_inside():
    image = RNG.normal(size=(1, 6, 9, 2)).astype(np.float32)
    for side in (1, 3, 7):
        expected = side**2 * ndimage.uniform_filter(
            image.astype(np.float64), (1, side, side, 1), mode="constant"
        )
        np.testing.assert_allclose(network._window_sum(image, side), expected, atol=1e-4)
