import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import dilation

from restore_jax.metrics import defects, fidelity
from tests.support import similarity

SIDE = 40
RING = 2  # 3 % of 40 px is a pixel, and two is the least.


def pair(seed=0, noise=0.1, side=SIDE):
    """A textured clean image and a restoration of it, some values beyond the scale."""
    rng = np.random.default_rng(seed)
    clean = ndimage.gaussian_filter(rng.random((side, side, 3)), (2, 2, 0))
    clean = (clean - clean.min()) / np.ptp(clean)
    return clean + rng.normal(0, noise, clean.shape), clean


def blobs(seed, threshold=0.55):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random((SIDE, SIDE)), 1.2)
    return (field > threshold)[..., None].astype(np.float32)


def boxes(*corners):
    mask = np.zeros((SIDE, SIDE, 1), np.float32)
    for top, left, bottom, right in corners:
        mask[top:bottom, left:right] = 1
    return mask


def clip(*images):
    return [np.clip(image, 0, 1) for image in images]


@jax.jit
def batch_metrics(restored, clean, mask):
    functions = (
        fidelity.defect_psnr,
        fidelity.background_psnr,
        fidelity.defect_ssim,
        fidelity.defect_contrast,
    )
    return {function.__name__: function(restored, clean, mask) for function in functions}


def device_metrics(*arrays):
    """Figures of the same image by `fidelity`."""
    figures = batch_metrics(*(np.asarray(array, np.float32)[None] for array in arrays))
    return {name: float(value[0]) for name, value in figures.items()}


def paint(values, background=0.5):
    """An image of a plain background with boxes of given colours."""
    image = np.full((SIDE, SIDE, 3), background, np.float64)
    for (top, left, bottom, right), colour in values.items():
        image[top:bottom, left:right] = colour
    return image


LEFT, RIGHT = (10, 5, 16, 11), (10, 25, 16, 31)


# ------------------------------------------------------------------ contrast by region


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_region_contrasts_equal_an_independent_calculation(seed):
    restored, clean = pair(seed)
    mask = blobs(seed)
    first, second = clip(restored, clean)
    labels = label(mask[..., 0] > 0, connectivity=2)
    expected = []
    for region in range(1, labels.max() + 1):
        inside = labels == region
        grown = dilation(inside, np.ones((2 * RING + 1, 2 * RING + 1)))
        ring = grown & (labels == 0)
        kept, whole = (x[inside].mean(axis=0) - x[ring].mean(axis=0) for x in (first, second))
        expected.append((kept * whole).sum() / (whole**2).sum())
    got = defects.region_contrasts(restored, clean, mask)
    assert len(got) == len(expected) > 4
    assert np.ptp(expected) > 0.1
    # Labels may come in another order.
    np.testing.assert_allclose(np.sort(got), np.sort(expected), rtol=1e-9)


@pytest.mark.parametrize("box", [(8, 9, 20, 15), (0, 0, 5, 40), (33, 30, 40, 40)])
def test_one_region_has_the_contrast_of_the_mask(box):
    restored, clean = pair(3)
    got = defects.region_contrasts(restored, clean, boxes(box))
    assert got.shape == (1,)
    expected = device_metrics(restored, clean, boxes(box))["defect_contrast"]
    np.testing.assert_allclose(got[0], expected, rtol=1e-4)


def test_each_region_is_judged_by_itself():
    clean = paint({LEFT: (0.7, 0.4, 0.5), RIGHT: (0.3, 0.3, 0.3)})
    mask = boxes(LEFT, RIGHT)
    # Left: red alone kept, 0.04 of 0.05. Right: doubled, then reversed.
    doubled = paint({LEFT: (0.7, 0.5, 0.5), RIGHT: (0.1, 0.1, 0.1)})
    np.testing.assert_allclose(
        defects.region_contrasts(doubled, clean, mask), [0.8, 2.0], rtol=1e-9
    )
    reversed_ = paint({LEFT: 0.5, RIGHT: (0.7, 0.7, 0.7)})
    np.testing.assert_allclose(
        defects.region_contrasts(reversed_, clean, mask), [0.0, -1.0], atol=1e-9
    )


