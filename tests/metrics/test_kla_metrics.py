import json
import math

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import structural_similarity

from restore_jax.errors import RunError
from restore_jax.metrics import kla

SIDE = 256


def pair(seed=0, noise=0.1, side=SIDE):
    """A textured clean image and a restoration of it, some values beyond the scale."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((side // 8, side // 8, 3))
    clean = np.repeat(np.repeat(coarse, 8, 0), 8, 1)
    clean = 0.8 * clean + 0.2 * rng.random(clean.shape)
    return clean + rng.normal(0, noise, clean.shape), clean


def box(top, left, bottom, right, side=SIDE):
    mask = np.zeros((side, side, 1), np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def decibels(squared_error):
    return -10 * math.log10(np.mean(squared_error))


# ------------------------------------------------------------------------ area averaging


def by_blocks(image, size):
    """Each pixel cut into `size` x `size` equal parts, and the parts regrouped: exact."""
    height, width, channels = image.shape
    fine = np.repeat(np.repeat(image, size, 0), size, 1)
    return fine.reshape(size, height, size, width, channels).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((24, 24), 8), ((23, 24), 8), ((25, 19), 16), ((9, 10), 9), ((5, 7), 12), ((1, 1), 3)],
)
def test_area_resize_shares_a_pixel_between_the_cells_it_lies_in(shape, size):
    image = np.random.default_rng(1).random((*shape, 3))
    got = kla.area_resize(image, size)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, by_blocks(image, size), rtol=1e-12)


def opencv_table(length, size):
    """The weights of OpenCV's general INTER_AREA, one cell at a time, after its own table."""
    weights = np.zeros((size, length))
    scale = length / size
    for i in range(size):
        start, end = i * scale, min((i + 1) * scale, length)
        first, last = math.ceil(start), min(math.floor(end), length - 1)
        if first - start > 1e-3:
            weights[i, first - 1] += first - start
        for j in range(first, last):
            weights[i, j] += 1
        if end - last > 1e-3:
            weights[i, last] += min(end - last, 1)
        weights[i] /= end - start
    return weights


# The native sizes of MVTec AD, and those next to the result's.
@pytest.mark.parametrize("length", [700, 800, 840, 900, 1000, 1024, 257, 512])
def test_area_resize_has_the_weights_of_opencv(length):
    column = np.random.default_rng(2).random((length, 1, 2))
    expected = np.einsum("ih,hwc->iwc", opencv_table(length, SIDE), column)
    got = kla.area_resize(column)
    assert got.shape == (SIDE, SIDE, 2)
    np.testing.assert_allclose(got, np.repeat(expected, SIDE, 1), atol=1e-9)


def test_area_resize_by_hand():
    image = np.array([0.0, 6.0, 30.0])[:, None, None]
    got = kla.area_resize(image, 2)[:, 0, 0]
    np.testing.assert_allclose(got, [(0 + 6 / 2) / 1.5, (6 / 2 + 30) / 1.5])
    # Blocks of 1024 / 256 = 4 pixels, and no dust beside them.
    large = np.zeros((1024, 1024, 1))
    large[8:12, 4] = 1
    got = kla.area_resize(large)
    assert np.count_nonzero(got) == 1
    assert got[2, 1, 0] == 0.25


def test_area_resize_leaves_an_image_of_that_size_alone():
    image = np.random.default_rng(3).random((SIDE, SIDE, 3)).astype(np.float32)
    np.testing.assert_array_equal(kla.area_resize(image), image)
    np.testing.assert_allclose(kla.area_resize(np.full((300, 410, 1), 1.0)), 1.0)


@pytest.mark.parametrize(("shape", "size"), [((4, 4), 2), ((4, 0, 3), 2), ((4, 4, 3), 0)])
def test_area_resize_refuses_what_is_no_image(shape, size):
    with pytest.raises(ValueError, match=r"\[H, W, C\].*got shape"):
        kla.area_resize(np.zeros(shape), size)


