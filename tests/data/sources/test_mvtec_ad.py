"""MVTec AD: layout, archives, preparation and splits, on pictures made here."""

import importlib.util
import io
import lzma
import os
import shutil
import socket
import sys
import tarfile
import tempfile
import threading
import types
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from data.sources import images, mvtec_ad, splits
from data.sources.mvtec_ad import archive, mvtec_ad_dataset_builder, records, source
from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import limits

# Category, grey or not, height and width, and how many photographs of each kind. Masks are
# missing for capsule's second `crack`.
CATEGORIES = {
    "capsule": (False, (12, 10), {"train/good": 3, "test/good": 2, "test/crack": 4}),
    "grid": (True, (9, 14), {"train/good": 1, "test/good": 1, "test/bent": 2}),
    "metal_nut": (False, (8, 8), {"test/flip": 2, "test/bent": 2}),
}
UNKNOWN = "capsule/test/crack/001"
TRAIN, TEST = 4, 13


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path_factory, monkeypatch):
    """TensorFlow Datasets leaves an empty temporary folder behind for each new builder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_set(root, categories=CATEGORIES):
    rng = np.random.default_rng(0)
    for category, (grey, size, kinds) in categories.items():
        for kind, count in kinds.items():
            for number in range(count):
                pixels = rng.integers(0, 256, size if grey else (*size, 3), np.uint8)
                photograph = root / category / kind / f"{number:03}.png"
                photograph.parent.mkdir(parents=True, exist_ok=True)
                photograph.write_bytes(png(pixels))
                example = f"{category}/{kind}/{number:03}"
                if not kind.endswith("good") and example != UNKNOWN:
                    mask = np.zeros(size, np.uint8)
                    mask[2:4, 3 : 5 + number] = 255
                    path = root / category / kind.replace("test", "ground_truth")
                    path.mkdir(parents=True, exist_ok=True)
                    (path / f"{number:03}_mask.png").write_bytes(png(mask))
    (root / "readme.txt").write_text("not a photograph")
    return root


def pack(path, root, prefix="", folders=None, backwards=False):
    """Packs a tree as `tar` would; backwards, masks come after their photographs."""
    files = sorted((p for p in root.rglob("*") if p.is_file()), reverse=backwards)
    files = [p for p in files if folders is None or p.relative_to(root).parts[0] in folders]
    suffix = path.name.rsplit(".", 1)[-1]
    with tarfile.open(path, {"tar": "w"}.get(suffix, f"w:{suffix}")) as tar:
        for file in files:
            tar.add(file, prefix + file.relative_to(root).as_posix())
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("mvtec"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def read(part):
    dataset, count, *_ = part
    examples = list(dataset.as_numpy_iterator())
    assert len(examples) == count == int(dataset.cardinality())
    return {example["id"].decode(): example for example in examples}


def contents(found):
    """Everything a source yields, by id: the photograph's and the mask's bytes."""
    both = [record for split in ("train", "test") for record in found.read(split)]
    return {p.id: (image.data, mask and mask.data) for p, image, mask in both}


def snapshot(folder):
    return sorted(str(p) for p in folder.rglob("*"))


def builder_test_case():
    """TensorFlow Datasets' test of builders; its module imports dill for another test's use."""
    if importlib.util.find_spec("dill") is not None:
        return tfds.testing.DatasetBuilderTestCase
    sys.modules["dill"] = types.ModuleType("dill")
    try:
        return tfds.testing.DatasetBuilderTestCase
    finally:
        del sys.modules["dill"]


class BuilderTest(builder_test_case()):
    DATASET_CLASS = mvtec_ad.Builder
    SPLITS = {"train": TRAIN, "test": TEST}  # noqa: RUF012 - as the base class has it

    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.EXAMPLE_DIR = str(write_set(Path(folder)))
        super().setUpClass()


# What is read


def test_records_are_the_files_themselves(tree, cache):
    out = mvtec_ad.load(str(tree), "all", cache)
    examples = read(out["train"]) | read(out["val"])
    assert len(examples) == TRAIN + TEST
    for name, example in examples.items():
        category, _, defect_type, number = name.split("/")
        assert example["image"] == (tree / f"{name}.png").read_bytes()
        assert example["category"].decode() == category
        assert example["defect_type"].decode() == defect_type
        mask = tree / category / "ground_truth" / defect_type / f"{number}_mask.png"
        if mask.exists():
            kept = Image.open(io.BytesIO(example["mask"]))
            np.testing.assert_array_equal(np.asarray(kept), np.asarray(Image.open(mask)))
        else:
            empty = np.asarray(Image.open(io.BytesIO(example["mask"])))
            assert empty.shape == CATEGORIES[category][1]
            assert not empty.any()
        assert example["has_mask"] == (name != UNKNOWN)


def test_encoded_records_decode_in_tensorflow_and_grey_ones_to_rgb(tree, cache):
    def decode(example):
        return {
            "id": example["id"],
            "image": tf.io.decode_png(example["image"], channels=3),
            "mask": tf.io.decode_png(example["mask"], channels=1),
        }

    dataset, *_ = mvtec_ad.load(str(tree), "all", cache)["train"]
    grey = 0
    for example in dataset.map(decode).as_numpy_iterator():
        pixels = Image.open(tree / f"{example['id'].decode()}.png")
        np.testing.assert_array_equal(example["image"], np.asarray(pixels.convert("RGB")))
        assert example["mask"].shape == (*example["image"].shape[:2], 1)
        grey += pixels.mode == "L"
    assert grey


def test_tfds_users_get_pictures(tree, tmp_path):
    dataset, info = tfds.load(
        "mvtec_ad",
        split="test",
        data_dir=tmp_path,
        with_info=True,
        builder_kwargs={"root": str(tree)},
    )
    examples = list(dataset.as_numpy_iterator())
    ids = [example["id"].decode() for example in examples]
    assert ids == sorted(ids) == info.metadata["ids"]["test"]
    assert len(ids) == TEST
    for example in examples:
        expected = Image.open(tree / f"{example['id'].decode()}.png").convert("RGB")
        np.testing.assert_array_equal(example["image"], np.asarray(expected))
    known = {e["id"].decode(): e["has_mask"] for e in examples}
    assert not known.pop(UNKNOWN)
    assert all(known.values())


@pytest.mark.parametrize("split", splits.SPLITS)
def test_order_is_by_id_and_repeats(tree, cache, split):
    out = mvtec_ad.load(str(tree), split, cache)
    for part in out.values():
        names = list(read(part))
        assert names == sorted(names) == list(read(part))
    assert not set(read(out["train"])) & set(read(out["val"]))


def test_order_holds_when_preparing_goes_through_files(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    dataset, *_ = mvtec_ad.load(str(tree), "good", str(tmp_path))["val"]
    names = [example["id"].decode() for example in dataset.as_numpy_iterator()]
    assert names == sorted(names)
    assert len(names) == 10


@pytest.mark.parametrize("count", [1, 63, 64, 65, 3629])
def test_sorting_keys_rise_and_need_few_files(count):
    keys = [mvtec_ad_dataset_builder._sorting_key(rank, count) for rank in range(count)]
    assert keys == sorted(set(keys))
    assert 0 <= keys[0] <= keys[-1] < 2**128
    files = {shuffle.get_bucket_number(key, shuffle.BUCKETS_NUMBER) for key in keys}
    assert len(files) == min(count, 64)


# Trees and archives


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_an_archive_reads_as_its_tree(tree, tmp_path, suffix, backwards):
    packed = pack(tmp_path / f"mvtec_anomaly_detection.{suffix}", tree, "./", None, backwards)
    expected = contents(source.find(tree))
    assert len(expected) == TRAIN + TEST
    assert contents(source.find(packed)) == expected
    assert contents(source.find(tmp_path)) == expected


def test_archives_of_the_categories_read_as_the_tree(tree, tmp_path):
    for category in CATEGORIES:
        pack(tmp_path / f"{category}.tar.xz", tree, "", [category])
    assert contents(source.find(str(tmp_path))) == contents(source.find(str(tree)))


def test_a_category_in_two_archives_is_taken_from_the_whole_one(tree, tmp_path):
    other = write_set(tmp_path / "other", {"capsule": (True, (5, 5), {"test/crack": 9})})
    own = write_set(tmp_path / "own", {"own": (True, (5, 5), {"test/dent": 1})})
    folder = tmp_path / "archives"
    folder.mkdir()
    pack(folder / "mvtec_anomaly_detection.tar.gz", tree)
    pack(folder / "capsule.tar", other)
    pack(folder / "own.tar", own)
    expected = contents(source.find(tree)) | contents(source.find(own))
    assert contents(source.find(folder)) == expected


def test_one_folder_deeper(tree, tmp_path):
    expected = contents(source.find(tree))
    shutil.copytree(tree, tmp_path / "nested" / "mvtec_ad")
    assert contents(source.find(tmp_path / "nested")) == expected
    pack(tmp_path / "whole.tar", tree, "mvtec_ad/")
    assert contents(source.find(tmp_path / "whole.tar")) == expected


def test_tree_and_archive_prepare_to_identical_records(tree, cache, tmp_path):
    packed = pack(tmp_path / "mvtec_anomaly_detection.tar.xz", tree, "", None, True)
    for split in splits.SPLITS:
        from_tree = mvtec_ad.load(str(tree), split, cache)
        from_archive = mvtec_ad.load(str(packed), split, cache)
        for part in ("train", "val"):
            assert read(from_tree[part]) == read(from_archive[part])


def test_layout_leaves_out_what_is_not_of_it():
    names = [
        "license.txt",
        "bottle/readme.txt",
        "bottle/test/broken/000.png",
        "bottle/test/broken/notes.txt",
        "bottle/test/broken/._000.png",
        "__MACOSX/bottle/test/broken/000.png",
        "bottle/test/@eaDir/001.png",
        "@Recycle/bottle/test/broken/002.png",
        "bottle/results/000.png",
        "bottle/ground_truth/broken/007_mask.png",
    ]
    assert source.parse_layout(names, "R") == [
        source.Entry("bottle/test/broken/000", "bottle/test/broken/000.png", None)
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/test/000.png"], "defect type"),
        (["a/train/bad/000.png"], "train/good"),
        (["a/test/x/000.jpg"], "not a PNG"),
        (["a/ground_truth/x/000.png"], "000.png' is not named NNN_mask.png"),
        (["a/test/x/000.png", "a/test/x/000.PNG"], "two photographs"),
        (["a/test/x/0\n0.png"], "unprintable"),
        (["p/a/test/x/000.png", "q/a/test/x/000.png"], "more than one data set"),
    ],
)
def test_layout_mistakes_are_named(names, message):
    with pytest.raises(UsageError, match=message) as caught:
        source.parse_layout(names, "R")
    assert "\n" not in str(caught.value)
    assert "R" in str(caught.value)


# Splits


def test_counts_of_the_set_made_here(tree, cache):
    loaded = {split: mvtec_ad.load(str(tree), split, cache) for split in splits.SPLITS}
    counts = {s: [parts[p][1] for p in ("train", "val")] for s, parts in loaded.items()}
    # Defects: 4 of capsule, 2 of grid and 2 of metal_nut, one of each for validation.
    assert counts == {"defects": [5, 3], "good": [4, 10], "all": [14, 3]}


def test_unknown_split(tree, cache):
    with pytest.raises(UsageError, match=r"config\.data\.split='half'.*defects, good, all"):
        mvtec_ad.load(str(tree), "half", cache)


@pytest.mark.parametrize(
    ("kinds", "split", "message"),
    [
        ({"train/good": 2}, "defects", "no defective photographs"),
        ({"test/flip": 3}, "defects", "no defective photographs"),
        ({"train/good": 2, "test/good": 1}, "good", "no defective photographs"),
        ({"test/crack": 3}, "good", "train/good"),
        ({"test/crack": 1}, "defects", "no category has two photographs"),
        ({"test/crack": 1}, "all", "no category has two photographs"),
    ],
)
def test_nothing_to_train_or_validate_on(tmp_path, kinds, split, message):
    write_set(tmp_path / "set", {"bottle": (True, (4, 4), kinds)})
    with pytest.raises(UsageError, match=message) as caught:
        mvtec_ad.load(str(tmp_path / "set"), split, str(tmp_path / "cache"))
    assert "config.data.split" in str(caught.value)
    assert "\n" not in str(caught.value)


# Wrong and hostile input


def test_no_data_set_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "bottle").mkdir(parents=True)
    (tmp_path / "other" / "bottle" / "000.png").write_bytes(b"")
    (tmp_path / "hollow" / "bottle" / "test" / "crack").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("")
    write_set(tmp_path / "whole")
    masks_only = tmp_path / "masks" / "bottle" / "ground_truth" / "crack"
    masks_only.mkdir(parents=True)
    (masks_only / "000_mask.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    pack(tmp_path / "unrelated.tar", tmp_path / "other")
    for root, message in {
        "": "is empty",
        str(tmp_path / "nowhere"): "no such file or folder",
        "~nobody-of-that-name/mvtec": "cannot be read",
        str(tmp_path / "empty"): "the folder is empty",
        str(tmp_path / "other"): "<category>/test/<defect type>/NNN.png",
        str(tmp_path / "hollow"): "<category>/test/<defect type>/NNN.png",
        str(tmp_path / "masks"): "no PNG photographs",
        str(tmp_path / "notes.txt"): "neither a folder nor an archive",
        str(tmp_path / "unrelated.tar"): "<category>/test/<defect type>/NNN.png",
        str(tmp_path / "whole" / "capsule"): "name the folder above it",
    }.items():
        with pytest.raises(UsageError) as caught:
            mvtec_ad.load(root, "defects", str(tmp_path / "cache"))
        text = str(caught.value)
        assert message in text
        assert "\n" not in text
        assert "config.data.root" in text
        assert root in text
        if "cannot be read" not in text:
            assert "https://www.mvtec.com/company/research/datasets/mvtec-ad" in text
            assert "CC BY-NC-SA 4.0" in text
            assert "non-commercial" in text
            assert "python launch.py --config=configs/sca_unet.py:sample" in text


def hostile(path, kind, outside):
    """An archive with one good photograph and one bad member."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        data = png(np.zeros((4, 4), np.uint8))
        member = tarfile.TarInfo("bottle/test/crack/000.png")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        bad = tarfile.TarInfo("bottle/test/crack/001.png")
        if kind == "parent":
            bad.name = f"../{outside.name}"
        elif kind == "parent within":
            bad.name = f"bottle/test/../../../{outside.name}"
        elif kind == "absolute":
            bad.name = str(outside)
        elif kind == "folder outside":
            bad.name, bad.type = str(outside), tarfile.DIRTYPE
        elif kind == "symbolic link":
            bad.type, bad.linkname = tarfile.SYMTYPE, str(outside)
        elif kind == "hard link":
            bad.type, bad.linkname = tarfile.LNKTYPE, "bottle/test/crack/000.png"
        elif kind == "fifo":
            bad.type = tarfile.FIFOTYPE
        elif kind == "device":
            bad.type, bad.devmajor, bad.devminor = tarfile.CHRTYPE, 1, 3
        elif kind == "huge":
            bad.size = limits.MAX_MEGAPIXELS * 8_000_000 + 1
        elif kind == "huge header":
            bad.type, bad.size = tarfile.XHDTYPE, 1 << 40
        elif kind == "twice":
            bad.name = member.name
        if kind in ("huge", "huge header"):
            tar.fileobj.write(bad.tobuf(tarfile.USTAR_FORMAT if bad.size < 1 << 33 else 1))
            tar.offset += tarfile.BLOCKSIZE
        else:
            tar.addfile(bad)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("parent", "points outside"),
        ("parent within", "points outside"),
        ("absolute", "points outside"),
        ("folder outside", "points outside"),
        ("symbolic link", "link or a device"),
        ("hard link", "link or a device"),
        ("fifo", "link or a device"),
        ("device", "link or a device"),
        ("huge", "claims 1,600,000,001 bytes .*max_megapixels=201 allows it"),
        ("huge header", "claims 1,099,511,627,776 bytes"),
        ("twice", "twice"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, kind, message):
    outside = tmp_path / "outside.png"
    (tmp_path / "data").mkdir()
    packed = hostile(tmp_path / "data" / "bottle.tar.gz", kind, outside)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        mvtec_ad.load(str(tmp_path / "data"), "all", str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert str(packed) in str(caught.value)
    after = [p for p in snapshot(tmp_path) if not p.startswith(str(tmp_path / "cache"))]
    assert after == before
    kept = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert set(kept) <= {"lock"}


def test_too_many_members(tree, tmp_path, monkeypatch):
    packed = pack(tmp_path / "whole.tar", tree)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    with pytest.raises(UsageError, match="more than 20 members"):
        contents(source.find(packed))


def test_too_much_in_masks(tree, tmp_path, monkeypatch):
    packed = pack(tmp_path / "whole.tar", tree)
    monkeypatch.setattr(source, "MAX_MASK_BYTES", 200)
    with pytest.raises(UsageError, match="masks"):
        contents(source.find(packed))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_damaged_archives_are_refused(tree, tmp_path, suffix):
    path = pack(tmp_path / f"whole.{suffix}", tree)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1].offset
    damages = [
        whole[: len(whole) // 2],
        whole[: len(whole) * 9 // 10],
        b"<html>404 not found</html>" * 40,
        b"",
    ]
    if suffix == "tar":
        # At the edge of a member, and with an unreadable header: ends to `tarfile` alone.
        damages += [whole[:last], whole[:last] + b"\x07" * 512 + whole[last + 512 :]]
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="was refused") as caught:
            contents(source.find(path))
        assert "\n" not in str(caught.value)


def test_flipped_bits_in_xz_are_noticed(tree, tmp_path):
    path = tmp_path / "whole.tar.xz"
    plain = pack(tmp_path / "whole.tar", tree).read_bytes()
    packed = bytearray(lzma.compress(plain))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(UsageError, match="was refused"):
        contents(source.find(path))


def spoil(tree, tmp_path, name, data):
    shutil.copytree(tree, tmp_path / "set")
    (tmp_path / "set" / name).write_bytes(data)
    return tmp_path / "set"


@pytest.mark.parametrize("how", ["cut", "empty", "bits", "jpeg"])
@pytest.mark.parametrize(
    "name", ["capsule/test/crack/002", "capsule/ground_truth/crack/002_mask"]
)
def test_undecodable_files_are_named(tree, tmp_path, name, how):
    whole = (tree / f"{name}.png").read_bytes()
    flipped = bytearray(whole)
    flipped[-30] ^= 0xFF
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(jpeg, "JPEG")
    data = {"cut": whole[:-20], "empty": b"", "bits": bytes(flipped), "jpeg": jpeg.getvalue()}
    root = spoil(tree, tmp_path, f"{name}.png", data[how])
    with pytest.raises(UsageError, match=r"not a PNG file that can be decoded") as caught:
        mvtec_ad.load(str(root), "defects", str(tmp_path / "cache"))
    assert str(root / f"{name}.png") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.tfrecord*"))


def test_undecodable_member_is_named_and_a_new_archive_is_read(tree, tmp_path):
    name = "grid/train/good/000.png"
    root = spoil(tree, tmp_path, name, b"\x89PNG\r\n\x1a\n")
    packed = pack(tmp_path / "whole.tar", root)
    with pytest.raises(UsageError, match=f"{packed}: {name}: not a PNG"):
        mvtec_ad.load(str(packed), "good", str(tmp_path / "cache"))
    pack(packed, tree)
    assert len(read(mvtec_ad.load(str(packed), "good", str(tmp_path / "cache"))["train"])) == 4


def test_mask_of_another_size(tree, tmp_path):
    mask = png(np.zeros((12, 11), np.uint8))
    root = spoil(tree, tmp_path, "capsule/ground_truth/crack/000_mask.png", mask)
    with pytest.raises(UsageError, match=r"000_mask\.png: the mask has 12 rows and 11 columns"):
        mvtec_ad.load(str(root), "defects", str(tmp_path / "cache"))


DEFECT = np.zeros((12, 10), bool)
DEFECT[3:7, 2:5] = True
INDEXED = Image.fromarray(DEFECT.astype(np.uint8), "P")
INDEXED.putpalette([0, 0, 0, 1, 0, 0])


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(DEFECT.astype(np.uint16)),
        Image.fromarray(DEFECT.astype(np.uint16) * 200),
        Image.fromarray(DEFECT.astype(np.uint8)),
        Image.fromarray(DEFECT),
        INDEXED,
    ],
    ids=["16 bits", "16 bits to 200", "8 bits", "1 bit", "palette"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["tree", "archive"])