def test_pixels_that_touch_by_a_corner_are_one_region():
    clean = paint({(5, 5, 8, 8): 0.8, (8, 8, 11, 11): 0.8})
    touching = boxes((5, 5, 8, 8), (8, 8, 11, 11))
    np.testing.assert_allclose(defects.region_contrasts(clean, clean, touching), [1.0])
    apart = boxes((5, 5, 8, 8), (9, 9, 12, 12))
    assert defects.region_contrasts(clean, clean, apart).shape == (2,)


def test_a_ring_leaves_out_the_neighbouring_region():
    # Two regions with one column between them, within each other's ring.
    first, second = (10, 10, 16, 15), (10, 16, 16, 21)
    mask = boxes(first, second)
    clean = paint({first: 0.6, second: 0.9})
    restored = paint({first: 0.55, second: 0.2})
    # Against the background of 0.5 alone: 0.05 / 0.1 and -0.3 / 0.4.
    np.testing.assert_allclose(
        defects.region_contrasts(restored, clean, mask), [0.5, -0.75], rtol=1e-9
    )


def test_regions_without_a_contrast_or_a_ring_are_undefined():
    grey_level = 1 / 255
    mask = boxes(LEFT, RIGHT)
    clean = paint({LEFT: (0.5, 0.5 + 0.9 * grey_level, 0.5), RIGHT: 0.5 + 0.7 * grey_level})
    got = defects.region_contrasts(clean, clean, mask)
    np.testing.assert_array_equal(np.isnan(got), [True, False])  # the right has 1.2 levels
    assert got[1] == pytest.approx(1.0)
    assert defects.erasure(clean, clean, mask) == (0, 1)
    full = np.ones_like(mask)
    np.testing.assert_array_equal(defects.region_contrasts(clean, clean, full), [np.nan])
    assert defects.region_contrasts(clean, clean, 0 * mask).shape == (0,)
    assert defects.erasure(clean, clean, 0 * mask) == (0, 0)


def test_erasure_counts_regions_that_keep_less_than_half():
    places = [(4, 4 + 8 * i, 8, 8 + 8 * i) for i in range(4)]
    clean = paint(dict.fromkeys(places, 0.7))
    # Kept shares 1, 0.51, 0.49 and -1; the fifth region never had a contrast.
    shades = (0.7, 0.602, 0.598, 0.3)
    restored = paint(dict(zip(places, shades, strict=True)))
    mask = boxes(*places, (30, 30, 34, 34))
    assert defects.erasure(restored, clean, mask) == (2, 4)
    assert defects.erasure(clean, clean, mask) == (0, 4)
    assert defects.erasure(np.full_like(clean, 0.5), clean, mask) == (4, 4)


# ------------------------------------------------------- errors inside, outside, invented


def test_error_ratio_by_hand():
    clean = np.full((SIDE, SIDE, 3), 0.5)
    mask = boxes(LEFT)
    restored = np.where(mask > 0, clean + 0.3, clean - 0.1)
    assert defects.error_ratio(restored, clean, mask) == pytest.approx(9.0)
    assert defects.error_ratio(clean + 0.1, clean, mask) == pytest.approx(1.0)
    # Clipped: 1.5 is 1.0, an error of 0.5.
    restored = np.where(mask > 0, 1.5, clean - 0.1)
    assert defects.error_ratio(restored, clean, mask) == pytest.approx(25.0)


def test_error_ratio_is_the_distance_of_the_two_psnrs():
    restored, clean = pair(5)
    mask = blobs(5)
    figures = device_metrics(restored, clean, mask)
    decibels = figures["background_psnr"] - figures["defect_psnr"]
    ratio = defects.error_ratio(restored, clean, mask)
    assert ratio == pytest.approx(10 ** (decibels / 10), rel=1e-4)


