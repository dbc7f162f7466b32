import collections
import functools
import io
import itertools
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from configs import sca_unet
from data import pipeline, records
from data.rendered import sample
from data.sources import images
from restore_jax import models
from restore_jax.errors import RunError, UsageError

FIELDS = {
    "degraded", "clean", "mask", "has_mask", "valid", "category", "defect_type", "id",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _render_once():
    """Rendering takes longer than all the rest; the images are the same every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "render", functools.cache(sample.render))
        yield


def options(**data):
    config = sca_unet.get_config("sample")
    config.data.sample_size = 32
    config.data.sample_count = 2
    config.data.image_size = 16
    config.data.references = 0  # for whose splits TensorFlow traces as long as for the rest
    config.train.batch_size = 10
    config.eval.batch_size = 3
    config.data.update(data)
    return config


@functools.cache
def made(**data):
    """The data of `options`, whose functions TensorFlow traces once for all tests."""
    return pipeline.make_data(options(**data))


def first_batches(config, count, step=0):
    return taken(pipeline.make_data(config), count, step)


def taken(data, count, step=0):
    return list(itertools.islice(data.train_batches(step), count))


def assert_same(a, b):
    for name in FIELDS:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_are_as_described():
    data = made()
    steps = -(-data.train_images // 10)
    seen = list(itertools.islice(data.train_batches(0), steps))
    for batch in seen:
        assert batch.keys() == FIELDS
        for name, channels in (("degraded", 3), ("clean", 3), ("mask", 1)):
            assert batch[name].shape == (10, 16, 16, channels)
            assert batch[name].dtype == np.float32
            assert batch[name].min() >= 0
            assert batch[name].max() <= 1
        assert set(np.unique(batch["mask"])) <= {0.0, 1.0}
        assert batch["has_mask"].dtype == batch["valid"].dtype == np.bool_
        assert batch["id"].dtype.kind == "U"
    assert [batch["valid"].sum() for batch in seen] == [10] * (steps - 1) + [
        data.train_images - 10 * (steps - 1)
    ]
    ids = [i for batch in seen for i in batch["id"][batch["valid"]]]
    assert len(ids) == len(set(ids)) == data.train_images == data.counts["train"]
    held_out = [i for b in data.eval_batches("val") for i in b["id"][b["valid"]]]
    assert len(held_out) == data.counts["val"]
    assert not set(ids) & set(held_out)


def test_references_are_clean_and_good_images_are_degraded():
    config = options(references=1)
    data = pipeline.make_data(config)
    of_training = {i for b in data.eval_batches("train") for i in b["id"]}
    for split, section, count in (("reference", "train", 8), ("good", "test", 16)):
        assert data.counts[split] == count  # of eight categories, two each to be had
        for batch in data.eval_batches(split):
            assert not batch["mask"].any()
            assert batch["has_mask"].all()
            assert set(batch["defect_type"]) == {"good"}
            for image_id in batch["id"]:
                assert f"/{section}/good/" in image_id
            assert not set(batch["id"]) & of_training
            same = (batch["degraded"] == batch["clean"]).mean()
            assert same == 1 if split == "reference" else same < 0.1
    assert "reference" not in made().counts


def test_every_epoch_has_another_order_of_the_same_pairs():
    data = made()
    steps = -(-data.train_images // 10)
    stream = data.train_batches(0)
    epochs = []
    for _ in range(2):
        pairs = {}
        for batch in itertools.islice(stream, steps):
            for i in np.flatnonzero(batch["valid"]):
                pairs[batch["id"][i]] = batch["degraded"][i]
        epochs.append(pairs)
    assert list(epochs[0]) != list(epochs[1])
    assert epochs[0].keys() == epochs[1].keys()
    for name, image in epochs[0].items():
        np.testing.assert_array_equal(image, epochs[1][name])


@pytest.mark.parametrize(
    "changes",
    [
        {"realisations": 0, "augment": "flips"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"realisations": 2}, marks=pytest.mark.slow),
        pytest.param({"image_size": 0, "crop_size": 16}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_step_can_be_gone_on_from(changes):
    data, again = made(**changes), pipeline.make_data(options(**changes))
    steps = -(-data.train_images // 10)
    whole = taken(data, 2 * steps + 2)
    for step in (steps, steps + 2):
        later = taken(again, len(whole) - step, step)
        for expected, found in zip(whole[step:], later, strict=True):
            assert_same(expected, found)


def test_the_seed_decides():
    other = options()
    other.seed = 1
    found = [made(), pipeline.make_data(options()), pipeline.make_data(other)]
    a, again, b = (taken(data, 1)[0] for data in found)
    assert_same(a, again)
    assert (a["id"] != b["id"]).any()
    val = [next(data.eval_batches("val")) for data in found[1:]]
    assert_same(*val)  # runs of different seeds are compared on the same images


def draws_of_one_image(data, epochs):
    steps = -(-data.train_images // 10)
    found = []
    for batch in itertools.islice(data.train_batches(0), epochs * steps):
        for i in np.flatnonzero(batch["valid"]):
            if batch["id"][i] == "wood/test/hole/000":
                found.append(batch["degraded"][i])
    return found


def test_realisations_are_fixed_draws_or_new_ones():
    def distinct(images):
        return len({image.tobytes() for image in images})

    assert distinct(draws_of_one_image(made(), 3)) == 1
    twice = draws_of_one_image(made(realisations=2), 2)
    assert len(twice) == 4
    assert distinct(twice) == 2
    assert distinct(draws_of_one_image(made(realisations=0), 3)) == 3


def views_seen(augmented, count):
    """The views of clean images in `count` batches: steps along y and x, and if transposed."""
    originals = {}
    for batch in made().eval_batches("train"):
        originals |= {name: batch["clean"][i] for i, name in enumerate(batch["id"])}
    seen = set()
    for batch in taken(augmented, count):
        for i in np.flatnonzero(batch["valid"]):
            original = originals[batch["id"][i]]
            views = {
                (a, b, swapped): (original.swapaxes(0, 1) if swapped else original)[::a, ::b]
                for a, b, swapped in itertools.product((1, -1), (1, -1), (False, True))
            }
            match = [k for k, v in views.items() if np.array_equal(v, batch["clean"][i])]
            assert match
            seen.update(match)
    return seen


def test_flips_turn_the_pair_and_its_mask_alike():
    seen = views_seen(made(augment="flips"), 6)
    assert seen == {(a, b, False) for a in (1, -1) for b in (1, -1)}


def test_the_mask_lies_on_the_defect():
    config = options(sample_size=64, image_size=0)
    batch = next(pipeline.make_data(config).eval_batches("val"))
    assert batch["mask"].any(axis=(1, 2, 3)).all()
    assert batch["mask"].mean() < 0.3


def write(folder, count, size=(20, 20), suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    encoded = []
    for number in range(count):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        path = folder / f"{number:03d}.{suffix}"
        Image.fromarray(pixels).save(path)
        encoded.append(path.read_bytes())
    return encoded


def patched(monkeypatch, images):
    """Makes records of given encoded images, all for training and validation alike."""
    blank = [
        tf.io.encode_png(np.zeros((*Image.open(io.BytesIO(image)).size[::-1], 1), np.uint8))
        for image in images
    ]
    names = [f"a/test/scratch/{i:03d}" for i in range(len(images))]
    dataset = tf.data.Dataset.from_tensor_slices(
        {
            "image": images,
            "mask": blank,
            "has_mask": [False] * len(images),
            "id": names,
            "category": ["a"] * len(images),
            "defect_type": ["scratch"] * len(images),
        }
    )

    def pick(positions):
        listed = list(dataset)
        chosen = [listed[position] for position in positions]
        return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(stacked, *chosen))

    def stacked(*values):
        return tf.stack(values)

    found = records.Records(dataset, len(images), pick)
    monkeypatch.setattr(records, "load", lambda settings: {"train": found, "val": found})


def test_resizing_follows_pillow_after_degrading(monkeypatch, tmp_path):
    images = write(tmp_path, 2, (48, 48))
    patched(monkeypatch, images)
    batch = next(pipeline.make_data(options()).eval_batches("val"))
    for i in range(2):
        original = Image.open(tmp_path / f"{i:03d}.png")
        expected = np.asarray(original.resize((16, 16), Image.Resampling.BILINEAR))
        assert np.abs(batch["clean"][i] * 255 - expected).max() <= 1.001
    assert not batch["has_mask"].any()
    assert not batch["mask"].any()


def test_native_images_of_several_sizes_batch_by_size(monkeypatch, tmp_path):
    images = write(tmp_path / "a", 4, (20, 20)) + write(tmp_path / "b", 2, (24, 18))
    patched(monkeypatch, images)
    found = list(pipeline.make_data(options(image_size=0)).eval_batches("val"))
    shapes = [(batch["clean"].shape[1:3], int(batch["valid"].sum())) for batch in found]
    assert sorted(shapes) == [((20, 20), 1), ((20, 20), 3), ((24, 18), 2)]
    for batch in found:
        assert batch["mask"].shape == (*batch["clean"].shape[:3], 1)


def test_a_native_image_too_small_to_measure_is_named(tmp_path):
    write_pairs(tmp_path, size=(24, 10))
    data = pipeline.make_data(pairs_options(tmp_path, image_size=0))
    with pytest.raises(UsageError, match=r".*: 10×24 px is too small, SSIM needs 11 px"):
        list(data.eval_batches("val"))


def test_training_on_crops_of_native_images(monkeypatch, tmp_path):
    patched(monkeypatch, write(tmp_path, 6, (24, 30)))
    config = options(image_size=0, crop_size=16)
    batches = first_batches(config, 4)
    whole = {
        name: batch["clean"][i]
        for batch in pipeline.make_data(config).eval_batches("train")
        for i, name in enumerate(batch["id"])
    }
    places = set()
    for batch in batches:
        for i in np.flatnonzero(batch["valid"]):
            windows = np.lib.stride_tricks.sliding_window_view(
                whole[batch["id"][i]], (16, 16), axis=(0, 1)
            )
            hits = (windows == batch["clean"][i].transpose(2, 0, 1)).all(axis=(2, 3, 4))
            places.update(zip(*np.nonzero(hits), strict=True))
            assert hits.sum() == 1
    assert len(places) > 10


def crops_config(**data):
    native = {"image_size": 0, "crop_size": 16, "crops_per_image": 3, "realisations": 1}
    config = options(**(native | data))
    config.train.batch_size = 4
    return config


def test_several_crops_of_a_photograph_are_divided_among_batches():
    config = crops_config(augment="flips")
    data = pipeline.make_data(config)
    photographs = data.counts["train"]
    assert data.train_images == 3 * photographs
    steps = -(-data.train_images // 4)
    seen = list(itertools.islice(data.train_batches(0), steps))
    assert all(len(batch["valid"]) == 4 for batch in seen)
    ids = collections.Counter(i for b in seen for i in b["id"][b["valid"]])
    assert len(ids) == photographs
    assert set(ids.values()) == {3}
    # Three batches of one crop each of the same four photographs, but not of the same place.
    first, second, third = seen[:3]
    assert list(first["id"]) == list(second["id"]) == list(third["id"])
    assert len(set(first["id"])) == 4
    assert (first["clean"] != second["clean"]).any()


@pytest.mark.slow
def test_crops_go_on_from_any_step():
    config = crops_config(augment="flips")
    whole, data = first_batches(config, 9), pipeline.make_data(config)
    for step in (1, 2, 3, 7):
        (found,) = taken(data, 1, step)
        for name in FIELDS | {"context"}:
            np.testing.assert_array_equal(found[name], whole[step][name], err_msg=name)
    steps = -(-data.train_images // 4)
    (again,) = taken(data, 1, steps)
    assert (again["id"] != whole[0]["id"]).any()


def test_a_crops_context_is_the_thumbnail_of_its_whole_photograph():
    config = crops_config(augment="none", crops_per_image=1)
    (batch,) = first_batches(config, 1)
    assert batch["context"].shape == (4, 64, 64, 3)
    for context, crop in zip(batch["context"], batch["degraded"], strict=True):
        # Two pixels of the thumbnail to one of the photograph of 32 px: its own pixel's weight
        # is 3/4 along each axis, so some pixels of the thumbnail are close to any of the crop.
        distance = np.abs(context[::2, ::2].mean((0, 1)) - crop.mean((0, 1)))
        assert distance.max() < 0.2
    ids, contexts = {}, {}
    for batch in first_batches(crops_config(augment="none"), 3):
        for i, context in zip(batch["id"], batch["context"], strict=True):
            ids.setdefault(i, []).append(context)
            contexts[i] = context
    for same in ids.values():
        assert all((context == same[0]).all() for context in same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crops_per_image": 0}, "crops_per_image: 0 must be at least 1"),
        ({"image_size": 16}, "crops_per_image: 3 must be at least 1, and exactly 1 unless"),
    ],
)
def test_a_number_of_crops_that_cannot_be_is_refused(changes, message):
    config = crops_config()
    config.data.update(changes)
    with pytest.raises(UsageError, match=rf"^config\.data\.{message}"):
        pipeline.make_data(config)


def test_a_crop_larger_than_an_image_is_refused(monkeypatch, tmp_path):
    patched(monkeypatch, write(tmp_path, 3))
    with pytest.raises(UsageError, match=r"^config\.data\.crop_size: 32 is larger than a/test"):
        first_batches(options(image_size=0, crop_size=32), 1)


def test_an_image_that_cannot_be_decoded_stops_with_a_line(monkeypatch, tmp_path):
    images = write(tmp_path, 2)
    patched(monkeypatch, [images[0], images[1][: len(images[1]) // 2]])
    with pytest.raises(RunError, match="could not be read"):
        first_batches(options(), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mvtec"}, r"config\.data\.name: no data 'mvtec'; there are"),
        ({"image_size": 8}, r"config\.data\.image_size: 8 is too small"),
        ({"image_size": 0, "crop_size": 4}, r"config\.data\.crop_size: 4 is too small"),
        ({"image_size": 0, "crop_size": 0}, r"config\.data\.crop_size: 0 is too small"),
        ({"resize": "cubic"}, r"config\.data\.resize: 'cubic'"),
        ({"realisations": -1}, r"config\.data\.realisations: -1"),
        ({"image_size": 0, "shrink": (0.5, 2.0)}, r"config\.data\.shrink: .* 1 <= low <= high"),
        ({"image_size": 0, "shrink": (2.0, 1.0)}, r"config\.data\.shrink: \(2\.0, 1\.0\) must"),
        ({"image_size": 0, "shrink": (1.0,)}, r"config\.data\.shrink: \(1\.0,\) must"),
        ({"shrink": (1.0, 2.0)}, r"config\.data\.shrink: .* set config\.data\.image_size=0"),
        ({"augment": "mirror"}, r"config\.data\.augment: 'mirror' is not one of"),
        ({"augment": "all8"}, r"config\.data\.augment: 'all8' would .*; use flips"),
        ({"split": "test"}, r"config\.data\.split"),
        ({"sample_size": 8}, r"config\.data\.sample_size: 8 is below"),
        ({"sample_count": 1}, r"config\.data\.sample_count: 1 is below"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        pipeline.make_data(options(**changes))


def test_training_photographs_are_shrunk_and_those_of_validation_are_not():
    changes = {"image_size": 0, "crop_size": 32, "sample_size": 64, "realisations": 0}
    config = options(**changes)
    config.data.degradation.preset = "none"
    native = pipeline.make_data(config)
    config.data.shrink = (2.0, 2.0)
    shrunk = pipeline.make_data(config)
    wholes = {}
    for batch in native.eval_batches("train"):
        wholes |= dict(zip(batch["id"], batch["clean"], strict=True))
    for batch in itertools.islice(shrunk.train_batches(0), 4):
        for i in np.flatnonzero(batch["valid"]):
            halved = wholes[batch["id"][i]].reshape(32, 2, 32, 2, 3).mean((1, 3))
            assert np.abs(batch["clean"][i] - halved).max() < 0.51 / 255
            np.testing.assert_array_equal(batch["degraded"][i], batch["clean"][i])
    pairs = zip(native.eval_batches("val"), shrunk.eval_batches("val"), strict=True)
    for expected, found in pairs:
        np.testing.assert_array_equal(found["clean"], expected["clean"])


def test_rotations_are_allowed_where_the_law_has_no_direction():
    config = options(augment="all8")
    config.data.degradation.preset = "mild"
    assert len(views_seen(pipeline.make_data(config), 6)) == 8


@pytest.mark.parametrize("split", ["good", "all"])
def test_other_splits_of_the_sample(split):
    data = pipeline.make_data(options(split=split))
    kinds = {
        part: {kind for batch in data.eval_batches(part) for kind in batch["defect_type"]}
        for part in ("train", "val")
    }
    if split == "good":
        assert kinds["train"] == {"good"}
        assert "good" not in kinds["val"]
    else:
        assert {"good", "scratch"} <= kinds["train"]


def test_the_pairs_trained_on_can_be_evaluated():
    trained = {}
    for batch in taken(made(), 5):
        trained |= {i: batch["degraded"][n] for n, i in enumerate(batch["id"])}
    for batch in made().eval_batches("train"):
        for n, i in enumerate(batch["id"]):
            if i in trained:
                np.testing.assert_array_equal(batch["degraded"][n], trained[i])


def test_mvtec_ad_from_its_folder_to_batches(tmp_path):
    """Defective photographs of two categories, one with a mask, one of a name beyond ASCII."""
    for category, masked in (("capsule", True), ("flügel", False)):
        for kind in ("train/good", "test/good", "test/crack"):
            write(tmp_path / "set" / category / kind, 3, (24, 24))
        if masked:
            mask = np.zeros((24, 24), np.uint8)
            mask[4:8, 10:20] = 255
            folder = tmp_path / "set" / category / "ground_truth" / "crack"
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(mask).save(folder / f"{number:03d}_mask.png")
    config = sca_unet.get_config("mvtec_ad")
    config.data.root = str(tmp_path / "set")
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size = 12
    data = pipeline.make_data(config)
    assert {split: data.counts[split] for split in ("train", "val")} == {"train": 4, "val": 2}
    for batch in (next(data.train_batches(0)), next(data.eval_batches("val"))):
        valid = batch["valid"]
        assert set(batch["category"][valid]) == {"capsule", "flügel"}
        assert set(batch["defect_type"][valid]) == {"crack"}
        for i in np.flatnonzero(valid):
            known = batch["category"][i] == "capsule"
            assert batch["has_mask"][i] == known
            expected = np.zeros((12, 12))
            expected[2:4, 5:10] = known
            np.testing.assert_array_equal(batch["mask"][i, ..., 0], expected)
    assert data.counts["train"] == next(data.train_batches(0))["valid"].sum()


def write_pairs(root, count=4, size=(24, 20)):
    """Pairs whose degraded photograph is the negative of the clean one."""
    for part, number in [("train", n) for n in range(count)] + [("val", 0)]:
        clean = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[4:10, 6:12] = 255
        for name, pixels in (("clean", clean), ("degraded", 255 - clean), ("mask", mask)):
            path = root / part / name / "bolt" / "scratch" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def pairs_options(root, **data):
    config = sca_unet.get_config("pairs")
    config.data.root = str(root)
    config.data.image_size = 12
    config.train.batch_size = 3
    config.eval.batch_size = 3
    config.data.update(data)
    return config


@pytest.mark.parametrize("method", ["bilinear", "area"])
def test_pairs_are_resized_alike_and_not_degraded(tmp_path, method):
    write_pairs(tmp_path)
    data = pipeline.make_data(pairs_options(tmp_path, resize=method))
    assert data.counts == {"train": 4, "val": 1}
    batch = next(data.eval_batches("val"))
    assert batch["id"][0] == "val/bolt/scratch/0"
    assert (batch["category"][0], batch["defect_type"][0]) == ("bolt", "scratch")
    for name in ("clean", "degraded"):
        original = Image.open(tmp_path / "val" / name / "bolt/scratch/0.png")
        if method == "bilinear":
            expected = np.asarray(original.resize((12, 12), Image.Resampling.BILINEAR))
        else:
            # The least common multiple of both grids, averaged in blocks.
            fine = np.asarray(original, float).repeat(3, axis=1)
            expected = fine.reshape(12, 2, 12, 5, 3).mean(axis=(1, 3))
        assert np.abs(batch[name][0] * 255 - expected).max() <= 1.001
    expected = np.zeros((12, 12))
    expected[2:5, 3:8] = 1  # columns 6 to 12 of 20 touch 3 to 8 of 12
    np.testing.assert_array_equal(batch["mask"][0, ..., 0], expected)


@pytest.mark.parametrize("realisations", [0, 3])
def test_a_pair_has_one_realisation(tmp_path, realisations):
    config = pairs_options(write_pairs(tmp_path), realisations=realisations)
    data = pipeline.make_data(config)
    assert data.train_images == 4
    assert config.data.realisations == realisations  # the caller's, left as it was
    batches = first_batches(config, 4)  # two epochs
    seen = {}
    for batch in batches:
        for i in np.flatnonzero(batch["valid"]):
            seen.setdefault(batch["id"][i], []).append(batch["degraded"][i].tobytes())
    assert [len(images) for images in seen.values()] == [2] * 4
    assert all(len(set(images)) == 1 for images in seen.values())


def test_crops_and_flips_of_pairs_stay_together(tmp_path):
    config = pairs_options(write_pairs(tmp_path), image_size=0, crop_size=16, augment="flips")
    for batch in first_batches(config, 4):
        assert batch["clean"].shape == (3, 16, 16, 3)
        np.testing.assert_allclose(batch["degraded"], 1 - batch["clean"], atol=1e-6)
    whole = next(pipeline.make_data(config).eval_batches("val"))
    assert whole["clean"].shape == (3, 24, 20, 3)
    np.testing.assert_allclose(whole["degraded"], 1 - whole["clean"], atol=1e-6)
    with pytest.raises(UsageError, match=r"config\.data\.augment: 'all8'"):
        pipeline.make_data(pairs_options(tmp_path, augment="all8"))
    stated = pairs_options(tmp_path, augment="all8")
    stated.data.degradation.preset = "mild"
    first_batches(stated, 1)


def test_a_file_damaged_since_is_named(tmp_path):
    config = pairs_options(write_pairs(tmp_path))
    path = tmp_path / "train" / "degraded" / "bolt" / "scratch" / "2.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError) as caught:
        first_batches(config, 2)
    assert str(caught.value).startswith(f"config.data.root: {path}: is damaged")
    assert str(caught.value).isprintable()


def test_clean_images_are_degraded_by_the_law(tmp_path):
    write_pairs(tmp_path / "set", size=(40, 40))
    config = pairs_options(tmp_path / "set" / "train" / "clean", realisations=2)
    config.data.name = "clean"
    config.data.degradation.update(blur=("none",), noise_sigma=(0.0, 0.0), gain=(0.5, 0.5))
    data = pipeline.make_data(config)
    assert data.counts == {"train": 3, "val": 1}
    assert data.train_images == 6
    for batch in (next(data.train_batches(0)), next(data.eval_batches("val"))):
        assert np.abs(batch["degraded"] - batch["clean"] / 2).max() < 2 / 255
        assert not batch["has_mask"].any()
        assert not batch["mask"].any()


def test_the_degraded_set_to_batches_and_its_test_form(tmp_path):
    config = pairs_options(tmp_path)
    config.data.name = "kla"
    write_pairs(tmp_path / "made")
    for section, names in {
        "Val": ("GT_clean_image", "Degraded_image", "Defect_mask"),
        "Test": ("Clean", "Noise", "GT_mask"),
    }.items():
        for name, source in zip(names, ("clean", "degraded", "mask"), strict=True):
            folder = tmp_path / section / "set" / "bolt" / section / name / "scratch"
            shutil.copytree(tmp_path / "made/train" / source / "bolt/scratch", folder)
    for section in ("Val", "Test"):
        config.data.root = str(tmp_path / section)
        data = pipeline.make_data(config)
        assert data.counts == {"train": 0, "val": 4}
        (first, second) = data.eval_batches("val")
        assert first["id"][0] == f"bolt/{section}/scratch/0"
        assert first["mask"].any()
        assert second["valid"].sum() == 1
        assert list(data.eval_batches("train")) == []
        with pytest.raises(UsageError, match=r"no images to train on.*restore-jax evaluate"):
            data.train_batches(0)


def test_the_first_batch_does_not_wait_for_the_whole_set(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(120):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"a/{number:03}.png")
    config = sca_unet.get_config("clean")
    config.data.root, config.data.image_size = str(tmp_path), 16
    config.train.batch_size = 4
    data = pipeline.make_data(config)
    steps = -(-data.train_images // 4)
    expected = list(itertools.islice(data.train_batches(0), steps))

    encode, reads, enough = images.encode, itertools.count(), threading.Event()
    waited = []

    def at_most_60(*given):
        if next(reads) >= 60 and not enough.is_set():
            waited.append(enough.wait(60))
        return encode(*given)

    monkeypatch.setattr(images, "encode", at_most_60)
    batches = data.train_batches(0)
    first = next(batches)
    enough.set()
    assert all(waited)
    found = [first, *itertools.islice(batches, steps - 1)]
    for batch, same in zip(found, expected, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, same[name], name)


@pytest.mark.parametrize("realisations", [0, 1])
def test_a_digital_gain_is_measured_at_native_size(realisations):
    config = options(sample_size=256, sample_count=2, undo_gain=True, realisations=realisations)
    config.data.degradation.gain = (1.07, 1.07)
    data = pipeline.make_data(config)
    batches = [*itertools.islice(data.train_batches(0), 1), *data.eval_batches("val")]
    for batch in batches:
        # The darkest of 65,536 pixels leave the range less narrow.
        np.testing.assert_allclose(batch["gain"], 1.07, atol=2e-3)
        assert batch["gain"].shape == (len(batch["id"]), 3)
        ratio = models.input_of(batch) / np.maximum(batch["degraded"], 1e-6)
        np.testing.assert_allclose(ratio[batch["degraded"] > 0], 1 / 1.07, rtol=3e-3)
