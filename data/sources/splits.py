"""Splits photographs into training and validation sets, based on their ids alone.

An id is a path in MVTec AD's layout: `<category>/<train|test>/<defect type or good>/<name>`.

The reports used only MVTec AD's defective test photographs, 932 for training and 88 for
validation, without metal_nut's `flip` (the whole nut turned over, which is no local defect).
Their list is not public, so the same proportions are drawn here by a hash of the id.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable

from restore_jax.errors import UsageError

SPLITS = ("defects", "good", "all")
VALIDATION_SHARE = 0.09


def check_split(split: str) -> None:
    """Refuses an unknown value of `config.data.split`.

    Raises:
        UsageError: the value is none of `SPLITS`.
    """
    if split not in SPLITS:
        raise UsageError(f"config.data.split={split!r} is none of {', '.join(SPLITS)}")


def category(example: str) -> str:
    """Returns the category of an id, such as `bottle`."""
    return example.split("/", maxsplit=1)[0]


def defect_type(example: str) -> str:
    """Returns the defect type of an id, such as `broken_large`, or `good`."""
    return example.split("/")[2]


def parts(ids: Iterable[str], split: str, references: int) -> dict[str, list[str]]:
    """Divides photographs into the sets that training and evaluation need.

    Args:
        ids: as for `divide`.
        split: as for `divide`.
        references: maximum number of reference photographs per category.

    Returns:
        `train` and `val` as returned by `divide`, and two sorted lists of photographs without
        defects: `reference`, from train/good, to fit a detector on; and `good`, from test/good,
        which are neither trained on nor validated on nor references. In a category with fewer
        than two photographs in train/good, the minimum for a detector, the references come from
        test/good as well.
    """
    ids = sorted(ids)
    train, val = divide(ids, split)
    chosen: dict[str, list[str]] = {"train": train, "val": val, "reference": [], "good": []}
    held_out, trained_on = set(val), set(train)
    categories: dict[str, list[str]] = collections.defaultdict(list)
    for example in ids:
        if defect_type(example) == "good" and example not in held_out:
            categories[category(example)].append(example)
    for members in categories.values():
        fitting = [i for i in members if i.split("/")[1] == "train"]
        if len(fitting) < 2:
            fitting = members
        chosen["reference"] += _by_hash(fitting)[:references]
        chosen["good"] += [i for i in members if i not in fitting and i not in trained_on]
    return {part: sorted(members) for part, members in chosen.items()}


def divide(ids: Iterable[str], split: str) -> tuple[list[str], list[str]]:
    """Divides photographs into those for training and those for validation.

    Args:
        ids: `<category>/<train|test>/<defect type or good>/<name>`.
        split: `defects`: defective photographs except `flip`, about 91/9 in each category;
            `good`: training on train/good and validation on all defective photographs, so that
            no defect is ever seen in training; `all`: all photographs, about 91/9 in each
            category.

    Returns:
        The sorted ids for training and those for validation, which are disjoint.

    Raises:
        UsageError: `split` is none of `SPLITS`.
    """
    check_split(split)
    ids = sorted(ids)
    defective = [i for i in ids if defect_type(i) != "good"]
    if split == "good":
        return [i for i in ids if i.split("/")[1] == "train"], defective
    if split == "defects":
        ids = [i for i in defective if defect_type(i) != "flip"]
    held_out = _held_out(ids)
    return [i for i in ids if i not in held_out], [i for i in ids if i in held_out]


def _held_out(ids: list[str]) -> set[str]:
    """Draws the validation share of each category by hash, independently of the others."""
    categories: dict[str, list[str]] = collections.defaultdict(list)
    for example in ids:
        categories[category(example)].append(example)
    held_out: set[str] = set()
    for members in categories.values():
        count = max(round(VALIDATION_SHARE * len(members)), 1) if len(members) > 1 else 0
        held_out.update(_by_hash(members)[:count])
    return held_out


def _by_hash(members: list[str]) -> list[str]:
    return sorted(members, key=lambda i: hashlib.sha256(i.encode()).digest())