def test_masks_of_any_type_are_read_as_those_of_pairs(tree, tmp_path, picture, packed):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    name = "capsule/ground_truth/crack/000_mask.png"
    root = spoil(tree, tmp_path, name, buffer.getvalue())
    of_pairs = images.encode_mask(root / name)
    if packed:
        root = pack(tmp_path / "whole.tar", root)
    out = mvtec_ad.load(str(root), "all", str(tmp_path / "cache"))
    example = (read(out["train"]) | read(out["val"]))["capsule/test/crack/000"]
    assert example["has_mask"]
    assert example["mask"] == of_pairs.data
    pixels = tf.io.decode_png(example["mask"], channels=1).numpy()[..., 0]
    np.testing.assert_array_equal(pixels, np.where(DEFECT, 255, 0))


def test_a_blank_mask_of_a_defect_is_reported_and_not_known(tree, tmp_path, capsys):
    blank = png(np.zeros((12, 10), np.uint8))
    root = spoil(tree, tmp_path, "capsule/ground_truth/crack/002_mask.png", blank)
    for _ in range(2):  # as it is prepared, and from what is prepared
        out = mvtec_ad.load(str(root), "all", str(tmp_path / "cache"))
        assert (
            "mvtec_ad: 1 of 10 defective photographs with a blank mask, which counts as "
            "unknown: capsule/test/crack/002\n"
        ) in capsys.readouterr().out
        known = {i: e["has_mask"] for i, e in (read(out["train"]) | read(out["val"])).items()}
        assert [i for i, has_mask in known.items() if not has_mask] == [
            UNKNOWN,
            "capsule/test/crack/002",
        ]