def test_error_ratio_is_finite_and_undefined_only_without_two_sides():
    clean = np.full((SIDE, SIDE, 3), 0.5)
    mask = boxes(LEFT)
    assert defects.error_ratio(clean, clean, mask) == 1.0
    inside = np.where(mask > 0, clean + 0.1, clean)
    assert defects.error_ratio(inside, clean, mask) == pytest.approx(0.01 / 1e-10)
    outside = np.where(mask > 0, clean, clean + 0.1)
    assert defects.error_ratio(outside, clean, mask) == pytest.approx(1e-10 / 0.01)
    assert math.isnan(defects.error_ratio(inside, clean, 0 * mask))
    assert math.isnan(defects.error_ratio(inside, clean, np.ones_like(mask)))


def test_hallucination_is_what_one_pixel_in_a_thousand_exceeds():
    clean = np.full((100, 100, 3), 0.5)
    assert defects.hallucination(clean, clean) == 0.0
    assert defects.hallucination(clean + 0.2, clean) == pytest.approx(0.2)
    restored = clean.copy()
    restored[0, :5, 1] = 0.9  # five of ten thousand pixels
    assert defects.hallucination(restored, clean) == 0.0
    restored[0, :15, 1] = 0.9  # fifteen, in one channel
    assert defects.hallucination(restored, clean) == pytest.approx(0.4)
    restored[0, :15, 0] = 0.3  # another channel of the same pixels, less wrong
    assert defects.hallucination(restored, clean) == pytest.approx(0.4)
    restored[0, :15] = 3.0  # clipped
    assert defects.hallucination(restored, clean) == pytest.approx(0.5)
    # Between the 9990th and the 9991st of the sorted pixels.
    ramp = clean.copy()
    ramp[..., 2] = 0.5 + np.linspace(0, 0.4, 10_000).reshape(100, 100)
    assert defects.hallucination(ramp, clean) == pytest.approx(0.4 * 0.999)


# ------------------------------------------------------------------------- masked frame

MASKS = {
    "blobs": blobs(7),
    "a pixel": boxes((20, 20, 21, 21)),
    "a corner": boxes((0, 0, 3, 2)),
    "the last pixel": boxes((39, 39, 40, 40)),
    "two corners": boxes((0, 38, 4, 40), (37, 0, 40, 5)),
    "everything": boxes((0, 0, 40, 40)),
}


def skimage_ssim(first, second):
    return similarity.ssim_map(first, second).mean()


@pytest.mark.parametrize("case", MASKS)
def test_masked_frame_equals_scikit_image(case):
    restored, clean = pair(6)
    mask = MASKS[case]
    got = defects.masked_frame(restored, clean, mask)
    first, second = (image * mask for image in clip(restored, clean))
    assert got["masked_frame_psnr"] == pytest.approx(
        -10 * math.log10(np.mean((first - second) ** 2))
    )
    expected = skimage_ssim(first, second)
    assert got["masked_frame_ssim"] == pytest.approx(expected, abs=1e-9)
    assert expected < 1.0


def test_masked_frame_of_the_smallest_image():
    rng = np.random.default_rng(8)
    restored, clean = rng.random((2, 11, 12, 3))
    mask = np.zeros((11, 12, 1))
    mask[0, 3] = mask[10, 11] = 1
    got = defects.masked_frame(restored, clean, mask)
    expected = skimage_ssim(restored * mask, clean * mask)
    assert got["masked_frame_ssim"] == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match=r"11x11 px, got 10x12"):
        defects.masked_frame(restored[:10], clean[:10], mask[:10])


def test_masked_frame_flatters_by_the_share_of_the_mask():
    restored, clean = pair(9)
    mask = boxes(LEFT)
    got = defects.masked_frame(restored, clean, mask)
    honest = device_metrics(restored, clean, mask)["defect_psnr"]
    gain = 10 * math.log10(1 / mask.mean())
    assert gain > 16
    assert got["masked_frame_psnr"] == pytest.approx(honest + gain, abs=1e-3)
    # A defect that is gone for good still scores well above what its pixels alone do.
    erased = np.where(mask > 0, clean.mean(), clean)
    flattering = defects.masked_frame(erased, clean, mask)["masked_frame_ssim"]
    assert flattering > device_metrics(erased, clean, mask)["defect_ssim"] + 0.1


