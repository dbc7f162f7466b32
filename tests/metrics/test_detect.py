import itertools
import json
import math

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from restore_jax.metrics import detect, detectability
from tests.support import detection

SIZE = 64


def texture(seed, size=SIZE):
    """A fine coloured texture, a little different in tone each time."""
    rng = np.random.default_rng([1, seed])
    grain = ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.0, mode="wrap")
    tint = np.array([0.5, 0.45, 0.4]) + rng.normal(0, 0.01, 3)
    image = tint + 0.3 * grain[..., None] + rng.normal(0, 0.01, (size, size, 3))
    return np.clip(image, 0, 1).astype(np.float32)


def with_blob(image, seed):
    """Adds a dark disc somewhere; returns the image and the mask [H, W, 1]."""
    rng = np.random.default_rng([2, seed])
    row, column = rng.uniform(12, SIZE - 12, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    mask = ((y - row) ** 2 + (x - column) ** 2 < 36)[..., None]
    return np.where(mask, image * 0.4, image).astype(np.float32), mask.astype(np.float32)


def noisy(image, seed):
    rng = np.random.default_rng([3, seed])
    return np.clip(image + rng.normal(0, 0.25, image.shape), 0, 1).astype(np.float32)


def cases(good=4, defective=6):
    """Test images whose degraded version has lost the defect and whose restored has it back."""
    found = []
    for seed in range(100, 100 + good + defective):
        plain, is_good = texture(seed), seed < 100 + good
        clean, mask = (
            (plain, np.zeros_like(plain[..., :1])) if is_good else with_blob(plain, seed)
        )
        found.append(
            {
                "clean": clean,
                "degraded": noisy(plain, seed),
                "restored": clean,
                "mask": mask,
                "has_mask": True,
                "is_good": is_good,
            }
        )
    return found


@pytest.fixture(scope="module")
def detector():
    return detection.fit(texture(seed) for seed in range(8))


def measured(detector, images, category="cloth"):
    tally = detectability.Detectability({category: detector})
    for image in images:
        tally.add(category, **image)
    return tally.result()


def as_json(result):
    return json.dumps(result, allow_nan=False)


# Areas under curves.


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        labels = rng.random(120) < 0.3
        scores = rng.integers(0, levels, 120) / 7 + 0.1 * labels
        above = scores[labels][:, None] - scores[~labels][None]
        expected = np.mean((above > 0) + 0.5 * (above == 0))
        assert detectability.auroc(labels, scores) == pytest.approx(expected, abs=1e-12)
        assert detectability.auroc(labels, -scores) == pytest.approx(1 - expected, abs=1e-12)
    assert detectability.auroc(np.array([[0, 1], [1, 0]]), np.array([[1, 3], [2, 2]])) == 0.875


def test_f1_is_that_of_a_hand_counted_case():
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    scores = np.array([9, 5, 1, 7, 5, 1, 1])
    # Above 4: two of three defects, and two of four others.
    assert detection.f1_at(4, labels, scores) == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    # Above means above.
    assert detection.f1_at(5, labels, scores) == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert detection.f1_at(9, labels, scores) == 0.0


def brute_aupro(maps, masks, max_fpr):
    """Every threshold, every region, pixel by pixel."""
    curve = [(0.0, 0.0)]
    good = np.concatenate([m[k[..., 0] == 0] for m, k in zip(maps, masks, strict=True)])
    for threshold in sorted(set(np.concatenate([m.ravel() for m in maps])), reverse=True):
        overlaps = []
        for scores, mask in zip(maps, masks, strict=True):
            regions = measure.label(mask[..., 0], connectivity=2)
            overlaps += [
                (scores[regions == i] >= threshold).mean() for i in range(1, regions.max() + 1)
            ]
        curve.append(((good >= threshold).mean(), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 < max_fpr and x1 > x0:
            x = min(x1, max_fpr)
            y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
            area += (x - x0) * (y0 + y) / 2
    return area / max_fpr


def tiny_maps(seed, levels):
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 10, 12, 1))
    masks[0, 1:3, 2:9] = 1
    masks[0, 6, 6] = masks[0, 7, 7] = 1  # these touch at a corner: one region
    masks[1, 0:8, 0:2] = masks[1, 9, 11] = 1
    masks[2, 4:7, 4:7] = 1  # the last is good
    scores = rng.integers(0, levels, masks.shape[:3]) + 0.4 * levels * masks[..., 0]
    return (scores - 3).astype(np.float32), masks


@pytest.mark.parametrize("max_fpr", [0.3, 0.05, 1.0])
@pytest.mark.parametrize("levels", [2, 6, 10_000])
def test_aupro_agrees_with_every_threshold_and_region(levels, max_fpr):
    for seed in range(3):
        maps, masks = tiny_maps(seed, levels)
        expected = brute_aupro(maps, masks, max_fpr)
        assert detection.aupro(maps, masks, max_fpr) == pytest.approx(expected, abs=1e-9)
        assert detection.aupro(list(maps), masks[..., 0] > 0, max_fpr) == pytest.approx(
            expected
        )


def test_aupro_of_perfect_useless_and_inverted_maps():
    _, masks = tiny_maps(0, 2)
    assert detection.aupro(masks[..., 0], masks) == 1.0
    assert detection.aupro(-masks[..., 0], masks) == 0.0
    assert detection.aupro(np.zeros(masks.shape[:3]), masks) == pytest.approx(0.15)


def test_figures_without_both_classes_are_refused():
    for labels in (np.zeros(3), np.ones(3)):
        with pytest.raises(ValueError, match="both classes"):
            detectability.auroc(labels, np.arange(3))
    with pytest.raises(ValueError, match="2 labels do not fit 3 scores"):
        detectability.auroc([0, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="not finite"):
        detectability.auroc([0, 1], [1, math.nan])


# The filter bank and the detector.


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((32, 32), (32, 32)),
        ((47, 65), (47, 65)),
        ((64, 96), (32, 48)),
        ((129, 256), (32, 64)),
        ((384, 390), (48, 49)),
    ],
)
def test_features_of_any_size(shape, grid):
    image = np.random.default_rng(0).random((*shape, 3))
    found = detect.features(image)
    assert found.dtype == np.float32
    assert found.shape[:2] == grid
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, detect.features(image))


