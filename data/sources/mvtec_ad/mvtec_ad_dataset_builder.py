"""TensorFlow Datasets builder of MVTec AD, from a local folder or its archives; no download.

This project reads it with `data.sources.mvtec_ad.load`. The builder also works on its own, like
any other: `tfds.load("mvtec_ad", builder_kwargs={"root": ROOT})`, or without `root` from
TensorFlow Datasets' folder for manual downloads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data.sources import bad_files, images
from data.sources.mvtec_ad import source
from restore_jax.errors import UsageError

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
# Beyond 1 GB, TensorFlow Datasets sorts examples in bucket files, each covering an equal range
# of the 128-bit keys and all open at once. 64 buckets stay below the limit on open files and
# are each small enough for memory.
_BUCKET_BITS = 6


class Builder(tfds.core.GeneratorBasedBuilder):
    """MVTec AD with its own splits, `train` and `test`, in the order of the ids.

    Features: `image`, the original PNG file of the photograph (encoded anew if it has a palette
    or alpha), [H, W, 3] uint8 when decoded (grey ones with three equal channels); `mask`,
    [H, W, 1] uint8, positive on the defect and zero elsewhere; `has_mask`, whether
    the mask is known: True for photographs without defects (their mask is empty) and for those
    whose mask file is not blank, False for other defective ones (their zeros are meaningless);
    `category`; `defect_type`, `good` if there is none; `id`,
    `<category>/<train|test>/<defect type>/<name>`.

    `info.metadata` has `ids`, the ids of each split in the order of the records; `left_out`,
    the ids that the source leaves out; `blank_masks`, the ids of defective photographs with a
    blank mask file; `bytes`, the size of the files of each photograph; `largest`, the pixels of
    the largest file and its place; and `highest`, the highest level of 16-bit photographs, 0
    if there are none. A split without photographs does not exist.

    Args:
        root: the data set's folder or archive, or the result of `source.find`; None: the
            folder for manual downloads.
        max_pixels: maximum number of pixels per file: even a small file can claim any size,
            and decoding it takes the corresponding memory.
        **kwargs: as for `tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Initial release.",
        "1.1.0": "Masks are 0 or 255, whatever their files contain; blank ones are unknown.",
        "1.2.0": "Palettes and alpha are read as in restoring; the highest level is known.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download MVTec AD from {source.HOMEPAGE} (CC BY-NC-SA 4.0) and put its archive, the"
        " archives of its categories or their contents there; nothing needs to be extracted."
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
            found = source.find(found, self._max_pixels)
        ids = {
            split: [p.id for p in found.photographs if p.split == split]
            for split in ("train", "test")
        }
        ids = {split: members for split, members in ids.items() if members}
        self.info.metadata["ids"] = ids
        self.info.metadata["blank_masks"] = []
        self.info.metadata["bytes"] = {}
        self.info.metadata["largest"] = [0, ""]
        self.info.metadata["highest"] = 0
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
            example, size, blank, largest, highest = checked.result()
            rank = ranks[example["id"]]
            sizes[rank] = size
            self.info.metadata["largest"] = max(self.info.metadata["largest"], largest)
            self.info.metadata["highest"] = max(self.info.metadata["highest"], highest)
            if blank:
                self.info.metadata["blank_masks"].append(example["id"])
            yield _sorting_key(rank, len(ids)), example


def unreadable(
    found: source.Tree | source.Archives, max_pixels: int = images.MAX_PIXELS
) -> dict[str, str]:
    """Decodes every file once to find unreadable ones; shows a progress bar on stderr.

    Args:
        found: the data set.
        max_pixels: maximum number of pixels per file.

    Returns:
        The file and what is wrong with it, by the id of each photograph that is unreadable or
        has an unreadable mask.

    Raises:
        UsageError: an archive as a whole is damaged or unsafe.
    """
    problems = {}
    records = (record for split in ("train", "test") for record in found.read(split))
    checks = bad_files.in_parallel(lambda record: _problem(record, max_pixels), records)
    for check in bad_files.with_progress(checks, len(found.photographs), "mvtec_ad"):
        example, problem = check.result()
        if problem:
            problems[example] = problem
    return problems


class _Unreadable(UsageError):
    """A file that cannot be decoded."""


def _problem(record: source.Record, max_pixels: int) -> tuple[str, str]:
    """Returns the id of a photograph and the problem with one of its files, "" if none."""
    photograph, image, mask = record
    try:
        _encoded(image, max_pixels)
        if mask is not None:
            _mask(mask, max_pixels)
    except _Unreadable as error:
        return photograph.id, str(error)
    return photograph.id, ""


def _sorting_key(rank: int, count: int) -> int:
    """Returns a key that sorts an example to its rank, spread over all 128 bits of a key."""
    return ((rank << _BUCKET_BITS) // count << (128 - _BUCKET_BITS)) + rank


class _Checked(NamedTuple):
    """A photograph with its mask.

    Attributes:
        features: its features.
        size: its files' size in bytes.
        blank: whether its mask is blank.
        largest: the number of pixels, and the place of its file.
        highest: its highest level if it has 16 bits, otherwise 0.
    """

    features: dict[str, Any]
    size: int
    blank: bool
    largest: list[Any]
    highest: int


def _example(record: source.Record, max_pixels: int) -> _Checked:
    """Returns the features of one photograph; decodes its files to check them.

    Raises:
        UsageError: a file is not a decodable PNG, or the mask has another size.
    """
    photograph, image, mask_file = record
    encoded, highest = _encoded(image, max_pixels)
    size = encoded.size
    mask = None if mask_file is None else _mask(mask_file, max_pixels)
    if mask is not None and mask.size != size:
        raise UsageError(
            f"{mask_file.where}: the mask has {mask.size[0]} rows and {mask.size[1]} columns,"
            f" but its photograph {size[0]} and {size[1]}"
        )
    blank = mask is not None and mask.blank
    known = mask is not None and not blank
    features = {
        "image": encoded.data,
        "mask": mask.data if known else _empty_mask(*size),
        "has_mask": known or photograph.defect_type == "good",
        "category": photograph.category,
        "defect_type": photograph.defect_type,
        "id": photograph.id,
    }
    taken = len(image.data) + (len(mask_file.data) if mask_file is not None else 0)
    return _Checked(features, taken, blank, [math.prod(size), image.where], highest)


def _encoded(picture: source.FileBytes, max_pixels: int) -> tuple[images.EncodedImage, int]:
    """Returns a photograph as it is kept, decoded once, and its highest level if it is deep.

    16-bit photographs are kept as they are: their white level is known once all are read.
    """
    _check_png(picture)
    try:
        header = images.header(picture.data, max_pixels)
        if header.deep:
            highest = images.highest_level(picture.data, max_pixels)
            return images.EncodedImage(picture.data, header.size), highest
        return images.encode(picture.data, max_pixels), 0
    except images.ImageError as error:
        raise _undecodable(picture, error) from error


def _mask(picture: source.FileBytes, max_pixels: int) -> images.Mask:
    """Decodes a mask in the same way as the other data sources."""
    _check_png(picture)
    try:
        return images.encode_mask(picture.data, max_pixels)
    except images.ImageError as error:
        raise _undecodable(picture, error) from error


def _undecodable(picture: source.FileBytes, error: images.ImageError) -> _Unreadable:
    if "config.data." in str(error):  # too large, or above the white level
        return _Unreadable(f"{picture.where}: {error}")
    return _damaged(picture)


def _damaged(picture: source.FileBytes) -> _Unreadable:
    return _Unreadable(
        f"{picture.where}: not a PNG file that can be decoded (truncated or damaged?),"
        " download it again"
    )


def _check_png(picture: source.FileBytes) -> None:
    """Refuses a file that could not be read, or does not start like a PNG file."""
    if picture.problem:
        raise _Unreadable(f"{picture.where}: {picture.problem}")
    if not picture.data.startswith(_PNG_SIGNATURE):
        raise _damaged(picture)


@functools.lru_cache(maxsize=16)
def _empty_mask(height: int, width: int) -> bytes:
    return tf.io.encode_png(tf.zeros((height, width, 1), tf.uint8)).numpy()