def test_masked_frame_without_error_and_without_mask():
    _, clean = pair(10)
    assert defects.masked_frame(clean, clean, boxes(LEFT)) == {
        "masked_frame_psnr": 100.0,
        "masked_frame_ssim": 1.0,
    }
    empty = defects.masked_frame(clean, clean, boxes())
    assert all(math.isnan(value) for value in empty.values())


# --------------------------------------------------------------- all of an image, and sums

OVER_DEFECT = {
    "input_erased_regions",
    "erased_regions",
    "regions",
    "error_ratio",
    "masked_frame_psnr",
    "masked_frame_ssim",
}
FIGURES = OVER_DEFECT | {"hallucination"}


def test_figures_of_an_image_are_those_of_the_functions():
    restored, clean = pair(11)
    degraded = np.full_like(clean, 0.5)
    mask = blobs(11)
    got = defects.preservation_figures(restored, degraded, clean, mask, True, False)
    assert set(got) == set(defects.FIGURES) == FIGURES
    assert all(type(value) is float for value in got.values())
    erased, regions = defects.erasure(restored, clean, mask)
    assert (got["erased_regions"], got["regions"]) == (erased, regions)
    assert got["input_erased_regions"] == regions > 4  # nothing is left in a grey image
    assert got["error_ratio"] == defects.error_ratio(restored, clean, mask)
    frame = defects.masked_frame(restored, clean, mask)
    assert {name: got[name] for name in frame} == frame
    assert math.isnan(got["hallucination"])


@pytest.mark.parametrize(
    ("fill", "has_mask", "is_good", "defined"),
    [
        (0.0, True, False, set()),
        (0.0, True, True, {"hallucination"}),
        (0.0, False, True, {"hallucination"}),
        (0.0, False, False, set()),
        (1.0, False, False, set()),
        (1.0, True, False, OVER_DEFECT - {"error_ratio"}),
    ],
)
def test_figures_that_do_not_apply_are_nan(fill, has_mask, is_good, defined):
    restored, clean = pair(12)
    mask = np.full((SIDE, SIDE, 1), fill, np.float32)
    got = defects.preservation_figures(restored, restored, clean, mask, has_mask, is_good)
    assert {name for name, value in got.items() if math.isfinite(value)} == defined
    assert {name for name, value in got.items() if math.isnan(value)} == FIGURES - defined
    if fill and has_mask:
        assert got["erased_regions"] == got["regions"] == 0.0  # no ring, no contrast


def test_flat_and_identical_images_give_no_infinity():
    flat = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    got = defects.preservation_figures(flat, flat, flat, boxes(LEFT), True, True)
    assert got == {
        "erased_regions": 0.0,
        "input_erased_regions": 0.0,
        "regions": 0.0,
        "error_ratio": 1.0,
        "masked_frame_psnr": 100.0,
        "masked_frame_ssim": 1.0,
        "hallucination": 0.0,
    }


@pytest.mark.parametrize("narrow", [np.float16, jnp.bfloat16])
def test_narrow_floats_and_arrays_of_a_device_are_taken_as_they_are(narrow):
    restored, clean = (jnp.asarray(x.astype(narrow)) for x in pair(13))
    wide = [np.asarray(x, np.float64) for x in (restored, clean)]
    mask = blobs(13)
    got = defects.preservation_figures(restored, clean, clean, jnp.asarray(mask), True, True)
    assert got == defects.preservation_figures(*wide, wide[1], mask, True, True)
    assert all(math.isfinite(value) for value in got.values())


def row(erased=None, regions=None, ratio=None, psnr=None, invented=None, category="a"):
    return {
        "category": category,
        "erased_regions": erased,
        "input_erased_regions": regions,
        "regions": regions,
        "error_ratio": ratio,
        "masked_frame_psnr": psnr,
        "masked_frame_ssim": None if psnr is None else psnr / 50,
        "hallucination": invented,
    }


