import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from restore_jax.errors import UsageError
from restore_jax.losses.loss_terms import LOSSES, WITH_PARAMETERS, weighted_sum
from tests.support import similarity

SIZE = (24, 24)
# The others are tested with their parameters in tests of their own.
PLAIN = [name for name in LOSSES if name not in WITH_PARAMETERS]
MASKED = ["masked_mse", "defect"]
TERMS = {name: jax.jit(LOSSES[name]) for name in PLAIN}


def images(seed, batch=3, size=SIZE, low=-0.2, high=1.2):
    """Restored images that leave [0, 1] a little, and clean ones."""
    rng = np.random.default_rng(seed)
    shape = (batch, *size, 3)
    clean = rng.random(shape).astype(np.float32)
    return rng.uniform(low, high, shape).astype(np.float32), clean


def masks(size=SIZE, batch=3):
    """A small defect, none, and one that covers the image; again from the first."""
    mask = np.zeros((batch, *size, 1), np.float32)
    mask[::3, 2:5, 3:9] = 1
    mask[2::3] = 1
    return mask


def mean_squared_error(a, b):
    return np.mean((a - b) ** 2)


def charbonnier_of(difference):
    return np.mean(np.sqrt(difference**2 + 1e-3**2))


def per_channel(image, function):
    return np.stack([function(image[..., c]) for c in range(3)], axis=-1)


def laplacian(image):
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)
    return per_channel(image, lambda x: ndimage.correlate(x, kernel, mode="nearest"))


def pyramid_laplacian(image):
    taps = np.array([0.05, 0.25, 0.4, 0.25, 0.05])
    kernel = np.outer(taps, taps)

    def of_channel(x):
        down = ndimage.correlate(x, kernel, mode="nearest")[::2, ::2]
        up = np.zeros_like(x)
        up[::2, ::2] = 4 * down
        return x - ndimage.correlate(up, kernel, mode="nearest")

    return per_channel(image, of_channel)


def sobel_of(image, axis):
    return per_channel(image, lambda x: ndimage.sobel(x, axis=axis, mode="nearest"))


def sobel_distance(restored, clean):
    return sum(
        np.abs(sobel_of(restored, axis) - sobel_of(clean, axis)).mean() for axis in (0, 1)
    )


def defect_error(restored, clean, mask):
    inside = (restored - clean)[mask[..., 0] == 1]
    return np.mean(np.abs(inside)) + np.mean(inside**2) if inside.size else 0.0


def one_less_ssim(restored, clean):
    return 1 - similarity.ssim_map(restored, clean).mean()


# In float64, one image at a time; each takes the two images and never their difference.
REFERENCES = {
    "charbonnier": lambda r, c, m: charbonnier_of(r - c),
    "ssim": lambda r, c, m: one_less_ssim(r, c),
    "edge": lambda r, c, m: charbonnier_of(laplacian(r) - laplacian(c)),
    "edge_pyramid": lambda r, c, m: charbonnier_of(pyramid_laplacian(r) - pyramid_laplacian(c)),
    "mse": lambda r, c, m: mean_squared_error(r, c),
    "psnr": lambda r, c, m: 10 * np.log10(1 + mean_squared_error(r, c) / 1e-6),
    "l1": lambda r, c, m: np.mean(np.abs(r - c)),
    "basic": lambda r, c, m: np.mean(np.abs(r - c)) + mean_squared_error(r, c),
    "masked_mse": lambda r, c, m: (
        0.3 * mean_squared_error(r, c) + 0.7 * mean_squared_error(m * r, m * c)
    ),
    "defect": defect_error,
    "sobel": lambda r, c, m: sobel_distance(r, c),
}


def reference(name, restored, clean, mask=None):
    mask = np.zeros((*clean.shape[:3], 1)) if mask is None else mask
    rows = zip(*(x.astype(np.float64) for x in (restored, clean, mask)), strict=True)
    return np.array([REFERENCES[name](*row) for row in rows])


