"""Folders of pairs and of clean images, on files made here."""

import os
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import ExifTags, Image

from data import records
from data.sources import folders, images
from restore_jax.errors import UsageError
from restore_jax.image_io import image_paths

RNG_SEED = 5


def pixels(size=(6, 9), seed=RNG_SEED):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def decoded(picture):
    return images.decode(picture.data, 3).numpy()


def read(part):
    dataset, count, *_ = part
    found = list(dataset.as_numpy_iterator())
    assert len(found) == count == int(dataset.cardinality())
    return {record["id"].decode(): record for record in found}


def shown(path):
    with Image.open(path) as image:
        return np.asarray(image)


def kind_of(path):
    with Image.open(path) as image:
        return image.mode, image.format


def exif(orientation):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def refusal(load, root, *args):
    with pytest.raises(UsageError) as caught:
        load(str(root), *args)
    text = str(caught.value)
    assert text.startswith("config.data.")
    assert text.isprintable()
    return text


# Reading files


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.bmp", "a.webp", "a.ppm"])
def test_lossless_formats_keep_their_pixels(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, pixels(), **options)
    picture = images.encode(path)
    np.testing.assert_array_equal(decoded(picture), pixels())
    assert picture.size == images.header(path).size == (6, 9)
    assert (picture.data == path.read_bytes()) == name.lower().endswith("png")


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_stays_as_it_is_and_decodes_as_in_pillow(tmp_path, subsampling):
    smooth = Image.fromarray(pixels((5, 7))).resize((70, 50))
    path = save(tmp_path / "a.jpg", smooth, quality=90, subsampling=subsampling)
    picture = images.encode(path)
    assert picture.data == path.read_bytes()
    np.testing.assert_array_equal(decoded(picture), shown(path))


def test_grey_and_black_and_white(tmp_path):
    grey = pixels()[..., 0]
    for path in (save(tmp_path / "a.png", grey), save(tmp_path / "b.jpg", grey, quality=100)):
        found = decoded(images.encode(path))
        assert np.ptp(found, axis=-1).max() == 0
        assert np.abs(found[..., 0].astype(int) - grey).max() <= 3
    bits = save(tmp_path / "c.png", grey > 99)
    np.testing.assert_array_equal(decoded(images.encode(bits))[..., 1], 255 * (grey > 99))


def test_alpha_is_dropped_not_mixed_in(tmp_path):
    alpha = np.random.default_rng(1).integers(0, 256, (6, 9, 1), dtype=np.uint8)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, np.concatenate([pixels(), alpha], axis=-1))
        np.testing.assert_array_equal(decoded(images.encode(path)), pixels())
    grey = np.concatenate([pixels()[..., :1], alpha], axis=-1)
    found = decoded(images.encode(save(tmp_path / "b.png", Image.fromarray(grey, "LA"))))
    np.testing.assert_array_equal(found, np.repeat(grey[..., :1], 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palettes_are_looked_up(tmp_path, transparency):
    index = np.random.default_rng(2).integers(0, 3, (6, 9), dtype=np.uint8)
    colours = np.array([[250, 3, 7], [0, 90, 255], [17, 18, 19]], np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    path = save(tmp_path / "a.png", image, **options)
    assert kind_of(path) == ("P", "PNG")
    np.testing.assert_array_equal(decoded(images.encode(path)), colours[index])


def test_a_transparent_colour_changes_nothing(tmp_path):
    path = save(tmp_path / "a.png", pixels(), transparency=tuple(map(int, pixels()[0, 0])))
    np.testing.assert_array_equal(decoded(images.encode(path)), pixels())


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_to_8(tmp_path, name):
    levels = np.array([[0, 128, 129, 257, 385, 386], [1000, 32767, 32896, 65406, 65407, 65535]])
    path = save(tmp_path / name, levels.astype(np.uint16))
    expected = np.floor(levels / 65535 * 255 + 0.5)
    found = decoded(images.encode(path))
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=-1))


def png_chunk(kind, data):
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )


def raw_png(width, height, depth, colour, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def test_16_bits_of_colour(tmp_path):
    levels = np.random.default_rng(3).integers(0, 65536, (4, 5, 3))
    data = raw_png(5, 4, 16, 2, [row.astype(">u2").tobytes() for row in levels])
    (tmp_path / "a.png").write_bytes(data)
    found = decoded(images.encode(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, np.rint(levels / 257))


def test_printers_colours_become_light(tmp_path):
    inks = np.random.default_rng(4).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    path = save(tmp_path / "a.tif", Image.fromarray(inks, "CMYK"))
    light = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) / 255
    assert np.abs(decoded(images.encode(path)) - light).max() <= 1


def test_of_several_pages_the_first(tmp_path):
    pages = [Image.fromarray(pixels(seed=n)) for n in range(3)]
    path = save(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decoded(images.encode(path)), pixels(seed=0))
    phone = save(tmp_path / "a.jpg", pages[0], format="MPO", save_all=True, append_images=pages)
    assert kind_of(phone) == ("RGB", "MPO")
    np.testing.assert_array_equal(decoded(images.encode(phone)), shown(phone))


# By the EXIF standard: which side of the picture the first row and the first column are.
DISPLAYED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
@pytest.mark.parametrize("orientation", [0, *DISPLAYED])
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    stored = np.asarray(Image.fromarray(pixels((2, 3))).resize((24, 16)))
    options = {"lossless": True} if name == "a.webp" else {"quality": 98}
    path = save(tmp_path / name, stored, exif=exif(orientation), **options)
    with Image.open(path) as image:
        expected = DISPLAYED[orientation or 1](stored)
        assert orientation in (0, 1) or image.getexif()[ExifTags.Base.Orientation] > 1
    picture = images.encode(path)
    assert images.header(path).size == picture.size == expected.shape[:2]
    assert np.abs(decoded(picture).astype(int) - expected).max() <= (name == "a.jpg") * 25


def mask_of(path):
    picture = images.encode_mask(path)
    found = images.decode(picture.data, 1).numpy()[..., 0]
    assert set(np.unique(found)) <= {0, 255}
    assert picture.size == found.shape
    return found > 0


def test_masks_are_whatever_is_above_0(tmp_path):
    defect = np.zeros((6, 9), bool)
    defect[1:3, 4:8] = True
    blue = np.zeros((6, 9, 3), np.uint8)
    blue[..., 2] = defect
    opaque = np.dstack([np.repeat(255 * defect[..., None], 3, axis=-1), np.full((6, 9), 255)])
    for path in (
        save(tmp_path / "bits.png", defect),
        save(tmp_path / "one.png", defect.astype(np.uint8)),
        save(tmp_path / "one_of_16_bits.png", defect.astype(np.uint16)),
        save(tmp_path / "blue.bmp", blue),
        save(tmp_path / "opaque.png", opaque.astype(np.uint8)),
    ):
        np.testing.assert_array_equal(mask_of(path), defect, str(path))
    turned = save(tmp_path / "turned.png", defect.astype(np.uint8), exif=exif(6))
    np.testing.assert_array_equal(mask_of(turned), DISPLAYED[6](defect))


def test_the_blur_of_jpeg_is_no_defect(tmp_path):
    defect = np.zeros((32, 32), bool)
    defect[5:19, 9:23] = True
    path = save(tmp_path / "a.jpg", np.where(defect, 255, 0).astype(np.uint8), quality=40)
    assert (shown(path)[~defect] > 0).any()
    np.testing.assert_array_equal(mask_of(path), defect)


def test_the_limit_to_the_size_can_be_raised(tmp_path):
    for part in folders.PARTS:
        save(tmp_path / part / "wide.png", pixels((2, 30_000)))
        save(tmp_path / part / "wide.bmp.tif", pixels((2, 30_000)))
    text = refusal(folders.load_clean, tmp_path, "defects", False, 50_000)
    assert "train/wide.png (has 30,000 × 2 pixels, more than 0.05 megapixels; " in text
    assert "config.data.max_megapixels=1 allows it" in text
    settings = ConfigDict(
        {"name": "clean", "root": str(tmp_path), "split": "defects", "max_megapixels": 1}
    )
    for part in records.load(settings).values():
        for record in part.dataset.as_numpy_iterator():
            assert images.decode(record["image"], 3).shape == (2, 30_000, 3)
    settings.max_megapixels = 0
    with pytest.raises(UsageError, match=r"config\.data\.max_megapixels: 0 is below 1"):
        records.load(settings)


def test_text_of_any_length_in_a_png_is_no_damage(tmp_path):
    long = zlib.compress(b"measured " * 250_000)
    for bits, colour, name in ((8, 2, "a"), (16, 2, "b"), (8, 0, "c"), (16, 0, "d")):
        row = bytes(range(1, 13)) * (bits // 8) * (3 if colour else 1)
        for place in ("before", "after"):
            text = [(b"zTXt", b"Log\0\0" + long), (b"iCCP", b"x\0\0" + long)]
            made = raw_png(12, 1, bits, colour, [row])
            before, after = (text, []) if place == "before" else ([], text[:1])
            path = tmp_path / f"{name}{place}.png"
            path.write_bytes(
                made[:33]
                + b"".join(png_chunk(*chunk) for chunk in before)
                + made[33:-12]
                + b"".join(png_chunk(*chunk) for chunk in after)
                + made[-12:]
            )
            assert images.header(path).size == (1, 12)
            found = decoded(images.encode(path))
            expected = np.frombuffer(row, ">u2" if bits == 16 else "u1").reshape(1, 12, -1)
            assert np.abs(found - expected / (257 if bits == 16 else 1)).max() < 1
            assert images.encode_mask(path).size == (1, 12)
    assert sum(part[1] for part in folders.load_clean(str(tmp_path)).values()) == 8


def test_what_cannot_be_measured(tmp_path):
    files = {
        "empty.png": (b"", "empty"),
        "text.png": (b"not an image", "is not an image"),
        "page.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        "bomb.png": (
            raw_png(20_000, 20_000, 8, 0, []),
            "20,000 × 20,000 pixels, more than 200 m",
        ),
        "large.png": (
            raw_png(10_000, 20_001, 8, 0, []),
            "config.data.max_megapixels=201 allows",
        ),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(images.ImageError, match=message):
            images.header(tmp_path / name)
    floats = save(tmp_path / "float.tif", pixels()[..., 0].astype(np.float32))
    deep = save(tmp_path / "deep.tif", np.full((4, 4), 70_000, np.int32))
    with pytest.raises(images.ImageError, match="has float values from 6 to 249"):
        images.encode(floats)
    with pytest.raises(images.ImageError, match="8 or 16 bits"):
        images.encode(deep)
    with pytest.raises(images.ImageError, match="No such file"):
        images.header(tmp_path / "gone.png")


def damaged(data, how):
    if how == "cut":
        return data[: len(data) * 2 // 3]
    flipped = bytearray(data)
    for at in range(len(data) // 2, len(data) // 2 + 40):
        flipped[at] ^= 0x55
    return bytes(flipped)


@pytest.mark.parametrize(
    ("name", "how"), [("a.png", "cut"), ("a.png", "bits"), ("a.jpg", "cut"), ("a.tif", "cut")]
)
def test_damage_behind_the_header_is_found_on_reading(tmp_path, name, how):
    path = save(tmp_path / name, pixels((40, 50)))
    path.write_bytes(damaged(path.read_bytes(), how))
    if name != "a.tif":  # whose header may stand at its end
        assert images.header(path).size == (40, 50)
    for read_file in (images.encode, images.encode_mask):
        with pytest.raises(images.ImageError):
            read_file(path)


# Pairs


def write_pair(root, part, key, suffixes=(".png", ".jpg"), size=(12, 16), seed=0, mask=None):
    clean, degraded = pixels(size, seed), pixels(size, seed + 1000)
    save(root / part / "clean" / (key + suffixes[0]), clean)
    save(root / part / "degraded" / (key + suffixes[1]), degraded)
    if mask:
        defect = np.zeros(size, np.uint8)
        defect[2:5, 3:9] = 255
        save(root / part / "mask" / (key + mask), defect)
    return clean, degraded


def test_pairs_divided_by_their_folders(tmp_path):
    written = {
        "train/bolt/scratch/001": write_pair(tmp_path, "train", "bolt/scratch/001", seed=1),
        "train/bolt/scratch/a.b": write_pair(
            tmp_path, "train", "bolt/scratch/a.b", (".bmp", ".PNG"), seed=2, mask="_mask.png"
        ),
        "train/nut/002": write_pair(
            tmp_path, "train", "nut/002", (".tif", ".png"), (20, 14), seed=3, mask=".tif"
        ),
        "train/nut/x/y/z": write_pair(tmp_path, "train", "nut/x/y/z", seed=6),
        "train/loose": write_pair(tmp_path, "train", "loose", seed=4),
        "val/bolt/scratch/001": write_pair(tmp_path, "val", "bolt/scratch/001", seed=5),
    }
    (tmp_path / "train" / "clean" / "notes.txt").write_text("passed over")
    for hidden in (".x/1.png", "__MACOSX/1.png", "._1.png"):
        save(tmp_path / "train" / "clean" / hidden, pixels())
    found = folders.load_pairs(str(tmp_path))
    train, val = read(found["train"]), read(found["val"])
    assert list(train) == sorted(train)
    assert list(val) == ["val/bolt/scratch/001"]
    assert (train | val).keys() == written.keys()
    kinds = {i: (r["category"].decode(), r["defect_type"].decode()) for i, r in train.items()}
    assert kinds == {
        "train/bolt/scratch/001": ("bolt", "scratch"),
        "train/bolt/scratch/a.b": ("bolt", "scratch"),
        "train/nut/002": ("nut", ""),
        "train/nut/x/y/z": ("nut", "x"),
        "train/loose": (tmp_path.name, ""),
    }
    for name, record in (train | val).items():
        clean, degraded = written[name]
        np.testing.assert_array_equal(images.decode(record["image"], 3).numpy(), clean)
        suffix = ".PNG" if name.endswith("a.b") else ".png" if name.endswith("002") else ".jpg"
        part, key = name.split("/", 1)
        path = tmp_path / part / "degraded" / (key + suffix)
        found_degraded = images.decode(record["degraded"], 3).numpy()
        np.testing.assert_array_equal(found_degraded, shown(path))
        if suffix != ".jpg":
            np.testing.assert_array_equal(found_degraded, degraded)
        expected = np.zeros(clean.shape[:2], bool)
        known = name in ("train/bolt/scratch/a.b", "train/nut/002")
        expected[2:5, 3:9] = known
        assert record["has_mask"] == known
        np.testing.assert_array_equal(
            images.decode(record["mask"], 1).numpy()[..., 0] > 0, expected
        )


def test_the_images_are_known_again_in_another_place_and_told_from_others(tmp_path):
    for part in ("train", "val"):
        for number in range(2):
            write_pair(tmp_path / "here", part, f"a/{number}", mask=".png")

    def identity(root):
        loaded = folders.load_pairs(str(root))
        return records.identity({part: records.Records(*f) for part, f in loaded.items()})

    expected = identity(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert identity(tmp_path / "there") == expected
    save(tmp_path / "there/train/clean/a/1.png", np.zeros((12, 16, 3), np.uint8))
    changed = identity(tmp_path / "there")
    assert changed["names"] == expected["names"]
    assert changed["sizes"] != expected["sizes"]
    for name in ("clean/a/1.png", "degraded/a/1.jpg", "mask/a/1.png"):
        (tmp_path / "here/val" / name).unlink()
    assert identity(tmp_path / "here")["names"] != expected["names"]


def test_a_blank_mask_of_a_defect_is_reported_and_not_known(tmp_path, capsys):
    for part in ("train", "val"):
        for key in ("a/scratch/1", "a/good/1", "a/1"):
            write_pair(tmp_path, part, key, mask=".png")
            if part == "train":
                save(tmp_path / f"train/mask/{key}.png", np.zeros((12, 16), np.uint16))
    found = read(folders.load_pairs(str(tmp_path))["train"])
    # A mask of a photograph without a defect is blank, and of an unknown one it may be.
    assert {i: r["has_mask"] for i, r in found.items()} == {
        "train/a/1": True,
        "train/a/good/1": True,
        "train/a/scratch/1": False,
    }
    assert capsys.readouterr().out == (
        "pairs: 1 of 2 defective photographs with a blank mask, which counts as unknown: "
        "train/mask/a/scratch/1.png\n"
    )


def ids(found):
    return {
        part: {r["id"].decode() for r in dataset.as_numpy_iterator()}
        for part, (dataset, *_) in found.items()
    }


def test_pairs_divided_by_a_hash(tmp_path, monkeypatch):
    read_files = images.encode
    monkeypatch.setattr(
        images, "encode", lambda path: pytest.fail("read before it is asked for")
    )
    for category, count in (("a", 30), ("b", 12), ("c", 1)):
        for number in range(count):
            write_pair(tmp_path / "first", "", f"{category}/{number}", size=(3, 4))
    found = folders.load_pairs(str(tmp_path / "first"))
    monkeypatch.setattr(images, "encode", read_files)
    divided = ids(found)
    assert not divided["train"] & divided["val"]
    assert len(divided["train"] | divided["val"]) == 43
    assert sorted(name[0] for name in divided["val"]) == ["a", "a", "a", "b"]
    # Neither the root's name nor other images change on which side one is.
    for number in range(5):
        write_pair(tmp_path / "first", "", f"d/{number}", size=(3, 4))
    (tmp_path / "first").rename(tmp_path / "second")
    again = ids(folders.load_pairs(str(tmp_path / "second")))
    assert {name for name in again["val"] if name[0] != "d"} == divided["val"]
    assert sum(name[0] == "d" for name in again["val"]) == 1


def test_images_directly_in_the_folder_are_one_category(tmp_path):
    for number in range(6):
        write_pair(tmp_path / "set", "", str(number), size=(3, 4))
    found = folders.load_pairs(f"{tmp_path}/set/../set/")
    assert [count for _, count, *_ in found.values()] == [5, 1]
    every = read(found["train"]) | read(found["val"])
    assert {record["category"] for record in every.values()} == {b"set"}


def test_a_turned_photograph_and_its_upright_copy_are_a_pair(tmp_path):
    stored = pixels((12, 16))
    save(tmp_path / "train/clean/1.png", stored, exif=exif(6))
    save(tmp_path / "train/degraded/1.png", DISPLAYED[6](stored))
    write_pair(tmp_path, "val", "1")
    (record,) = read(folders.load_pairs(str(tmp_path))["train"]).values()
    for name in ("image", "degraded"):
        np.testing.assert_array_equal(
            images.decode(record[name], 3).numpy(), DISPLAYED[6](stored)
        )


def test_faulty_files_are_listed_by_kind(tmp_path):
    for number in range(3):
        write_pair(tmp_path, "", f"a/{number}")
    for number in range(5):
        save(tmp_path / f"degraded/a/lost{number}.png", pixels())
    save(tmp_path / "clean/b/alone.png", pixels())
    save(tmp_path / "mask/a/nobody_mask.png", pixels())
    text = refusal(folders.load_pairs, tmp_path)
    assert text == (
        f"config.data.root={str(tmp_path)!r}: unmatched: "
        "clean/b/alone.png (no file of that name in degraded), "
        "degraded/a/lost0.png (no file of that name in clean), "
        "degraded/a/lost1.png (no file of that name in clean) and 4 more. "
        "Add, repair or remove them"
    )


def test_names_match_in_either_form_of_unicode(tmp_path):
    for number, forms in enumerate([("NFC", "NFD", "NFD"), ("NFD", "NFC", "NFC")] * 2):
        clean, degraded, mask = (
            unicodedata.normalize(form, f"Prüfling/Öl/fläche {number}") for form in forms
        )
        for part in folders.PARTS:
            save(tmp_path / part / f"clean/{clean}.png", pixels())
            save(tmp_path / part / f"degraded/{degraded}.png", pixels())
            save(tmp_path / part / f"mask/{mask}_mask.png", np.ones((6, 9), np.uint8))
    for part in folders.load_pairs(str(tmp_path)).values():
        found = read(part)
        assert [image_id.partition("/")[2] for image_id in found] == [
            f"Prüfling/Öl/fläche {number}" for number in range(4)
        ]
        assert {record["category"].decode() for record in found.values()} == {"Prüfling"}
        assert all(record["has_mask"] for record in found.values())


def test_two_files_that_differ_only_in_the_form_of_unicode_can_be_told_apart(tmp_path):
    for form in ("NFC", "NFD"):
        save(tmp_path / f"{unicodedata.normalize(form, 'é')}.png", pixels())
    text = refusal(folders.load_clean, tmp_path)
    assert r"of one name but for the suffix: 'e\u0301.png' and '\xe9.png'" in text


def test_every_kind_of_fault_in_one_line(tmp_path):
    for number in range(3):
        write_pair(tmp_path, "train", f"a/{number}", mask="_mask.png")
        write_pair(tmp_path, "val", f"a/{number}")
    (tmp_path / "train/clean/a/0.png").write_bytes(b"")
    (tmp_path / "val/degraded/a/1.jpg").write_text("no image")
    save(tmp_path / "train/degraded/a/1.jpg", pixels((12, 17)))
    save(tmp_path / "train/mask/a/2_mask.png", pixels((2, 2)))
    save(tmp_path / "train/mask/a/1.png", pixels((12, 16)))
    save(tmp_path / "val/clean/a/2.bmp", pixels((12, 16)))
    save(tmp_path / "val/clean/a/li\nne.png", pixels())
    for name in ("gone", "pipe"):
        write_pair(tmp_path, "val", f"a/{name}")
        (tmp_path / f"val/clean/a/{name}.png").unlink()
    (tmp_path / "val/clean/a/gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "val/clean/a/pipe.png")
    text = refusal(folders.load_pairs, tmp_path)
    for part in (
        "unreadable: train/clean/a/0.png (is empty (0 bytes)), val/clean/a/gone.png "
        "(cannot be read: No such file or directory), val/clean/a/pipe.png (is not a regular "
        "file) and 1 more",
        "differently sized: train/clean/a/1.png 16×12 and train/degraded/a/1.jpg 17×12",
        "train/degraded/a/2.jpg 16×12 and train/mask/a/2_mask.png 2×2",
        "masks of one photograph: train/mask/a/1.png and train/mask/a/1_mask.png",
        "of one name but for the suffix: val/clean/a/2.bmp and val/clean/a/2.png",
        "of unprintable names: ",
        r"li\nne.png",
    ):
        assert part in text


def test_a_file_damaged_later_is_named_when_it_is_read(tmp_path):
    for number in range(3):
        write_pair(tmp_path, "train", f"a/{number}", mask=".png")
    write_pair(tmp_path, "val", "a/0")
    found = folders.load_pairs(str(tmp_path))
    for name, change, message in (
        ("clean/a/0.png", lambda p: p.write_bytes(p.read_bytes()[:-60]), "is damaged"),
        ("degraded/a/1.jpg", lambda p: p.write_bytes(p.read_bytes()[:-60]), "is damaged"),
        ("mask/a/1.png", lambda p: p.write_bytes(b""), "mask/a/1.png: is empty"),
        ("degraded/a/2.jpg", lambda p: p.unlink(), "cannot be read: No such file"),
        ("mask/a/0.png", lambda p: save(p, pixels((3, 4))), "is 4×3, but "),
        ("degraded/a/0.jpg", lambda p: save(p, pixels((3, 4))), "is 4×3, but "),
    ):
        path = tmp_path / "train" / name
        whole = path.read_bytes()
        change(path)
        with pytest.raises(tf.errors.OpError) as caught:
            read(found["train"])
        (said,) = {
            line.partition("config.data.root: ")[2]
            for line in caught.value.message.splitlines()
            if "UsageError: config.data." in line
        }
        assert said.startswith(str(path))
        assert message in said
        read(found["val"])
        path.write_bytes(whole)
    read(found["train"])


def test_links_are_followed_but_not_in_circles(tmp_path):
    for number in range(3):
        write_pair(tmp_path / "set", "", f"a/{number}")
    for name in ("clean", "degraded"):
        (tmp_path / "set" / name / "b").symlink_to(tmp_path / "set" / name / "a")
        (tmp_path / "set" / name / "a" / "up").symlink_to(tmp_path / "set" / name)
    found = ids(folders.load_pairs(str(tmp_path / "set")))
    every = found["train"] | found["val"]
    assert {f"{category}/{n}" for category in "ab" for n in range(3)} == every


def test_wrong_roots_of_pairs(tmp_path):
    (tmp_path / "file").write_text("")
    write_pair(tmp_path / "half", "train", "1")
    write_pair(tmp_path / "both", "train", "1")
    write_pair(tmp_path / "both", "val", "1")
    write_pair(tmp_path / "both", "", "1")
    write_pair(tmp_path / "no_clean", "train", "1")
    (tmp_path / "no_clean/val/degraded").mkdir(parents=True)
    write_pair(tmp_path / "no_val", "train", "1")
    for name in ("clean", "degraded"):
        (tmp_path / "no_val/val" / name).mkdir(parents=True)
        (tmp_path / "hollow" / name).mkdir(parents=True)
    write_pair(tmp_path / "single", "", "a/1")
    write_pair(tmp_path / "single", "", "b/1")
    for name, message in {
        "file": "is a file",
        "nowhere": "no such folder",
        "half": "holds no {train,val}/{degraded,clean} or {degraded,clean}",
        "both": "holds both",
        "no_clean": "there is no val/clean",
        "no_val": "no_val/val': there are no images",
        "hollow": "there are no images",
        "single": "no category (first folder) has two images",
    }.items():
        text = refusal(folders.load_pairs, tmp_path / name)
        assert message in text
        assert str(tmp_path / name) in text
    assert "is empty" in refusal(folders.load_pairs, "")
    assert "cannot be read" in refusal(folders.load_pairs, "~nobody-of-that-name/x")
    assert "leave it at 'defects'" in refusal(folders.load_pairs, tmp_path / "half", "good")


# Clean images


def test_training_finds_what_restoring_finds(tmp_path):
    for suffixes in image_paths.SUFFIXES.values():
        for suffix in suffixes:
            path = tmp_path / f"{suffix[1:]}{suffix}"
            if suffix == ".pbm":
                save(path, pixels((32, 40)), "1")
            elif suffix in Image.registered_extensions():
                save(path, pixels((32, 40)))
    for name in ("@eaDir/thumb.jpg", "#recycle/a.png", ".thumbnails/a.png"):
        save(tmp_path / name, pixels())
    (tmp_path / "note.txt").write_text("no image")
    restored = [path.stem for _, path in image_paths.find([tmp_path])]
    parts = folders.load_clean(str(tmp_path))
    found = {key: record for part in parts.values() for key, record in read(part).items()}
    assert sorted(found) == sorted(restored)
    assert {"gif", "pgm", "ppm", "jp2", "avif", "webp"} <= found.keys()
    for name in ("ppm", "jp2"):
        shown = images.decode(found[name]["image"], 3).numpy()
        np.testing.assert_array_equal(shown, pixels((32, 40)))


def test_clean_images_of_any_kind(tmp_path):
    arrays = {}
    for number in range(11):
        suffix = (".png", ".bmp", ".tif")[number % 3]
        key = f"street/day/{number:02d}" if number % 2 else f"{number:02d}"
        arrays[key] = pixels((8 + number, 12), seed=number)
        save(tmp_path / (key + suffix), arrays[key])
    found = folders.load_clean(str(tmp_path))
    train, val = read(found["train"]), read(found["val"])
    assert len(val) == 2  # one of each category
    assert (train | val).keys() == arrays.keys()
    for key, record in (train | val).items():
        assert set(record) == {"image", "mask", "has_mask", "id", "category", "defect_type"}
        np.testing.assert_array_equal(images.decode(record["image"], 3).numpy(), arrays[key])
        mask = images.decode(record["mask"], 1).numpy()
        assert mask.shape == (*arrays[key].shape[:2], 1)
        assert not mask.any()
        assert not record["has_mask"]
        nested = key.startswith("street")
        assert record["category"].decode() == ("street" if nested else tmp_path.name)
        assert record["defect_type"] == (b"day" if nested else b"")


def test_clean_images_divided_by_their_folders(tmp_path):
    for key in ("train/a/1", "train/a/2", "train/3"):
        save(tmp_path / f"{key}.png", pixels())
    assert ids(folders.load_clean(str(tmp_path)))["val"] <= {
        "train/a/1",
        "train/a/2",
        "train/3",
    }
    save(tmp_path / "val/b/1.jpg", pixels())
    save(tmp_path / "elsewhere/1.jpg", pixels())
    found = folders.load_clean(str(tmp_path))
    assert ids(found) == {
        "train": {"train/3", "train/a/1", "train/a/2"},
        "val": {"val/b/1"},
    }
    assert {r["category"].decode() for r in read(found["train"]).values()} == {
        "a", tmp_path.name,
    }  # fmt: skip


def test_faulty_clean_images(tmp_path):
    assert "no images" in refusal(folders.load_clean, tmp_path)
    save(tmp_path / "a/1.png", pixels())
    assert "no category" in refusal(folders.load_clean, tmp_path)
    save(tmp_path / "a/1.jpg", pixels())
    (tmp_path / "a/2.png").write_bytes(b"x")
    text = refusal(folders.load_clean, tmp_path)
    assert "of one name but for the suffix: a/1.jpg and a/1.png" in text
    assert "unreadable: a/2.png (is not an image of a supported format" in text
    assert "leave it at 'defects'" in refusal(folders.load_clean, tmp_path, "all")


def test_records_by_the_name_of_the_data(tmp_path):
    for part in ("train", "val"):
        write_pair(tmp_path, part, "a/1")
    settings = ConfigDict({"root": str(tmp_path), "split": "defects"})
    for name, brings in (("pairs", True), ("clean", False)):
        settings.name = name
        found = records.load(settings)
        assert found.keys() == {"train", "val"}
        for part in found.values():
            spec = part.dataset.element_spec
            assert ("degraded" in spec) == brings
            assert all(field.shape == [] for field in spec.values())
