"""Damaged images and hostile archives: named, or left out without moving any other."""

import io
import itertools
import os
import shutil
import tarfile
import zlib

import numpy as np
import pytest

from configs import sca_unet
from data import pipeline
from data.sources import mvtec_ad
from data.sources.mvtec_ad import archive, source
from restore_jax.errors import RunError, UsageError
from tests.data.sources import test_folders, test_kla_source, test_mvtec_ad
from tests.data.sources.test_mvtec_ad import temporary_folder  # noqa: F401 - applies itself


def options(name, root, tmp_path, **data):
    config = sca_unet.get_config(name)
    config.data.update(root=str(root), cache_dir=str(tmp_path / "cache"), references=2)
    config.data.update(image_size=16, **data)
    config.train.batch_size = config.eval.batch_size = 4
    return config


def stopped(config):
    """Returns the line that stops a training, as it prepares or as it reads its images."""
    with pytest.raises(UsageError) as caught:
        data = pipeline.make_data(config)
        for split in data.counts:
            list(data.eval_batches(split))
    assert str(caught.value).isprintable()
    return str(caught.value)


def ids(config, splits=("train", "val"), trains=False):
    """The ids of each split, which are as many as the data say; of an epoch too if `trains`."""
    data = pipeline.make_data(config)
    found = {}
    for split in splits:
        batches = list(data.eval_batches(split))
        found[split] = [i for batch in batches for i in batch["id"][batch["valid"]].tolist()]
        assert len(found[split]) == len(set(found[split])) == data.counts[split]
    if not trains:
        return found
    epoch = data.train_batches(0)
    steps = -(-data.train_images // 4)
    seen = [b["id"][b["valid"]].tolist() for b in (next(epoch) for _ in range(steps))]
    assert sorted(itertools.chain.from_iterable(seen)) == found["train"]
    if steps > 1:
        assert next(data.train_batches(1))["id"].tolist()[: len(seen[1])] == seen[1]
    return found


def write_many(root, name):
    for number in range(24):
        if name == "pairs":
            key = "ab"[number % 2] + f"/{number}"
            test_folders.write_pair(root, "", key, size=(12, 16), seed=number, mask=".png")
        else:
            test_folders.save(root / f"a/{number}.png", test_folders.pixels((12, 16), number))


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("name", ["pairs", "clean"])
def test_images_of_ones_own(tmp_path, capsys, name):
    root = tmp_path / "set"
    write_many(root, name)
    whole = ids(options(name, root, tmp_path))
    assert ids(options(name, root, tmp_path, skip_bad=True)) == whole
    assert "left out" not in capsys.readouterr().out

    # One to train on, found as its pixels are read, and one to validate on, by its header.
    first, second = whole["train"][1], whole["val"][0]
    folder = root / "clean" if name == "pairs" else root
    cut(folder / f"{first}.png")
    line = stopped(options(name, root, tmp_path))
    assert f"{first}.png" in line
    (folder / f"{second}.png").write_bytes(b"")
    line = stopped(options(name, root, tmp_path))
    assert f"{second}.png (is empty (0 bytes))" in line

    left = {first, second}
    if name == "pairs":
        third, fourth, fifth = whole["train"][2:5]
        cut(root / f"degraded/{third}.jpg")
        (root / f"mask/{fourth}.png").unlink()
        (root / f"mask/{fourth}.png").symlink_to("nowhere.png")
        (root / f"degraded/{fifth}.jpg").unlink()
        os.mkfifo(root / f"degraded/{fifth}.jpg")
        left |= {third, fourth, fifth}
        line = stopped(options(name, root, tmp_path))
        assert f"degraded/{fifth}.jpg (is not a regular file)" in line
        assert f"mask/{fourth}.png (cannot be read: No such file or directory)" in line
    capsys.readouterr()
    found = ids(options(name, root, tmp_path, skip_bad=True), trains=True)
    assert found == {part: [i for i in of if i not in left] for part, of in whole.items()}
    said = capsys.readouterr()
    assert f"{name}: {len(left)} of 24 images left out, unreadable: " in said.out
    assert "24/24" in said.err


def test_only_what_cannot_be_read_is_left_out(tmp_path):
    write_many(tmp_path, "pairs")
    cut(tmp_path / "clean/a/0.png")
    test_folders.save(tmp_path / "degraded/a/2.jpg", test_folders.pixels((12, 17)))
    test_folders.save(tmp_path / "degraded/a/lost.png", test_folders.pixels())
    line = stopped(options("pairs", tmp_path, tmp_path, skip_bad=True))
    assert "differently sized: clean/a/2.png" in line
    assert "unmatched: degraded/a/lost.png" in line
    assert "a/0.png" not in line


def test_a_part_of_which_nothing_can_be_read(tmp_path):
    for part in ("train", "val"):
        test_folders.write_pair(tmp_path, part, "a/1")
    cut(tmp_path / "val/clean/a/1.png")
    line = stopped(options("pairs", tmp_path, tmp_path, skip_bad=True))
    assert "none of the images for val can be read" in line


def test_the_kla_set(tmp_path, capsys):
    root = tmp_path / "set"
    test_kla_source.write(root, test_kla_source.TRAIN_VAL)
    whole = ids(options("kla", root, tmp_path))
    damaged = "metal_nut/Train/Degraded_image/bent/001.png"
    cut(root / damaged)
    assert str(root / damaged) in stopped(options("kla", root, tmp_path))
    capsys.readouterr()
    found = ids(options("kla", root, tmp_path, skip_bad=True))
    whole["train"].remove("metal_nut/Train/bent/001")
    assert found == whole
    said = capsys.readouterr().out
    assert f"kla: 1 of 8 images left out, unreadable: {damaged} (" in said
    assert "kla (train/val): bottle 3/1, metal_nut 1/2; together 4/3" in said


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_set_itself(tmp_path, capsys, packed):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    root = tmp_path / "whole.tar" if packed else tree
    if packed:
        test_mvtec_ad.pack(root, tree)
    every = ("train", "val", "reference", "good")
    whole = ids(options("mvtec_ad", root, tmp_path), every)
    photograph, masked = whole["train"][0], whole["val"][1]
    cut(tree / f"{photograph}.png")
    category, _, kind, number = masked.split("/")
    mask = tree / category / "ground_truth" / kind / f"{number}_mask.png"
    mask.write_bytes(mask.read_bytes()[:20])
    if packed:
        test_mvtec_ad.pack(root, tree)
    else:
        fifo = tree / f"{whole['train'][1]}.png"
        fifo.unlink()
        os.mkfifo(fifo)
        (tree / f"{whole['train'][2]}.png").unlink()
        (tree / f"{whole['train'][2]}.png").symlink_to("nowhere")
    assert ".png: " in stopped(options("mvtec_ad", root, tmp_path))

    left = {photograph, masked, *(() if packed else whole["train"][1:3])}
    expected = {part: [i for i in of if i not in left] for part, of in whole.items()}
    capsys.readouterr()
    assert ids(options("mvtec_ad", root, tmp_path, skip_bad=True), every) == expected
    said = capsys.readouterr()
    assert f"mvtec_ad: {len(left)} of 17 images left out, unreadable: " in said.out
    assert "17/17" in said.err
    # Prepared by now, and told again; who asks for all of them still does not get fewer.
    assert ids(options("mvtec_ad", root, tmp_path, skip_bad=True), every) == expected
    said = capsys.readouterr()
    assert f"mvtec_ad: {len(left)} of 17 images left out, unreadable" in said.out
    assert "reading every image" not in said.err
    assert ".png: " in stopped(options("mvtec_ad", root, tmp_path))


def test_a_set_of_which_nothing_can_be_read(tmp_path):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="none of its photographs can be read, the first is"):
        mvtec_ad.load(str(tree), "all", str(tmp_path / "cache"), skip_bad=True)