def test_summary_of_a_table_by_hand():
    rows = [
        row(1.0, 2.0, 3.0, 40.0),
        row(0.0, 5.0, 1.0, 44.0, math.nan, category="b"),
        row(0.0, 0.0, math.nan, 45.0),  # a defect without contrast, all over the image
        row(invented=0.1),
        row(math.nan, math.nan, invented=0.3),
    ]
    got = defects.summarise_preservation(rows)
    assert got["micro"] == {
        "regions": 7,
        "erased_regions": 1,
        "input_erased_regions": 7,
        "erasure_rate": pytest.approx(1 / 7),  # not the mean of 1/2, 0 and nothing
        "input_erasure_rate": 1.0,
        "good_count": 2,
        "error_ratio": pytest.approx(2.0),
        "masked_frame_psnr": pytest.approx(43.0),
        "masked_frame_ssim": pytest.approx(0.86),
        "hallucination": pytest.approx(0.2),
    }
    assert list(got["categories"]) == ["a", "b"]
    assert got["categories"]["a"]["erasure_rate"] == 0.5
    assert got["macro"]["erasure_rate"] == 0.25
    assert got["macro"]["regions"] == 7
    assert type(got["micro"]["regions"]) is type(got["micro"]["erased_regions"]) is int


@pytest.mark.parametrize("rows", [[], [row(invented=0.1)], [row(0.0, 0.0)]])
def test_summary_of_nothing_is_none(rows):
    summary = defects.summarise_preservation(rows)
    for got in (summary["micro"], summary["macro"]):
        assert (got["regions"], got["erased_regions"], got["erasure_rate"]) == (0, 0, None)
        assert (
            got["error_ratio"] is got["masked_frame_psnr"] is got["masked_frame_ssim"] is None
        )
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_of_computed_figures_is_plain_json():
    rows = []
    for seed, (known, good) in enumerate([(True, False), (False, False), (True, True)]):
        restored, clean = pair(seed)
        mask = blobs(seed) * (not good)
        figures = defects.preservation_figures(restored, clean, clean, mask, known, good)
        rows.append({"category": "a"} | figures)
    summary = defects.summarise_preservation(rows)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    got = summary["micro"]
    assert got["regions"] == rows[0]["regions"] > 0
    assert got["erasure_rate"] == rows[0]["erased_regions"] / rows[0]["regions"]
    assert got["input_erasure_rate"] == 0  # here the input is the clean image
    assert got["error_ratio"] == rows[0]["error_ratio"]
    assert got["hallucination"] == rows[2]["hallucination"] > 0


# --------------------------------------------------------------------------- bad input

OVER_MASKS = [
    defects.region_contrasts,
    defects.erasure,
    defects.error_ratio,
    defects.masked_frame,
    lambda restored, clean, mask: defects.preservation_figures(
        restored, restored, clean, mask, True, False
    ),
]


@pytest.mark.parametrize(
    "function", [*OVER_MASKS, lambda *arrays: defects.hallucination(*arrays[:2])]
)
def test_images_that_do_not_fit_are_refused(function):
    restored, clean = pair()
    mask = boxes(LEFT)
    with pytest.raises(ValueError, match=r"\(40, 40, 3\) and \(39, 40, 3\)"):
        function(restored, clean[1:], mask)
    with pytest.raises(ValueError, match=r"\(40, 40, 1\) and \(40, 40, 1\)"):
        function(restored[..., :1], clean[..., :1], mask)
    with pytest.raises(ValueError, match=r"\[H, W, 3\].*\(1, 40, 40, 3\)"):
        function(restored[None], clean[None], mask)
    with pytest.raises(ValueError, match="uint8"):
        function(restored, (255 * clean).astype(np.uint8), mask)


@pytest.mark.parametrize("function", OVER_MASKS)
def test_a_mask_that_does_not_fit_is_refused(function):
    restored, clean = pair()
    mask = boxes(LEFT)
    for wrong in (mask[..., 0], mask[1:], mask[None]):
        with pytest.raises(ValueError, match=r"\[H, W, 1\] mask.*\(40, 40, 3\)"):
            function(restored, clean, wrong)
