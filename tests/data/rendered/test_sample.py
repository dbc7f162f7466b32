"""Sample photographs: their masks are true, their bits fixed, their looks plausible."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.rendered import parts, sample, surfaces
from restore_jax.errors import UsageError

DEFECTS = [(c, t) for c, types in sample.CATEGORIES.items() for t in types]
SURFACES = {
    name: getattr(surfaces, name, None) or getattr(parts, name) for name in sample.CATEGORIES
}
GREY = ("grid", "screw")
# Large enough for every texture and quick to render.
SMALL = 96


def test_categories():
    surface_names = {"woven", "grid", "wood", "tile", "leather"}
    assert set(sample.CATEGORIES) >= surface_names | {"metal_part", "bottle_mouth", "screw"}
    for types in sample.CATEGORIES.values():
        assert len(set(types)) == len(types) >= 3
        assert "good" not in types


@pytest.mark.parametrize(("category", "defect_type"), DEFECTS)
def test_mask_is_exactly_where_the_defect_changed_the_image(category, defect_type):
    for index in range(3):
        image, mask, undamaged = sample._render_pair(category, defect_type, index, SMALL, 1)
        assert image.shape == undamaged.shape == (SMALL, SMALL, 3)
        assert mask.shape == (SMALL, SMALL, 1)
        assert image.dtype == mask.dtype == undamaged.dtype == np.uint8
        inside = mask[..., 0].astype(bool)
        assert set(np.unique(mask)) == {0, 1}
        change = np.abs(image.astype(int) - undamaged.astype(int)).max(axis=-1)
        assert not change[~inside].any()
        assert change[inside].mean() > 6
        # Nearly every pixel of the mask changed; the rest are pinholes that were closed.
        assert np.mean(change[inside] > 2) > 0.85
        assert inside.sum() > 12


def test_defects_are_small_and_vary():
    shares, widths = [], []
    for category, defect_type in DEFECTS:
        for index in range(3):
            mask = sample.render(category, defect_type, index, 128)[1][..., 0]
            shares.append(mask.mean())
            widths.append(2 * ndimage.distance_transform_edt(np.pad(mask, 1)).max())
    assert 0.01 < np.median(shares) < 0.03
    assert max(shares) < 0.15
    assert max(shares) > 10 * min(shares)
    # At 128 pixels: from scratches of 1 to 2 pixels a line to blobs.
    assert min(widths) <= 4
    assert max(widths) > 20


@pytest.mark.parametrize("category", sample.CATEGORIES)
def test_good_images(category):
    images = []
    for index in range(3):
        image, mask = sample.render(category, "good", index, SMALL)
        assert image.shape == (SMALL, SMALL, 3)
        assert image.dtype == np.uint8
        assert mask.shape == (SMALL, SMALL, 1)
        assert not mask.any()
        images.append(image.astype(int))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(images[first] - images[second]).mean() > 3


@pytest.mark.parametrize("category", sample.CATEGORIES)
def test_looks_like_a_photograph(category):
    image = sample.render(category, "good", 4, 128)[0].astype(float)
    grey = image.mean(axis=-1)
    assert 15 < grey.mean() < 240
    assert grey.std() > 8
    # No flat fill: every 8 × 8 patch has some texture, and little is burnt out.
    patches = grey.reshape(16, 8, 16, 8).std(axis=(1, 3))
    assert patches.min() > 0.3
    assert np.mean((image <= 0) | (image >= 255)) < 0.02
    # Detail that a blur takes away.
    assert np.abs(grey - ndimage.gaussian_filter(grey, 1.5)).mean() > 1.0
    equal = np.all(image == image[..., :1])
    assert equal == (category in GREY)


@pytest.mark.parametrize("category", GREY)
def test_grey_cameras_stay_grey_at_the_defect(category):
    for defect_type in sample.CATEGORIES[category]:
        image, _ = sample.render(category, defect_type, 0, SMALL)
        np.testing.assert_array_equal(image, np.repeat(image[..., :1], 3, axis=-1))


def test_one_call_does_not_depend_on_others():
    first = sample.render("wood", "scratch", 5, SMALL, seed=7)
    sample.render("wood", "hole", 5, SMALL, seed=7)
    np.random.default_rng(0).random(10)
    again = sample.render("wood", "scratch", 5, SMALL, seed=7)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.slow
def test_another_process_renders_the_same_bits():
    script = (
        "import hashlib; from data.rendered import sample;"
        f"image, mask = sample.render('leather', 'cut', 2, {SMALL}, seed=3);"
        "print(hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ
            | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


@pytest.mark.parametrize("other", [{"index": 1}, {"seed": 1}, {"defect_type": "liquid"}])
def test_every_key_makes_another_piece(other):
    key = {"category": "wood", "defect_type": "hole", "index": 0, "size": SMALL, "seed": 0}
    first, second = (sample._render_pair(**k)[2].astype(int) for k in (key, key | other))
    assert np.abs(first - second).mean() > 3


@pytest.mark.parametrize("category", sample.CATEGORIES)
def test_size_changes_the_resolution_and_not_the_scene(category):
    defect_type = sample.CATEGORIES[category][0]
    small, small_mask = sample.render(category, defect_type, 0, 64)
    large, large_mask = sample.render(category, defect_type, 0, 256)
    coarse = (
        np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX)),
        small,
    )
    smooth = [ndimage.gaussian_filter(c.astype(float), (1.5, 1.5, 0)).ravel() for c in coarse]
    assert np.corrcoef(*smooth)[0, 1] > 0.7
    rows, columns = np.nonzero(small_mask[..., 0])
    large_rows, large_columns = np.nonzero(large_mask[..., 0])
    assert abs(4 * rows.mean() - large_rows.mean()) < 16
    assert abs(4 * columns.mean() - large_columns.mean()) < 16


@pytest.mark.parametrize("category", sample.CATEGORIES)
@pytest.mark.parametrize("size", [32, 75])
def test_any_size_from_the_smallest(category, size):
    for defect_type in sample.CATEGORIES[category]:
        image, mask = sample.render(category, defect_type, 0, size)
        assert image.shape == (size, size, 3)
        assert mask.any()
        assert mask.mean() < 0.3


@pytest.mark.parametrize("category", sample.CATEGORIES)
def test_scenes_stay_in_float32_and_mostly_in_range(category):
    scene = SURFACES[category](np.random.default_rng(0), 64)
    assert scene.image.dtype == np.float32
    assert scene.image.shape == (64, 64, 1 if category in GREY else 3)
    assert np.mean((scene.image < 0) | (scene.image > 1)) < 0.02
    for left, top, _ in scene.spots.values():
        assert max(abs(left), abs(top)) < 1


def test_listing():
    listed = sample.listing(2)
    assert listed == sorted(listed)
    assert len(set(listed)) == len(listed) == 2 * (len(DEFECTS) + len(sample.CATEGORIES))
    assert ("screw", "good", 1) in listed
    assert ("woven", "hole", 0) in listed
    assert {index for _, _, index in listed} == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("carpet", "good", 0), "'carpet'.*bottle_mouth.*woven"),
        (("wood", "bent", 0), "'bent'.*wood.*hole, liquid, scratch, good"),
        (("wood", "", 0), "defect type"),
        (("wood", "good", 0, 31), "31.*32 or more"),
        (("wood", "good", -1), "0 or more"),
        (("wood", "good", 0, 64, -1), "0 or more"),
    ],
)
def test_refusals_are_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as refusal:
        sample.render(*arguments)
    assert "\n" not in str(refusal.value)


def test_listing_refuses_nothing_to_list():
    with pytest.raises(UsageError, match="1 or more"):
        sample.listing(0)