def test_a_picture_that_would_fill_the_memory(tmp_path):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    bomb = test_folders.raw_png(100_000, 100_000, 8, 2, [])
    (tree / "grid/test/bent/000.png").write_bytes(bomb)
    with pytest.raises(UsageError, match=r"bent/000\.png: has 100,000 × 100,000 pixels, more"):
        mvtec_ad.load(str(tree), "all", str(tmp_path / "cache"))


def test_the_limit_to_the_size_can_be_raised(tmp_path):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    long = test_folders.raw_png(2_000, 501, 8, 0, [bytes(2_000)] * 501)
    (tree / "grid/train/good/000.png").write_bytes(long)

    def count(megapixels, **options):
        limit = megapixels * 1_000_000
        parts = mvtec_ad.load(
            str(tree), "all", str(tmp_path / "c"), max_pixels=limit, **options
        )
        return sum(part[1] for part in parts.values())

    with pytest.raises(
        UsageError, match=r"good/000\.png: .*config.data.max_megapixels=2 allows"
    ):
        count(1)
    assert count(1, skip_bad=True) == 16
    assert count(2, skip_bad=True) == count(2) == 17


# Archives


def header(name, size, kind=tarfile.REGTYPE, /, **pax):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    member.pax_headers = pax
    return member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def png():
    return test_mvtec_ad.png(np.zeros((4, 4), np.uint8))


GOOD = "bottle/test/crack/000.png"
BAD = "bottle/test/crack/001.png"


def sparse(name, blocks, real_size, more=b""):
    """An old GNU header of a file with holes: only its blocks are in the archive."""
    block = bytearray(header(name, sum(size for _, size in blocks), tarfile.GNUTYPE_SPARSE))
    for at, (offset, size) in enumerate(blocks[:4]):
        block[386 + 24 * at : 410 + 24 * at] = b"%011o\0%011o\0" % (offset, size)
    block[482] = bool(more)
    block[483:495] = b"%011o\0" % real_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + more


