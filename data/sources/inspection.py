"""Other inspection data sets in their own layouts, which are detected.

    BTAD          <category>/{train/ok, test/{ok,ko}, ground_truth/ko/NNN.png}
    VisA          <category>/Data/{Images/{Normal,Anomaly}, Masks/Anomaly}, split_csv/1cls.csv
    MVTec AD 2    <category>/{train/good, validation/good,
                  test_public/{good, bad, ground_truth/bad/NNN_mask.png}}
    MVTec LOCO    <category>/{train/good, validation/good, test/{good, <defect type>},
                  ground_truth/<defect type>/NNN/{000,001,...}.png}

and MVTec AD's own layout with any image format, which VisA has as well after its preparation
for training: <category>/{train/good, test/{good,<defect type>}, ground_truth/<defect type>}.

Ids follow MVTec AD, `<category>/<train|test>/<defect type or good>/<name>`, so that the same
splits apply. Photographs of `validation/good` count as good test photographs.
"""

from __future__ import annotations

import collections
import csv
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.sources import examples, folders, images, splits
from restore_jax.batches import GOOD
from restore_jax.errors import UsageError
from restore_jax.image_io import image_paths

_WANTED = "the folder of BTAD, VisA, MVTec AD 2, MVTec LOCO or a set in MVTec AD's layout"
# Folder names of photographs without defects.
_GOOD = ("good", "ok", "normal")

# The id, the file and the mask files of each photograph.
_Found = Iterator[tuple[str, Path, tuple[Path, ...]]]


