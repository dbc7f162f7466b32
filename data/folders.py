"""Folders of the user's own images: pairs of degraded and clean ones, or clean ones alone.

    root/{train,val}/{degraded,clean[,mask]}/**     pairs, divided by their folders
    root/{degraded,clean[,mask]}/**                 pairs, divided here
    root/{train,val}/**  or  root/**                clean images

Below these, the first folder is the category and the second, if any, the defect type. The files
of a pair have the same folders and name but for the suffix; a mask may have `_mask` after its
name. What is divided here is divided by a hash of folders and name, about 91/9 per category.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from data import images, splits
from restore_jax.errors import UsageError

PARTS = ("train", "val")
SHOWN = 3  # files that a refusal names of each kind of fault

Loaded = dict[str, tuple[tf.data.Dataset, int]]

# What is wrong, with the files it is wrong with.
Faults = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One photograph and the files that belong to it.

    Attributes:
        id: relative path without suffix, with forward slashes.
        category: whose figures it counts in.
        defect_type: "" where nothing tells.
        image: the clean photograph.
        degraded: the same, degraded; None where it is to be degraded here.
        mask: its defects; None where they are not known.
    """

    id: str
    category: str
    defect_type: str
    image: Path
    degraded: Path | None = None
    mask: Path | None = None


def load_pairs(root: str, split: str = "defects") -> Loaded:
    """Finds pairs of degraded and clean photographs.

    Every file's header is read here; pixels only with the records.

    Args:
        root: `config.data.root`, with one of the layouts above.
        split: `config.data.split`, which has to be left at its default.

    Returns:
        For `train` and `val`, the records (see `data.records`) in the order of their ids, with
        `degraded`, and their number.

    Raises:
        UsageError: there are no such pairs, nothing to train or to validate on, or files that
            have no partner, cannot be read or differ in size, the first of which it names.
    """
    _check_split(split, "pairs")
    layout = "{train,val}/{degraded,clean} or {degraded,clean}"
    folder = open_root(root, f"the folder of {layout}")
    flat = all((folder / name).is_dir() for name in ("degraded", "clean"))
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if flat == (len(parts) == len(PARTS)):
        problem = f"holds both layouts of {layout}" if flat else f"holds no {layout}"
        raise UsageError(f"config.data.root={root!r}: {problem}; bring the pairs into one")
    faults: Faults = collections.defaultdict(list)
    found = {}
    for part in ("",) if flat else PARTS:
        below = {name: folder / part / name for name in ("degraded", "clean", "mask")}
        for name in ("degraded", "clean"):
            if not below[name].is_dir():
                raise UsageError(f"config.data.root={root!r}: there is no {part}/{name}")
        matched = match(below["clean"], below["degraded"], below["mask"], folder, faults)
        found[part] = [_example(folder, part, key, *files) for key, files in matched.items()]
    return _finish(folder, found, faults, paired=True)


def load_clean(root: str, split: str = "defects") -> Loaded:
    """Finds clean photographs, to be degraded by the law of the configuration.

    Args:
        root: `config.data.root`: any folder. If it holds both, its folders `train` and `val`
            say which photographs are for what.
        split: `config.data.split`, which has to be left at its default.

    Returns:
        As `load_pairs`, without `degraded` and with masks that are not known.

    Raises:
        UsageError: as `load_pairs`.
    """
    _check_split(split, "clean")
    folder = open_root(root, "a folder of photographs")
    divided = all((folder / part).is_dir() for part in PARTS)
    faults: Faults = collections.defaultdict(list)
    found = {}
    for part in PARTS if divided else ("",):
        listed = list_images(folder / part, folder, faults)
        found[part] = [_example(folder, part, key, path) for key, path in listed.items()]
    return _finish(folder, found, faults, paired=False)


def open_root(root: str, wanted: str) -> Path:
    """Returns `config.data.root` as a folder that is there.

    Args:
        root: what the user gave.
        wanted: what it has to name, for the message.

    Raises:
        UsageError: it is empty, or there is no such folder.
    """
    if not root.strip():
        raise UsageError(f"config.data.root: is empty; name {wanted}")
    try:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            there = "is a file" if folder.exists() else "there is no such folder"
            raise UsageError(f"config.data.root={root!r}: {there}; name {wanted}")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home of that user
        raise UsageError(f"config.data.root={root!r}: cannot be read: {error}") from error
    return folder