FLOOD = (b"%011o\0%011o\0" % (1, 1)) * 21 + b"\1" + bytes(7)
HOSTILE = {
    "a hole of 60 MB": (
        sparse(BAD, [(60 << 20, 512)], (60 << 20) + 512) + bytes(512),
        "sparse",
    ),
    "holes of a pax header": (
        header(BAD, 512, **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + bytes(512),
        "cannot be read",
    ),
    "a flood of holes": (sparse(BAD, [(1, 1)] * 4, 99, FLOOD * 200), "a header claims"),
    "an endless name": (
        header("././@LongLink", 900_000, tarfile.GNUTYPE_LONGNAME) + padded(b"a" * 900_000),
        "a header claims 900,",
    ),
    "a long name": (header("a/" * 2_000, 0, path="b" * 1_001), "has 1,001 characters"),
    "headers of headers": (
        (header("././@LongLink", 4, tarfile.GNUTYPE_LONGNAME) + padded(b"abc\0")) * 500,
        "a header claims",
    ),
    "a link over a folder": (
        header("bottle/test/link", 0, tarfile.SYMTYPE) + header("bottle/test/link/0.png", 0),
        "link or a device",
    ),
    "a name by a longer header": (header("x", 0, path="../../outside.png"), "points outside"),
    "the same by other slashes": (header("bottle//test/./crack/000.png", 0), "twice"),
    "a negative size": (header(BAD, 0, size="-1024"), "claims -1,024 bytes"),
    "no number for a size": (header(BAD, 0, **{"GNU.sparse.map": "x,y"}), "cannot be read"),
    "a block device": (header(BAD, 0, tarfile.BLKTYPE), "link or a device"),
    "an unknown type": (header(BAD, 0, b"Q"), "link or a device"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path, name):
    bad, message = HOSTILE[name]
    path = tmp_path / "bottle.tar"
    path.write_bytes(header(GOOD, len(png())) + padded(png()) + bad + bytes(1024))
    with pytest.raises(UsageError, match=message) as caught:
        for _ in archive.members(path, lambda name: True, 10**8):
            pass
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["bottle.tar"]


def test_more_than_a_disk_holds(tmp_path, monkeypatch):
    path = tmp_path / "bottle.tar"
    members = b"".join(header(f"a/{n}", 600) + bytes(1024) for n in range(5))
    path.write_bytes(members + bytes(1024))
    assert len(list(archive.members(path, lambda name: False, 10**8))) == 5
    monkeypatch.setattr(archive, "MAX_BYTES", 2_900)
    with pytest.raises(UsageError, match="take more than 2,900 bytes"):
        list(archive.members(path, lambda name: True, 10**8))


def test_odd_names_are_names_and_nothing_else(tmp_path):
    names = [
        "bottle/test/crack/..\\..\\outside.png", "bottle/test/crack/C:\\x.png",
        "bottle/test/crack/ünïcödé.png", "bottle/test/crack/u\u0308.png",
        "bottle/test/crack/%2e%2e%2f.png", "bottle/test/crack/~.png", "bottle/test/$(id)/0.png",
    ]  # fmt: skip
    path = tmp_path / "bottle.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))
    cache = tmp_path / "cache"
    parts = mvtec_ad.load(str(path), "all", str(cache))
    found = {
        r["id"].decode() for dataset, *_ in parts.values() for r in dataset.as_numpy_iterator()
    }
    # One that would climb out, were a backslash a slash, is none of the layout's.
    assert found == {name.removesuffix(".png") for name in names[1:]}
    assert {p.name for p in tmp_path.iterdir()} == {"bottle.tar", "cache"}
    for name in ("bottle/test/crack/\u202egnp.png", "bottle/test/crack/a\n.png"):
        with pytest.raises(UsageError, match="unprintable"):
            source.parse_layout([name], "R")


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bottle.tar.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = header(BAD, 1 << 32)
    path.write_bytes(packer.compress(block + bytes(1 << 20)) + packer.flush())
    with pytest.raises(UsageError, match="claims 4,294,967,296 bytes"):
        list(archive.members(path, lambda name: True, 10**8))


@pytest.mark.parametrize(
    "harm",
    [*(pytest.param(h, marks=pytest.mark.slow) for h in ("cut short", "removed")), "flipped"],
)
def test_damage_to_what_was_prepared_is_told_with_its_folder(tmp_path, harm):
    config = options("mvtec_ad", test_mvtec_ad.write_set(tmp_path / "set"), tmp_path)
    every = ("train", "val", "reference", "good")
    whole = ids(config, every)
    for shard in (tmp_path / "cache").rglob("*.tfrecord*"):
        content = bytearray(shard.read_bytes())
        if harm == "flipped":
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        elif harm == "cut short":
            shard.write_bytes(content[: len(content) // 2])
        else:
            shard.unlink()
    if harm == "removed":  # which is seen at once, and mended
        assert ids(config, every) == whole
        return
    with pytest.raises(RunError, match=r"^config\.data\.cache_dir: .*; delete it") as caught:
        ids(config, every)
    assert str(caught.value).isprintable()
    shutil.rmtree(tmp_path / "cache")
    assert ids(config, every) == whole
