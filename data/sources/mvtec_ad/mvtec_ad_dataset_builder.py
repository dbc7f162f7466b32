"""TensorFlow Datasets builder of MVTec AD, from a local folder or its archives; no download.

`data.sources.mvtec_ad.load` is what this project reads it with. On its own the builder works
like any other: `tfds.load("mvtec_ad", builder_kwargs={"root": ROOT})`, or without `root` from
TensorFlow Datasets' folder for data fetched by hand.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data.sources import bad_files, images
from data.sources.mvtec_ad import source
from restore_jax.errors import UsageError
from restore_jax.image_io import limits

_DESCRIPTION = """\
MVTec AD: photographs of 15 kinds of objects and textures for industrial inspection, free of
defects for training, with and without defects for testing, and a mask of each defect.
"""
_CITATION = """\
@article{bergmann2021mvtec,
  title = {The {MVTec} Anomaly Detection Dataset: A Comprehensive Real-World Dataset for
           Unsupervised Anomaly Detection},
  author = {Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, David and
            Steger, Carsten},
  journal = {International Journal of Computer Vision},
  volume = {129},
  number = {4},
  pages = {1038--1059},
  year = {2021}
}
"""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# TensorFlow Datasets sorts what exceeds 1 GB in files of equal shares of the 128-bit keys, all
# open at once. 64 of them stay clear of the limit on open files and small in memory.
_SORTING_FILES_BITS = 6


class Builder(tfds.core.GeneratorBasedBuilder):
    """MVTec AD with its own splits, `train` and `test`, in the order of the ids.

    Features: `image`, the photograph as its original PNG file, [H, W, 3] uint8 once decoded
    (grey ones with three equal channels); `mask`, [H, W, 1] uint8, positive on the defect and
    zero elsewhere; `has_mask`, whether the mask is known: True for photographs without defects
    (it is empty) and for those with a mask file that shows any, False for other defective ones
    (its zeros mean nothing); `category`; `defect_type`, `good` where there is none; `id`,
    `<category>/<train|test>/<defect type>/<name>`.

    `info.metadata["ids"]` lists the ids of each split in the order of the records, and
    `info.metadata["left_out"]` those that the source leaves out, `info.metadata["blank_masks"]`
    those of defective photographs whose mask file shows nothing; `info.metadata["bytes"]` is
    what the files of each photograph take. A split of which it has no
    photographs does not exist.

    Args:
        root: The data set's folder or archive, or what `source.find` made of it; None: the
            folder for data fetched by hand.
        max_pixels: How many a file may have: a small one can claim any size, and decoding it
            takes that much memory.
        **kwargs: As for `tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Initial release.",
        "1.1.0": "Masks are 0 or 255, whatever their files have; blank ones are not known.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Get MVTec AD from {source.HOMEPAGE} (CC BY-NC-SA 4.0) and put its archive, those of"
        " its categories or what they hold there; nothing needs to be extracted."
    )

    def __init__(
        self,
        *,
        root: str | source.Source | None = None,
        max_pixels: int = images.MAX_PIXELS,
        **kwargs: Any,
    ) -> None:
        self._root = root
        self._max_pixels = max_pixels
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "has_mask": np.bool_,
                    "category": tfds.features.Text(),
                    "defect_type": tfds.features.Text(),
                    "id": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
            homepage=source.HOMEPAGE,
            citation=_CITATION,
            license="CC BY-NC-SA 4.0",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        found = dl_manager.manual_dir if self._root is None else self._root
        if not isinstance(found, source.Source):
            found = source.find(found)
        ids = {
            split: [p.id for p in found.photographs if p.split == split]
            for split in ("train", "test")
        }
        ids = {split: members for split, members in ids.items() if members}
        self.info.metadata["ids"] = ids
        self.info.metadata["blank_masks"] = []
        self.info.metadata["bytes"] = {}
        if isinstance(found, source.Readable):
            self.info.metadata["left_out"] = dict(found.left_out)
        return {split: self._generate_examples(found, split, ids[split]) for split in ids}

    def _generate_examples(
        self, found: source.Source, split: source.Split, ids: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        ranks = {example: rank for rank, example in enumerate(ids)}
        sizes = self.info.metadata["bytes"][split] = [0] * len(ids)
        check = functools.partial(_example, max_pixels=self._max_pixels)
        for checked in bad_files.in_parallel(check, found.read(split)):
            example, size, blank = checked.result()
            rank = ranks[example["id"]]
            sizes[rank] = size
            if blank:
                self.info.metadata["blank_masks"].append(example["id"])
            yield _sorting_key(rank, len(ids)), example


def unreadable(
    found: source.Tree | source.Archives, max_pixels: int = images.MAX_PIXELS
) -> dict[str, str]:
    """Decodes every file once, to find those that cannot be; shows its progress on stderr.

    Args:
        found: where they are.
        max_pixels: how many a file may have.

    Returns:
        For the id of each photograph that cannot be read, or whose mask cannot, the file and
        what is wrong with it.

    Raises:
        UsageError: An archive as a whole is damaged or unsafe.
    """
    problems = {}
    records = (record for split in ("train", "test") for record in found.read(split))
    looks = bad_files.in_parallel(lambda record: _problem(record, max_pixels), records)
    for look in bad_files.with_progress(looks, len(found.photographs), "mvtec_ad"):
        example, problem = look.result()
        if problem:
            problems[example] = problem
    return problems


class _Unreadable(UsageError):
    """A file that cannot be decoded."""


def _problem(record: source.Record, max_pixels: int) -> tuple[str, str]:
    """The id of a photograph, and what is wrong with a file of it; "" if nothing is."""
    photograph, image, mask = record
    try:
        _decoded_size(image, max_pixels)
        if mask is not None:
            _mask(mask, max_pixels)
    except _Unreadable as error:
        return photograph.id, str(error)
    return photograph.id, ""


def _sorting_key(rank: int, count: int) -> int:
    """The key that sorts an example to its rank, spread over the 128 bits a key may have."""
    return ((rank << _SORTING_FILES_BITS) // count << (128 - _SORTING_FILES_BITS)) + rank


class _Checked(NamedTuple):
    """The features of a photograph, the bytes of its files, and whether its mask is blank."""

    features: dict[str, Any]
    size: int
    blank: bool


def _example(record: source.Record, max_pixels: int) -> _Checked:
    """The features of one photograph, whose files are decoded once to know that they can be.

    Raises:
        UsageError: A file is no PNG that can be decoded, or the mask is of another size.
    """
    photograph, image, mask_file = record
    size = _decoded_size(image, max_pixels)
    mask = None if mask_file is None else _mask(mask_file, max_pixels)
    if mask is not None and mask.size != size:
        raise UsageError(
            f"{mask_file.where}: the mask has {mask.size[0]} rows and {mask.size[1]} columns,"
            f" its photograph {size[0]} and {size[1]}"
        )
    blank = mask is not None and mask.blank
    known = mask is not None and not blank
    features = {
        "image": image.data,
        "mask": mask.data if known else _empty_mask(*size),
        "has_mask": known or photograph.defect_type == "good",
        "category": photograph.category,
        "defect_type": photograph.defect_type,
        "id": photograph.id,
    }
    taken = len(image.data) + (len(mask_file.data) if mask_file is not None else 0)
    return _Checked(features, taken, blank)


def _decoded_size(picture: source.FileBytes, max_pixels: int) -> tuple[int, int]:
    """Height and width of a photograph that the training pipeline's decoder accepts."""
    _check_png(picture, max_pixels)
    try:
        height, width, _ = tf.io.decode_png(picture.data, channels=3).shape
    except tf.errors.InvalidArgumentError as error:
        raise _undecodable(picture) from error
    return height, width


def _mask(picture: source.FileBytes, max_pixels: int) -> images.Mask:
    """A mask as it is for every source of data."""
    _check_png(picture, max_pixels)
    try:
        return images.encode_mask(picture.data, max_pixels)
    except images.ImageError as error:
        raise _undecodable(picture) from error


def _undecodable(picture: source.FileBytes) -> _Unreadable:
    return _Unreadable(
        f"{picture.where}: not a PNG file that can be decoded (cut short or damaged?),"
        " get it again"
    )


def _check_png(picture: source.FileBytes, max_pixels: int) -> None:
    """Refuses what does not begin as a PNG file does, or has too many pixels."""
    if picture.problem:
        raise _Unreadable(f"{picture.where}: {picture.problem}")
    start = picture.data[:24]
    if not start.startswith(_PNG_SIGNATURE) or len(start) < 24:
        raise _undecodable(picture)
    width, height = struct.unpack(">II", start[16:])
    problem = limits.problem(width, height, max_pixels, "config.data.max_megapixels")
    if problem:
        raise _Unreadable(f"{picture.where}: {problem}")


@functools.lru_cache(maxsize=16)
def _empty_mask(height: int, width: int) -> bytes:
    return tf.io.encode_png(tf.zeros((height, width, 1), tf.uint8)).numpy()