def test_features_are_the_filters_they_are_named():
    image = texture(3, 32)  # at 32 px a place is a pixel, and the filters have σ of 0.5, 1, 2
    found, grey = detect.features(image), image.mean(-1)
    for i, sigma in enumerate((0.5, 1.0, 2.0)):
        expected = ndimage.gaussian_filter(grey, sigma, mode="reflect", truncate=8)
        np.testing.assert_allclose(found[..., 3 * i], expected, atol=1e-5)
        expected = ndimage.gaussian_filter(
            (image[..., 0] - image[..., 2]) / 2, sigma, mode="reflect", truncate=8
        )
        np.testing.assert_allclose(found[..., 3 * i + 1], expected, atol=1e-5)
    laplacian = ndimage.gaussian_laplace(grey, 2.0, mode="reflect", truncate=8)
    assert np.corrcoef(found[..., 11].ravel(), laplacian.ravel())[0, 1] > 0.9999
    mean, square = (
        ndimage.gaussian_filter(plane, 1.25, mode="reflect", truncate=8)
        for plane in (grey, grey * grey)
    )
    expected = 0.5 * np.log(square - mean * mean + 1e-5)
    np.testing.assert_allclose(found[..., -1], expected, atol=2e-3)


def test_features_of_a_flat_image_show_its_colour_and_nothing_else():
    found = detect.features(np.full((64, 64, 3), (0.8, 0.5, 0.2)))
    colours = np.broadcast_to(np.tile([0.5, 0.3, 0.0], 3), (32, 32, 9))
    np.testing.assert_allclose(found[..., :9], colours, atol=1e-5)
    np.testing.assert_allclose(found[..., 9:15], 0, atol=1e-3)
    np.testing.assert_allclose(found[..., 15:], 0.5 * math.log(1e-5), atol=0.05)


def test_turning_an_image_turns_its_features():
    image = texture(0, 96)
    turned = np.rot90(detect.features(image))
    found = detect.features(np.ascontiguousarray(np.rot90(image)))
    swapped = turned.copy()
    swapped[..., 12:15] *= -1  # correlation of the derivatives
    swapped[..., 15:21] = turned[..., [16, 15, 18, 17, 20, 19]]  # their energies
    np.testing.assert_allclose(found, swapped, atol=2e-3)


def test_large_images_are_looked_at_from_further_away():
    image = texture(5, 200)
    doubled = np.repeat(np.repeat(image, 2, 0), 2, 1)
    np.testing.assert_allclose(detect.features(doubled), detect.features(image), atol=1e-3)


