"""The architectures but the SCA U-Net, which test_sca_unet.py covers."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from scipy import ndimage

from configs import default
from restore_jax import models
from restore_jax.errors import UsageError
from restore_jax.metrics.cost import parameter_count
from restore_jax.models import cbam_unet, layers, rcan
from restore_jax.parallel import device_mesh
from tests.support.networks import apply, shapes_of, variables_of

TINY = {
    "rcan": {"width": 4, "blocks": 2},
    "unet_small": {"widths": (4, 6)},
    "cbam_unet": {"widths": (4, 6, 8), "skips": (True, False), "dropout": 0.0},
    "pexels_unet": {"bottleneck": 32},
    "pexels_cnn": {"widths": (4, 5)},
    "pexels_generator": {"widths": (3, 4)},
}
MULTIPLE = {"unet_small": 2, "cbam_unet": 4, "pexels_unet": 16, "pexels_generator": 4}
WITH_BATCH_NORM = ["cbam_unet", "pexels_unet", "pexels_cnn", "pexels_generator"]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def tiny(name, **options):
    model = models.create(name, **TINY[name] | options)
    return model, variables_of(model)


@functools.cache
def restored_of_37_by_53(name):
    model, variables = tiny(name)
    return apply(model, variables, images(2, 37, 53, 3))


# Layers in NumPy and SciPy, on [B, H, W, C].


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def conv(x, layer, dilation=1):
    kernel = np.asarray(layer["kernel"])
    rows, columns, inputs, outputs = kernel.shape
    spread = np.zeros((rows * dilation, columns * dilation, inputs, outputs), np.float32)
    spread[::dilation, ::dilation] = kernel
    spread = spread[: (rows - 1) * dilation + 1, : (columns - 1) * dilation + 1]
    y = np.zeros((*x.shape[:3], outputs), np.float32)
    for image, result in zip(x, y, strict=True):
        for i in range(inputs):
            for o in range(outputs):
                result[..., o] += ndimage.correlate(
                    image[..., i], spread[..., i, o], mode="constant"
                )
    return y + layer.get("bias", 0)


def max_pool(x):
    return np.max([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def transposed_conv(x, layer):
    b, h, w, _ = x.shape
    y = np.zeros((b, 2 * h, 2 * w, layer["bias"].size), np.float32)
    for i in (0, 1):
        for j in (0, 1):
            y[:, i::2, j::2] = x @ layer["kernel"][i, j] + layer["bias"]
    return y


def normalise(x, layer, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]


def double_conv(x, params, stats):
    """Twice convolution, BatchNorm with running statistics, ReLU."""
    for i in ("1", "2"):
        x = conv(x, params[f"conv{i}"])
        x = relu(normalise(x, params[f"norm{i}"], **stats[f"norm{i}"]))
    return x


def gate(x, params):
    hidden = relu(x.mean(axis=(1, 2)) @ params["squeeze"]["kernel"] + params["squeeze"]["bias"])
    return sigmoid(hidden @ params["excite"]["kernel"] + params["excite"]["bias"])[
        :, None, None
    ]


# Sizes and totals.


@pytest.mark.parametrize(
    ("name", "options", "total"),
    [
        ("rcan", {}, 763_243),
        ("rcan", {"global_residual": True}, 763_243),
        ("unet_small", {}, 430_339),
        ("cbam_unet", {"mask_attention": "identity"}, 27_949_124),
        ("cbam_unet", {"mask_attention": "identity", "skips": [True] * 4}, 31_082_564),
        # A second head, 64 → 3.
        ("cbam_unet", {}, 27_949_124 + 195),
        # An MLP 1024 → 64 → 1024.
        ("cbam_unet", {"bottleneck_attention": True}, 27_949_124 + 195 + 131_072),
        ("pexels_unet", {}, 7_766_051),
        ("pexels_unet", {"bottleneck": 1024}, 31_043_651),
        ("pexels_cnn", {}, 83_715),
        ("pexels_generator", {}, 1_379_843),
    ],
)
def test_parameter_totals_are_those_of_the_reports(name, options, total):
    shapes = shapes_of(models.create(name, **options))
    assert parameter_count(shapes["params"]) == total
    assert ("batch_stats" in shapes) == (name in WITH_BATCH_NORM)


def test_the_discriminator_has_the_parameters_that_remain_of_the_total():
    image = jnp.zeros((1, 32, 32, 3))
    shapes = shapes_of(models.create("pexels_discriminator"), image, image)
    assert parameter_count(shapes["params"]) == 696_225


def test_parameters_of_the_mask_attention():
    shapes = shapes_of(models.create("cbam_unet"))
    assert parameter_count(shapes["params"]["mask_attention"]) == 705


@pytest.mark.parametrize("name", TINY)
def test_a_single_pixel_is_restored(name):
    model, variables = tiny(name)
    restored = apply(model, variables, images(2, 1, 1, 3))
    assert restored.shape == (2, 1, 1, 3)
    assert restored.dtype == jnp.float32
    assert np.isfinite(restored).all()


@pytest.mark.parametrize("name", TINY)
def test_odd_sizes_are_padded_by_reflection_and_cropped_back(name):
    restored = restored_of_37_by_53(name)
    assert restored.shape == (2, 37, 53, 3)
    assert restored.dtype == jnp.float32
    multiple = MULTIPLE.get(name, 1)
    padding = [(0, 0), (0, -37 % multiple), (0, -53 % multiple), (0, 0)]
    whole = np.pad(images(2, 37, 53, 3), padding, mode="reflect")
    model, variables = tiny(name)
    expected = apply(model, variables, whole)[:, :37, :53]
    np.testing.assert_allclose(restored, expected, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3, "the image has no effect"


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_computes_near_float32_with_float32_variables(name):
    _, variables = tiny(name)
    half = models.create(name, **TINY[name], dtype=jnp.bfloat16)
    degraded = images(2, 37, 53, 3)
    made, updates = jax.eval_shape(
        lambda v, x: (
            half.init(jax.random.key(0), x),
            half.apply(v, x, train=True, mutable=["batch_stats"])[1],
        ),
        variables,
        degraded,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((made, updates))} == {jnp.dtype("float32")}
    restored = apply(half, variables, degraded)
    assert restored.dtype == jnp.float32
    assert 0 < np.abs(restored - restored_of_37_by_53(name)).max() < 0.1


@pytest.mark.parametrize("name", sorted(set(TINY) - {"cbam_unet"}))
def test_models_that_take_no_mask_never_look_at_it(name):
    model, variables = tiny(name)
    shape = jax.eval_shape(
        lambda v, x: model.apply(v, x, mask="no array"), variables, images(1, 16, 16, 3)
    )
    assert shape.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("name", sorted(set(TINY) - set(WITH_BATCH_NORM)))
def test_models_without_batch_norm_never_look_at_valid(name):
    model, variables = tiny(name)
    shape = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, valid="no array"),
        variables,
        images(1, 16, 16, 3),
    )
    assert shape.shape == (1, 16, 16, 3)


# BatchNorm.


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_rows_that_fill_up_a_batch_do_not_count(name):
    model, variables = tiny(name)
    degraded = images(4, 16, 16, 3)
    degraded[1] *= 7  # would move any mean
    mask = (images(4, 16, 16, 1, seed=1) > 0.8).astype(np.float32)
    valid = np.array([True, False, True, True])

    @jax.jit
    def train(degraded, mask, valid):
        return model.apply(
            variables, degraded, mask, train=True, valid=valid, mutable=["batch_stats"]
        )

    restored, updates = train(degraded, mask, valid)
    expected, expected_updates = train(degraded[valid], mask[valid], None)
    np.testing.assert_allclose(restored[valid], expected, atol=2e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        updates,
        expected_updates,
    )
    _, all_rows = train(degraded, mask, np.ones(4, bool))
    assert any(
        np.abs(a - b).max() > 1e-2
        for a, b in zip(jax.tree.leaves(all_rows), jax.tree.leaves(updates), strict=True)
    )


def test_a_batch_norm_block_in_training_by_hand():
    x = random(3, 5, 6, 2)
    block = layers.BatchNormDoubleConv(3)
    variables = variables_of(block, x)
    params, stats = variables["params"], variables["batch_stats"]
    valid = np.array([True, False, True])
    y, updates = jax.jit(
        lambda v, x: block.apply(v, x, train=True, valid=valid, mutable=["batch_stats"])
    )(variables, x)

    expected = x
    for i in ("1", "2"):
        expected = conv(expected, params[f"conv{i}"])
        counted = expected[valid].reshape(-1, 3)
        mean, var = counted.mean(0), counted.var(0)
        old, new = stats[f"norm{i}"], updates["batch_stats"][f"norm{i}"]
        np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, atol=1e-5)
        np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, atol=1e-5)
        expected = relu(normalise(expected, params[f"norm{i}"], mean, var))
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_a_batch_norm_block_takes_running_statistics_to_restore():
    x = random(2, 5, 6, 2)
    block = layers.BatchNormDoubleConv(3, use_bias=False)
    variables = variables_of(block, x)
    assert set(variables["params"]["conv1"]) == {"kernel"}
    expected = double_conv(x, variables["params"], variables["batch_stats"])
    np.testing.assert_allclose(apply(block, variables, x), expected, atol=1e-4)


def test_statistics_of_a_sharded_batch_are_those_of_the_whole():
    model, variables = tiny("pexels_cnn")
    degraded = images(4, 8, 8, 3) * np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1)
    valid = np.array([True, True, True, False])

    def train(variables, degraded, valid):
        return model.apply(variables, degraded, None, True, valid, mutable=["batch_stats"])

    mesh = device_mesh.make_mesh()
    assert mesh.size == 4
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    sharded = jax.jit(train, in_shardings=(whole, split, split))(variables, degraded, valid)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        sharded,
        jax.jit(train)(variables, degraded, valid),
    )


# The architectures one by one.


def test_rcab_against_scipy():
    x = random(2, 7, 6, 20)
    block = rcan.RCAB()
    params = variables_of(block, x)["params"]
    y = conv(relu(conv(x, params["conv1"], dilation=2)), params["conv2"], dilation=2)
    expected = x + y * gate(y, params["attention"])
    np.testing.assert_allclose(apply(block, {"params": params}, x), expected, atol=1e-4)


def test_channel_attention_by_hand():
    x = random(2, 3, 5, 32)
    block = layers.ChannelAttention()
    params = variables_of(block, x)["params"]
    assert params["squeeze"]["kernel"].shape == (32, 2)
    expected = x * gate(x, params)
    np.testing.assert_allclose(apply(block, {"params": params}, x), expected, atol=1e-5)


def seen_by_one_output(model, inputs):
    """Extent of the input that an output in the middle depends on, of a network of ones.

    With positive inputs and kernels no ReLU is off and nothing cancels. Attention is held
    constant, as its global mean sees everything.
    """

    def constant(path, leaf):
        names = [key.key for key in path]
        if names[-1] == "kernel":
            return np.full(leaf.shape, 0.0 if {"squeeze", "excite"} & set(names) else 0.1)
        return np.full(leaf.shape, 1.0 if names[-1] in ("scale", "var") else 0.0)

    variables = jax.tree_util.tree_map_with_path(constant, shapes_of(model, *inputs))

    def middle(first):
        y = model.apply(variables, first, *inputs[1:])
        return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]

    seen = np.any(np.asarray(jax.jit(jax.grad(middle))(inputs[0]))[0] != 0, axis=-1)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert rows[0] > 0 and rows[-1] < len(seen) - 1, "the image is too small to tell"
    assert columns[0] > 0 and columns[-1] < seen.shape[1] - 1
    return int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def test_rcan_sees_93_by_93_pixels():
    model = models.create("rcan", width=1)
    assert seen_by_one_output(model, [jnp.ones((1, 99, 103, 3))]) == (93, 93)


def test_a_patch_of_the_discriminator_is_70_by_70_pixels():
    model = models.create("pexels_discriminator", widths=(1, 1, 1, 1))
    image = jnp.ones((1, 96, 104, 3))
    assert seen_by_one_output(model, [image, image]) == (70, 70)


@pytest.mark.parametrize("residual", [False, True])
def test_rcan_adds_its_input_where_asked_to(residual):
    model, variables = tiny("rcan", global_residual=residual)
    zeroed = jax.tree.map(jnp.zeros_like, variables["params"]["output"])
    degraded = images(1, 6, 7, 3)
    params = variables["params"] | {"output": zeroed}
    restored = apply(model, {"params": params}, degraded)
    np.testing.assert_array_equal(restored, degraded if residual else 0 * degraded)


def test_transposed_convolution_by_hand_and_as_the_library_has_it():
    x = random(2, 3, 4, 5)
    layer = layers.TransposedConv2(6)
    params = variables_of(layer, x)["params"]
    doubled = apply(layer, {"params": params}, x)
    np.testing.assert_allclose(doubled, transposed_conv(x, params), atol=1e-5)
    # Flax keeps the kernel of the convolution whose transpose this is: turned by 180°.
    turned = params | {"kernel": params["kernel"][::-1, ::-1]}
    library = apply(nn.ConvTranspose(6, (2, 2), (2, 2)), {"params": turned}, x)
    np.testing.assert_allclose(doubled, library, atol=1e-5)


def test_transposed_convolution_starts_with_a_variance_of_one_over_its_inputs():
    kernel = layers.TransposedConv2(16).init(jax.random.key(0), random(1, 1, 1, 256))
    assert np.var(kernel["params"]["kernel"]) == pytest.approx(1 / 256, rel=0.05)


def test_small_unet_against_scipy():
    model, variables = tiny("unet_small")
    params = variables["params"]
    x = images(2, 6, 8, 3)
    y = relu(conv(relu(conv(x, params["conv1"])), params["conv2"]))
    y = conv(relu(transposed_conv(max_pool(y), params["up"])), params["output"])
    np.testing.assert_allclose(apply(model, variables, x), y, atol=1e-5)


@pytest.mark.parametrize("name", ["pexels_unet", "pexels_generator"])
def test_pexels_unet_and_generator_against_scipy(name):
    model, variables = tiny(name, **{"bottleneck": 16} if name == "pexels_unet" else {})
    variables = variables_of(model)
    params, stats = variables["params"], variables["batch_stats"]
    stages = [1, 2, 3, 4] if name == "pexels_unet" else [1, 2]
    x = images(1, 16, 16, 3)

    def block(y, stage):
        return double_conv(y, params[stage], stats[stage])

    y, skips = x, {}
    for stage in stages:
        skips[stage] = block(y, f"down{stage}")
        y = max_pool(skips[stage])
    y = block(y, "bottleneck")
    for stage in reversed(stages):
        y = transposed_conv(y, params[f"double{stage}"])
        y = block(np.concatenate([y, skips[stage]], axis=-1), f"up{stage}")
    y = conv(y, params["output"])
    np.testing.assert_allclose(apply(model, variables, x), y, atol=1e-4)


def test_pexels_cnn_against_scipy():
    model, variables = tiny("pexels_cnn")
    params, stats = variables["params"], variables["batch_stats"]
    assert params["conv1"]["kernel"].shape[:2] == (7, 7)
    assert params["conv2"]["kernel"].shape[:2] == (3, 3)
    x = images(1, 6, 7, 3)
    y = double_conv(x, params, stats)
    y = conv(y, params["output"])
    np.testing.assert_allclose(apply(model, variables, x), y, atol=1e-4)


def test_cbam_channel_attention_by_hand():
    x = random(2, 4, 5, 32)
    block = cbam_unet.CBAMChannelAttention()
    params = variables_of(block, x)["params"]
    assert set(params["squeeze"]) == set(params["excite"]) == {"kernel"}

    def mlp(pooled):
        return relu(pooled @ params["squeeze"]["kernel"]) @ params["excite"]["kernel"]

    weight = sigmoid(mlp(x.mean(axis=(1, 2))) + mlp(x.max(axis=(1, 2))))
    np.testing.assert_allclose(
        apply(block, {"params": params}, x), x * weight[:, None, None], atol=1e-5
    )


@pytest.mark.parametrize("mask_attention", cbam_unet.MASK_ATTENTIONS)
def test_no_mask_is_a_mask_of_zeros_and_a_mask_changes_the_result(mask_attention):
    model, variables = tiny("cbam_unet", mask_attention=mask_attention)
    degraded = images(1, 16, 16, 3)
    mask = np.zeros((1, 16, 16, 1), np.float32)
    without = apply(model, variables, degraded)
    np.testing.assert_array_equal(apply(model, variables, degraded, mask), without)
    mask[:, 4:9, 5:11] = 1
    assert np.abs(apply(model, variables, degraded, mask) - without).max() > 1e-3


def test_blend_mixes_two_heads_by_the_weight_of_the_mask():
    model, variables = tiny("cbam_unet")
    params = variables["params"]
    heads = {
        name: {"kernel": np.zeros((1, 1, 4, 3), np.float32), "bias": np.array(bias, np.float32)}
        for name, bias in (("defect_output", [1, 2, 3]), ("background_output", [0, 0, -1]))
    }
    mask = np.zeros((1, 9, 10, 1), np.float32)
    mask[:, 2:5, 3:8] = 1
    variables = variables | {"params": params | heads}
    found = apply(model, variables, images(1, 9, 10, 3), mask)
    padded = np.pad(mask, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="reflect")
    attention = params["mask_attention"]
    w = sigmoid(conv(relu(conv(padded, attention["conv1"])), attention["conv2"]))[:, :9, :10]
    assert np.ptp(w) > 0.05
    expected = np.concatenate([w, 2 * w, 4 * w - 1], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_identity_does_not_depend_on_the_weight_and_blend_does():
    degraded = images(1, 8, 8, 3)
    for mask_attention, depends in (("identity", False), ("blend", True)):
        model, variables = tiny("cbam_unet", mask_attention=mask_attention)
        before = apply(model, variables, degraded)
        moved = jax.tree.map(lambda leaf: leaf + 1, variables["params"]["mask_attention"])
        params = variables["params"] | {"mask_attention": moved}
        after = apply(model, variables | {"params": params}, degraded)
        assert (np.abs(after - before).max() > 1e-3) == depends


@pytest.mark.parametrize("skips", [(True, False), (False, True)])
def test_each_skip_switch_reaches_its_own_stage(skips):
    _, variables = tiny("cbam_unet", skips=skips)
    inputs = [variables["params"][f"up{i}"]["conv1"]["kernel"].shape[2] for i in (1, 2)]
    assert inputs == [width * (1 + skip) for width, skip in zip((4, 6), skips, strict=True)]


def test_dropout_is_for_training_and_needs_its_key():
    model, variables = tiny("cbam_unet", dropout=0.5)
    degraded = images(2, 16, 16, 3)

    @jax.jit
    def train(key):
        return model.apply(
            variables, degraded, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0]

    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(
            lambda v: model.apply(v, degraded, train=True, mutable=["batch_stats"]), variables
        )
    without, _ = tiny("cbam_unet", dropout=0.0)
    programs = [str(jax.make_jaxpr(m.apply)(variables, degraded)) for m in (model, without)]
    assert programs[0] == programs[1], "dropout changes how images are restored"


def test_dropout_takes_whole_channels_of_single_images():
    x = random(4, 5, 6, 2)
    variables = variables_of(layers.BatchNormDoubleConv(16), x)

    def train(rate):
        block = layers.BatchNormDoubleConv(16, dropout=rate)
        key = {"dropout": jax.random.key(3)}
        return jax.jit(
            lambda v: block.apply(v, x, train=True, rngs=key, mutable=["batch_stats"])[0]
        )(variables)

    whole, dropped = np.asarray(train(0.0)), np.asarray(train(0.25))
    kept = dropped.any(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(dropped, np.where(kept, whole / 0.75, 0), atol=1e-5)
    assert 0.5 < kept.mean() < 0.95
    assert (kept != kept[:1]).any(), "every image drops the same channels"


@pytest.mark.parametrize(
    ("size", "logits"), [((32, 32), (4, 4)), ((37, 53), (5, 7)), ((1, 1), (1, 1))]
)
def test_discriminator_judges_patches_of_any_image(size, logits):
    model = models.create("pexels_discriminator", widths=(2, 3, 4, 5), dtype=jnp.bfloat16)
    image = images(2, *size, 3)
    judged = apply(model, variables_of(model, image, image), image, image)
    assert judged.shape == (2, *logits, 1)
    assert judged.dtype == jnp.float32
    assert np.isfinite(judged).all()


def test_discriminator_looks_at_both_images_and_counts_valid_rows_alone():
    model = models.create("pexels_discriminator", widths=(2, 3, 4))
    degraded, candidate = images(3, 16, 16, 3), images(3, 16, 16, 3, seed=1)
    variables = variables_of(model, degraded, candidate)
    assert set(variables["params"]["conv1"]) == {"kernel", "bias"}
    assert set(variables["params"]["conv2"]) == {"kernel"}
    assert set(variables["batch_stats"]) == {"norm2", "norm3"}

    @jax.jit
    def judge(degraded, candidate):
        return model.apply(variables, degraded, candidate)

    logits = judge(degraded, candidate)
    assert np.abs(judge(1 - degraded, candidate) - logits).max() > 1e-3
    assert np.abs(judge(degraded, 1 - candidate) - logits).max() > 1e-3

    @jax.jit
    def train(degraded, candidate, valid):
        return model.apply(variables, degraded, candidate, True, valid, mutable=["batch_stats"])

    valid = np.array([True, False, True])
    found, updates = train(degraded, candidate, valid)
    expected, expected_updates = train(degraded[valid], candidate[valid], None)
    np.testing.assert_allclose(found[valid], expected, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), updates, expected_updates
    )


# Options.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rcan", {"width": 0}, r"width: 0 must be a whole number above 0"),
        ("rcan", {"blocks": 2.5}, r"blocks: 2.5 must be a whole number above 0"),
        ("rcan", {"blocks": True}, r"blocks: True must be a whole number above 0"),
        ("rcan", {"global_residual": 1}, r"global_residual: 1 is not one of True, False"),
        ("unet_small", {"widths": (4, 5, 6)}, r"widths: \(4, 5, 6\) must be 2 whole numbers"),
        ("unet_small", {"widths": 4}, r"widths: 4 must be 2 whole numbers above 0"),
        ("cbam_unet", {"widths": (4,)}, r"widths: \(4,\) must be 2 or more whole numbers"),
        ("cbam_unet", {"skips": [True] * 3}, r"skips: .* must be 4 values, each True or False"),
        (
            "cbam_unet",
            {"skips": (1, 0, 0, 0)},
            r"skips: .* must be 4 values, each True or False",
        ),
        ("cbam_unet", {"dropout": 1.0}, r"dropout: 1.0 must lie in \[0, 1\)"),
        ("cbam_unet", {"dropout": "0.1"}, r"dropout: '0.1' must lie in \[0, 1\)"),
        ("cbam_unet", {"mask_attention": "on"}, r"mask_attention: 'on' is not one of \['blend"),
        ("cbam_unet", {"bottleneck_attention": "no"}, r"bottleneck_attention: 'no' is not one"),
        ("pexels_unet", {"bottleneck": 40}, r"bottleneck: 40 must be a multiple of 16 above 0"),
        ("pexels_unet", {"widths": (4, 4)}, r"widths: pexels_unet has no such option"),
        ("pexels_cnn", {"widths": ()}, r"widths: \(\) must be 1 or more whole numbers"),
        ("pexels_generator", {"widths": ("4",)}, r"widths: \('4',\) must be 1 or more"),
        ("pexels_discriminator", {"widths": [4]}, r"widths: \(4,\) must be 2 or more"),
    ],
)
def test_wrong_options_are_named_in_one_line(name, options, message):
    with pytest.raises(UsageError, match=rf"^config\.model\.{message}") as refusal:
        models.create(name, **options)
    assert "\n" not in str(refusal.value)


def test_lists_from_a_file_give_the_same_hashable_model():
    from_file = models.create("cbam_unet", widths=[4, 6, 8], skips=[True, False])
    assert from_file == models.create("cbam_unet", widths=(4, 6, 8), skips=(True, False))
    assert hash(from_file) == hash(from_file.clone())


def test_a_config_makes_its_architecture_but_no_discriminator():
    config = default.get_config("sample")
    config.model = {"name": "pexels_unet", "bottleneck": 32}
    config.dtype = "bfloat16"
    model = models.from_config(config)
    assert model == models.create("pexels_unet", bottleneck=32, dtype=jnp.dtype("bfloat16"))
    config.model = {"name": "pexels_discriminator"}
    with pytest.raises(UsageError, match=r"config\.model\.name: pexels_disc.*pexels_generator"):
        models.from_config(config)
