"""The degraded photographs that the IIT Madras reports of 2024 used ("KLA set"; not public).

It comes in two forms, directly below the root or up to two folders deeper, as in its archive:

    <category>/{Train,Val}/{GT_clean_image,Degraded_image,Defect_mask}/<defect type>/NNN.png
    <category>/Test/{Clean,Noise,GT_mask}/<defect type>/NNN.png

The masks of the first form are named NNN_mask.png. Both contain only defective photographs of
MVTec AD.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

from data.sources import examples, folders, images
from restore_jax.errors import UsageError
from restore_jax.image_io import image_paths

SPLITS = ("defects", "test")

# Folders of the clean photographs, the degraded photographs and the masks, by section.
_LAYOUT = {
    "Train": ("GT_clean_image", "Degraded_image", "Defect_mask"),
    "Val": ("GT_clean_image", "Degraded_image", "Defect_mask"),
    "Test": ("Clean", "Noise", "GT_mask"),
}

_WANTED = (
    "the folder of <category>/{Train,Val}/{GT_clean_image,Degraded_image,Defect_mask} or"
    " <category>/Test/{Clean,Noise,GT_mask}"
)

# Folders between the root and a section: the category and the two that the archive adds.
_DEPTH = 3


def load(
    root: str,
    split: str = "defects",
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> folders.Loaded:
    """Finds the degraded photographs and prints how many each category has.

    Args:
        root: `config.data.root`: the data set's folder or one of its parent folders.
        split: `config.data.split`: `defects` uses Train and Val or, if there is only Test, uses
            that for validation with nothing to train on; `test` uses only Test, for validation.
        skip_bad: `config.data.skip_bad`, as for `folders.load_pairs`.
        max_pixels: as for `folders.load_pairs`.
        white: as for `folders.load_pairs`.

    Returns:
        As `folders.load_pairs`. Ids are `<category>/<Train|Val|Test>/<defect type>/NNN`.

    Raises:
        UsageError: the split is unknown, there is no such data set, there is nothing to
            validate on, or files are faulty (names the first ones).
    """
    if split not in SPLITS:
        raise UsageError(
            f"config.data.split: {split!r} is none of {', '.join(SPLITS)} (Train and Val, Test)"
        )
    folder = folders.open_root(root, _WANTED)
    sections = _sections(folder)
    if not sections:
        raise UsageError(
            f"config.data.root={root!r}: the KLA set was not found; name {_WANTED}"
        )
    names = {section for _, section in sections}
    use_test = split == "test" or names == {"Test"}
    wanted = {"val": "Test"} if use_test else {"train": "Train", "val": "Val"}

    faults: examples.Faults = collections.defaultdict(list)
    found: dict[str, list[examples.Example]] = {part: [] for part in folders.PARTS}
    for part, section in wanted.items():
        for (category, name), place in sorted(sections.items()):
            if name == section:
                found[part] += _examples(category, section, place, folder, faults)
    listed = [example for members in found.values() for example in members]
    left_out, white = examples.check("kla", listed, folder, faults, skip_bad, max_pixels, white)
    found = {
        part: [example for example in members if example.id not in left_out]
        for part, members in found.items()
    }
    if not found["val"]:
        raise UsageError(
            f"config.data.root={root!r}: there are no {wanted['val']} photographs"
            f"{' that can be read' if left_out else ''} to validate on; name {_WANTED}"
        )
    found = examples.with_known_masks("kla", found, folder, max_pixels)
    print(_counts(found, use_test))
    if "Test" in names and not use_test:
        print("kla: the Test photographs are not used; --config.data.split=test selects them")
    return {part: examples.from_files(m, True, max_pixels, white) for part, m in found.items()}


def _examples(
    category: str, section: str, place: Path, root: Path, faults: examples.Faults
) -> list[examples.Example]:
    clean, degraded, mask = (place / name for name in _LAYOUT[section])
    matched = folders.match(clean, degraded, mask, root, faults)
    return [
        examples.Example(
            f"{category}/{section}/{key}",
            category,
            key.split("/")[0] if "/" in key else "",
            *files,
        )
        for key, files in matched.items()
    ]


def _sections(root: Path) -> dict[tuple[str, str], Path]:
    """Finds the sections in a folder and its subfolders, by category and section name."""
    found: dict[tuple[str, str], Path] = {}
    level = [root]
    for _ in range(_DEPTH + 1):
        deeper = []
        for folder in level:
            here = [
                folder / section
                for section, names in _LAYOUT.items()
                if any((folder / section / name).is_dir() for name in names)
            ]
            for place in here:
                key = (folder.resolve() if folder == root else folder).name, place.name
                if key in found:
                    raise UsageError(
                        f"config.data.root={str(root)!r}: {found[key]} and {place} are of two"
                        " data sets; name the folder of one"
                    )
                found[key] = place
            if not here:
                deeper += _folders(folder)
        level = deeper
    return found


def _folders(folder: Path) -> list[Path]:
    """Returns the subfolders of a folder, sorted by name; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [folder / name for name in names if not image_paths.is_hidden(name)]


def _counts(found: dict[str, list[examples.Example]], use_test: bool) -> str:
    per_part = [collections.Counter(e.category for e in found[part]) for part in folders.PARTS]
    categories = sorted(set().union(*per_part))
    train, val = per_part
    said = ", ".join(f"{name} {train[name]}/{val[name]}" for name in categories)
    parts = "train/test" if use_test else "train/val"
    return f"kla ({parts}): {said}; together {train.total()}/{val.total()}"