def test_every_term_has_a_reference():
    assert set(PLAIN) == set(REFERENCES)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_term_equals_independent_calculation(name, with_mask):
    restored, clean = images(0)
    mask = masks() if with_mask else None
    values = TERMS[name](restored, clean, mask)
    assert values.shape == (3,)
    assert values.dtype == jnp.float32
    expected = reference(name, restored, clean, mask)
    np.testing.assert_allclose(values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(24, 25), (13, 14)])
@pytest.mark.parametrize("name", PLAIN)
def test_term_equals_independent_calculation_on_odd_sizes(name, size):
    restored, clean = images(1, batch=1, size=size)
    mask = masks(size, batch=1)
    np.testing.assert_allclose(
        TERMS[name](restored, clean, mask),
        reference(name, restored, clean, mask),
        atol=1e-5,
        rtol=1e-5,
    )


def test_terms_by_hand():
    # An error of 0.5 in one channel of the defect's only pixel, of 0.1 everywhere else.
    clean = np.full((1, 3, 4, 3), 0.25, np.float32)
    restored = clean + 0.1
    restored[0, 1, 2, 0] = 0.75
    mask = np.zeros((1, 3, 4, 1), np.float32)
    mask[0, 1, 2] = 1
    squared = (0.25 + 35 * 0.01) / 36
    expected = {
        "mse": squared,
        "psnr": 60 + 10 * np.log10(squared + 1e-6),
        "l1": (0.5 + 35 * 0.1) / 36,
        "masked_mse": 0.3 * squared + 0.7 * (0.25 + 2 * 0.01) / 36,
        "defect": (0.5 + 0.1 + 0.1) / 3 + (0.25 + 0.01 + 0.01) / 3,
        # The one pixel stands out by 0.4, and 1, 2, 1 of it on either side, both ways.
        "sobel": 2 * 0.4 * 8 / 36,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(TERMS[name](restored, clean, mask), [value], rtol=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_empty_mask_is_as_good_as_none(name):
    restored, clean = images(16)
    empty = np.zeros((3, *SIZE, 1), np.float32)
    expected = TERMS[name](restored, clean, None)
    np.testing.assert_array_equal(TERMS[name](restored, clean, empty), expected)
    gradient = jax.jit(jax.grad(lambda x: LOSSES[name](x, clean, empty).sum()))(restored)
    assert bool(jnp.isfinite(gradient).all())
    assert bool((gradient == 0).all()) == (name == "defect")


def test_ssim_equals_tensorflow():
    restored, clean = images(2)
    expected = 1 - tf.image.ssim(restored, clean, max_val=1.0).numpy()
    np.testing.assert_allclose(TERMS["ssim"](restored, clean, None), expected, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_least_value_is_at_equality(name):
    _, clean = images(3)
    # A Charbonnier loss ends at its epsilon.
    least = 1e-3 if name in ("charbonnier", "edge", "edge_pyramid") else 0.0
    np.testing.assert_allclose(TERMS[name](clean, clean, masks()), least, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_gradient_equals_central_difference(name):
    restored, clean = images(4, batch=1)
    mask = masks(batch=1)
    direction = np.random.default_rng(5).standard_normal(restored.shape)
    gradient = jax.jit(jax.grad(lambda x: LOSSES[name](x, clean, mask).sum()))(restored)
    h = 1e-6
    ahead, behind = (
        reference(name, restored.astype(np.float64) + sign * h * direction, clean, mask)[0]
        for sign in (1, -1)
    )
    slope = float(np.sum(np.asarray(gradient, np.float64) * direction))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_finite_where_images_are_flat_or_equal(name, dtype):
    texture = np.random.default_rng(6).random((*SIZE, 3)).astype(np.float32)
    pairs = [
        (texture, texture),
        (np.full_like(texture, 0.5), np.full_like(texture, 0.5)),
        (np.zeros_like(texture), np.zeros_like(texture)),
        (np.zeros_like(texture), texture),
        (texture, np.zeros_like(texture)),
        (np.full_like(texture, 0.5), texture),
        (texture, np.full_like(texture, 0.5)),
        (0.5 + 1e-5 * texture, texture),
        (np.zeros_like(texture), np.ones_like(texture)),
        (100 * texture - 50, texture),
    ]
    restored, clean = (jnp.asarray(np.stack(x), dtype) for x in zip(*pairs, strict=True))
    mask = jnp.asarray(masks(batch=len(pairs)), dtype)
    values = TERMS[name](restored, clean, mask)
    gradient = jax.jit(jax.grad(lambda x: LOSSES[name](x, clean, mask).sum()))(restored)
    assert gradient.dtype == dtype
    assert bool(jnp.isfinite(values).all())
    # No pixel's pull is out of proportion to the mean it is part of; errors go up to 50, and a
    # pixel of the defect counts for more where the mean is over the defect alone.
    share = np.asarray(mask, np.float32).mean((1, 2, 3)) if name == "defect" else np.ones(10)
    pull = jnp.abs(gradient.astype(jnp.float32)).max((1, 2, 3))
    assert bool((pull < 110 / texture.size / np.maximum(share, 1e-3)).all())


@pytest.mark.parametrize("name", PLAIN)
def test_bfloat16_is_cast_before_any_arithmetic(name):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (*images(7), masks())]
    values = TERMS[name](*arrays)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, TERMS[name](*(x.astype(jnp.float32) for x in arrays)))


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in MASKED])
def test_terms_without_need_of_a_mask_ignore_it(name):
    restored, clean = images(8)
    np.testing.assert_array_equal(
        TERMS[name](restored, clean, masks()), TERMS[name](restored, clean, None)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_and_types_are_checked(name):
    term = LOSSES[name]
    restored, clean = images(9, batch=1)
    with pytest.raises(ValueError, match=r"\(1, 24, 24, 3\) and \(1, 24, 23, 3\)"):
        term(restored, clean[:, :, :23], None)
    with pytest.raises(ValueError, match=r"\(24, 24, 3\) and \(24, 24, 3\)"):
        term(restored[0], clean[0], None)
    with pytest.raises(ValueError, match=r"\(1, 24, 24, 1\) and \(1, 24, 24, 1\)"):
        term(restored[..., :1], clean[..., :1], None)
    with pytest.raises(ValueError, match=r"\(1, 24, 24, 3\).*\(1, 24, 24\)"):
        term(restored, clean, np.zeros((1, 24, 24), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        term((255 * clean).astype(np.uint8), clean, None)


def test_ssim_refuses_images_smaller_than_its_window():
    restored, clean = images(10, size=(24, 10))
    with pytest.raises(ValueError, match=r"11x11 px.*\(3, 24, 10, 3\)"):
        LOSSES["ssim"](restored, clean, None)
    assert TERMS["ssim"](*images(10, size=(11, 11)), None).shape == (3,)


WEIGHTS = {"charbonnier": 1.0, "edge": 0.1, "ssim": 0.3}
MASK_WEIGHTS = {"masked_mse": 0.5, "defect": 0.25, "sobel": 0.15}


def test_weighted_sum_is_the_mean_over_valid_rows():
    restored, clean = images(11)
    valid = np.array([True, False, True])
    total, terms = jax.jit(weighted_sum(WEIGHTS))(restored, clean, None, valid)
    assert set(terms) == set(WEIGHTS)
    for name in WEIGHTS:
        expected = reference(name, restored, clean)[valid].mean()
        assert terms[name].shape == ()
        assert terms[name].dtype == jnp.float32
        np.testing.assert_allclose(terms[name], expected, atol=1e-5)
    expected_total = terms["charbonnier"] + 0.1 * terms["edge"] + 0.3 * terms["ssim"]
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, expected_total, rtol=1e-6)


def test_weighted_sum_passes_masks_on():
    restored, clean = images(17)
    mask = masks()
    valid = np.array([True, True, False])
    total, terms = jax.jit(weighted_sum(MASK_WEIGHTS))(restored, clean, mask, valid)
    expected = {
        name: reference(name, restored, clean, mask)[valid].mean() for name in MASK_WEIGHTS
    }
    for name in MASK_WEIGHTS:
        np.testing.assert_allclose(terms[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(
        total, sum(MASK_WEIGHTS[name] * expected[name] for name in MASK_WEIGHTS), rtol=1e-5
    )


@pytest.mark.parametrize("weights", [WEIGHTS, MASK_WEIGHTS], ids=["plain", "masked"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 0.0])
def test_rows_of_padding_reach_neither_value_nor_gradient(poison, weights):
    restored, clean = images(12)
    mask = masks()
    valid = np.array([True, False, True])
    padded = [x.copy() for x in (restored, clean, mask)]
    for x in padded:
        x[1] = poison
    function = jax.jit(
        jax.value_and_grad(lambda r, c, m, v: weighted_sum(weights)(r, c, m, v)[0])
    )
    value, gradient = function(*padded, valid)
    alone, gradient_alone = function(restored[[0, 2]], clean[[0, 2]], mask[[0, 2]], valid[::2])
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0.0)
    np.testing.assert_allclose(gradient[np.array([0, 2])], gradient_alone, atol=1e-7)


def test_batch_of_padding_alone_is_zero_and_has_no_gradient():
    restored, clean = images(12)
    function = jax.jit(jax.value_and_grad(weighted_sum(WEIGHTS), has_aux=True))
    (total, terms), gradient = function(restored, clean, None, np.zeros(3, bool))
    assert float(total) == 0.0
    assert all(float(term) == 0.0 for term in terms.values())
    np.testing.assert_array_equal(gradient, 0.0)


def test_term_of_weight_zero_is_not_computed():
    # SSIM would refuse these 8 px.
    restored, clean = images(13, size=(8, 8))
    valid = np.ones(3, bool)
    total, terms = weighted_sum({"charbonnier": 2, "ssim": 0.0})(restored, clean, None, valid)
    assert set(terms) == {"charbonnier"}
    np.testing.assert_allclose(total, 2 * terms["charbonnier"], rtol=1e-6)
    with pytest.raises(ValueError, match="11x11"):
        weighted_sum({"charbonnier": 2, "ssim": 0.1})(restored, clean, None, valid)


def test_valid_must_be_one_flag_per_image():
    restored, clean = images(14)
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 24, 24, 3\).*\(2,\)"):
        weighted_sum(WEIGHTS)(restored, clean, None, np.ones(2, bool))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"ssmi": 1.0}, ["config.loss.ssmi", *LOSSES]),
        ({"ssmi": 0.0, "charbonnier": 1.0}, ["config.loss.ssmi", *LOSSES]),
        ({"ssim": -0.1}, ["config.loss.ssim", "-0.1"]),
        ({"ssim": float("nan")}, ["config.loss.ssim", "nan"]),
        ({"edge": "big"}, ["config.loss.edge", "'big'"]),
        ({"edge": None}, ["config.loss.edge", "None"]),
        ({"charbonnier": 0.0}, ["config.loss:", *LOSSES]),
        ({}, ["config.loss:", *LOSSES]),
    ],
)
def test_wrong_weights_are_refused_in_one_line(weights, words):
    with pytest.raises(UsageError) as caught:
        weighted_sum(weights)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_ssim_asks_for_full_float32():
    restored, clean = images(15)
    program = jax.jit(jax.grad(lambda r: LOSSES["ssim"](r, clean, None).sum()))
    text = program.lower(restored).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert "stablehlo.convolution" not in text
