"""Parts with several bad shots each, and no clean photograph of any.

    root/PART/*                  parts, split by hash
    root/CATEGORY/PART/*         the same with categories
    root/{train,val}/**          parts, split by their folders

A part is a folder with two or more image files of one size: photographs of the same part in
the same place, which differ in their noise. Without `train` and `val` folders, parts are split
by a hash of their names, about 91/9 per category. No part is on both sides.
"""

from __future__ import annotations

import collections
from pathlib import Path

from data.sources import bad_files, examples, folders, images
from restore_jax.errors import UsageError


def load(
    root: str,
    split: str = "defects",
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> folders.Loaded:
    """Finds parts with two or more shots.

    The header of every file is read here. Pixels are decoded only when a record is read, unless
    `skip_bad` is set.

    Args:
        root: `config.data.root`, with one of the layouts above.
        split: `config.data.split`, which must be left at its default.
        skip_bad: `config.data.skip_bad`: decodes every file and leaves out parts with an
            unreadable file, after the split.
        max_pixels: maximum number of pixels per file, from `config.data.max_megapixels`.
        white: `config.data.white`.

    Returns:
        For `train` and `val`, the fields of `data.records.Records`. A record is a part, with
        `shots` and an unknown mask.

    Raises:
        UsageError: there are no such parts; there is nothing to train or to validate on; files
            lie beside the parts; or files cannot be read, or differ in size within a part
            (names the first ones).
    """
    folders.check_default_split(split, "shots")
    folder = folders.open_root(root, "the folder of the parts, each a folder of shots")
    divided = all((folder / side).is_dir() for side in folders.PARTS)
    faults: examples.Faults = collections.defaultdict(list)
    found: dict[str, list[examples.Example]] = {}
    single: list[str] = []
    for side in folders.PARTS if divided else ("",):
        found[side] = []
        for name, (first, *others) in _parts(folder, side, faults).items():
            part = f"{side}/{name}" if side else name
            category = name.split("/")[0] if "/" in name else folder.resolve().name
            if others:
                found[side].append(
                    examples.Example(part, category, "", first, shots=tuple(others))
                )
            else:
                single.append(part)
    if single:
        print(
            f"shots: {len(single)} of {len(single) + sum(map(len, found.values()))} parts left "
            f"out, with a single shot: {bad_files.first_few(single)}"
        )
    return folders.check_and_split(
        "shots",
        folder,
        found,
        faults,
        skip_bad,
        max_pixels,
        white,
        "parts with two or more shots",
    )


def _parts(root: Path, side: str, faults: examples.Faults) -> dict[str, list[Path]]:
    """Returns the image files in each folder below `root/side`, by the folder's name."""
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for key, path in folders.list_images(root / side, root, faults).items():
        found[key.rpartition("/")[0]].append(path)
    if loose := found.pop("", []):
        names = [examples.name_in(path, root) for path in loose]
        raise UsageError(
            f"config.data.root={str(root)!r}: in no part's folder: "
            f"{bad_files.first_few(names)}; put the shots of each part into a folder of its own"
        )
    return found
