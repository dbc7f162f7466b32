import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from restore_jax import models
from restore_jax.errors import UsageError
from restore_jax.metrics.cost import parameter_count
from restore_jax.models import layers
from tests.support.networks import apply, shapes_of, variables_of


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny():
    model = models.create("sca_unet", widths=(4, 6, 8))
    return model, variables_of(model)


@pytest.mark.parametrize("variant", ["report", "released"])
def test_sca_unet_has_the_reported_number_of_parameters(variant):
    model = models.create("sca_unet", variant=variant)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert parameter_count(variables["params"]) == 867_842


def test_parameters_of_each_stage_are_those_of_the_report():
    variables = jax.eval_shape(
        models.create("sca_unet").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    counts = {name: parameter_count(tree) for name, tree in variables["params"].items()}
    assert counts == {
        "down1": 2_832,
        "attention1": 321,
        "down2": 14_432,
        "attention2": 1_218,
        "down3": 57_536,
        "attention3": 4_740,
        "down4": 229_760,
        "attention4": 18_696,
        "bottleneck": 295_168,
        "non_local": 33_088,
        "up3": 159_936,
        "up2": 40_032,
        "up1": 10_032,
        "output": 51,
    }


@pytest.mark.parametrize("variant", ["report", "released"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (37, 53)])
def test_any_image_size_keeps_its_size(variant, size):
    model = models.create("sca_unet", widths=(4, 6, 8), variant=variant)
    variables = variables_of(model)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *size, 3)), jnp.float32)
    restored = apply(model, variables, images)
    assert restored.shape == images.shape
    assert restored.dtype == jnp.float32
    assert np.isfinite(restored).all()


def test_mask_train_and_valid_are_part_of_the_call_and_not_looked_at(tiny):
    model, variables = tiny
    shape = jax.eval_shape(
        lambda v, x: model.apply(v, x, mask="no array", train=True, valid="no array"),
        variables,
        jnp.zeros((1, 16, 16, 3)),
    )
    assert shape.shape == (1, 16, 16, 3)


def test_output_is_the_input_plus_a_residual(tiny):
    model, variables = tiny
    images = jnp.asarray(random(1, 16, 16, 3))
    zeroed = jax.tree.map(jnp.zeros_like, variables["params"]["output"])
    restored = apply(model, {"params": variables["params"] | {"output": zeroed}}, images)
    np.testing.assert_array_equal(restored, images)


def test_padding_is_cropped_back_from_the_reflected_image(tiny):
    model, variables = tiny
    images = random(1, 13, 10, 3)
    padded = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="reflect")
    np.testing.assert_allclose(
        apply(model, variables, images),
        apply(model, variables, padded)[:, :13, :10],
        atol=1e-6,
    )


