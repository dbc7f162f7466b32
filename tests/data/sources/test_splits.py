import hashlib

import pytest

from data.sources import splits
from restore_jax.errors import UsageError


def ids(category, count, kind="test/crack"):
    return [f"{category}/{kind}/{number:03}" for number in range(count)]


@pytest.mark.parametrize(
    ("count", "val"), [(1, 0), (2, 1), (5, 1), (22, 2), (100, 9), (132, 12)]
)
def test_share_of_each_category(count, val):
    train, held_out = splits.divide(ids("a", count) + ids("b", 100), "defects")
    assert sum(name.startswith("a/") for name in held_out) == val
    assert sum(name.startswith("b/") for name in held_out) == 9
    assert sorted(train + held_out) == ids("a", count) + ids("b", 100)


def test_validation_is_the_lowest_hashes():
    members = ids("a", 40)
    _, val = splits.divide(reversed(members), "defects")
    ranked = sorted(members, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert val == sorted(ranked[:4])


def test_other_categories_change_nothing():
    alone = splits.divide(ids("b", 30), "defects")
    together = splits.divide(ids("a", 17) + ids("b", 30) + ids("c", 8), "defects")
    for before, after in zip(alone, together, strict=True):
        assert before == [name for name in after if name.startswith("b/")]


def test_protocols():
    good = ids("nut", 10, "train/good")
    fine = ids("nut", 3, "test/good")
    bent = ids("nut", 11, "test/bent")
    flip = ids("nut", 4, "test/flip")
    everything = good + fine + bent + flip
    train, val = splits.divide(everything, "defects")
    assert sorted(train + val) == bent
    assert len(val) == 1
    assert splits.divide(everything, "good") == (good, sorted(bent + flip))
    train, val = splits.divide(everything, "all")
    assert sorted(train + val) == sorted(everything)
    assert len(val) == 3  # round(0.09 * 28)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_photographs_without_defects_serve_once(split):
    everything = (
        ids("nut", 30, "train/good")
        + ids("nut", 5, "test/good")
        + ids("nut", 20)
        + ids("cap", 1, "train/good")  # too few for a detector
        + ids("cap", 6, "test/good")
        + ids("cap", 9)
    )
    parts = splits.parts(reversed(everything), split, references=4)
    assert (parts["train"], parts["val"]) == splits.divide(everything, split)
    assert all("/good/" in name for name in parts["reference"] + parts["good"])
    assert sum(name.startswith("nut/train/") for name in parts["reference"]) == 4
    assert sum(name.startswith("cap/") for name in parts["reference"]) == 4
    assert parts["reference"] == sorted(parts["reference"])
    used = [*parts["val"], *parts["reference"], *parts["good"]]
    assert len(used) == len(set(used))
    assert not set(parts["good"]) & set(parts["train"])
    left = [] if split == "all" else ids("nut", 5, "test/good")
    assert parts["good"] == left
    assert splits.parts(everything, split, references=0)["reference"] == []


def test_unknown_value():
    with pytest.raises(UsageError, match=r"config\.data\.split='half'.*defects, good, all"):
        splits.divide(ids("a", 3), "half")
