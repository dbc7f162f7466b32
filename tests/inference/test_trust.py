"""Restoring with a trust map: from Python, in tiles, and into files."""

import jax
import numpy as np
import pytest
import tifffile
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import Image

from restore_jax.errors import UsageError
from restore_jax.folders import plan, run
from restore_jax.inference import tile_plan
from restore_jax.inference.restorer import Restorer
from restore_jax.trust import maps
from tests.support import trusting

RNG = np.random.default_rng(0)
TRUST = trusting.trust_map()


class Darker(nn.Module):
    """Restores each pixel by itself, so that tiles and views change nothing."""

    def __call__(self, degraded):
        return degraded * np.array([0.5, 0.75, 1.0], np.float32)


@pytest.fixture(scope="module")
def restorer():
    return Restorer(Darker(), {}, ConfigDict(), tile=64, trust_map=TRUST)


def expected(degraded, restored):
    """The half-width of one tile, [H, W]."""
    judge = jax.jit(TRUST.model.apply)
    half_width = np.asarray(judge(TRUST.variables, degraded[None], restored[None]))
    assert (half_width < 1).mean() > 0.5
    return half_width[0, ..., 0]


def image(*shape):
    return RNG.uniform(0, 1, shape).astype(np.float32)


def test_a_call_returns_the_restoration_and_the_half_width(restorer):
    degraded = image(64, 64, 3)
    restored, half_width = restorer(degraded, trust=True)
    np.testing.assert_array_equal(restored, restorer(degraded))
    assert half_width.dtype == np.float32
    found = np.minimum(expected(degraded, restored), 1)
    np.testing.assert_allclose(half_width, found, rtol=1e-4)


def test_tiles_are_blended_like_those_of_the_restoration(restorer):
    degraded = image(112, 64, 3)
    restored, half_width = restorer(degraded, trust=True)
    tops = tile_plan.starts(112, 64, 16)
    blended = np.zeros((112, 64))
    for top, weights in zip(tops, tile_plan.axis_weights(tops, 64), strict=True):
        rows = slice(top, top + 64)
        blended[rows] += weights[:, None] * expected(degraded[rows], restored[rows])
    np.testing.assert_allclose(half_width, np.minimum(blended, 1), rtol=1e-4)


def test_a_grey_photograph_of_integers_is_judged_as_rgb(restorer):
    grey = RNG.integers(0, 4096, (64, 64)).astype(np.uint16)
    restored, half_width = restorer(grey, trust=True, white=4095)
    assert restored.shape == half_width.shape == (64, 64)
    rgb = np.repeat((grey / np.float32(4095))[..., None], 3, axis=-1)
    in_colour = rgb * np.array([0.5, 0.75, 1.0], np.float32)
    found = np.minimum(expected(rgb, in_colour), 1)
    np.testing.assert_allclose(half_width, found, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_blend_with_the_input_is_wider_by_its_distance(restorer, strength):
    degraded = image(64, 64, 3)
    whole, half_width = restorer(degraded, trust=True)
    blend, wider = restorer(degraded, trust=True, strength=strength)
    away = np.abs(blend - whole).max(axis=-1)
    expected_width = np.minimum(half_width + away, 1)
    np.testing.assert_allclose(wider, expected_width, rtol=1e-4, atol=1e-6)
    assert (expected_width < 1).mean() > 0.5


def test_an_ensemble_is_judged_once_by_its_mean(restorer):
    degraded = image(64, 64, 3)
    _, half_width = restorer(degraded, trust=True)
    _, of_mean = restorer(degraded, trust=True, self_ensemble="flips")
    np.testing.assert_allclose(of_mean, half_width, rtol=1e-4)


def test_batches_and_lists_return_pairs(restorer):
    batch = image(2, 32, 32, 3)
    restored, half_width = restorer(batch, trust=True)
    assert (restored.shape, half_width.shape) == ((2, 32, 32, 3), (2, 32, 32))
    pairs = restorer(list(batch), trust=True)
    np.testing.assert_array_equal(pairs[1][1], half_width[1])


def test_a_model_without_a_trust_map_refuses(restorer):
    plain = Restorer(Darker(), {}, ConfigDict(), tile=64)
    for call in (
        lambda: plain(image(8, 8, 3), trust=True),
        lambda: Restorer(Darker(), {}, ConfigDict(), trust=True),
    ):
        with pytest.raises(UsageError, match=r"trust: this model has no trust map"):
            call()


def test_files_hold_the_maps_of_every_picture(restorer, tmp_path):
    photographs = tmp_path / "in"
    photographs.mkdir()
    flat = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(flat).save(photographs / "a.png")
    stack = RNG.integers(0, 256, (2, 20, 24)).astype(np.uint8)
    tifffile.imwrite(photographs / "b.tif", stack, photometric="minisblack")
    output = tmp_path / "out"
    items = plan.plan([str(photographs)], output)
    outcome = run.restore_files(restorer, items, maps=output / "trust")
    assert (outcome.restored, outcome.failed) == (2, [])
    found = {path.name for path in (output / "trust").iterdir()}
    names = {"a.png", "b.tif", "b.tif-2"}
    assert found == {f"{name}.{kind}.png" for name in names for kind in ("heat", "half_width")}
    for name, pixels in (("a.png", flat), ("b.tif", stack[0]), ("b.tif-2", stack[1])):
        _, half_width = restorer(pixels, trust=True)
        heat = np.asarray(Image.open(output / "trust" / f"{name}.heat.png"))
        np.testing.assert_array_equal(heat, maps.heat_map(half_width))
        exact = np.asarray(Image.open(output / "trust" / f"{name}.half_width.png"))
        np.testing.assert_allclose(exact / (255 * 256), half_width, atol=1 / (255 * 256))