# --------------------------------------------------------------------- figures of an image


def ssim_by_windows(first, second):
    """SSIM from each pixel's own 3x3 window, borders reflected about the outermost pixel."""
    windows = [
        sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0)), "reflect"), (3, 3), (0, 1))
        for x in (first, second)
    ]
    means = [w.mean(axis=(-2, -1)) for w in windows]
    variances = [w.var(axis=(-2, -1)) for w in windows]
    deviations = [w - m[..., None, None] for w, m in zip(windows, means, strict=True)]
    covariance = (deviations[0] * deviations[1]).mean(axis=(-2, -1))
    c1, c2 = 1e-4, 9e-4
    return (
        (2 * means[0] * means[1] + c1)
        / (means[0] ** 2 + means[1] ** 2 + c1)
        * (2 * covariance + c2)
        / (variances[0] + variances[1] + c2)
    )


def test_figures_equal_an_independent_calculation():
    restored, clean = pair()
    mask = box(10, 20, 90, 60)
    got = kla.kla_figures(restored.astype(np.float32), clean.astype(np.float32), mask)
    assert set(got) == {"kla_psnr", "kla_ssim", "kla_defect_psnr", "kla_defect_ssim"}
    assert all(type(value) is float for value in got.values())
    first, second = np.clip(restored, 0, 1), clean
    error = (first - second) ** 2
    similarity = ssim_by_windows(first, second)
    expected = {
        "kla_psnr": decibels(error),
        "kla_ssim": np.mean((1 + similarity) / 2),
        "kla_defect_psnr": decibels(error[10:90, 20:60]),
        "kla_defect_ssim": 1 - ((1 - similarity[10:90, 20:60]) / 2).sum() / (SIDE * SIDE * 3),
    }
    assert expected["kla_ssim"] < 0.95
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name


def test_ssim_equals_scikit_image_in_the_interior():
    # The same images at 256 px but for a border that is alike in both, so that it scores 1.
    restored, clean = pair(4)
    restored = np.clip(restored, 0, 1)
    for edge in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
        restored[edge] = clean[edge]
    _, similarity = structural_similarity(
        restored,
        clean,
        win_size=3,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )
    inner = similarity[1:-1, 1:-1]
    expected = (inner.sum() + similarity.size - inner.size) / similarity.size
    got = kla.kla_figures(restored, clean, box(0, 0, 9, 9))["kla_ssim"]
    assert got == pytest.approx((1 + expected) / 2, abs=1e-12)


def test_borders_are_reflected_without_repeating_the_outermost_pixel():
    # They differ in the corner pixel alone: it lies once in its own window and in the three
    # beside it. Borders that repeat the outermost pixel would have it there up to four times.
    clean = np.full((SIDE, SIDE, 3), 0.5)
    restored = clean.copy()
    restored[0, 0] = 0.8
    loss = 0.0
    for _ in range(4):
        mean, variance = 0.5 + 0.3 / 9, 0.09 / 9 - (0.3 / 9) ** 2
        similarity = (2 * 0.5 * mean + 1e-4) / (0.25 + mean**2 + 1e-4)
        loss += (1 - similarity * 9e-4 / (variance + 9e-4)) / 2
    got = kla.kla_figures(restored, clean, box(0, 0, 1, 1))
    assert 1 - got["kla_ssim"] == pytest.approx(loss / SIDE**2, rel=1e-9)
    assert 1 - got["kla_defect_ssim"] == pytest.approx(loss / 4 / SIDE**2, rel=1e-9)


