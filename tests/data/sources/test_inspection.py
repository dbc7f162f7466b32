"""Layouts of other inspection data sets, on trees made here."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from data.sources import folders, images, inspection
from restore_jax.errors import UsageError

SIZE = (12, 14)


def photograph(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path, rows, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.zeros(SIZE, np.uint8)
    levels[slice(*rows), 2:5] = value
    Image.fromarray(levels).save(path)


def write_btad(root):
    for category, suffix in (("01", "bmp"), ("02", "png")):
        for number in range(3):
            photograph(root / category / f"train/ok/{number:04}.{suffix}", number)
            photograph(root / category / f"test/ok/{number:04}.{suffix}", number)
            photograph(root / category / f"test/ko/{number:04}.{suffix}", number)
            mask(root / category / f"ground_truth/ko/{number:04}.png", (1, 4))
    return "BTAD", "ko", (1, 4), 18, {"train": 3, "test": 3}


def write_visa(root):
    (root / "split_csv").mkdir(parents=True)
    lines = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        for number in range(6):
            name = f"{category}/Data/Images/Normal/{number:04}.JPG"
            photograph(root / name, number)
            lines.append(f"{category},{'train' if number < 3 else 'test'},normal,{name},")
        for number in range(3):
            name = f"{category}/Data/Images/Anomaly/{number:03}.JPG"
            photograph(root / name, number)
            # The numbers of kinds of defects, of which 1 is nearly black.
            mask(root / f"{category}/Data/Masks/Anomaly/{number:03}.png", (2, 6), 1)
            lines.append(f"{category},test,anomaly,{name},")
    (root / "split_csv/1cls.csv").write_text("\n".join(lines))
    return "VisA", "anomaly", (2, 6), 18, {"train": 3, "test": 3}


def write_mvtec_ad_2(root):
    for category in ("can", "vial"):
        for number in range(3):
            name = f"{number:03}_regular"
            photograph(root / category / f"train/good/{name}.png", number)
            photograph(root / category / f"validation/good/{name}.png", number)
            photograph(root / category / f"test_public/good/{name}.png", number)
            photograph(root / category / f"test_public/bad/{name}.png", number)
            photograph(root / category / f"test_private/{name}.png", number)
            mask(root / category / f"test_public/ground_truth/bad/{name}_mask.png", (3, 5))
    return "MVTec AD 2", "bad", (3, 5), 24, {"train": 3, "test": 6}


def write_loco(root):
    for category in ("juice_bottle", "pushpins"):
        for number in range(3):
            photograph(root / category / f"train/good/{number:03}.png", number)
            photograph(root / category / f"test/good/{number:03}.png", number)
            photograph(root / category / f"test/logical_anomalies/{number:03}.png", number)
            folder = root / category / f"ground_truth/logical_anomalies/{number:03}"
            mask(folder / "000.png", (1, 3), 200)
            mask(folder / "001.png", (3, 7), 1)
    return "MVTec LOCO", "logical_anomalies", (1, 7), 18, {"train": 3, "test": 3}


def write_prepared_visa(root):
    for category in ("candle", "pcb1"):
        for number in range(3):
            photograph(root / category / f"train/good/{number:04}.JPG", number)
            photograph(root / category / f"test/good/{number:04}.JPG", number)
            photograph(root / category / f"test/bad/{number:03}.JPG", number)
            mask(root / category / f"ground_truth/bad/{number:03}.png", (4, 6))
    return "MVTec AD's layout", "bad", (4, 6), 18, {"train": 3, "test": 3}


WRITERS = [write_btad, write_visa, write_mvtec_ad_2, write_loco, write_prepared_visa]


def read(loaded, *parts):
    found = {}
    for part in parts:
        dataset, count, *_ = loaded[part]
        records = list(dataset.as_numpy_iterator())
        assert len(records) == count
        found |= {record["id"].decode(): record for record in records}
    return found


@pytest.mark.parametrize("write", WRITERS)
def test_the_layout_is_found_and_masks_are_no_photographs(write, tmp_path, capsys):
    name, kind, rows, count, good = write(tmp_path / "set")
    loaded = inspection.load(str(tmp_path / "set"), "all")
    said = capsys.readouterr().out
    assert said.startswith(
        f"inspection: {name}, {count} photographs of 2 categories, 6 of them"
    )
    found = read(loaded, "train", "val")
    assert len(found) == count
    expected = np.zeros(SIZE, np.uint8)
    expected[slice(*rows), 2:5] = 255
    kinds = {}
    for example, record in found.items():
        category, section, defect_type, _ = example.split("/")
        assert record["category"].decode() == category
        assert record["defect_type"].decode() == defect_type
        assert record["has_mask"]
        pixels = images.decode(record["mask"], 1).numpy()[..., 0]
        np.testing.assert_array_equal(pixels, expected * (defect_type != "good"))
        assert images.decode(record["image"], 3).shape == (*SIZE, 3)
        key = category, section, defect_type
        kinds[key] = kinds.get(key, 0) + 1
    for category in {key[0] for key in kinds}:
        assert kinds[category, "test", kind] == 3
        assert {s: kinds[category, s, "good"] for s in good} == good
    # The folder above, and one category, will do as well.
    above = inspection.load(str(tmp_path), "all")
    assert len(read(above, "train", "val")) == count
    one = next(f for f in sorted((tmp_path / "set").iterdir()) if f.name != "split_csv")
    assert len(read(inspection.load(str(one), "all"), "train", "val")) == count // 2


def test_the_splits_are_those_of_mvtec_ad(tmp_path):
    write_btad(tmp_path)
    loaded = inspection.load(str(tmp_path), "good", references=2)
    assert {i.split("/", 1)[1].rsplit("/", 1)[0] for i in read(loaded, "train")} == {
        "train/good"
    }
    assert {i.split("/")[2] for i in read(loaded, "val")} == {"ko"}
    assert {i.split("/")[1] for i in read(loaded, "good")} == {"test"}
    assert len(read(loaded, "reference")) == 4
    loaded = inspection.load(str(tmp_path), "defects")
    assert {i.split("/")[2] for i in read(loaded, "train", "val")} == {"ko"}


def test_blank_masks_and_faulty_files_are_reported(tmp_path, capsys):
    write_loco(tmp_path)
    folder = tmp_path / "pushpins/ground_truth/logical_anomalies/001"
    mask(folder / "000.png", (0, 0))
    assert read(inspection.load(str(tmp_path)), "train", "val")[
        "pushpins/test/logical_anomalies/001"
    ]["has_mask"]  # the other of its masks shows something
    mask(folder / "001.png", (0, 0))
    found = read(inspection.load(str(tmp_path)), "train", "val")
    assert not found["pushpins/test/logical_anomalies/001"]["has_mask"]
    assert (
        "inspection: 1 of 6 defective photographs with a blank mask" in capsys.readouterr().out
    )
    (folder / "001.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"unreadable: .*001/001\.png \(is empty"):
        inspection.load(str(tmp_path))


def test_what_is_no_such_set_is_refused(tmp_path):
    photograph(tmp_path / "a/b.png")
    with pytest.raises(UsageError, match="no such data set found; name the folder of BTAD"):
        inspection.load(str(tmp_path))
    write_btad(tmp_path / "both")
    write_loco(tmp_path / "both")
    with pytest.raises(UsageError, match=r"several layouts \(BTAD in 01, BTAD in 02, MVTec"):
        inspection.load(str(tmp_path / "both"))
    with pytest.raises(UsageError, match=r"config\.data\.split='test' is none of"):
        inspection.load(str(tmp_path / "both"), "test")


@pytest.mark.parametrize("write", WRITERS)
def test_clean_leaves_masks_out_and_says_so(write, tmp_path, capsys):
    *_, count, _ = write(tmp_path)
    loaded = folders.load_clean(str(tmp_path))
    said = capsys.readouterr().out
    assert "clean: warning: " in said
    assert "left out: by their names, these folders hold masks" in said
    private = 6 * (write is write_mvtec_ad_2)
    assert sum(number for _, number, *_ in loaded.values()) == count + private


def test_names_in_another_unicode_form_have_their_masks_and_split(tmp_path):
    root, composed = tmp_path / "set", "br\u00fcchig"
    decomposed = unicodedata.normalize("NFD", composed)
    for number in range(2):
        photograph(root / f"01/train/ok/{number}.png", number)
        photograph(root / f"01/test/{decomposed}/{decomposed}{number}.png", number)
        mask(root / f"01/ground_truth/{composed}/{composed}{number}.png", (1, 4))
        photograph(root / f"01/test/@eaDir/{number}.png", number)
    found = read(inspection.load(str(root), "all"), "train", "val")
    defective = {name: record for name, record in found.items() if "/test/" in name}
    assert set(defective) == {f"01/test/{composed}/{composed}{number}" for number in range(2)}
    for record in defective.values():
        assert record["has_mask"]
        assert images.decode(record["mask"], 1).numpy().any()
