"""The degraded set in its two forms, on trees made here."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data.sources import images, kla
from restore_jax.errors import UsageError

FOLDERS = {
    "Train": ("GT_clean_image", "Degraded_image", "Defect_mask"),
    "Val": ("GT_clean_image", "Degraded_image", "Defect_mask"),
    "Test": ("Clean", "Noise", "GT_mask"),
}
TRAIN_VAL = {
    "bottle": {"Train": {"broken_large": 2, "contamination": 1}, "Val": {"broken_large": 1}},
    "metal_nut": {"Train": {"bent": 2}, "Val": {"bent": 2}},
}
TEST = {"bottle": {"Test": {"broken_large": 1}}, "zipper": {"Test": {"rough": 3}}}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write(root, categories):
    """Writes a tree; returns the clean, degraded and mask pixels by id."""
    written = {}
    for category, sections in categories.items():
        for section, kinds in sections.items():
            clean, degraded, mask = (root / category / section / n for n in FOLDERS[section])
            for kind, count in kinds.items():
                for number in range(count):
                    name = f"{category}/{section}/{kind}/{number:03d}"
                    rng = np.random.default_rng(len(written))
                    pair = rng.integers(0, 256, (2, 10, 12, 3), dtype=np.uint8)
                    defect = np.zeros((10, 12), np.uint8)
                    defect[2:5, 1 : 3 + number] = 255
                    save(clean / kind / f"{number:03d}.png", pair[0])
                    save(degraded / kind / f"{number:03d}.png", pair[1])
                    save(mask / kind / f"{number:03d}_mask.png", defect)
                    written[name] = (*pair, defect)
    return written


def read(part):
    dataset, count, *_ = part
    found = {r["id"].decode(): r for r in dataset.as_numpy_iterator()}
    assert len(found) == count
    return found


def assert_as_written(records, written):
    assert records.keys() == written.keys()
    for name, record in records.items():
        clean, degraded, defect = written[name]
        category, _, kind, _ = name.split("/")
        assert (record["category"], record["defect_type"]) == (category.encode(), kind.encode())
        assert record["has_mask"]
        np.testing.assert_array_equal(images.decode(record["image"], 3).numpy(), clean)
        np.testing.assert_array_equal(images.decode(record["degraded"], 3).numpy(), degraded)
        mask = images.decode(record["mask"], 1).numpy()
        np.testing.assert_array_equal(mask[..., 0], defect)


def part(written, section):
    return {name: files for name, files in written.items() if f"/{section}/" in name}


def refusal(root, split="defects"):
    with pytest.raises(UsageError) as caught:
        kla.load(str(root), split)
    text = str(caught.value)
    assert text.startswith("config.data.")
    assert text.isprintable()
    return text


@pytest.mark.parametrize("nested", ["", "Denoising_Dataset_train_val", "set/set"])
@pytest.mark.parametrize("section", ["train and val", "test"])
def test_both_forms_at_any_depth(tmp_path, capsys, nested, section):
    written = write(tmp_path / nested, TRAIN_VAL if section == "train and val" else TEST)
    # What an archive of another system leaves beside it.
    save(tmp_path / "__MACOSX/x/Train/Degraded_image/a/000.png", np.zeros((4, 4), np.uint8))
    found = kla.load(str(tmp_path))
    said = capsys.readouterr().out
    if section == "train and val":
        assert_as_written(read(found["train"]), part(written, "Train"))
        assert_as_written(read(found["val"]), part(written, "Val"))
        assert said == "kla (train/val): bottle 3/1, metal_nut 2/2; together 5/3\n"
    else:
        assert_as_written(read(found["train"]), {})
        assert_as_written(read(found["val"]), written)
        assert said == "kla (train/test): bottle 0/1, zipper 0/3; together 0/4\n"
        assert "degraded" in found["train"][0].element_spec


@pytest.mark.parametrize("places", [("", ""), ("train_val/train_val", "test")])
def test_a_root_with_both_forms(tmp_path, capsys, places):
    trained = write(tmp_path / places[0], TRAIN_VAL)
    tested = write(tmp_path / places[1], TEST)
    found = kla.load(str(tmp_path))
    assert_as_written(read(found["train"]), part(trained, "Train"))
    assert_as_written(read(found["val"]), part(trained, "Val"))
    assert capsys.readouterr().out == (
        "kla (train/val): bottle 3/1, metal_nut 2/2; together 5/3\n"
        "kla: the Test photographs are not used; --config.data.split=test selects them\n"
    )
    found = kla.load(str(tmp_path), "test")
    assert_as_written(read(found["val"]), tested)
    assert read(found["train"]) == {}
    assert capsys.readouterr().out.startswith("kla (train/test): bottle 0/1, zipper 0/3;")


def test_a_single_category(tmp_path, capsys):
    written = write(tmp_path, TRAIN_VAL)
    found = kla.load(str(tmp_path / "bottle"))
    assert_as_written(
        read(found["val"]), {k: v for k, v in written.items() if "bottle/Val" in k}
    )
    assert capsys.readouterr().out == "kla (train/val): bottle 3/1; together 3/1\n"


def test_validation_alone_can_be_evaluated(tmp_path):
    written = write(tmp_path, {"bottle": {"Val": {"broken_large": 2}}})
    found = kla.load(str(tmp_path))
    assert found["train"][1] == 0
    assert_as_written(read(found["val"]), written)


def test_masks_may_be_missing_or_named_as_their_photographs(tmp_path):
    write(tmp_path, TRAIN_VAL)
    shutil.rmtree(tmp_path / "bottle/Train/Defect_mask")
    folder = tmp_path / "metal_nut/Train/Defect_mask/bent"
    (folder / "000_mask.png").rename(folder / "000.png")
    (folder / "001_mask.png").unlink()
    records = read(kla.load(str(tmp_path))["train"])
    assert {name for name, record in records.items() if record["has_mask"]} == {
        "metal_nut/Train/bent/000"
    }
    for name, record in records.items():
        mask = images.decode(record["mask"], 1).numpy()
        assert mask.any() == (name == "metal_nut/Train/bent/000")
        assert mask.shape == (10, 12, 1)


def test_faulty_files_are_named(tmp_path):
    write(tmp_path / "set", TRAIN_VAL)
    (tmp_path / "set/bottle/Train/Degraded_image/broken_large/001.png").unlink()
    save(tmp_path / "set/metal_nut/Val/GT_clean_image/bent/000.png", np.zeros((3, 4), np.uint8))
    text = refusal(tmp_path)
    assert "unmatched: set/bottle/Train/GT_clean_image/broken_large/001.png" in text
    assert "differently sized: set/metal_nut/Val/GT_clean_image/bent/000.png 4×3 and" in text


def test_wrong_roots_and_splits(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "no_val", {"bottle": {"Train": {"broken_large": 1}}})
    write(tmp_path / "train_and_test", {"bottle": {"Train": {"broken_large": 1}}} | TEST)
    write(tmp_path / "twice/a", TRAIN_VAL)
    write(tmp_path / "twice/b", {"bottle": {"Val": {"broken_large": 1}}})
    write(tmp_path / "trained", TRAIN_VAL)
    for root, split, message in (
        ("", "defects", "is empty"),
        (tmp_path / "nowhere", "defects", "no such folder"),
        (tmp_path / "empty", "defects", "the KLA set was not found"),
        (tmp_path / "no_val", "defects", "there are no Val photographs"),
        (tmp_path / "trained", "test", "there are no Test photographs"),
        (tmp_path / "twice", "defects", "are of two data sets"),
        (tmp_path / "trained", "good", "'good' is none of defects, test"),
    ):
        text = refusal(root, split)
        assert message in text
        assert str(root) in text or "split" in text


def test_a_blank_mask_is_reported_and_not_known(tmp_path, capsys):
    write(tmp_path, TRAIN_VAL)
    path = tmp_path / "bottle/Train/Defect_mask/contamination/000_mask.png"
    save(path, np.zeros((10, 12), np.uint8))
    found = read(kla.load(str(tmp_path))["train"])
    assert not found["bottle/Train/contamination/000"]["has_mask"]
    assert found["bottle/Train/broken_large/000"]["has_mask"]
    assert "kla: 1 of 8 defective photographs with a blank mask" in capsys.readouterr().out