def test_bfloat16_computes_near_float32_with_float32_parameters(tiny):
    model, variables = tiny
    images = np.random.default_rng(1).uniform(size=(1, 16, 16, 3)).astype(np.float32)
    half = models.create("sca_unet", widths=(4, 6, 8), dtype=jnp.bfloat16)
    made = shapes_of(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    restored = apply(half, variables, images)
    assert restored.dtype == jnp.float32
    exact = apply(model, variables, images)
    assert 0 < np.abs(restored - exact).max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sca_net"}, "config.model.name: no model 'sca_net'"),
        ({"name": "sca_unet", "variant": "new"}, "config.model.variant: 'new'"),
        ({"name": "sca_unet", "width": 3}, "config.model.width: sca_unet has no such option"),
        (
            {"name": "sca_unet", "widths": [16]},
            r"config.model.widths: \(16,\) must be 2 or more",
        ),
        ({"name": "sca_unet", "widths": (3, 4)}, "config.model.widths: .* a multiple of 2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        models.create(**options)


def test_residual_double_conv_against_scipy():
    x = random(1, 6, 7, 2)
    block = layers.ResidualDoubleConv(3)
    params = variables_of(block, x)["params"]

    def convolve(image, layer):
        kernel = np.asarray(layer["kernel"])
        planes = [
            sum(
                ndimage.correlate(image[..., i], kernel[..., i, o], mode="constant")
                for i in range(image.shape[-1])
            )
            for o in range(kernel.shape[-1])
        ]
        return np.stack(planes, -1) + np.asarray(layer["bias"])

    y = np.maximum(convolve(x[0], params["conv1"]), 0)
    y = np.maximum(convolve(y, params["conv2"]), 0)
    expected = y + convolve(x[0], params["shortcut"])
    np.testing.assert_allclose(apply(block, {"params": params}, x)[0], expected, atol=1e-5)


def test_block_without_a_change_of_channels_has_an_identity_shortcut():
    params = shapes_of(layers.ResidualDoubleConv(4), random(1, 4, 4, 4))["params"]
    assert set(params) == {"conv1", "conv2"}


def test_spatial_channel_attention_by_hand():
    x = random(1, 4, 5, 32)
    block = layers.SpatialChannelAttention()
    params = variables_of(block, x)["params"]

    def dense(value, layer):
        kernel = np.asarray(layer["kernel"])
        return value @ kernel.reshape(kernel.shape[-2:]) + np.asarray(layer["bias"])

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    hidden = np.maximum(dense(x.mean(axis=(1, 2)), params["squeeze"]), 0)
    assert hidden.shape == (1, 2)
    channel = sigmoid(dense(hidden, params["excite"]))[:, None, None]
    expected = x * sigmoid(dense(x, params["spatial"])) * channel
    np.testing.assert_allclose(apply(block, {"params": params}, x), expected, atol=1e-5)


def test_softmax_attention_by_hand():
    theta, phi, g = (random(2, 3, 4, 5, seed=s) for s in range(3))
    q, k, v = (z.reshape(2, 12, 5) for z in (theta, phi, g))
    scores = q @ k.transpose(0, 2, 1)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = (weights @ v).reshape(2, 3, 4, 5)
    found = jax.jit(layers.softmax_attention)(theta, phi, g)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_attention_in_blocks_of_queries_is_the_same(monkeypatch):
    theta, phi, g = (jnp.asarray(random(2, 3, 5, 4, seed=s)) for s in range(3))

    def value_and_gradient():
        def loss(theta):
            attended = layers.softmax_attention(theta, phi, g)
            return jnp.sum(attended**2), attended

        return jax.jit(jax.grad(loss, has_aux=True))(theta)

    whole = value_and_gradient()
    monkeypatch.setattr(layers, "_MAX_QUERIES", 4)
    for expected, found in zip(whole, value_and_gradient(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_released_attention_reshapes_where_a_transpose_was_meant():
    theta, phi, g = (random(2, 3, 4, 5, seed=s) for s in range(3))
    q, k, v = (z.reshape(2, 12, 5) for z in (theta, phi, g))
    attended = (q @ k.transpose(0, 2, 1) / 12) @ v  # [B, H·W, C], the quadratic form
    expected = attended.reshape(2, 5, 3, 4).transpose(0, 2, 3, 1)
    result = jax.jit(layers.linear_attention_as_released)(theta, phi, g)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_max_pool_by_hand():
    x = random(2, 4, 6, 3)
    pooled = layers.max_pool2(jnp.asarray(x))
    assert pooled.shape == (2, 2, 3, 3)
    for i in range(2):
        for j in range(3):
            block = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_array_equal(pooled[:, i, j], block.max(axis=(1, 2)))


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 5, 4), (1, 8, 8, 1)])
def test_upsampling_equals_the_library_resize(shape):
    x = random(*shape)
    doubled = (shape[0], 2 * shape[1], 2 * shape[2], shape[3])
    expected = jax.image.resize(x, doubled, "bilinear")
    np.testing.assert_allclose(jax.jit(layers.upsample2)(x), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (3, 1), (7, 8)])
def test_upsampling_has_the_gradient_of_its_definition(size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    larger = (2, 2 * size[0], 2 * size[1], 3)
    g = jnp.asarray(rng.normal(size=larger), jnp.float32)
    found, expected = (
        jax.jit(lambda x, g, f=f: jax.vjp(f, x)[1](g)[0])(x, g)
        for f in (layers.upsample2, lambda x: jax.image.resize(x, larger, "bilinear"))
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 5, 4), (1, 8, 8, 1)])
def test_aligned_upsampling_equals_spline_zoom(shape):
    x = random(*shape)
    # scipy's zoom of order 1 aligns the corners of input and output.
    expected = ndimage.zoom(x, (1, 2, 2, 1), order=1)
    np.testing.assert_allclose(jax.jit(layers.upsample2_aligned)(x), expected, atol=1e-5)


def test_padding_reflects_and_leaves_fitting_images_alone():
    x = jnp.arange(5.0).reshape(1, 1, 5, 1)
    padded = layers.pad_to_multiple(x, 8)
    assert padded.shape == (1, 8, 8, 1)
    np.testing.assert_array_equal(padded[0, 0, :, 0], [0, 1, 2, 3, 4, 3, 2, 1])
    assert layers.pad_to_multiple(padded, 8) is padded
