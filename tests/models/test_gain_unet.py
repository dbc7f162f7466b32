"""The gain U-Net: its gain branch sees the whole photograph, its trunk only what is near."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from restore_jax import Restorer, models
from restore_jax.errors import UsageError
from restore_jax.inference import pixels
from restore_jax.models import gain_unet
from tests.support.networks import apply, init

SMALL = {"widths": (4, 6, 8), "blocks": 1}


def drawn(model, seed=0):
    """Variables of which none is zero, so that every path of the network counts."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.15, x.shape).astype(np.float32), shapes)
    # Small in the last layers: nothing is clipped, and no gain at its limit.
    for layer in (variables["params"]["output"], variables["params"].get("gain_branch", {})):
        for array in jax.tree.leaves(layer.get("log_gain", layer) if layer else {}):
            array *= 0.1
    return variables


def images(*shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def test_has_no_more_parameters_than_the_sca_unet():
    counts = {
        name: sum(
            leaf.size
            for leaf in jax.tree.leaves(
                jax.eval_shape(
                    models.create(name).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
                )
            )
        )
        for name in ("gain_unet", "sca_unet")
    }
    assert counts == {"gain_unet": 854_367, "sca_unet": 867_842}


@pytest.mark.parametrize(("stem", "tell"), [(1, True), (2, False), (4, True)])
def test_starts_as_the_identity_at_any_size(stem, tell):
    model = models.create("gain_unet", stem=stem, tell=tell, **SMALL)
    degraded = images(2, 37, 53)
    restored, _ = jax.jit(model.init_with_output)(jax.random.key(0), degraded)
    assert np.allclose(restored, degraded, atol=1e-6)


def test_unshuffle_moves_blocks_of_pixels_into_channels():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = gain_unet.unshuffle(x, 2)
    assert y.shape == (2, 2, 3, 12)
    # Block (1, 2) of the first image: its four pixels, row by row.
    expected = [*x[0, 2, 4], *x[0, 2, 5], *x[0, 3, 4], *x[0, 3, 5]]
    assert y[0, 1, 2].tolist() == expected
    assert (gain_unet.shuffle(y, 2) == x).all()


@pytest.mark.parametrize("shape", [(200, 330), (64, 64), (20, 90), (1, 1)])
def test_the_thumbnail_is_pillows_where_it_shrinks_and_the_same_in_numpy(shape):
    image = images(*shape)
    found = np.asarray(gain_unet.thumbnail(image[None]))[0]
    assert np.allclose(pixels.TiledImage(image, 1.0, 64).context, found, atol=1e-5)
    if min(shape) >= 64:
        for channel in range(3):
            resized = Image.fromarray(image[..., channel]).resize((64, 64), Image.BILINEAR)
            assert np.allclose(found[..., channel], np.asarray(resized), atol=1e-4)


def test_the_thumbnail_of_a_camera_with_few_bits_is_as_bright_as_its_picture():
    levels = np.rint(images(70, 90) * 1023).astype(np.uint16)
    found = np.asarray(gain_unet.thumbnail(levels[None].astype(np.float32) / 1023))[0]
    picture = pixels.TiledImage(levels, 1.0, 64, white=1023)
    assert np.allclose(picture.context, found, atol=1e-5)


def test_a_gain_is_divided_out_of_the_whole_image():
    model = models.create("gain_unet", **SMALL)
    degraded = images(1, 32, 32)
    variables = init(model, degraded)
    # A branch that says the same of every image: log gains of 0.25 tanh(bias).
    branch = variables["params"]["gain_branch"]
    branch["log_gain"]["bias"] = jnp.array([0.0, 0.5, -0.5])
    expected = degraded / np.exp(0.25 * np.tanh([0.0, 0.5, -0.5]))
    assert np.allclose(apply(model, variables, degraded), expected, rtol=1e-5)


def test_the_average_shortcut_starts_as_the_interpolated_mean_of_blocks():
    model = models.create("gain_unet", stem=4, shortcut="average", **SMALL)
    degraded = images(1, 32, 48)
    variables = init(model, degraded)
    means = degraded.reshape(1, 8, 4, 12, 4, 3).mean((2, 4))
    twice = jax.image.resize(means, (1, 16, 24, 3), "bilinear")
    expected = jax.image.resize(twice, (1, 32, 48, 3), "bilinear")
    assert np.allclose(apply(model, variables, degraded), expected, atol=1e-5)


def test_what_the_branch_tells_depends_on_the_whole_photograph_alone():
    model = models.create("gain_unet", tell=True, **SMALL)
    variables = drawn(model)
    branch = variables["params"]["gain_branch"]
    # One of each coarser stage, the coarsest first; and no gain, to see nothing else.
    assert [branch[f"tell{i}"]["bias"].shape for i in (1, 2)] == [(8,), (6,)]
    for array in branch["log_gain"].values():
        array *= 0
    part, whole, other = images(1, 32, 32), images(1, 80, 80, seed=1), images(1, 80, 80, seed=2)
    found = [apply(model, variables, part, context=c) for c in (whole, whole[:, ::-1], other)]
    assert np.abs(found[0] - found[2]).max() > 1e-4
    silent = jax.tree.map(np.copy, variables)
    for i in (1, 2):
        for array in silent["params"]["gain_branch"][f"tell{i}"].values():
            array *= 0
    found = [apply(model, silent, part, context=c) for c in (whole, other)]
    assert np.array_equal(*found)


def test_without_gain_there_is_no_branch_and_no_use_for_context():
    model = models.create("gain_unet", gain=False, **SMALL)
    variables = drawn(model)
    assert "gain_branch" not in variables["params"]
    assert not models.takes_context(model)
    assert models.takes_context(models.create("gain_unet", **SMALL))
    assert not models.takes_context(models.create("sca_unet"))


def test_tiles_give_what_the_whole_photograph_gives():
    model = models.create("gain_unet", widths=(4,), blocks=1)  # which sees 9 px far
    variables = drawn(model)
    photograph = 0.3 + 0.4 * images(96, 160)
    # Neighbours differ in brightness: a gain of each tile's own would show.
    photograph[:, 80:] *= 0.6
    restorer = Restorer(model, variables, ConfigDict({"data": {"image_size": 0}}))
    whole = np.clip(apply(model, variables, photograph[None])[0], 0, 1)
    tiled = restorer(photograph, tile=64, overlap=32)
    inside = np.abs(tiled - whole)[16:-16, 16:-16]
    # But for the frames of the tiles, which weigh little.
    assert np.quantile(inside, 0.3) < 1e-6
    # Not so where each tile is its own context.
    own = np.clip(apply(model, variables, photograph[None, :64, :64])[0], 0, 1)
    assert np.quantile(np.abs(own - whole[:64, :64])[16:32, 16:32], 0.3) > 1e-4


@pytest.mark.parametrize("ensemble", ["flips", "all8"])
def test_a_self_ensemble_turns_the_context_with_the_image(ensemble):
    model = models.create("gain_unet", **SMALL)
    variables = drawn(model)
    photograph = images(32, 32)
    restorer = Restorer(model, variables, ConfigDict({}), tile=32)
    views = [photograph, photograph[::-1], photograph[:, ::-1], photograph[::-1, ::-1]]
    back = [lambda x: x, lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x[::-1, ::-1]]
    if ensemble == "all8":
        views += [view.swapaxes(0, 1) for view in views]
        back += [lambda x, f=f: f(x.swapaxes(0, 1)) for f in back]
    restored = [
        f(np.asarray(apply(model, variables, v[None])[0]))
        for f, v in zip(back, views, strict=True)
    ]
    expected = np.clip(np.mean(restored, axis=0), 0, 1)
    found = restorer(photograph, self_ensemble=ensemble)
    assert np.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"stem": 0}, "stem"),
        ({"blocks": 1.5}, "blocks"),
        ({"gain": 1}, "gain"),
        ({"tell": "yes"}, "tell"),
        ({"shortcut": "none"}, "shortcut"),
        ({"shortcut": "average", "stem": 3}, "shortcut"),
    ],
)
def test_refuses_options_that_cannot_be(options, field):
    with pytest.raises(UsageError, match=f"config.model.{field}"):
        models.create("gain_unet", **options)