def load(
    root: str,
    split: str = "defects",
    references: int = 0,
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> dict[str, examples.FromFiles]:
    """Finds the photographs of an inspection data set and prints which one it is.

    Args:
        root: `config.data.root`: the folder of the categories, its parent folder, or a single
            category.
        split: `config.data.split`, as for MVTec AD.
        references: `config.data.references` (`splits.parts`).
        skip_bad: `config.data.skip_bad`, as for `folders.load_pairs`.
        max_pixels: as for `folders.load_pairs`.
        white: as for `folders.load_pairs`.

    Returns:
        The result of `examples.from_files` for each non-empty list of `splits.parts`.

    Raises:
        UsageError: the split is unknown, there is no such data set, there is nothing to train
            or to validate on, or files are faulty (names the first ones).
    """
    splits.check_split(split)
    folder = folders.open_root(root, _WANTED)
    layout, categories = _find_layout(folder)
    faults: examples.Faults = collections.defaultdict(list)
    listed = [
        _example(photograph)
        for category in categories
        for photograph in _READERS[layout](category, faults, folder)
    ]
    listed = sorted(listed, key=lambda example: example.id)
    left_out, white = examples.check(
        "inspection", listed, folder, faults, skip_bad, max_pixels, white
    )
    by_id = {example.id: example for example in listed}
    parts = {
        part: [by_id[name] for name in ids if name not in left_out]
        for part, ids in splits.parts(by_id, split, references).items()
    }
    for part in ("train", "val"):
        if not parts[part]:
            raise UsageError(
                f"config.data.root={root!r} with config.data.split={split!r}: {layout} leaves "
                f"no photographs for {part}; choose another split ({', '.join(splits.SPLITS)})"
            )
    defective = sum(splits.defect_type(name) != GOOD for name in by_id)
    print(
        f"inspection: {layout}, {len(by_id)} photographs of {len(categories)} categories, "
        f"{defective} of them with defects"
    )
    parts = examples.with_known_masks("inspection", parts, folder, max_pixels)
    return {
        part: examples.from_files(m, False, max_pixels, white) for part, m in parts.items() if m
    }


def _find_layout(root: Path) -> tuple[str, list[Path]]:
    """Finds the layout and the category folders, in a folder, its subfolders, or as itself."""
    below = _folders(root)
    for candidates in (below, [deep for folder in below for deep in _folders(folder)], [root]):
        found = {c: layout for c in candidates if (layout := layout_of(c)) is not None}
        if len(set(found.values())) > 1:
            named = ", ".join(
                sorted(f"{layout} in {c.name}" for c, layout in found.items())[:3]
            )
            raise UsageError(
                f"config.data.root={str(root)!r}: several layouts ({named}); name the folder "
                "of one data set"
            )
        if found:
            return next(iter(found.values())), sorted(found)
    raise UsageError(f"config.data.root={str(root)!r}: no such data set found; name {_WANTED}")


def layout_of(category: Path) -> str | None:
    """Returns the name of the data set that a folder is a category of; None if of none."""
    if (category / "Data" / "Images").is_dir():
        return "VisA"
    if (category / "test_public").is_dir():
        return "MVTec AD 2"
    if not (category / "test").is_dir():
        return None
    if any((category / name).is_dir() for name in ("train/ok", "test/ok", "test/ko")):
        return "BTAD"
    masks = [f for kind in _folders(category / "ground_truth") for f in _folders(kind)]
    if masks or (category / "test" / "logical_anomalies").is_dir():
        return "MVTec LOCO"
    if (category / "train").is_dir() or (category / "ground_truth").is_dir():
        return "MVTec AD's layout"
    return None


def _read_mvtec(category: Path, faults: examples.Faults, root: Path) -> _Found:
    """Reads MVTec AD's layout with any defect types and one or several masks per photograph."""
    masks = _masks(category / "ground_truth", faults, root)
    for section in ("train", "test", "validation"):
        for kind in _folders(category / section):
            yield from _photographs(category.name, section, kind, masks, faults, root)


def _read_mvtec_ad_2(category: Path, faults: examples.Faults, root: Path) -> _Found:
    """Reads MVTec AD 2 without its private test sets, whose ground truth is not public."""
    public = category / "test_public"
    masks = _masks(public / "ground_truth", faults, root)
    for section in ("train", "validation"):
        for kind in _folders(category / section):
            yield from _photographs(category.name, section, kind, masks, faults, root)
    for kind in _folders(public):
        if kind.name != "ground_truth":
            yield from _photographs(category.name, "test", kind, masks, faults, root)


def _read_visa(category: Path, faults: examples.Faults, root: Path) -> _Found:
    """Reads VisA with the split of its list; without it, all good photographs are "train"."""
    masks = {
        ("anomaly", key): (path,)
        for key, path in folders.list_images(
            category / "Data/Masks/Anomaly", root, faults
        ).items()
    }
    tests = _visa_tests(category.parent / "split_csv" / "1cls.csv")
    for kind in _folders(category / "Data" / "Images"):
        for key, path in folders.list_images(kind, root, faults).items():
            name = _kind(kind.name)
            listed = _composed(path.relative_to(category.parent).as_posix())
            in_test = name != GOOD or listed in tests
            example = f"{category.name}/{'test' if in_test else 'train'}/{name}/{key}"
            yield example, path, () if name == GOOD else masks.get((name, key), ())


def _visa_tests(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    return {_composed(row.get("image") or "") for row in rows if row.get("split") == "test"}


_READERS = {
    "BTAD": _read_mvtec,
    "VisA": _read_visa,
    "MVTec AD 2": _read_mvtec_ad_2,
    "MVTec LOCO": _read_mvtec,
    "MVTec AD's layout": _read_mvtec,
}


def _photographs(
    category: str,
    section: str,
    kind: Path,
    masks: Mapping[tuple[str, str], tuple[Path, ...]],
    faults: examples.Faults,
    root: Path,
) -> _Found:
    name = _kind(kind.name)
    for key, path in folders.list_images(kind, root, faults).items():
        # `test` may have a photograph of the same number.
        stem = f"validation_{key}" if section == "validation" else key
        part = "train" if section == "train" else "test"
        found = () if name == GOOD else masks.get((name, key), ())
        yield f"{category}/{part}/{name}/{stem}", path, found


def _masks(
    folder: Path, faults: examples.Faults, root: Path
) -> dict[tuple[str, str], tuple[Path, ...]]:
    """Returns the mask files of each photograph, by defect type and name."""
    found: dict[tuple[str, str], tuple[Path, ...]] = {}
    for kind in _folders(folder):
        for key, path in folders.list_images(kind, root, faults).items():
            # NNN.png, NNN_mask.png, or a folder NNN with several masks.
            owner = key.split("/")[0] if "/" in key else key.removesuffix("_mask")
            photograph = _kind(kind.name), owner
            found[photograph] = (*found.get(photograph, ()), path)
    return found


def _kind(name: str) -> str:
    return GOOD if name.lower() in _GOOD else _composed(name.lower())


def _composed(name: str) -> str:
    """Returns a name in composed form (NFC), as `folders.list_images` returns its keys."""
    return unicodedata.normalize("NFC", name)


def _example(photograph: tuple[str, Path, tuple[Path, ...]]) -> examples.Example:
    name, path, masks = photograph
    category, _, kind, *_ = name.split("/")
    return examples.Example(
        name,
        category,
        kind,
        path,
        mask=masks[0] if masks else None,
        more_masks=masks[1:],
        is_good=kind == GOOD,
    )


def _folders(folder: Path) -> list[Path]:
    """Returns the subfolders of a folder, sorted by name; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(
        f for f in folder.iterdir() if f.is_dir() and not image_paths.is_hidden(f.name)
    )
