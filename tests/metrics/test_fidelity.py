import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from restore_jax.errors import RunError
from restore_jax.metrics import fidelity
from tests.support.similarity import ssim_map as skimage_map

SIDE = 24
RING = 2  # 3 % of 24 px is less than a pixel.
FIGURES = {
    "psnr",
    "ssim",
    "mae",
    "input_psnr",
    "input_ssim",
    "defect_psnr",
    "background_psnr",
    "defect_ssim",
    "input_defect_psnr",
    "defect_contrast",
    "input_defect_contrast",
}
OVER_ALL = {"psnr", "ssim", "mae", "input_psnr", "input_ssim"}
OVER_DEFECT = FIGURES - OVER_ALL

image_metrics = jax.jit(fidelity.image_metrics)
ssim = jax.jit(fidelity.ssim)
ssim_map = jax.jit(fidelity.ssim_map)
defect_contrast = jax.jit(fidelity.defect_contrast)


def pairs():
    """Restored and clean images of several kinds, as [B, H, W, 3] in [-0.3, 1.3]."""
    rng = np.random.default_rng(0)
    clean = ndimage.gaussian_filter(rng.random((SIDE, SIDE, 3)), (2, 2, 0))
    clean = (clean - clean.min()) / np.ptp(clean)
    grey = np.repeat(clean[..., :1], 3, axis=-1)
    noise = rng.normal(0, 0.1, clean.shape)
    flat = np.full_like(clean, 0.5)
    kinds = [
        (clean + noise, clean),
        (grey + noise[..., :1], grey),
        (flat, flat + 0.1),
        (flat, clean),
        (clean, flat),
        (clean, clean),
        (flat, flat),
        (np.zeros_like(clean), np.ones_like(clean)),
        (clean + 3 * noise, 1 - clean),
    ]
    restored, truth = zip(*kinds, strict=True)
    return np.stack(restored).astype(np.float32), np.stack(truth).astype(np.float32)


def masks(count):
    """Random blobs that touch the border in some images."""
    rng = np.random.default_rng(1)
    mask = np.zeros((count, SIDE, SIDE, 1), np.float32)
    for row in mask:
        top, left = rng.integers(0, SIDE - 10, 2)
        row[top : top + 10, left : left + rng.integers(6, 10)] = 1
    return mask


def decibels(squared_error):
    return -10 * math.log10(max(float(np.mean(squared_error, dtype=np.float64)), 1e-10))


def expected_figures(restored, degraded, clean, mask):
    """One image's figures by NumPy, SciPy and scikit-image in float64."""
    restored, degraded, clean = (
        np.clip(x.astype(np.float64), 0, 1) for x in (restored, degraded, clean)
    )
    defect = mask[..., 0] > 0
    grown = ndimage.binary_dilation(defect, np.ones((2 * RING + 1, 2 * RING + 1)))
    ring = grown & ~defect
    delta = {
        name: x[defect].mean(axis=0) - x[ring].mean(axis=0)
        for name, x in (("restored", restored), ("degraded", degraded), ("clean", clean))
    }
    error = (restored - clean) ** 2
    return {
        "psnr": decibels(error),
        "ssim": skimage_map(restored, clean).mean(),
        "mae": np.abs(restored - clean).mean(),
        "input_psnr": decibels((degraded - clean) ** 2),
        "input_ssim": skimage_map(degraded, clean).mean(),
        "defect_psnr": decibels(error[defect]),
        "background_psnr": decibels(error[~defect]),
        "defect_ssim": skimage_map(restored, clean)[defect[5:-5, 5:-5]].mean(),
        "input_defect_psnr": decibels(((degraded - clean) ** 2)[defect]),
        "defect_contrast": delta["restored"]
        @ delta["clean"]
        / (delta["clean"] @ delta["clean"]),
        "input_defect_contrast": delta["degraded"]
        @ delta["clean"]
        / (delta["clean"] @ delta["clean"]),
    }