def test_wrong_images_are_refused():
    for shape in ((64, 64), (64, 64, 1), (31, 64, 3), (1, 64, 64, 3)):
        with pytest.raises(ValueError, match="expected an image"):
            detect.features(np.zeros(shape))
    image = np.zeros((64, 64, 3))
    image[3, 4, 1] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        detect.features(image)
    for few in ([], [texture(0)]):
        with pytest.raises(ValueError, match=f"2 or more images .* got {len(few)}"):
            detection.fit(few)


def test_values_outside_the_range_are_clipped(detector):
    image = texture(20) * 3 - 1
    np.testing.assert_array_equal(
        detect.score(detector, image), detect.score(detector, np.clip(image, 0, 1))
    )


def test_an_inserted_blob_is_found(detector):
    for seed in range(30, 34):
        image, mask = with_blob(texture(seed), seed)
        scores = detect.score(detector, image)
        assert scores.shape == (SIZE, SIZE)
        assert scores.dtype == np.float32
        assert detectability.auroc(mask, scores) > 0.95
        assert detection.aupro([scores], [mask]) > 0.85
        assert mask[np.unravel_index(scores.argmax(), scores.shape)]


def test_the_threshold_holds_on_new_images_without_defect(detector):
    flagged = [
        (detect.score(detector, texture(s)) > detector.threshold).mean() for s in range(40, 52)
    ]
    assert 0.0005 < np.mean(flagged) < 0.02


def test_fitting_and_scoring_repeat_to_the_bit(detector):
    again = detection.fit([texture(seed) for seed in range(8)])
    for one, other in zip(detector, again, strict=True):
        np.testing.assert_array_equal(one, other)
    image = texture(60)
    np.testing.assert_array_equal(detect.score(detector, image), detect.score(again, image))


def part(seed):
    """A bright bar at the same place on a dark, grainy table."""
    image = 0.3 * texture(seed)
    image[24:40, 10:54] += 0.5
    return image


def test_aligned_parts_are_known_by_place_and_textures_are_not(detector):
    aligned = detection.fit(part(seed) for seed in range(8))
    missing = part(70)
    missing[24:40, 36:54] -= 0.5
    mask = np.zeros((SIZE, SIZE))
    mask[24:40, 36:54] = 1
    # As dark and as grainy as the table around it: wrong in this place alone.
    assert detectability.auroc(mask, detect.score(aligned, missing)) > 0.97
    assert detect.score(aligned, part(71)).max() < detect.score(aligned, missing).max() / 3
    assert np.ptp(aligned.mean[..., 6]) > 0.2
    assert np.ptp(detector.mean[..., 6]) < 0.02


def test_places_that_vary_weigh_less(detector):
    def restless(seed):
        image, contrast = texture(seed), np.random.default_rng(seed).uniform(0.2, 2)
        image[:, :32] = 0.5 + (image[:, :32] - 0.5) * contrast
        return image

    def right_to_left(fitted):  # away from the borders, where reflection changes the spread
        middle = fitted.scale[8:24]
        return middle[:, 22:28].mean() / middle[:, 4:10].mean()

    uneven = detection.fit(restless(seed) for seed in range(8))
    assert right_to_left(uneven) > 1.1
    assert right_to_left(detector) == pytest.approx(1, abs=0.05)
    image = texture(80)
    np.testing.assert_allclose(
        detect.score(uneven._replace(scale=2 * uneven.scale), image),
        2 * detect.score(uneven, image),
        rtol=1e-5,
    )


def test_sizes_may_differ(detector):
    images = [texture(0, 64), texture(1, 80), texture(2, 64)]
    mixed = detection.fit(images)
    again = detection.fit(images[::-1])
    np.testing.assert_allclose(mixed.mean, again.mean, atol=1e-4)
    scores = detect.score(detector, texture(3, 96)[:72])
    assert scores.shape == (72, 96)
    assert np.isfinite(scores).all()


# Detectability over images.


def test_a_restoration_that_brings_the_defects_back_recovers_all(detector):
    result = measured(detector, cases())
    found = result["categories"]["cloth"]
    assert found["count"] == 10
    assert found["mask_count"] == 6
    assert found["clean"]["pixel_auroc"] > 0.95
    assert found["clean"]["image_auroc"] == 1.0
    assert found["clean"]["f1"] > 0.3  # the coarse filters see a blob wider than it is
    assert found["clean"]["hallucination_fpr"] < 0.03
    assert 0.3 < found["degraded"]["pixel_auroc"] < 0.7  # the defects are not in there
    assert found["degraded"]["hallucination_fpr"] > 0.5  # noise is unlike any reference
    assert found["restored"] == found["clean"]
    assert found["recovery"] == {"pixel_auroc": 1.0, "aupro": 1.0}
    assert result["macro"] == {
        k: v for k, v in found.items() if k not in ("threshold", "references")
    }


