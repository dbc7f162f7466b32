"""The sources of photographs, by `config.data.name`.

A record is a dict of scalars: `image` and `mask`, encoded images of the same size; `has_mask`,
bool, false if the mask is unknown and therefore black; `id`, `category` and `defect_type`,
strings. If a source provides its own degraded photographs, all its records also have
`degraded`, encoded and of the same size, which is then used instead of degrading `image`. If a
source has several degraded photographs of each part and no clean one, a record is a part:
`image` is one of them, and `shots` the others, a serialized tensor of strings [N - 1], encoded
and of the same size.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from data.rendered import sample
from data.sources import folders, inspection, kla, mvtec_ad, shots, splits
from restore_jax.config import schema
from restore_jax.errors import UsageError
from restore_jax.image_io import limits


class Records(NamedTuple):
    """The records of one split, in the order of their ids.

    Attributes:
        dataset: all records.
        count: number of records.
        pick: returns the records at the given positions (at least one), in the order given and
            with repetitions; other records are not decoded.
        sizes: the id of each record and the size of its files in bytes, 0 if it has no files.
        white: the white level of the 16-bit photographs, the same in all splits; 0 if there
            are none.
    """

    dataset: tf.data.Dataset
    count: int
    pick: Callable[[Sequence[int]], tf.data.Dataset]
    sizes: Sequence[tuple[str, int]] = ()
    white: int = 0


def _load_mvtec_ad(settings: ConfigDict) -> dict[str, Records]:
    loaded = mvtec_ad.load(
        settings.root,
        settings.split,
        settings.cache_dir,
        settings.references,
        _skips_bad(settings),
        _max_pixels(settings),
        _white(settings),
    )
    return {split: Records(*found) for split, found in loaded.items()}


def _load_inspection(settings: ConfigDict) -> dict[str, Records]:
    loaded = inspection.load(
        settings.root,
        settings.split,
        settings.references,
        _skips_bad(settings),
        _max_pixels(settings),
        _white(settings),
    )
    return {split: Records(*found) for split, found in loaded.items()}


def _skips_bad(settings: ConfigDict) -> bool:
    # Older runs lack this field; they stop at an image that cannot be read.
    return settings.get("skip_bad", False)


def _max_pixels(settings: ConfigDict) -> int:
    # Older runs lack this field.
    megapixels = settings.get("max_megapixels", limits.MAX_MEGAPIXELS)
    if megapixels < 1:
        raise UsageError(f"config.data.max_megapixels: {megapixels} is below 1")
    return megapixels * 1_000_000


def _white(settings: ConfigDict) -> int:
    # Older runs lack this field; they took the whole range of 16 bits.
    return settings.get("white", schema.WHITE_OF_OLDER_RUNS)


def _load_sample(settings: ConfigDict) -> dict[str, Records]:
    for field, least in (("sample_size", sample.MIN_SIZE), ("sample_count", 2)):
        if settings[field] < least:
            raise UsageError(f"config.data.{field}: {settings[field]} is below {least}")
    # The ids follow MVTec AD's layout, so that the same splits apply.
    listing = {}
    for category, defect_type, index in sample.listing(settings.sample_count):
        if defect_type == sample.GOOD:
            listing[f"{category}/train/{defect_type}/{index:03d}"] = index
            index += settings.sample_count
        listing[f"{category}/test/{defect_type}/{index:03d}"] = index
    parts = splits.parts(listing, settings.split, settings.references)
    return {
        part: _rendered([(i, listing[i]) for i in ids], settings.sample_size)
        for part, ids in parts.items()
        if ids
    }


def _rendered(listed: Sequence[tuple[str, int]], size: int) -> Records:
    """Returns records of rendered images, given by id and index; each is rendered when read."""

    def generate() -> Iterator[dict[str, Any]]:
        for image_id, index in listed:
            category, kind = splits.category(image_id), splits.defect_type(image_id)
            image, mask = sample.render(category, kind, index, size)
            yield {
                "image": tf.io.encode_png(image),
                "mask": tf.io.encode_png(mask),
                "has_mask": True,
                "id": image_id,
                "category": category,
                "defect_type": kind,
            }

    strings = dict.fromkeys(
        ("image", "mask", "id", "category", "defect_type"), tf.TensorSpec([], tf.string)
    )
    dataset = tf.data.Dataset.from_generator(
        generate, output_signature=strings | {"has_mask": tf.TensorSpec([], tf.bool)}
    )

    def pick(positions: Sequence[int]) -> tf.data.Dataset:
        return _rendered([listed[position] for position in positions], size).dataset

    sizes = [(image_id, 0) for image_id, _ in listed]
    return Records(dataset.cache(), len(listed), pick, sizes)


def _load_files(
    load_files: Callable[[str, str, bool, int, int], folders.Loaded], settings: ConfigDict
) -> dict[str, Records]:
    loaded = load_files(
        settings.root,
        settings.split,
        _skips_bad(settings),
        _max_pixels(settings),
        _white(settings),
    )
    return {split: Records(*found) for split, found in loaded.items()}


SOURCES: dict[str, Callable[[ConfigDict], dict[str, Records]]] = {
    "mvtec_ad": _load_mvtec_ad,
    "inspection": _load_inspection,
    "sample": _load_sample,
    "kla": functools.partial(_load_files, kla.load),
    "pairs": functools.partial(_load_files, folders.load_pairs),
    "clean": functools.partial(_load_files, folders.load_clean),
    "shots": functools.partial(_load_files, shots.load),
}


def load(settings: ConfigDict) -> dict[str, Records]:
    """Loads the records that `config.data` selects.

    Returns:
        The records by split: "train" and "val" and, if the source has any, two splits without
        defects that are disjoint from both: "reference", to fit detectors on, and "good", to
        test them.

    Raises:
        UsageError: the name or the split is unknown, or the root has no data.
    """
    if settings.name not in SOURCES:
        raise UsageError(
            f"config.data.name: no data {settings.name!r}; there are {', '.join(SOURCES)}"
        )
    return SOURCES[settings.name](settings)


def identity(sources: Mapping[str, Records]) -> dict[str, str]:
    """Identifies the images of "train" and "val", to recognise a run's data set.

    Returns:
        Digests: "names" of the ids, "sizes" of the ids and the sizes of their files.
    """
    listed = {part: list(sources[part].sizes) for part in ("train", "val") if part in sources}
    of_ids = {part: [image_id for image_id, _ in sizes] for part, sizes in listed.items()}
    return {
        name: hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()
        for name, what in (("names", of_ids), ("sizes", listed))
    }