def test_every_figure_equals_an_independent_calculation():
    restored, clean = (x[[0, 1, 3, 8]] for x in pairs())
    degraded = clean + np.random.default_rng(2).normal(0, 0.3, clean.shape).astype(np.float32)
    # A textured clean image: flat ones have no contrast to keep.
    mask = masks(4)
    figures = image_metrics(restored, degraded, clean, mask, np.ones(4, bool))
    assert set(figures) == FIGURES
    for value in figures.values():
        assert value.shape == (4,)
        assert value.dtype == jnp.float32
    for i in range(4):
        expected = expected_figures(restored[i], degraded[i], clean[i], mask[i])
        for name, value in expected.items():
            np.testing.assert_allclose(
                figures[name][i], value, rtol=1e-4, atol=1e-4, err_msg=f"{name} of {i}"
            )


def test_ssim_equals_scikit_image_and_tensorflow():
    restored, clean = (np.clip(x, 0, 1) for x in pairs())
    similarity = ssim_map(restored, clean)
    assert similarity.shape == (len(clean), SIDE - 10, SIDE - 10, 3)
    expected = np.stack([skimage_map(r, c) for r, c in zip(restored, clean, strict=True)])
    np.testing.assert_allclose(similarity, expected, atol=1e-4)
    np.testing.assert_allclose(ssim(restored, clean), expected.mean((1, 2, 3)), atol=1e-4)
    # TensorFlow's float32 is 2e-4 off on two flat images of unlike brightness; that is by hand.
    by_hand = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    by_tensorflow = tf.image.ssim(restored, clean, max_val=1.0).numpy()
    by_tensorflow[2] = by_hand
    np.testing.assert_allclose(ssim(restored, clean), by_tensorflow, atol=1e-4)


# 138 - 10 is a whole number of the tiles the window is computed in; the others are not.
@pytest.mark.parametrize("size", [(138, 85), (11, 139), (74, 75)])
def test_ssim_map_has_no_seams(size):
    rng = np.random.default_rng(3)
    clean = rng.random((1, *size, 3)).astype(np.float32)
    restored = np.clip(clean + rng.normal(0, 0.2, clean.shape), 0, 1).astype(np.float32)
    similarity = ssim_map(restored, clean)
    np.testing.assert_allclose(similarity[0], skimage_map(restored[0], clean[0]), atol=1e-4)


def test_psnr_equals_tensorflow_and_is_100_at_equality():
    restored, clean = (np.clip(x, 0, 1) for x in pairs())
    differ = [0, 1, 2, 3, 4, 7, 8]
    figures = np.asarray(jax.jit(fidelity.psnr)(restored, clean))
    np.testing.assert_allclose(
        figures[differ], tf.image.psnr(restored, clean, max_val=1.0).numpy()[differ], rtol=1e-5
    )
    np.testing.assert_allclose(figures[[5, 6]], 100.0, rtol=1e-6)
    np.testing.assert_allclose(figures[7], 0.0, atol=1e-6)  # black for white
    np.testing.assert_allclose(figures[2], 20.0, rtol=1e-5)  # off by 0.1 everywhere


def test_figures_are_of_clipped_float32_values():
    restored, clean = pairs()
    mask, has_mask = masks(len(clean)), np.ones(len(clean), bool)
    assert (restored < 0).any()
    assert (restored > 1).any()
    half = jnp.asarray(restored, jnp.bfloat16)
    figures = image_metrics(half, half, clean, mask, has_mask)
    rounded = np.clip(np.asarray(half.astype(jnp.float32)), 0, 1)
    of_clipped = image_metrics(rounded, rounded, clean, mask, has_mask)
    for name in FIGURES:
        np.testing.assert_allclose(figures[name], of_clipped[name], rtol=1e-6, atol=1e-6)


def test_photograph_of_native_size_is_measured_accurately():
    rng = np.random.default_rng(4)
    clean = rng.random((1, 512, 512, 3), np.float32)
    restored = clean + rng.normal(0, 1e-3, clean.shape).astype(np.float32)
    expected = decibels(
        (np.clip(restored, 0, 1).astype(np.float64) - clean.astype(np.float64)) ** 2
    )
    np.testing.assert_allclose(jax.jit(fidelity.psnr)(restored, clean)[0], expected, rtol=1e-5)