@pytest.mark.parametrize("name", ["[5] a", "was?", "a\\b", "a,b*"])
def test_a_cache_of_any_name_is_prepared_once(tree, tmp_path, name, capfd):
    cache = tmp_path / name / "cache"
    found = []
    for _ in range(2):
        out = mvtec_ad.load(str(tree), "all", str(cache))
        found.append(read(out["train"]) | read(out["val"]))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == TRAIN + TEST
    # Anew, it would be deleted first, and a running training reads it.
    assert capfd.readouterr().err.count("preparing mvtec_ad") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_broken_link_in_a_tree(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "set")
    (tmp_path / "set" / "grid" / "test" / "bent" / "009.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UsageError, match=r"009\.png: cannot be read: No such file"):
        mvtec_ad.load(str(tmp_path / "set"), "all", str(tmp_path / "cache"))


# Preparation


@pytest.fixture
def preparations(monkeypatch):
    """Counts the preparations."""
    done = []
    original = mvtec_ad.Builder._split_generators

    def counted(self, dl_manager):
        done.append(1)
        return original(self, dl_manager)

    monkeypatch.setattr(mvtec_ad.Builder, "_split_generators", counted)
    return done


def test_prepared_once_and_anew_when_changed(tree, tmp_path, preparations):
    root, cache = tmp_path / "set", str(tmp_path / "cache")
    shutil.copytree(tree, root)
    for split in splits.SPLITS:
        out = mvtec_ad.load(str(root), split, cache)
    shutil.move(root, tmp_path / "moved")  # same names, sizes and times
    root = tmp_path / "moved"
    mvtec_ad.load(str(root), "defects", cache)
    assert len(preparations) == 1

    name = next(iter(read(out["train"])))
    changed = root / f"{name}.png"
    new = png(255 - np.asarray(Image.open(changed)))
    changed.write_bytes(new)
    os.utime(changed, ns=(1, 1))
    assert read(mvtec_ad.load(str(root), "all", cache)["train"])[name]["image"] == new
    assert len(preparations) == 2
    shutil.copy(changed, changed.with_name("777.png"))
    counts = [count for _, count, *_ in mvtec_ad.load(str(root), "all", cache).values()]
    assert sum(counts) == TRAIN + TEST + 1
    assert len(preparations) == 3


def test_a_preparation_cut_short_is_done_again(tree, tmp_path, preparations):
    cache = str(tmp_path)
    expected = read(mvtec_ad.load(str(tree), "defects", cache)["train"])
    (version,) = tmp_path.glob("*/mvtec_ad/1.2.0")
    # As a killed process leaves it: everything still under TensorFlow Datasets' temporary name.
    left = version.with_name("incomplete.ABCDEF_1.2.0")
    version.rename(left)
    # A training with an earlier release may still be reading this.
    earlier = version.with_name("1.0.0") / "shard"
    earlier.parent.mkdir()
    earlier.touch()
    assert read(mvtec_ad.load(str(tree), "defects", cache)["train"]) == expected
    assert len(preparations) == 2
    assert not left.exists()
    assert earlier.exists()
    # As a cleaner of temporary files may leave it.
    next(version.glob("*.tfrecord*")).unlink()
    assert read(mvtec_ad.load(str(tree), "defects", cache)["train"]) == expected
    assert len(preparations) == 3


def test_two_at_once_prepare_once(tree, tmp_path, preparations):
    results = []

    def run():
        results.append(mvtec_ad.load(str(tree), "defects", str(tmp_path))["val"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(preparations) == 1
    assert len(results) == 2
    assert read(results[0]) == read(results[1])


def test_the_slower_of_two_without_locks_uses_the_others(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_locked", lambda file: False)
    original = mvtec_ad.Builder._split_generators
    calls = []

    def overtaken(self, dl_manager):
        calls.append(1)
        if len(calls) == 1:
            mvtec_ad.load(str(tree), "defects", str(tmp_path))
        return original(self, dl_manager)

    monkeypatch.setattr(mvtec_ad.Builder, "_split_generators", overtaken)
    assert len(read(mvtec_ad.load(str(tree), "defects", str(tmp_path))["train"])) == 5
    assert len(calls) == 2
    assert not list(tmp_path.rglob("incomplete*"))


def test_prepared_data_can_be_read_only(tree, tmp_path):
    mvtec_ad.load(str(tree), "defects", str(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    read(mvtec_ad.load(str(tree), "good", str(tmp_path))["train"])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_cache_folder(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    mvtec_ad.load(str(tree))
    assert list((tmp_path / "xdg" / "restore_jax" / "tfds").glob("mvtec_ad-*/mvtec_ad/1.2.0"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records._cache(None) == tmp_path / ".cache" / "restore_jax" / "tfds"


def test_cache_that_cannot_be_used(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another cache folder"):
        mvtec_ad.load(str(tree), "defects", str(tmp_path / "file"))
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UsageError, match=r"0\.0 GB are free"):
            mvtec_ad.load(str(tree), "defects", str(tmp_path / "cache"))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mvtec_ad.Builder, "_generate_examples", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        mvtec_ad.load(str(tree), "defects", str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_quiet_and_without_network(tree, tmp_path, monkeypatch, capfd):
    def refuse(*args):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    read(mvtec_ad.load(str(tree), "all", str(tmp_path))["train"])
    read(mvtec_ad.load(str(tree), "good", str(tmp_path))["train"])
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"preparing mvtec_ad from {tree} (17 photographs)")


def test_a_mask_in_another_unicode_form_is_that_of_its_photograph():
    composed = "br\u00fcchig"
    decomposed = unicodedata.normalize("NFD", composed)
    names = [
        f"nut/test/{decomposed}/{decomposed}.png",
        f"nut/ground_truth/{composed}/{composed}_mask.png",
    ]
    (photograph,) = source.parse_layout(names, "R")
    assert photograph.mask_file == names[1]