def test_a_threshold_needs_more_references_than_a_map():
    few = detection.fit(texture(seed) for seed in range(detect.MIN_FOR_THRESHOLD - 1))
    assert few.threshold is None
    found = measured(few, cases())["categories"]["cloth"]
    assert found["references"] == detect.MIN_FOR_THRESHOLD - 1
    for version in detectability.VERSIONS:
        assert found[version]["f1"] is None
        assert found[version]["hallucination_fpr"] is None
    assert found["clean"]["pixel_auroc"] > 0.9


def test_a_restoration_that_changes_nothing_recovers_nothing(detector):
    images = [image | {"restored": image["degraded"]} for image in cases()]
    found = measured(detector, images)["categories"]["cloth"]
    assert found["restored"] == found["degraded"]
    assert found["recovery"] == {"pixel_auroc": 0.0, "aupro": 0.0}


def test_an_erased_defect_is_invisible(detector):
    images = cases(defective=12)
    for image in images:
        seed = 104 if image["is_good"] else 200
        image["restored"] = texture(seed + len(images))
    found = measured(detector, images)["categories"]["cloth"]
    assert 0.35 < found["restored"]["pixel_auroc"] < 0.65
    assert found["restored"]["aupro"] < 0.35


def test_nothing_lost_means_no_recovery_to_speak_of(detector, monkeypatch):
    images = [image | {"degraded": image["clean"]} for image in cases()]
    found = measured(detector, images)["categories"]["cloth"]
    assert found["recovery"] == {"pixel_auroc": None, "aupro": None}
    monkeypatch.setattr(detectability, "MIN_LOSS", 0.95)  # more than the noise takes of either
    found = measured(detector, cases())["categories"]["cloth"]
    assert found["clean"]["aupro"] > found["degraded"]["aupro"]
    assert found["recovery"] == {"pixel_auroc": None, "aupro": None}


def test_counted_figures_are_those_of_the_maps(detector):
    images = cases()
    maps = [detect.score(detector, image["degraded"]) for image in images]
    masks = [image["mask"] for image in images]
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([each.ravel() for each in maps])
    good = np.concatenate(
        [m.ravel() for m, i in zip(maps, images, strict=True) if i["is_good"]]
    )
    found = measured(detector, images)["categories"]["cloth"]["degraded"]
    assert found == {
        "image_auroc": detectability.auroc(
            [not i["is_good"] for i in images], [m.max() for m in maps]
        ),
        "pixel_auroc": pytest.approx(detectability.auroc(labels, scores), abs=1e-4),
        "aupro": pytest.approx(detection.aupro(maps, masks), abs=1e-3),
        "f1": pytest.approx(detection.f1_at(detector.threshold, labels, scores)),
        "hallucination_fpr": pytest.approx((good > detector.threshold).mean()),
    }


def test_the_order_of_the_images_does_not_matter(detector):
    images = cases()
    other = detection.fit(part(seed) for seed in range(3))
    results = []
    for order in (1, -1):
        tally = detectability.Detectability(
            dict([("cloth", detector), ("part", other)][::order])
        )
        for image in images[::order]:
            for name in ("part", "cloth")[::order]:
                tally.add(name, **image)
        results.append(as_json(tally.result()))
    assert results[0] == results[1]


def test_a_defect_of_unknown_mask_counts_for_the_image_alone(detector):
    images = cases()
    known = measured(detector, images)["categories"]["cloth"]
    hidden = {"has_mask": False}
    lost = {"has_mask": True, "mask": np.zeros((SIZE, SIZE, 1))}  # too small for this size
    for without in (hidden, lost):
        extra = [image | without for image in images[-2:]]
        found = measured(detector, images + extra)["categories"]["cloth"]
        assert found["count"] == 12
        assert found["mask_count"] == 6
        for name in ("pixel_auroc", "aupro", "f1", "hallucination_fpr"):
            assert found["degraded"][name] == known["degraded"][name]
        only = measured(detector, images[:4] + extra)["categories"]["cloth"]["clean"]
        assert only["image_auroc"] == 1.0
        assert only["pixel_auroc"] is only["aupro"] is only["f1"] is None