MASK_CASES = {
    # name: (mask, has_mask, figures over the defect that are defined)
    "unknown": (0.0, False, set()),
    "unknown with ones in it": (1.0, False, set()),
    "empty": (0.0, True, set()),
    "full": (1.0, True, {"defect_psnr", "defect_ssim", "input_defect_psnr"}),
}


@pytest.mark.parametrize("case", MASK_CASES)
def test_undefined_figures_are_nan_and_the_others_are_not(case):
    fill, known, defined = MASK_CASES[case]
    restored, clean = (x[[0, 1, 3, 8]] for x in pairs())
    mask = np.full((4, SIDE, SIDE, 1), fill, np.float32)
    # One proper image beside them: what is undefined for one stays with that one.
    mask[3] = masks(1)
    has_mask = np.array([known, known, known, True])
    figures = {
        name: np.asarray(value)
        for name, value in image_metrics(restored, clean, clean, mask, has_mask).items()
    }
    for name in OVER_ALL | defined:
        assert np.isfinite(figures[name]).all(), name
    for name in OVER_DEFECT - defined:
        assert np.isnan(figures[name][:3]).all(), name
    assert all(np.isfinite(value[3]) for value in figures.values())
    if fill == 1.0 and known:
        np.testing.assert_allclose(figures["defect_psnr"][:3], figures["psnr"][:3], rtol=1e-5)
        np.testing.assert_allclose(figures["defect_ssim"][:3], figures["ssim"][:3], rtol=1e-5)


def test_defect_ssim_is_undefined_for_a_defect_on_the_border():
    restored, clean = (x[[0, 1, 3, 8]] for x in pairs())
    mask = np.zeros((4, SIDE, SIDE, 1), np.float32)
    mask[0, :5] = 1  # ends where the map begins
    mask[1, :6] = 1
    mask[1, :, :5] = 1
    mask[2, :, -5:] = 1
    mask[3, -6, -6] = 1  # the last pixel of the map
    figures = image_metrics(restored, clean, clean, mask, np.ones(4, bool))
    values = np.asarray(figures["defect_ssim"])
    np.testing.assert_array_equal(np.isnan(values), [True, False, True, False])
    np.testing.assert_allclose(
        values[1], skimage_map(*clip(restored[1], clean[1]))[0].mean(), atol=1e-4
    )
    np.testing.assert_allclose(
        values[3], skimage_map(*clip(restored[3], clean[3]))[-1, -1].mean(), atol=1e-4
    )
    assert np.isfinite(figures["defect_psnr"]).all()


def clip(*images):
    return [np.clip(image, 0, 1) for image in images]


def test_rows_of_padding_are_finite_and_change_no_other_row():
    restored, clean = (x[[0, 1, 3, 8]] for x in pairs())
    mask = masks(4)
    has_mask = np.ones(4, bool)
    whole = image_metrics(restored, clean, clean, mask, has_mask)
    padded = [x.copy() for x in (restored, clean, clean, mask, has_mask)]
    for x in padded:
        x[2:] = 0
    figures = image_metrics(*padded)
    for name in FIGURES:
        np.testing.assert_array_equal(figures[name][:2], whole[name][:2])
    for name in OVER_ALL:
        assert np.isfinite(figures[name][2:]).all()
    np.testing.assert_allclose(figures["psnr"][2:], 100.0)


