"""Folders of the user's own images: pairs of degraded and clean images, or clean images only.

    root/{train,val}/{degraded,clean[,mask]}/**     pairs, split by their folders
    root/{degraded,clean[,mask]}/**                 pairs, split by hash
    root/{train,val}/**  or  root/**                clean images

Below these, the first folder is the category and the second, if any, the defect type. The files
of a pair have the same folders and name, except for the suffix and the Unicode normalization
form; the name of a mask may end in `_mask`. Without `train` and `val` folders, images are split
by a hash of their folders and name, about 91/9 per category.
"""

from __future__ import annotations

import collections
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data.sources import bad_files, images, splits
from data.sources.examples import (
    Example,
    Faults,
    FromFiles,
    check,
    from_files,
    name_in,
    with_known_masks,
)
from restore_jax.errors import UsageError
from restore_jax.image_io import image_paths

PARTS = ("train", "val")
# Names of folders that hold masks rather than photographs.
_MASK_FOLDERS = (
    "ground_truth", "groundtruth", "gt", "gt_mask", "mask", "masks", "defect_mask",
    "defect_masks",
)  # fmt: skip

Loaded = dict[str, FromFiles]


def load_pairs(
    root: str,
    split: str = "defects",
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> Loaded:
    """Finds pairs of degraded and clean photographs.

    The header of every file is read here. Pixels are decoded only when a record is read, unless
    `skip_bad` is set.

    Args:
        root: `config.data.root`, with one of the layouts above.
        split: `config.data.split`, which must be left at its default.
        skip_bad: `config.data.skip_bad`: decodes every file and leaves out pairs with an
            unreadable file, after the split.
        max_pixels: maximum number of pixels per file, from `config.data.max_megapixels`.
        white: `config.data.white`, as for `examples.check`.

    Returns:
        For `train` and `val`, the fields of `data.records.Records`. The records have
        `degraded`.

    Raises:
        UsageError: there are no such pairs; there is nothing to train or to validate on; or
            files have no counterpart, cannot be read or differ in size (names the first ones).
    """
    check_default_split(split, "pairs")
    layout = "{train,val}/{degraded,clean} or {degraded,clean}"
    folder = open_root(root, f"the folder of {layout}")
    flat = all((folder / name).is_dir() for name in ("degraded", "clean"))
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if flat == (len(parts) == len(PARTS)):
        problem = f"holds both layouts of {layout}" if flat else f"holds no {layout}"
        raise UsageError(f"config.data.root={root!r}: {problem}; use one of them")
    faults: Faults = collections.defaultdict(list)
    found = {}
    for part in ("",) if flat else PARTS:
        below = {name: folder / part / name for name in ("degraded", "clean", "mask")}
        for name in ("degraded", "clean"):
            if not below[name].is_dir():
                raise UsageError(f"config.data.root={root!r}: there is no {part}/{name}")
        matched = match(below["clean"], below["degraded"], below["mask"], folder, faults)
        found[part] = [_example(folder, part, key, *files) for key, files in matched.items()]
    return check_and_split("pairs", folder, found, faults, skip_bad, max_pixels, white)


def load_clean(
    root: str,
    split: str = "defects",
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> Loaded:
    """Finds clean photographs, which the pipeline degrades by the configuration's law.

    Args:
        root: `config.data.root`: any folder. If it has the two folders `train` and `val`, these
            define the split.
        split: `config.data.split`, which must be left at its default.
        skip_bad: as for `load_pairs`.
        max_pixels: as for `load_pairs`.
        white: as for `load_pairs`.

    Returns:
        As `load_pairs`, without `degraded` and with unknown masks.

    Raises:
        UsageError: as `load_pairs`.
    """
    check_default_split(split, "clean")
    folder = open_root(root, "a folder of photographs")
    divided = all((folder / part).is_dir() for part in PARTS)
    faults: Faults = collections.defaultdict(list)
    found = {}
    masks: list[Path] = []
    for part in PARTS if divided else ("",):
        listed = list_images(folder / part, folder, faults, masks)
        found[part] = [_example(folder, part, key, path) for key, path in listed.items()]
    if masks:
        some = bad_files.first_few([name_in(path, folder) for path in masks])
        print(
            f"clean: warning: {some} left out: by their names, these folders hold masks, "
            "not photographs; for BTAD, VisA, MVTec AD 2 and MVTec LOCO with their masks, use "
            "the data set inspection"
        )
    return check_and_split("clean", folder, found, faults, skip_bad, max_pixels, white)


def open_root(root: str, wanted: str) -> Path:
    """Returns `config.data.root` as the path of an existing folder.

    Args:
        root: the value given by the user.
        wanted: description of the expected folder, for the error message.

    Raises:
        UsageError: the value is empty, or there is no such folder.
    """
    if not root.strip():
        raise UsageError(f"config.data.root: is empty; name {wanted}")
    try:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            there = "is a file" if folder.exists() else "there is no such folder"
            raise UsageError(f"config.data.root={root!r}: {there}; name {wanted}")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: unknown user in ~user
        raise UsageError(f"config.data.root={root!r}: cannot be read: {error}") from error
    return folder


def list_images(
    folder: Path, root: Path, faults: Faults, masks: list[Path] | None = None
) -> dict[str, Path]:
    """Lists the image files in a folder and its subfolders, by `name_without_suffix`.

    Args:
        folder: the folder to search; links are followed. Hidden files and files without an
            image suffix are skipped.
        root: folder that the names of faulty files are given relative to.
        faults: faults found so far; those found here are added.
        masks: receives the subfolders that are named like mask folders, which are then skipped;
            None: such folders are searched as well.
    """
    found: dict[str, Path] = {}
    for path in _files(folder, root, faults, masks) if folder.is_dir() else ():
        if not image_paths.is_image(path):
            continue
        key = image_paths.name_without_suffix(path, folder)
        if not str(path).isprintable():
            faults["of unprintable names"].append(ascii(str(path)))
        elif key in found:
            both = [name_in(found[key], root), name_in(path, root)]
            if unicodedata.is_normalized("NFC", both[0]) != unicodedata.is_normalized(
                "NFC", both[1]
            ):
                both = [ascii(name) for name in both]  # otherwise they look the same
            faults["of one name but for the suffix"].append(" and ".join(both))
        else:
            found[key] = path
    return dict(sorted(found.items()))


def _files(
    folder: Path,
    root: Path,
    faults: Faults,
    masks: list[Path] | None,
    above: frozenset[str] = frozenset(),
) -> Iterator[Path]:
    """Yields the files below a folder but hidden ones; `above` holds its parent folders."""
    resolved = os.path.realpath(folder)
    if resolved in above:  # a link to a parent folder
        return
    try:
        with os.scandir(folder) as entries:
            shown = sorted(
                (entry for entry in entries if not image_paths.is_hidden(entry.name)),
                key=_entry_name,
            )
    except OSError as error:
        faults["unreadable"].append(f"{name_in(folder, root)} ({error.strerror})")
        return
    for entry in shown:
        if not entry.is_dir():
            yield Path(entry.path)
        elif masks is not None and entry.name.lower() in _MASK_FOLDERS:
            masks.append(Path(entry.path))
        else:
            yield from _files(Path(entry.path), root, faults, masks, above | {resolved})


def _entry_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def match(
    clean: Path, degraded: Path, mask: Path, root: Path, faults: Faults
) -> dict[str, tuple[Path, Path, Path | None]]:
    """Matches the files of each pair by name.

    Args:
        clean: folder of the clean photographs.
        degraded: folder of the degraded photographs.
        mask: folder of the masks; may be missing.
        root: folder that the names of faulty files are given relative to.
        faults: faults found so far; those found here are added.

    Returns:
        The clean photograph, the degraded photograph and the mask (or None) of each pair, keyed
        and sorted by relative path without suffix.
    """
    cleans, degradeds, masks = (
        list_images(folder, root, faults) for folder in (clean, degraded, mask)
    )
    for ours, theirs, where in ((degradeds, cleans, clean), (cleans, degradeds, degraded)):
        for key in ours.keys() - theirs.keys():
            faults["unmatched"].append(
                f"{name_in(ours[key], root)} (no file of that name in {name_in(where, root)})"
            )
    mask_of: dict[str, Path] = {}
    for key, path in masks.items():
        owner = key if key in cleans else key.removesuffix("_mask")
        if owner not in cleans:
            faults["unmatched"].append(
                f"{name_in(path, root)} (no photograph in {name_in(clean, root)})"
            )
        elif owner in mask_of:
            faults["masks of one photograph"].append(
                f"{name_in(mask_of[owner], root)} and {name_in(path, root)}"
            )
        else:
            mask_of[owner] = path
    return {
        key: (path, degradeds[key], mask_of.get(key))
        for key, path in cleans.items()
        if key in degradeds
    }


def _example(root: Path, part: str, key: str, *files: Path | None) -> Example:
    folders = key.split("/")[:-1]
    return Example(
        f"{part}/{key}" if part else key,
        folders[0] if folders else root.resolve().name,
        folders[1] if len(folders) > 1 else "",
        *files,
    )


def check_and_split(
    name: str,
    root: Path,
    found: Mapping[str, list[Example]],
    faults: Faults,
    skip_bad: bool,
    max_pixels: int,
    white: int,
    unit: str = "images",
) -> Loaded:
    """Checks the photographs found and splits them, unless their folders do.

    Args:
        name: name of the data set.
        root: `config.data.root`.
        found: the photographs by folder, `train` and `val`; those under "" are split by hash.
        faults: faults found so far.
        skip_bad: `config.data.skip_bad`.
        max_pixels: maximum number of pixels per file.
        white: the white level of 16-bit files; 0: as stated or found.
        unit: what the messages call the photographs.

    Returns:
        For `train` and `val`, the fields of `data.records.Records`.

    Raises:
        UsageError: there are faults, or no photograph to train or to validate on.
    """
    examples = [example for members in found.values() for example in members]
    left_out, white = check(name, examples, root, faults, skip_bad, max_pixels, white)
    if "" in found:
        divided, where = _split_by_hash(found[""]), dict.fromkeys(PARTS, root)
    else:
        divided, where = found, {part: root / part for part in PARTS}
    kept = {part: [e for e in divided[part] if e.id not in left_out] for part in PARTS}
    for part, members in kept.items():
        if not members:
            problem = f"there are no {unit}"
            if divided["train"] and "" in found:
                problem = (
                    f"no category (first folder) has two {unit}, so that one can be validated "
                    "on"
                )
            if divided[part]:
                problem = f"none of the {unit} for {part} can be read"
            raise UsageError(f"config.data.root={str(where[part])!r}: {problem}; add some")
    known = with_known_masks(name, kept, root, max_pixels)
    return {
        part: from_files(m, name == "pairs", max_pixels, white) for part, m in known.items()
    }


def _split_by_hash(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Splits photographs by the same hash as MVTec AD, independently of the root's name."""
    named = {}
    for example in examples:
        category = example.id.split("/")[0] if "/" in example.id else ""
        named[f"{category}/all/all/{example.id}"] = example
    train, val = splits.divide(named, "all")
    return {"train": [named[name] for name in train], "val": [named[name] for name in val]}


def check_default_split(split: str, name: str) -> None:
    """Refuses a `config.data.split` for data that have a single one.

    Raises:
        UsageError: it is not left at its default.
    """
    if split != "defects":
        raise UsageError(
            f"config.data.split: {split!r} does not apply to {name!r}, which is split by its"
            " folders train and val, or by a hash of the names; leave it at 'defects'"
        )
