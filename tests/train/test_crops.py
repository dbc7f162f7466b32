"""Crops of native photographs that are drawn within the step."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import compact_pairs, rendered
from restore_jax.batches import CONTEXT
from restore_jax.degradation import native_size, recolouring
from restore_jax.degradation.definition import Law, symmetries
from restore_jax.errors import UsageError
from restore_jax.train.on_device import crops, dataset, pairs_file, sampler, shrinking
from tests.support import tiny

SIZES = [(70, 90), (81, 64), (64, 64)]
GAIN = Law(gain=(0.8, 1.2), quantise="round")


def made(law=GAIN, sizes=SIZES):
    """Pairs of photographs whose red and green tell the row and the column."""
    side = max(max(size) for size in sizes)
    clean = np.zeros((len(sizes), side, side, 3), np.uint8)
    for number, (height, width) in enumerate(sizes):
        rows, columns = np.mgrid[:height, :width]
        clean[number, :height, :width] = np.stack(
            [100 + rows, 100 + columns, np.full_like(rows, 150 + number)], -1
        )
    arrays = {
        "clean": clean,
        "mask": (clean[..., :1] > 140).astype(np.uint8),
        "has_mask": np.ones(len(sizes), np.uint8),
        "native": np.array(sizes, np.int32),
    }
    names = [f"a/good/{number}" for number in range(len(sizes))]
    split = pairs_file.Split(names, ["a"] * len(sizes), ["good"] * len(sizes), arrays)
    fields = dataclasses.asdict(law)
    return pairs_file.Pairs(
        path=None,
        settings={"config.data.image_size": 0},
        images="",
        law=fields,
        symmetries=symmetries(law),
        draws=0,
        splits={"train": split, "val": compact_pairs.cropped(split, fields)},
    )


def config_of(crop=32, per_image=4, augment="none", gain=True, **train):
    fields = tiny.config(**train)
    fields.data.update(
        image_size=0, crop_size=crop, crops_per_image=per_image, augment=augment,
        realisations=0, resident=True, recolour=False,
    )  # fmt: skip
    fields.model.gain = gain
    return fields


def drawn(pairs, config, count=6):
    return list(itertools.islice(sampler.host_batches(pairs, config, 0), count))


def rows_of(found):
    for batch in found:
        for i in np.flatnonzero(batch["valid"]):
            levels = {
                name: np.round(255 * batch[name][i]).astype(int)
                for name in ("clean", "degraded", CONTEXT)
                if name in batch
            }
            yield batch["id"][i], levels, batch["mask"][i]


def test_a_crop_is_a_part_of_its_photograph_with_its_mask_at_any_place():
    pairs = made()
    starts = []
    for name, levels, mask in rows_of(drawn(pairs, config_of(batch_size=2), 40)):
        clean = levels["clean"]
        assert clean.shape == (32, 32, 3)
        top, left = clean[0, 0, 0] - 100, clean[0, 0, 1] - 100
        number = pairs.splits["train"].ids.index(name)
        assert set(np.unique(clean[..., 2])) == {150 + number}
        whole = pairs.splits["train"].arrays
        np.testing.assert_array_equal(clean, whole["clean"][number, top:, left:][:32, :32])
        np.testing.assert_array_equal(mask, whole["mask"][number, top:, left:][:32, :32])
        starts.append((number, top, left))
    tops, lefts = ([s[i] for s in starts if s[0] == 0] for i in (1, 2))
    assert min(tops) < 8 and max(tops) > 30 and min(lefts) < 12 and max(lefts) > 44
    assert max(tops) <= 70 - 32 and max(lefts) <= 90 - 32


def test_an_epoch_has_so_many_crops_of_each_photograph():
    batches_ = drawn(made(), config_of(batch_size=5, per_image=4), 3)
    names = [name for name, *_ in rows_of(batches_)]
    assert len(names) == 12 and {names.count(name) for name in names} == {4}
    assert batches_[2]["valid"].tolist() == [True, True, False, False, False]


def test_the_thumbnail_is_of_the_whole_photograph_with_the_crops_gain():
    pairs = made()
    for name, levels, _ in rows_of(drawn(pairs, config_of(batch_size=2), 6)):
        gain = levels["degraded"].mean((0, 1)) / levels["clean"].mean((0, 1))
        number = pairs.splits["train"].ids.index(name)
        height, width = SIZES[number]
        whole = pairs.splits["train"].arrays["clean"][number, :height, :width]
        shrunk = np.asarray(Image.fromarray(whole).resize((64, 64), Image.Resampling.BILINEAR))
        expected = np.minimum(shrunk * gain, 255)
        assert np.abs(levels[CONTEXT] - expected).max() < 3
        assert np.ptp(gain) > 0.01


def test_a_network_without_gain_gets_no_thumbnail():
    assert CONTEXT not in drawn(made(), config_of(gain=False), 1)[0]


def test_a_blur_sees_what_lies_beyond_the_crop_and_is_reflected_at_the_border():
    law = Law(blur=("gaussian",), sigma_x=(2.0, 2.0), sigma_y=(2.0, 2.0), quantise="round")
    for _, levels, _ in rows_of(drawn(made(law), config_of(gain=False, batch_size=2), 6)):
        # A ramp is its own blur, but near a border that reflects it.
        top, left = levels["clean"][0, 0, 0] - 100, levels["clean"][0, 0, 1] - 100
        inner = levels["degraded"][8:-8, 8:-8] - levels["clean"][8:-8, 8:-8]
        assert np.abs(inner).max() <= 1
        if top >= 8:
            assert np.abs(levels["degraded"][0, 8:-8] - levels["clean"][0, 8:-8]).max() <= 1
        if top == 0:
            assert (levels["degraded"][0, 8:-8, 0] > levels["clean"][0, 8:-8, 0]).all()
        if left == 0:
            assert (levels["degraded"][8:-8, 0, 1] > levels["clean"][8:-8, 0, 1]).all()


@pytest.mark.parametrize(("augment", "kinds"), [("flips", 4), ("all8", 8)])
def test_everything_is_turned_alike(augment, kinds):
    seen = set()
    found = drawn(made(Law(quantise="round")), config_of(augment=augment, batch_size=4), 30)
    for _, levels, mask in rows_of(found):
        clean = levels["clean"]
        np.testing.assert_array_equal(levels["degraded"], clean)
        np.testing.assert_array_equal(mask[..., 0], clean[..., 0] > 140)
        down, right = clean[1, 0] - clean[0, 0], clean[0, 1] - clean[0, 0]
        context = levels[CONTEXT]
        shrunk = context[-1, 0, :2] - context[0, 0, :2]
        # The thumbnail grows in the direction in which the crop does.
        np.testing.assert_array_equal(np.sign(np.round(shrunk / 10)), np.sign(down[:2]))
        seen.add((*down[:2], *right[:2]))
    assert len(seen) == kinds


def test_other_colours_keep_the_order_of_levels_and_a_quarter_of_the_crops():
    window = np.random.default_rng(0).integers(0, 200, (24, 24, 3), np.uint8)
    keys = jax.random.split(jax.random.key(0), 300)
    found = np.asarray(jax.vmap(lambda key: recolouring.recolour(key, window))(keys))
    kept = (found == window).all((1, 2, 3))
    assert 0.17 < kept.mean() < 0.33
    grey = (found == np.round(window.mean(-1, keepdims=True))).all((1, 2, 3))
    assert 0.08 < grey.mean() < 0.22
    sources = set()
    for image in found[~kept & ~grey][:60]:
        flat, before = image.reshape(-1, 3).astype(int), window.reshape(-1, 3)
        source = tuple(
            next(c for c in range(3) if (np.diff(flat[np.argsort(before[:, c]), i]) >= 0).all())
            for i in range(3)
        )
        sources.add(source)
        assert sorted(source) == [0, 1, 2]
    assert len(sources) == 6


@pytest.mark.parametrize("size", [(70, 90), (40, 45), (33, 32), (69, 50)])
def test_a_window_of_a_shrunk_photograph_has_the_pixels_of_the_hosts(size):
    rng = np.random.default_rng(0)
    clean = np.zeros((96, 96, 3), np.uint8)
    mask = np.zeros((96, 96, 1), np.uint8)
    clean[:70, :90] = rng.integers(0, 256, (70, 90, 3), np.uint8)
    mask[:70, :90] = rng.random((70, 90, 1)) < 0.01
    expected = tf.image.resize(clean[:70, :90], size, "area").numpy()
    rows, columns = np.array([3, 0, 1, 2, size[0] - 1]), np.array([size[1] - 1, 0, 5])
    found, touched = shrinking.window(
        clean, mask, np.array([70, 90]), np.array(size), rows, columns
    )
    assert np.abs(found - expected[rows][:, columns]).max() <= 0.51
    for number, row in enumerate(rows):
        top, bottom = (place * 70 / size[0] for place in (row, row + 1))
        for other, column in enumerate(columns):
            left, right = (place * 90 / size[1] for place in (column, column + 1))
            covered = mask[
                int(top + 1e-6) : math.ceil(bottom - 1e-6),
                int(left + 1e-6) : math.ceil(right - 1e-6),
            ]
            assert touched[number, other, 0] == covered.max()


def test_shrunk_crops_lie_within_the_shrunk_photograph():
    law = Law(quantise="round")
    config = config_of(gain=False, batch_size=4)
    config.data.shrink = (1.0, 2.0)
    steps = []
    for _, levels, _ in rows_of(drawn(made(law), config, 20)):
        clean = levels["clean"].astype(float)
        np.testing.assert_array_equal(levels["degraded"], levels["clean"])
        # Rows and columns are told by ramps, which are steeper in a shrunk photograph.
        down, right = np.ptp(clean[:, 0, 0]) / 31, np.ptp(clean[0, :, 1]) / 31
        assert 0.97 < down < 2.2 and 0.97 < right < 2.2
        assert abs(down - right) < 0.2 or min(down, right) < 2.02
        steps.append(right)
    assert np.std(steps) > 0.15 and min(steps) < 1.2 and max(steps) > 1.7


def test_what_cannot_be_drawn_is_refused():
    pairs = made()
    with pytest.raises(UsageError, match=r"^config\.data\.crop_size: 65 .* a/good/1.* 64 px"):
        crops.make_plan(pairs, config_of(crop=65))
    moving = Law(blur=("motion",), motion_length=(3.0, 5.0), motion_angle=(0.0, 180.0))
    with pytest.raises(UsageError, match=r"^config\.data\.degradation\.blur: "):
        crops.make_plan(dataclasses.replace(pairs, law=vars(moving)), config_of())
    shrunk = config_of()
    shrunk.data.shrink = (1.0, 2.0)
    with pytest.raises(UsageError, match=r"^config\.data\.shrink: .* estimates the gain; use"):
        crops.make_plan(pairs, shrunk)
    assert crops.make_plan(
        dataclasses.replace(pairs, law=vars(moving)), config_of(gain=False)
    ).law == native_size.from_fields(vars(moving))


def test_validates_on_the_middles_with_the_thumbnails_of_wholes():
    pairs = made()
    batch = next(dataset.eval_batches(pairs.splits["val"], 3))
    assert batch["degraded"].shape == (3, 64, 64, 3) and batch[CONTEXT].shape == (3, 64, 64, 3)
    levels = np.round(255 * batch["clean"]).astype(int)
    starts = [tuple(image[0, 0, :2] - 100) for image in levels]
    assert starts == [((h - 64) // 2, (w - 64) // 2) for h, w in SIZES]


def test_rendered_pairs_are_divided_and_drawn_from():
    pairs = rendered.make_pairs("wide", 0.25, side=48, count=2)
    train, val = pairs.splits["train"], pairs.splits["val"]
    assert len(train) == len(val) == 34 and not set(train.ids) & set(val.ids)
    assert pairs.law["clean_share"] == 0.25 and val.arrays["degraded"].shape[1] == 32
    batch = drawn(pairs, config_of(gain=False, crop=16, batch_size=4), 1)[0]
    assert batch["degraded"].shape == (4, 16, 16, 3)