def scene(defect, background=(0.4, 0.5, 0.6), far=0.9):
    """A square defect on a plain background, with something else beyond the ring."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = background
    image[8:14, 8:14] = defect
    image[20:, 20:] = far
    return image


SCENE_MASK = np.zeros((SIDE, SIDE, 1), np.float32)
SCENE_MASK[8:14, 8:14] = 1


def test_contrast_by_hand():
    # Clean contrast (0.1, -0.2, 0), of energy 0.05.
    clean = scene((0.5, 0.3, 0.6))
    cases = [
        (clean, 1.0),
        (scene((0.4, 0.5, 0.6)), 0.0),  # erased
        (scene((0.6, 0.1, 0.6)), 2.0),  # doubled
        (scene((0.3, 0.7, 0.6)), -1.0),  # reversed
        (scene((0.5, 0.5, 0.6)), 0.2),  # kept in red alone: 0.01 / 0.05
        (scene((0.5, 0.3, 0.9)), 1.0),  # another contrast beside it does not count
        (clean + 0.1, 1.0),  # nor does brightness
        (scene((0.5, 0.3, 0.6), far=0.0), 1.0),  # nor what lies beyond the ring
    ]
    restored = np.stack([image for image, _ in cases])
    shape = (len(cases), 1, 1, 1)
    values = defect_contrast(restored, np.tile(clean, shape), np.tile(SCENE_MASK, shape))
    np.testing.assert_allclose(values, [value for _, value in cases], atol=1e-5)


def test_contrast_needs_a_grey_level_of_clean_contrast():
    below, above = 0.9 / 255, 1.1 / 255
    background = np.array([0.4, 0.5, 0.6])
    clean = np.stack(
        [
            scene(background),
            scene(background + np.array([0, below, 0])),
            scene(background + np.array([0, above, 0])),
            scene(background + 0.7 / 255),  # 1.2 levels over the three channels
        ]
    )
    values = defect_contrast(clean, clean, np.tile(SCENE_MASK, (4, 1, 1, 1)))
    np.testing.assert_array_equal(np.isnan(values), [True, True, False, False])
    np.testing.assert_allclose(values[2:], 1.0, rtol=1e-5)


def test_ring_width():
    assert fidelity.ring_width(24, 24) == RING
    assert fidelity.ring_width(256, 300) == 8
    assert fidelity.ring_width(1024, 1024) == 31


def test_shapes_and_types_are_checked():
    restored, clean = (x[:1] for x in pairs())
    mask, has_mask = masks(1), np.ones(1, bool)
    for function in (fidelity.psnr, fidelity.ssim, fidelity.ssim_map, fidelity.mae):
        with pytest.raises(ValueError, match=r"\(1, 24, 24, 3\) and \(1, 23, 24, 3\)"):
            function(restored, clean[:, :23])
        with pytest.raises(ValueError, match="uint8"):
            function(restored, (255 * clean).astype(np.uint8))
    for function in (
        fidelity.defect_psnr,
        fidelity.background_psnr,
        fidelity.defect_ssim,
        fidelity.defect_contrast,
    ):
        with pytest.raises(ValueError, match=r"\(1, 24, 24, 3\).*\(1, 24, 24\)"):
            function(restored, clean, mask[..., 0])
    with pytest.raises(ValueError, match=r"has_mask.*\(1,\).*\(1, 1\)"):
        fidelity.image_metrics(restored, clean, clean, mask, has_mask[:, None])
    with pytest.raises(ValueError, match=r"11x11 px.*\(1, 24, 10, 3\)"):
        fidelity.ssim(restored[:, :, :10], clean[:, :, :10])


def test_arithmetic_is_full_float32_on_a_gpu_too():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    flags = jax.ShapeDtypeStruct((1,), jnp.bool_)
    text = image_metrics.lower(images, images, images, mask, flags).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert "stablehlo.convolution" not in text


def row(name, category, psnr, defect=None, **changes):
    """An image's figures: 30 dB as input, figures over the defect where it has one."""
    return {
        "id": name,
        "category": category,
        "psnr": psnr,
        "ssim": psnr / 40,
        "mae": 0.1,
        "input_psnr": 20.0,
        "input_ssim": 0.5,
        "defect_psnr": defect,
        "background_psnr": None if defect is None else psnr + 1,
        "defect_ssim": None if defect is None else 0.5,
        "input_defect_psnr": None if defect is None else 15.0,
        "defect_contrast": None if defect is None else 0.8,
        "input_defect_contrast": None if defect is None else 0.6,
        **changes,
    }


TABLE = [
    row("wood/1", "wood", 30.0, 20.0),
    row("wood/2", "wood", 32.0, 24.0, defect_ssim=None),
    row("wood/3", "wood", 34.0),  # no mask known, or an empty one
    row("bottle/1", "bottle", 20.0, 10.0, defect_contrast=None),
    row("tile/1", "tile", 28.0),  # a category without a defect
    row("tile/2", "tile", 24.0),
]
KEYS = {"count", "mask_count", *FIGURES}


