"""Parts with several shots each, on files made here."""

import itertools

import numpy as np
import pytest
from PIL import Image

from configs import sca_unet
from data import export_pairs, pipeline, records
from restore_jax.errors import UsageError


def write_shots(root, counts, size=(14, 12)):
    """Writes shots of one grey level each; returns the level of each by part."""
    levels = {}
    for number, (part, count) in enumerate(counts.items()):
        (root / part).mkdir(parents=True)
        levels[part] = [9 * number + 3 * shot + shot**2 for shot in range(count)]
        for shot, level in enumerate(levels[part]):
            grey = Image.fromarray(np.full((*size, 3), level, np.uint8))
            grey.save(root / part / f"shot {shot}.png")
    return levels


def options(root, **data):
    config = sca_unet.get_config("shots")
    config.data.root = str(root)
    config.data.image_size = 0
    config.data.crop_size = 11
    config.train.batch_size = 3
    config.eval.batch_size = 2
    config.data.update(data)
    return config


def drawn(data, count, step=0):
    """Returns part, level of the input and level of the target, of each row of batches."""
    return [
        (batch["id"][i], *(int(255 * batch[name][i, 0, 0, 0] + 0.5) for name in NAMES))
        for batch in itertools.islice(data.train_batches(step), count)
        for i in np.flatnonzero(batch["valid"])
    ]


NAMES = ("degraded", "clean")


def test_a_shot_is_paired_with_every_other_one_and_never_with_itself(tmp_path):
    levels = write_shots(tmp_path, {"bolt": 3, "nut": 2, "gear": 3, "held": 2})
    data = pipeline.make_data(options(tmp_path))
    steps = -(-data.train_images // 3)
    found = drawn(data, 30 * steps)
    assert len(found) == 30 * data.train_images == 30 * 3
    for part in {part for part, _, _ in found}:
        pairs = {(shot, target) for name, shot, target in found if name == part}
        assert pairs == set(itertools.permutations(levels[part], 2))


def test_draws_follow_from_the_seed_and_go_on_from_any_step(tmp_path):
    write_shots(tmp_path, {f"p{i}": 4 for i in range(5)})
    config = options(tmp_path, augment="flips")
    whole = drawn(pipeline.make_data(config), 4)  # two epochs of 3 and 1 parts
    assert drawn(pipeline.make_data(config), 3, step=1) == whole[3:]
    config.seed = 1
    assert sorted(drawn(pipeline.make_data(config), 2)) != sorted(whole[:4])


@pytest.mark.parametrize("size", [0, 11])
def test_validation_is_to_the_mean_of_the_other_shots(tmp_path, size):
    rng = np.random.default_rng(0)
    for part in ("train/a", "val/b", "val/c"):
        (tmp_path / part).mkdir(parents=True)
        for shot in range(4):
            pixels = rng.integers(0, 256, (11, 11, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{shot}.png")
    data = pipeline.make_data(options(tmp_path, image_size=size))
    assert data.target == "mean of the other shots"
    (batch,) = data.eval_batches("val")
    assert list(batch["id"]) == ["val/b", "val/c"]
    assert not batch["has_mask"].any() and not batch["mask"].any()
    for i, part in enumerate(batch["id"]):
        shots = [np.asarray(Image.open(tmp_path / part / f"{n}.png"), float) for n in range(4)]
        same = [np.array_equal(np.round(255 * batch["degraded"][i]), shot) for shot in shots]
        assert sum(same) == 1
        others = [shot for shot, chosen in zip(shots, same, strict=True) if not chosen]
        np.testing.assert_allclose(255 * batch["clean"][i], np.mean(others, 0), atol=0.501)


def test_a_part_is_on_one_side_of_the_split(tmp_path, capsys):
    parts = [f"{category}/{number:02d}" for category in "ab" for number in range(12)]
    write_shots(tmp_path, dict.fromkeys(parts, 2))
    loaded = records.load(options(tmp_path).data)
    train, val = ([name for name, _ in loaded[side].sizes] for side in ("train", "val"))
    assert sorted(train + val) == parts
    assert [name[0] for name in sorted(val)] == ["a", "b"]
    assert {r["category"] for r in loaded["val"].dataset.as_numpy_iterator()} == {b"a", b"b"}
    assert capsys.readouterr().out == ""


def test_parts_with_one_shot_are_left_out_in_one_line(tmp_path, capsys):
    write_shots(tmp_path, {"a": 2, "b": 1, "c": 2, "d": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    loaded = records.load(options(tmp_path).data)
    assert loaded["train"].count + loaded["val"].count == 2
    assert capsys.readouterr().out == (
        "shots: 2 of 4 parts left out, with a single shot: b, d\n"
    )


def odd_size(root):
    Image.new("RGB", (13, 14)).save(root / "a" / "shot 1.png")


def damaged(root):
    (root / "a" / "shot 1.png").write_bytes(b"nothing")


def beside(root):
    Image.new("RGB", (13, 14)).save(root / "loose.png")


def alone(root):
    for part in "bc":
        (root / part / "shot 0.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (odd_size, "differently sized: a/shot 0.png 12×14 and a/shot 1.png 13×14"),
        (damaged, "unreadable: a/shot 1.png"),
        (beside, "in no part's folder: loose.png; put the shots"),
        (alone, "no category (first folder) has two parts with two or more shots"),
    ],
)
def test_bad_input_is_one_line(tmp_path, spoil, message):
    write_shots(tmp_path, dict.fromkeys("abc", 2))
    spoil(tmp_path)
    with pytest.raises(UsageError) as caught:
        records.load(options(tmp_path).data)
    assert str(caught.value).startswith("config.data.root=") and message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_damaged_shot_can_be_skipped_with_its_part(tmp_path, capsys):
    write_shots(tmp_path, dict.fromkeys("abc", 2))
    held_out = records.load(options(tmp_path).data)["val"].sizes[0][0]
    spoilt = min({"a", "b", "c"} - {held_out})
    (tmp_path / spoilt / "shot 1.png").write_bytes(b"nothing")
    loaded = records.load(options(tmp_path, skip_bad=True).data)
    assert loaded["train"].count + loaded["val"].count == 2
    assert "1 of 3 images left out, unreadable" in capsys.readouterr().out


def test_neither_another_split_nor_device_memory(tmp_path):
    write_shots(tmp_path, dict.fromkeys("abc", 2))
    with pytest.raises(UsageError, match=r"^config\.data\.split: 'good' does not apply"):
        records.load(options(tmp_path, split="good").data)
    with pytest.raises(UsageError, match=r"^config\.data\.resident: shots are drawn by"):
        export_pairs.load(options(tmp_path, realisations=0))
