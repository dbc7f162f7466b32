"""A photograph and the files that belong to it: checking them, and reading them as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf

from data.sources import bad_files, images
from restore_jax import batches
from restore_jax.errors import UsageError

# The records of photographs, their number, those of some positions among them, and the id of
# each with the bytes that its files take.
FromFiles = tuple[
    tf.data.Dataset,
    int,
    Callable[[Sequence[int]], tf.data.Dataset],
    Sequence[tuple[str, int]],
]
Read = TypeVar("Read", images.EncodedImage, images.Mask)
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
        more_masks: of other defects in it, where each has a file of its own.
        is_good: whether it is known to have no defect, so that its mask is known and empty.
    """

    id: str
    category: str
    defect_type: str
    image: Path
    degraded: Path | None = None
    mask: Path | None = None
    more_masks: tuple[Path, ...] = ()
    is_good: bool = False

    @property
    def masks(self) -> tuple[Path, ...]:
        """All files of its defects."""
        return () if self.mask is None else (self.mask, *self.more_masks)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is read from."""
        degraded = () if self.degraded is None else (self.degraded,)
        return (self.image, *degraded, *self.masks)


def check(
    name: str,
    examples: Sequence[Example],
    root: Path,
    faults: Faults,
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
) -> set[str]:
    """Looks at all files: each an image, those of one photograph of one size.

    Args:
        name: of the data.
        examples: the photographs.
        root: what the names of faulty files are relative to.
        faults: gains what is wrong.
        skip_bad: whether photographs with a file that cannot be read are no fault. Every file
            is then read to its end, and else its header alone.
        max_pixels: how many each may have.

    Returns:
        The ids of the photographs to leave out; their number is printed.

    Raises:
        UsageError: something is wrong, here or before; it names the first files of each kind.
    """
    looks: Iterable[_Look]
    if skip_bad:
        done = bad_files.in_parallel(
            lambda example: _look(example, root, max_pixels, decode=True), examples
        )
        looks = (look.result() for look in bad_files.with_progress(done, len(examples), name))
    else:
        looks = (_look(example, root, max_pixels, decode=False) for example in examples)
    left_out: dict[str, str] = {}
    for example, (sizes, unreadable) in zip(examples, looks, strict=True):
        if unreadable and skip_bad:
            left_out[example.id] = " and ".join(unreadable)
            continue
        faults["unreadable"] += unreadable
        if len(set(sizes.values())) > 1:
            faults["differently sized"].append(
                " and ".join(f"{name_in(p, root)} {w}×{h}" for p, (h, w) in sizes.items())
            )
    said = []
    for kind, files in faults.items():
        more = (
            f" and {len(files) - bad_files.SHOWN} more" if len(files) > bad_files.SHOWN else ""
        )
        if files:
            said.append(f"{kind}: {', '.join(sorted(files)[: bad_files.SHOWN])}{more}")
    if said:
        raise UsageError(
            f"config.data.root={str(root)!r}: {'; '.join(said)}. Add, mend or remove these"
        )
    bad_files.report(name, list(left_out.values()), len(examples))
    return set(left_out)


def with_known_masks(
    name: str,
    members: Mapping[str, Sequence[Example]],
    root: Path,
    max_pixels: int = images.MAX_PIXELS,
) -> dict[str, list[Example]]:
    """Takes blank masks of defective photographs for what they are: masks that say nothing.

    Args:
        name: of the data.
        members: the photographs of each part, checked.
        root: what the names of files are relative to.
        max_pixels: how many each file may have.

    Returns:
        The same photographs; those with a defect type and a blank mask have none. Their number
        is printed.
    """
    defective = [
        example
        for examples in members.values()
        for example in examples
        if example.defect_type not in ("", batches.GOOD)
    ]
    listed = [example for example in defective if example.mask is not None]
    looks = bad_files.in_parallel(lambda example: _is_blank(example.masks, max_pixels), listed)
    blank = {e.id: e for e, look in zip(listed, looks, strict=True) if look.result()}
    bad_files.report_blank(
        name, [name_in(e.mask, root) for e in blank.values()], len(defective)
    )
    return {
        part: [
            dataclasses.replace(e, mask=None, more_masks=()) if e.id in blank else e
            for e in examples
        ]
        for part, examples in members.items()
    }


def _is_blank(masks: Sequence[Path], max_pixels: int) -> bool:
    try:
        return all(images.encode_mask(path, max_pixels).blank for path in masks)
    except images.ImageError:  # told when it is read, with its name
        return False


# The size of each file of a photograph that can be read, and what is wrong with the others.
_Look = tuple[dict[Path, tuple[int, int]], list[str]]


def _look(example: Example, root: Path, max_pixels: int, decode: bool) -> _Look:
    sizes, unreadable = {}, []
    for path in example.files:
        encode = images.encode_mask if path in example.masks else images.encode
        try:
            sizes[path] = (
                encode(path, max_pixels).size if decode else images.measure(path, max_pixels)
            )
        except images.ImageError as error:
            unreadable.append(f"{name_in(path, root)} ({error})")
    return sizes, unreadable


def from_files(
    examples: Sequence[Example], paired: bool, max_pixels: int = images.MAX_PIXELS
) -> FromFiles:
    """Returns the records of photographs, all and some, and the bytes of their files.

    The arguments are `as_dataset`'s.
    """

    def pick(positions: Sequence[int]) -> tf.data.Dataset:
        return as_dataset([examples[position] for position in positions], paired, max_pixels)

    sizes = [(example.id, _bytes_of(example)) for example in examples]
    return as_dataset(examples, paired, max_pixels), len(examples), pick, sizes


def _bytes_of(example: Example) -> int:
    try:
        return sum(path.stat().st_size for path in example.files)
    except OSError:  # told when it is read, with its name
        return 0


def as_dataset(
    examples: Sequence[Example], paired: bool, max_pixels: int = images.MAX_PIXELS
) -> tf.data.Dataset:
    """Makes the records of photographs; each is read when its record is.

    Args:
        examples: the photographs, checked before.
        paired: whether the records have `degraded`.
        max_pixels: how many each file may have.

    Returns:
        Records as `data.records` describes them. A file that turns out to be damaged stops the
        reading with a line that names it.
    """
    encoded = ("image", "mask", *(("degraded",) if paired else ()))

    def read(index: np.ndarray) -> list[np.ndarray]:
        files = _read(examples[index], max_pixels)
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
    rows["has_mask"] = tf.constant([e.is_good or bool(e.masks) for e in examples], tf.bool)
    rows["index"] = tf.range(len(examples))
    # In parallel: Pillow lets other threads go on while it decodes.
    return tf.data.Dataset.from_tensor_slices(rows).map(
        record, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _read(example: Example, max_pixels: int) -> dict[str, bytes]:
    """Reads the files of a photograph; they may have changed since they were checked."""
    image = _encoded(images.encode, example.image, max_pixels)
    files, size = {"image": image.data}, image.size
    if example.degraded is not None:
        degraded = _encoded(images.encode, example.degraded, max_pixels)
        files["degraded"] = degraded.data
        _check_size(example.degraded, degraded.size, example.image, size)
    if example.mask is None:
        return files | {"mask": images.blank_mask(size)}
    masks = [_encoded(images.encode_mask, path, max_pixels) for path in example.masks]
    for path, mask in zip(example.masks, masks, strict=True):
        _check_size(path, mask.size, example.image, size)
    return files | {"mask": images.united(masks)}


def _encoded(read: Callable[[Path, int], Read], path: Path, max_pixels: int) -> Read:
    try:
        return read(path, max_pixels)
    except images.ImageError as error:
        raise UsageError(f"config.data.root: {path}: cannot be read: {error}") from error


def _check_size(path: Path, size: tuple[int, int], of: Path, expected: tuple[int, int]) -> None:
    if size != expected:
        (h, w), (rows, columns) = size, expected
        raise UsageError(f"config.data.root: {path} is {w}×{h}, but {of} {columns}×{rows}")


def name_in(path: Path, root: Path) -> str:
    """Returns a file's path within a folder, or all of it where it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