def test_summary_of_a_table_by_hand():
    summary = fidelity.summarise(TABLE)
    assert set(summary) == {"micro", "macro", "categories"}
    assert list(summary["categories"]) == ["bottle", "tile", "wood"]
    wood, tile = (summary["categories"][name] for name in ("wood", "tile"))
    for means in (summary["micro"], summary["macro"], *summary["categories"].values()):
        assert set(means) == KEYS
        assert type(means["count"]) is int
        assert type(means["mask_count"]) is int

    assert (wood["count"], wood["mask_count"]) == (3, 2)
    assert wood["psnr"] == pytest.approx(32.0)
    assert wood["ssim"] == pytest.approx(0.8)
    assert wood["defect_psnr"] == pytest.approx(22.0)
    assert wood["background_psnr"] == pytest.approx(32.0)
    assert wood["defect_ssim"] == pytest.approx(0.5)  # of one image

    assert (tile["count"], tile["mask_count"]) == (2, 0)
    assert tile["psnr"] == pytest.approx(26.0)
    assert all(tile[figure] is None for figure in OVER_DEFECT)
    assert summary["categories"]["bottle"]["defect_contrast"] is None

    micro, macro = summary["micro"], summary["macro"]
    assert (micro["count"], micro["mask_count"]) == (6, 3)
    assert micro["psnr"] == pytest.approx(168 / 6)
    assert micro["defect_psnr"] == pytest.approx(54 / 3)
    assert micro["defect_contrast"] == pytest.approx(0.8)
    assert (macro["count"], macro["mask_count"]) == (6, 3)
    assert macro["psnr"] == pytest.approx((32 + 20 + 26) / 3)
    assert macro["defect_psnr"] == pytest.approx((22 + 10) / 2)  # tile has none
    assert macro["input_psnr"] == pytest.approx(20.0)


def test_summary_of_computed_figures_is_plain_json():
    restored, clean = (x[[0, 1, 3, 8]] for x in pairs())
    mask = masks(4)
    mask[1] = 0
    figures = jax.device_get(
        image_metrics(restored, clean, clean, mask, np.array([True, True, False, True]))
    )
    rows = [
        {"id": str(i), "category": "ab"[i % 2], **{k: v[i] for k, v in figures.items()}}
        for i in range(4)
    ]
    summary = fidelity.summarise(rows)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["micro"]["mask_count"] == 2
    assert summary["categories"]["a"]["mask_count"] == 1
    np.testing.assert_allclose(summary["micro"]["psnr"], figures["psnr"].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        summary["micro"]["defect_psnr"], figures["defect_psnr"][[0, 3]].mean(), rtol=1e-6
    )


def test_nan_and_none_are_the_same_absence():
    with_nan = [{k: math.nan if v is None else v for k, v in r.items()} for r in TABLE]
    assert fidelity.summarise(with_nan) == fidelity.summarise(TABLE)


def test_summary_of_nothing():
    summary = fidelity.summarise([])
    assert summary["categories"] == {}
    assert summary["micro"] == summary["macro"]
    assert summary["micro"]["count"] == summary["micro"]["mask_count"] == 0
    assert all(summary["micro"][figure] is None for figure in FIGURES)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_image_without_a_figure_that_all_have_is_refused_by_name(value):
    with pytest.raises(RunError, match="wood/9: ssim is") as caught:
        fidelity.summarise([*TABLE, row("wood/9", "wood", 30.0, ssim=value)])
    assert "\n" not in str(caught.value)


def test_output_that_is_not_a_number_cannot_pass_as_a_missing_figure():
    restored, clean = (x[[0, 1, 3, 8]] for x in pairs())
    restored[2, 7, 7, 1] = np.nan
    figures = image_metrics(restored, clean, clean, masks(4), np.ones(4, bool))
    rows = [
        {"id": f"image {i}", "category": "a", **{k: v[i] for k, v in figures.items()}}
        for i in range(4)
    ]
    with pytest.raises(RunError, match="image 2"):
        fidelity.summarise(rows)
