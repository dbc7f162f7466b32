"""Photographs and the files that belong to them: checks them and reads them as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from data.sources import bad_files, images
from restore_jax import batches
from restore_jax.errors import UsageError
from restore_jax.image_io import image_files

# The fields of `data.records.Records`: the dataset, the number of records, a function that
# picks records by position, the id of each record with the size of its files in bytes, and the
# white level.
FromFiles = tuple[
    tf.data.Dataset,
    int,
    Callable[[Sequence[int]], tf.data.Dataset],
    Sequence[tuple[str, int]],
    int,
]
Read = TypeVar("Read", images.EncodedImage, images.Mask)
# The faulty files, by kind of fault.
Faults = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One photograph and the files that belong to it.

    Attributes:
        id: relative path without suffix, with forward slashes.
        category: category that the photograph counts towards in the metrics.
        defect_type: "" if unknown.
        image: the clean photograph.
        degraded: the degraded photograph; None if the pipeline is to degrade the clean one.
        mask: mask of the defects; None if unknown.
        more_masks: masks of further defects, if each defect has its own file.
        is_good: whether the photograph is known to have no defect; its mask is then known to be
            empty.
        shots: further degraded photographs of the same part, if `image` is a degraded one too.
    """

    id: str
    category: str
    defect_type: str
    image: Path
    degraded: Path | None = None
    mask: Path | None = None
    more_masks: tuple[Path, ...] = ()
    is_good: bool = False
    shots: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All mask files."""
        return () if self.mask is None else (self.mask, *self.more_masks)

    @property
    def photographs(self) -> tuple[Path, ...]:
        """The clean and the degraded photograph, or all shots."""
        degraded = () if self.degraded is None else (self.degraded,)
        return (self.image, *degraded, *self.shots)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the photograph, masks included."""
        return (*self.photographs, *self.masks)


class Checked(NamedTuple):
    """What a check of the files found.

    Attributes:
        left_out: the ids of the photographs to leave out.
        white: the white level of all 16-bit photographs; 0 if there are none.
    """

    left_out: set[str]
    white: int