def test_flat_images_by_hand():
    clean = np.full((SIDE, SIDE, 3), 0.5)
    mask = box(0, 0, 64, 128)  # an eighth of the frame
    restored = np.where(mask > 0, clean + 0.1, clean)
    got = kla.kla_figures(clean + 0.1, clean, mask)
    similarity = (2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)
    assert got["kla_psnr"] == pytest.approx(20.0)
    assert got["kla_ssim"] == pytest.approx((1 + similarity) / 2)
    assert got["kla_defect_psnr"] == pytest.approx(20.0)
    assert got["kla_defect_ssim"] == pytest.approx(1 - (1 - similarity) / 2 / 8)
    got = kla.kla_figures(restored, clean, mask)
    assert got["kla_psnr"] == pytest.approx(20 + 10 * math.log10(8))
    assert got["kla_defect_psnr"] == pytest.approx(20.0)


def test_opposite_images_score_near_zero():
    rng = np.random.default_rng(5)
    texture = rng.choice([0.4, 0.6], (SIDE, SIDE, 3))
    got = kla.kla_figures(1 - texture, texture, box(0, 0, SIDE, SIDE))
    assert 0 <= got["kla_ssim"] < 0.1
    assert got["kla_defect_ssim"] == pytest.approx(got["kla_ssim"])


def test_defects_are_measured_only_where_they_are():
    restored, clean = pair(6)
    mask = box(100, 100, 120, 130)
    spoiled = np.where(mask > 0, restored, 1 - clean)
    assert kla.kla_figures(spoiled, clean, mask)["kla_defect_psnr"] == pytest.approx(
        kla.kla_figures(restored, clean, mask)["kla_defect_psnr"]
    )
    whole = kla.kla_figures(restored, clean, np.ones_like(mask))
    assert whole["kla_defect_psnr"] == pytest.approx(whole["kla_psnr"])
    assert whole["kla_defect_ssim"] == pytest.approx(whole["kla_ssim"])


def test_equal_images_and_images_without_a_defect():
    _, clean = pair(7)
    got = kla.kla_figures(clean, clean, box(3, 3, 9, 9))
    assert got["kla_psnr"] == got["kla_defect_psnr"] == 100.0
    assert got["kla_ssim"] == got["kla_defect_ssim"] == pytest.approx(1.0, abs=1e-12)
    got = kla.kla_figures(clean, clean, 0 * box(3, 3, 9, 9))
    assert math.isnan(got["kla_defect_psnr"])
    assert math.isnan(got["kla_defect_ssim"])
    assert got["kla_psnr"] == 100.0


def test_larger_images_are_averaged_first():
    restored, clean = pair(8, side=512)
    restored = np.clip(restored, 0, 1)
    mask = box(40, 40, 80, 60, side=512)
    halves = [
        x.reshape(SIDE, 2, SIDE, 2, -1).mean(axis=(1, 3)) for x in (restored, clean, mask)
    ]
    got = kla.kla_figures(restored, clean, mask)
    assert got == pytest.approx(kla.kla_figures(*halves))
    # Averaging takes noise away.
    assert got["kla_psnr"] > decibels((restored - clean) ** 2) + 5


def test_a_pixel_that_is_partly_defect_counts_whole_for_psnr_and_by_its_share_for_ssim():
    clean = np.full((512, 512, 3), 0.5)
    mask = box(0, 0, 3, 2, side=512)  # one new pixel, and half of the one below
    restored = clean.copy()
    restored[:2, :2] = 0.6
    restored[2:4, :2] = 0.8
    got = kla.kla_figures(restored, clean, mask)
    assert got["kla_defect_psnr"] == pytest.approx(decibels([0.01, 0.09]))
    small = kla.area_resize(restored)
    loss = (1 - ssim_by_windows(small, np.full_like(small, 0.5))[..., 0]) / 2
    share = round(255 / 2) / 255  # on 8 bits
    assert 1 - got["kla_defect_ssim"] == pytest.approx(
        (loss[0, 0] + share * loss[1, 0]) / SIDE**2, rel=1e-9
    )