def list_images(folder: Path, root: Path, faults: Faults) -> dict[str, Path]:
    """Lists the image files in a folder and below, by relative path without suffix.

    Args:
        folder: where to look; links are followed. Hidden files are passed over, and so are
            those without the suffix of an image.
        root: what the names of faulty files are relative to.
        faults: gains what is wrong.
    """
    found: dict[str, Path] = {}
    for path in _files(folder, root, faults) if folder.is_dir() else ():
        if path.suffix.lower() not in images.SUFFIXES:
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if not str(path).isprintable():
            faults["of unprintable names"].append(ascii(str(path)))
        elif not path.is_file():
            faults["unreadable"].append(f"{_name(path, root)} (no file behind the name)")
        elif key in found:
            faults["of one name but for the suffix"].append(
                f"{_name(found[key], root)} and {_name(path, root)}"
            )
        else:
            found[key] = path
    return dict(sorted(found.items()))


def _files(
    folder: Path, root: Path, faults: Faults, above: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """The files in a folder and below but hidden ones; `above` are the folders it is in."""
    resolved = os.path.realpath(folder)
    if resolved in above:  # a link back up
        return
    try:
        with os.scandir(folder) as entries:
            shown = sorted((e for e in entries if not e.name.startswith(".")), key=_entry_name)
    except OSError as error:
        faults["unreadable"].append(f"{_name(folder, root)} ({error.strerror})")
        return
    for entry in shown:
        if not entry.is_dir():
            yield Path(entry.path)
        elif entry.name != "__MACOSX":  # what is in there only looks like images
            yield from _files(Path(entry.path), root, faults, above | {resolved})


def _entry_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def match(
    clean: Path, degraded: Path, mask: Path, root: Path, faults: Faults
) -> dict[str, tuple[Path, Path, Path | None]]:
    """Brings together the files of each pair.

    Args:
        clean: the folder of the clean photographs.
        degraded: that of the degraded ones.
        mask: that of the masks; it may be missing.
        root: what the names of faulty files are relative to.
        faults: gains what is wrong.

    Returns:
        By relative path without suffix, in its order: the clean photograph, the degraded one
        and the mask, if there is one.
    """
    cleans, degradeds, masks = (
        list_images(folder, root, faults) for folder in (clean, degraded, mask)
    )
    for ours, theirs, where in ((degradeds, cleans, clean), (cleans, degradeds, degraded)):
        for key in ours.keys() - theirs.keys():
            faults["unmatched"].append(
                f"{_name(ours[key], root)} (nothing of that name in {_name(where, root)})"
            )
    mask_of: dict[str, Path] = {}
    for key, path in masks.items():
        owner = key if key in cleans else key.removesuffix("_mask")
        if owner not in cleans:
            faults["unmatched"].append(
                f"{_name(path, root)} (no photograph in {_name(clean, root)})"
            )
        elif owner in mask_of:
            faults["masks of one photograph"].append(
                f"{_name(mask_of[owner], root)} and {_name(path, root)}"
            )
        else:
            mask_of[owner] = path
    return {
        key: (path, degradeds[key], mask_of.get(key))
        for key, path in cleans.items()
        if key in degradeds
    }


def check(examples: Iterable[Example], root: Path, faults: Faults) -> None:
    """Reads the headers of all files: each an image, those of one photograph of one size.

    Args:
        examples: the photographs.
        root: what the names of faulty files are relative to.
        faults: gains what is wrong.

    Raises:
        UsageError: something is wrong, here or before; it names the first files of each kind.
    """
    for example in examples:
        sizes = {}
        for path in filter(None, (example.image, example.degraded, example.mask)):
            try:
                sizes[path] = images.measure(path)
            except images.ImageError as error:
                faults["unreadable"].append(f"{_name(path, root)} ({error})")
        if len(set(sizes.values())) > 1:
            faults["differently sized"].append(
                " and ".join(f"{_name(p, root)} {w}×{h}" for p, (h, w) in sizes.items())
            )
    if faults:
        said = []
        for kind, files in faults.items():
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            said.append(f"{kind}: {', '.join(sorted(files)[:SHOWN])}{more}")
        raise UsageError(
            f"config.data.root={str(root)!r}: {'; '.join(said)}. Add, mend or remove these"
        )


def as_dataset(examples: Sequence[Example], paired: bool) -> tf.data.Dataset:
    """Makes the records of photographs; each is read when its record is.

    Args:
        examples: the photographs, checked before.
        paired: whether the records have `degraded`.

    Returns:
        Records as `data.records` describes them. A file that turns out to be damaged stops the
        reading with a line that names it.
    """
    encoded = ("image", "mask", *(("degraded",) if paired else ()))

    def read(index: np.ndarray) -> list[np.ndarray]:
        files = _read(examples[index])
        # As objects: NumPy's own strings lose the zeros at their end.
        return [np.array(files[name], dtype=object) for name in encoded]

    def record(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        files = tf.numpy_function(read, [row["index"]], [tf.string] * len(encoded))
        named = zip(encoded, files, strict=True)
        fields = {name: value for name, value in row.items() if name != "index"}
        return fields | {name: tf.ensure_shape(value, []) for name, value in named}

    rows: dict[str, tf.Tensor] = {
        name: tf.constant([getattr(example, name) for example in examples], tf.string)
        for name in ("id", "category", "defect_type")
    }
    rows["has_mask"] = tf.constant([e.mask is not None for e in examples], tf.bool)
    rows["index"] = tf.range(len(examples))
    # In parallel: Pillow lets other threads go on while it decodes.
    return tf.data.Dataset.from_tensor_slices(rows).map(
        record, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _read(example: Example) -> dict[str, bytes]:
    """Reads the files of a photograph; they may have changed since they were checked."""
    image = _encoded(images.encode, example.image)
    files, size = {"image": image.data}, image.size
    if example.degraded is not None:
        degraded = _encoded(images.encode, example.degraded)
        files["degraded"] = degraded.data
        _check_size(example.degraded, degraded.size, example.image, size)
    if example.mask is None:
        return files | {"mask": images.blank_mask(size)}
    mask = _encoded(images.encode_mask, example.mask)
    _check_size(example.mask, mask.size, example.image, size)
    return files | {"mask": mask.data}


def _encoded(read: Callable[[Path], images.Picture], path: Path) -> images.Picture:
    try:
        return read(path)
    except images.ImageError as error:
        raise UsageError(f"config.data.root: {path}: cannot be read: {error}") from error


def _check_size(path: Path, size: tuple[int, int], of: Path, expected: tuple[int, int]) -> None:
    if size != expected:
        (h, w), (rows, columns) = size, expected
        raise UsageError(f"config.data.root: {path} is {w}×{h}, but {of} {columns}×{rows}")


def _example(root: Path, part: str, key: str, *files: Path | None) -> Example:
    folders = key.split("/")[:-1]
    return Example(
        f"{part}/{key}" if part else key,
        folders[0] if folders else root.resolve().name,
        folders[1] if len(folders) > 1 else "",
        *files,
    )


def _finish(
    root: Path, found: Mapping[str, list[Example]], faults: Faults, paired: bool
) -> Loaded:
    """Checks what was found and divides it, unless folders have done so."""
    check([example for members in found.values() for example in members], root, faults)
    if "" in found:
        divided, where = _divide(found[""]), dict.fromkeys(PARTS, root)
    else:
        divided, where = found, {part: root / part for part in PARTS}
    for part, members in divided.items():
        if not members:
            problem = "there are no images"
            if divided["train"] and "" in found:
                problem = "no category (the first folder) has two images, one to validate on"
            raise UsageError(f"config.data.root={str(where[part])!r}: {problem}; add some")
    return {part: (as_dataset(m, paired), len(m)) for part, m in divided.items()}


def _divide(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Divides photographs by the hash that divides MVTec AD, whatever the root is called."""
    named = {}
    for example in examples:
        category = example.id.split("/")[0] if "/" in example.id else ""
        named[f"{category}/all/all/{example.id}"] = example
    train, val = splits.divide(named, "all")
    return {"train": [named[name] for name in train], "val": [named[name] for name in val]}


def _check_split(split: str, name: str) -> None:
    if split != "defects":
        raise UsageError(
            f"config.data.split: {split!r} is not for {name!r}, which its folders train and val"
            " divide, or else a hash of the names; leave it at 'defects'"
        )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