def check(
    name: str,
    examples: Sequence[Example],
    root: Path,
    faults: Faults,
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> Checked:
    """Checks that all files are images and that those of one photograph have the same size.

    The white level of 16-bit photographs is one for the whole data set. It is printed if it is
    found here, and so is the number of files of which only the first picture is read.

    Args:
        name: name of the data set.
        examples: the photographs.
        root: folder that the names of faulty files are given relative to.
        faults: faults found so far; those found here are added.
        skip_bad: whether to leave out photographs with an unreadable file instead of treating
            this as a fault. Every file is then decoded completely; otherwise only headers are
            read.
        max_pixels: maximum number of pixels per file.
        white: `config.data.white`; 0: to be found, see `image_files.find_white`.

    Returns:
        The photographs to leave out, whose number is printed, and the white level.

    Raises:
        UsageError: there are faults, found here or before; names the first files of each kind.
        RunError: the system fails to read a file.
    """
    if white < 0 or white > 65535:
        raise UsageError(f"config.data.white: {white} must lie between 0 (found) and 65535")
    inspections: Iterable[_Inspection]
    if skip_bad:
        done = bad_files.in_parallel(
            lambda example: _inspect(example, root, max_pixels, white, decode=True), examples
        )
        inspections = (
            future.result() for future in bad_files.with_progress(done, len(examples), name)
        )
    else:
        inspections = (_inspect(e, root, max_pixels, white, decode=False) for e in examples)
    left_out: dict[str, str] = {}
    deep: list[Path] = []
    stacks: list[str] = []
    for example, found in zip(examples, inspections, strict=True):
        sizes, unreadable = found.sizes, found.unreadable
        if unreadable and skip_bad:
            left_out[example.id] = " and ".join(unreadable)
            continue
        faults["unreadable"] += unreadable
        deep += found.deep
        stacks += found.stacks
        if len(set(sizes.values())) > 1:
            faults["differently sized"].append(
                " and ".join(f"{name_in(p, root)} {w}×{h}" for p, (h, w) in sizes.items())
            )
    messages = [
        f"{kind}: {bad_files.first_few(files)}" for kind, files in faults.items() if files
    ]
    if messages:
        raise UsageError(
            f"config.data.root={str(root)!r}: {'; '.join(messages)}. Add, repair or remove them"
        )
    bad_files.report(name, list(left_out.values()), len(examples))
    bad_files.report_stacks(name, stacks)
    return Checked(set(left_out), _white_of(name, deep, max_pixels, white))


def _white_of(name: str, deep: Sequence[Path], max_pixels: int, given: int) -> int:
    """Returns the white level of 16-bit photographs; 0 if there are none."""
    if given or not deep:
        return given if deep else 0
    return image_files.find_white(name, deep, max_pixels)


def with_known_masks(
    name: str,
    members: Mapping[str, Sequence[Example]],
    root: Path,
    max_pixels: int = images.MAX_PIXELS,
) -> dict[str, list[Example]]:
    """Treats blank masks of defective photographs as unknown.

    Args:
        name: name of the data set.
        members: the checked photographs of each split.
        root: folder that the names of files are given relative to.
        max_pixels: maximum number of pixels per file.

    Returns:
        The same photographs, without the masks of those that have a defect type but a blank
        mask. Their number is printed.
    """
    defective = [
        example
        for examples in members.values()
        for example in examples
        if example.defect_type not in ("", batches.GOOD)
    ]
    listed = [example for example in defective if example.mask is not None]
    found = bad_files.in_parallel(lambda example: _is_blank(example.masks, max_pixels), listed)
    blank = {e.id: e for e, future in zip(listed, found, strict=True) if future.result()}
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
    except images.ImageError:  # reported, with its name, when the file is read
        return False


class _Inspection(NamedTuple):
    """What one photograph's files are.

    Attributes:
        sizes: the (height, width) of each readable file.
        unreadable: the problems of the others.
        deep: the photographs of 16 bits.
        stacks: the photographs of several pictures, with their number.
    """

    sizes: dict[Path, tuple[int, int]]
    unreadable: list[str]
    deep: list[Path]
    stacks: list[str]


def _inspect(
    example: Example, root: Path, max_pixels: int, white: int, decode: bool
) -> _Inspection:
    found = _Inspection({}, [], [], [])
    for path in example.photographs:
        try:
            header = images.header(path, max_pixels)
            found.sizes[path] = header.size
            if decode:
                images.encode(path, max_pixels, white)
        except images.ImageError as error:
            found.unreadable.append(f"{name_in(path, root)} ({error})")
            continue
        if header.deep:
            found.deep.append(path)
        if header.pictures > 1:
            found.stacks.append(f"{name_in(path, root)} has {header.pictures}")
    for path in example.masks:
        try:
            found.sizes[path] = images.mask_header(path, max_pixels).size
            if decode:
                images.encode_mask(path, max_pixels)
        except images.ImageError as error:
            found.unreadable.append(f"{name_in(path, root)} ({error})")
    return found


def from_files(
    examples: Sequence[Example],
    paired: bool,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> FromFiles:
    """Returns the fields of `data.records.Records` for photographs.

    The arguments are those of `as_dataset`.
    """

    def pick(positions: Sequence[int]) -> tf.data.Dataset:
        chosen = [examples[position] for position in positions]
        return as_dataset(chosen, paired, max_pixels, white)

    sizes = [(example.id, _bytes_of(example)) for example in examples]
    dataset = as_dataset(examples, paired, max_pixels, white)
    return dataset, len(examples), pick, sizes, white


def _bytes_of(example: Example) -> int:
    try:
        return sum(path.stat().st_size for path in example.files)
    except OSError:  # reported, with its name, when the file is read
        return 0


def as_dataset(
    examples: Sequence[Example],
    paired: bool,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> tf.data.Dataset:
    """Makes a dataset of the records of photographs; files are read lazily.

    Args:
        examples: the photographs, which have been checked.
        paired: whether the records have `degraded`.
        max_pixels: maximum number of pixels per file.
        white: the white level of all 16-bit photographs; 0 if there are none.

    Returns:
        Records as documented in `data.records`. A file that turns out to be damaged stops the
        iteration with a message that names it.
    """
    encoded = ["image", "mask"]
    encoded += ["degraded"] if paired else []
    encoded += ["shots"] if any(example.shots for example in examples) else []

    def read(index: np.ndarray) -> list[np.ndarray]:
        files = _read(examples[index], max_pixels, white)
        # As objects: NumPy's byte strings drop trailing zero bytes.
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
    # In parallel: Pillow releases the GIL while it decodes.
    return tf.data.Dataset.from_tensor_slices(rows).map(
        record, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _read(example: Example, max_pixels: int, white: int) -> dict[str, bytes]:
    """Reads the files of a photograph, which may have changed since they were checked."""
    image = _encoded(images.encode, example.image, max_pixels, white)
    files, size = {"image": image.data}, image.size
    if example.degraded is not None:
        degraded = _encoded(images.encode, example.degraded, max_pixels, white)
        files["degraded"] = degraded.data
        _check_size(example.degraded, degraded.size, example.image, size)
    if example.shots:
        shots = [_encoded(images.encode, path, max_pixels, white) for path in example.shots]
        for path, shot in zip(example.shots, shots, strict=True):
            _check_size(path, shot.size, example.image, size)
        files["shots"] = tf.io.serialize_tensor([shot.data for shot in shots]).numpy()
    if example.mask is None:
        return files | {"mask": images.blank_mask(size)}
    masks = [_encoded(images.encode_mask, path, max_pixels) for path in example.masks]
    for path, mask in zip(example.masks, masks, strict=True):
        _check_size(path, mask.size, example.image, size)
    return files | {"mask": images.union(masks)}


def _encoded(read: Callable[..., Read], path: Path, *options: int) -> Read:
    try:
        return read(path, *options)
    except images.ImageError as error:
        raise UsageError(f"config.data.root: {path}: {error}") from error


def _check_size(path: Path, size: tuple[int, int], of: Path, expected: tuple[int, int]) -> None:
    if size != expected:
        (h, w), (rows, columns) = size, expected
        raise UsageError(f"config.data.root: {path} is {w}×{h}, but {of} {columns}×{rows}")


def name_in(path: Path, root: Path) -> str:
    """Returns a file's path relative to a folder, or the full path if it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