def test_a_trace_of_defect_that_8_bits_cannot_hold_is_none():
    clean = np.full((900, 900, 3), 0.5)
    # New pixels are 900/256 wide: number 30 ends at 108.98, so this pixel reaches a 64th into
    # its neighbours below and to the right, 0.3 of a grey level.
    mask = box(108, 108, 109, 109, side=900)
    assert np.count_nonzero(kla.area_resize(mask)) == 4
    restored = np.where(mask > 0, 0.9, clean)
    error = (kla.area_resize(restored) - 0.5) ** 2
    got = kla.kla_figures(restored, clean, mask)
    assert got["kla_defect_psnr"] == pytest.approx(decibels(error[30, 30]))


def test_smaller_images_can_be_measured_too():
    restored, clean = pair(9, side=64)
    got = kla.kla_figures(restored, clean, box(3, 3, 9, 9, side=64))
    assert got["kla_psnr"] == pytest.approx(decibels((np.clip(restored, 0, 1) - clean) ** 2))
    assert all(math.isfinite(value) for value in got.values())


def test_images_and_masks_that_do_not_fit_are_refused():
    restored, clean = pair(side=16)
    mask = box(0, 0, 2, 2, side=16)
    with pytest.raises(ValueError, match=r"\(16, 16, 3\) and \(15, 16, 3\)"):
        kla.kla_figures(restored, clean[1:], mask)
    with pytest.raises(ValueError, match=r"\[H, W, 3\].*\(1, 16, 16, 3\)"):
        kla.kla_figures(restored[None], clean[None], mask)
    with pytest.raises(ValueError, match="uint8"):
        kla.kla_figures((255 * clean).astype(np.uint8), clean, mask)
    with pytest.raises(ValueError, match=r"mask.*\(16, 16\)"):
        kla.kla_figures(restored, clean, mask[..., 0])


# ----------------------------------------------------------------------------------- means


def row(name, psnr, defect=None):
    return {
        "id": name,
        "category": name.split("/")[0],
        "kla_psnr": psnr,
        "kla_ssim": psnr / 40,
        "kla_defect_psnr": defect,
        "kla_defect_ssim": None if defect is None else 0.9,
    }


TABLE = [
    row("wood/1", 30.0, 20.0),
    row("wood/2", 32.0, 24.0),
    row("wood/3", 34.0, math.nan),
    row("bottle/1", 20.0, 10.0),
    row("tile/1", 28.0),
    row("tile/2", 24.0),
]


def test_summary_of_a_table_by_hand():
    got = kla.summarise_kla(TABLE)
    assert list(got["categories"]) == ["bottle", "tile", "wood"]
    assert got["categories"]["wood"] == {
        "kla_psnr": pytest.approx(32.0),
        "kla_ssim": pytest.approx(0.8),
        "kla_defect_psnr": pytest.approx(22.0),
        "kla_defect_ssim": pytest.approx(0.9),
    }
    tile = got["categories"]["tile"]
    assert tile["kla_defect_psnr"] is tile["kla_defect_ssim"] is None
    assert got["macro"] == {
        "kla_psnr": pytest.approx((32 + 20 + 26) / 3),  # the images' mean is 28
        "kla_ssim": pytest.approx((32 + 20 + 26) / 120),
        "kla_defect_psnr": pytest.approx((22 + 10) / 2),
        "kla_defect_ssim": pytest.approx(0.9),
    }
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_summary_of_nothing():
    got = kla.summarise_kla([])
    assert got["categories"] == {}
    assert got["macro"] == {
        "kla_psnr": None,
        "kla_ssim": None,
        "kla_defect_psnr": None,
        "kla_defect_ssim": None,
    }


def test_output_that_is_not_a_number_is_refused_by_name():
    restored, clean = pair(side=16)
    restored[3, 3, 0] = math.nan
    figures = kla.kla_figures(restored, clean, box(0, 0, 2, 2, side=16))
    with pytest.raises(RunError, match=r"image wood/9: kla_psnr is nan") as caught:
        kla.summarise_kla([*TABLE, {"id": "wood/9", "category": "wood", **figures}])
    assert "\n" not in str(caught.value)