def test_another_detector_scores_pixels_and_images(detector):
    def score(fitted, image):
        assert fitted is detector
        return detectability.Scores(image[..., 0], -float(image.max()))

    images = cases()
    tally = detectability.Detectability({"cloth": detector}, score)
    for image in images:
        tally.add("cloth", **image)
    found = tally.result()["categories"]["cloth"]
    labels = np.array([not image["is_good"] for image in images])
    for version in detectability.VERSIONS:
        highest = np.array([float(image[version].max()) for image in images])
        assert found[version]["image_auroc"] == detectability.auroc(labels, -highest)
        maps = np.stack([image[version][..., 0] for image in images])
        masks = np.stack([image["mask"][..., 0] for image in images])
        expected = detectability.auroc(masks, maps)
        assert found[version]["pixel_auroc"] == pytest.approx(expected, abs=2e-3)


def test_too_few_images_give_none_and_never_nan(detector):
    images = cases()
    good, defective = images[0], images[-1]
    empty = detectability.Detectability({"cloth": detector}).result()
    assert set(empty["macro"]["clean"].values()) == {None}
    assert detectability.Detectability({}).result()["categories"] == {}
    single = measured(detector, [defective])["categories"]["cloth"]["clean"]
    assert single["image_auroc"] is single["hallucination_fpr"] is None
    assert single["pixel_auroc"] > 0.95
    alone = measured(detector, [good])["categories"]["cloth"]["clean"]
    assert alone["image_auroc"] is alone["pixel_auroc"] is alone["f1"] is None
    assert alone["hallucination_fpr"] < 0.1
    everywhere = defective | {"mask": np.ones((SIZE, SIZE, 1))}
    full = measured(detector, [everywhere])["categories"]["cloth"]["clean"]
    assert full["pixel_auroc"] is full["aupro"] is None
    as_json([empty, single, alone, full])


def test_flat_images_have_finite_figures():
    flat = [np.full((48, 48, 3), 0.5, np.float32)] * detect.MIN_FOR_THRESHOLD
    detector = detection.fit(flat)
    mask = np.zeros((48, 48, 1))
    mask[20:30, 20:30] = 1
    dot = np.where(mask > 0, 0.9, flat[0]).astype(np.float32)
    image = {"degraded": flat[0], "restored": flat[0], "has_mask": True}
    images = [
        image | {"clean": dot, "mask": mask, "is_good": False},
        image | {"clean": flat[0], "mask": 0 * mask, "is_good": True},
    ]
    result = measured(detector, images)
    as_json(result)
    found = result["categories"]["cloth"]
    assert found["clean"]["pixel_auroc"] > 0.95
    assert found["clean"]["hallucination_fpr"] == found["restored"]["f1"] == 0.0
    black = detection.fit([np.zeros((32, 32, 3))] * 2)
    assert np.isfinite(detect.score(black, np.ones((32, 32, 3)))).all()


def test_macro_figures_are_means_over_the_categories():
    reference = {name: [texture(seed) for seed in range(8)] for name in ("b", "a")}
    tests = {"b": cases(2, 3), "a": [cases(1, 1)[0]]}
    result = detection.measure(reference, tests)
    assert list(result["categories"]) == ["a", "b"]
    one, two = (result["categories"][name]["degraded"] for name in "ab")
    macro = result["macro"]
    assert macro["count"] == 6
    assert macro["degraded"]["pixel_auroc"] == two["pixel_auroc"]  # "a" has none
    mean = (one["hallucination_fpr"] + two["hallucination_fpr"]) / 2
    assert macro["degraded"]["hallucination_fpr"] == pytest.approx(mean)
    assert macro["recovery"] == result["categories"]["b"]["recovery"]
    as_json(result)


def test_wrong_additions_are_refused_and_not_counted(detector):
    image = cases(0, 1)[0]
    tally = detectability.Detectability({"cloth": detector})
    with pytest.raises(ValueError, match="wool: no detector"):
        tally.add("wool", **image)
    with pytest.raises(ValueError, match="differ in size"):
        tally.add("cloth", **(image | {"mask": np.zeros((32, 32, 1))}))
    with pytest.raises(ValueError, match="not finite"):
        tally.add("cloth", **(image | {"restored": np.full((SIZE, SIZE, 3), math.nan)}))
    assert tally.result()["categories"]["cloth"]["count"] == 0
    assert tally.result()["categories"]["cloth"]["mask_count"] == 0
