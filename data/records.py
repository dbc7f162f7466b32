"""The sources of photographs, by the name that `config.data.name` gives.

A record is a dict of scalars: `image` and `mask`, encoded pictures of one size; `has_mask`,
bool, false where the mask is not known and therefore black; `id`, `category` and `defect_type`,
strings. Where a source brings its own degraded photographs, every record of it also has
`degraded`, encoded and of the same size; it is then used in place of one made here.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from data.rendered import sample
from data.sources import folders, inspection, kla, mvtec_ad, splits
from restore_jax.errors import UsageError
from restore_jax.image_io import limits


class Records(NamedTuple):
    """The records of one part, in the order of their ids, and how many there are.

    Attributes:
        dataset: all of them.
        count: their number.
        pick: those of some positions among them, of one at least, in the order given and again
            where a position comes again; the others are not decoded.
        sizes: the id of each, with the bytes that its files take, 0 where it has none.
    """

    dataset: tf.data.Dataset
    count: int
    pick: Callable[[Sequence[int]], tf.data.Dataset]
    sizes: Sequence[tuple[str, int]] = ()


def _load_mvtec_ad(settings: ConfigDict) -> dict[str, Records]:
    loaded = mvtec_ad.load(
        settings.root,
        settings.split,
        settings.cache_dir,
        settings.references,
        _skips_bad(settings),
        _max_pixels(settings),
    )
    return {split: Records(*found) for split, found in loaded.items()}


def _load_inspection(settings: ConfigDict) -> dict[str, Records]:
    loaded = inspection.load(
        settings.root,
        settings.split,
        settings.references,
        _skips_bad(settings),
        _max_pixels(settings),
    )
    return {split: Records(*found) for split, found in loaded.items()}


def _skips_bad(settings: ConfigDict) -> bool:
    # Runs of before that field stop at an image that cannot be read.
    return settings.get("skip_bad", False)


def _max_pixels(settings: ConfigDict) -> int:
    # Runs of before that field have none.
    megapixels = settings.get("max_megapixels", limits.MAX_MEGAPIXELS)
    if megapixels < 1:
        raise UsageError(f"config.data.max_megapixels: {megapixels} is below 1")
    return megapixels * 1_000_000


def _load_sample(settings: ConfigDict) -> dict[str, Records]:
    for field, least in (("sample_size", sample.MIN_SIZE), ("sample_count", 2)):
        if settings[field] < least:
            raise UsageError(f"config.data.{field}: {settings[field]} is below {least}")
    # Named as MVTec AD names its files, so that the same splits apply.
    listing = {}
    for category, defect_type, index in sample.listing(settings.sample_count):
        if defect_type == sample.GOOD:
            listing[f"{category}/train/{defect_type}/{index:03d}"] = index
            index += settings.sample_count
        listing[f"{category}/test/{defect_type}/{index:03d}"] = index
    parts = splits.parts(listing, settings.split, settings.references)
    return {
        part: _render([(i, listing[i]) for i in ids], settings.sample_size)
        for part, ids in parts.items()
        if ids
    }


def _render(listed: Sequence[tuple[str, int]], size: int) -> Records:
    """Renders the sample's images, by their ids and numbers, as they are read."""

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
        return _render([listed[position] for position in positions], size).dataset

    sizes = [(image_id, 0) for image_id, _ in listed]
    return Records(dataset.cache(), len(listed), pick, sizes)


def _load_files(
    load_files: Callable[[str, str, bool, int], folders.Loaded], settings: ConfigDict
) -> dict[str, Records]:
    loaded = load_files(
        settings.root, settings.split, _skips_bad(settings), _max_pixels(settings)
    )
    return {split: Records(*found) for split, found in loaded.items()}


SOURCES: dict[str, Callable[[ConfigDict], dict[str, Records]]] = {
    "mvtec_ad": _load_mvtec_ad,
    "inspection": _load_inspection,
    "sample": _load_sample,
    "kla": functools.partial(_load_files, kla.load),
    "pairs": functools.partial(_load_files, folders.load_pairs),
    "clean": functools.partial(_load_files, folders.load_clean),
}


def load(settings: ConfigDict) -> dict[str, Records]:
    """Loads the records that `config.data` asks for, by part.

    Those of "train" and "val"; and, where the source has any, two parts without defects that
    are in neither: "reference", to fit detectors on, and "good", to test.

    Raises:
        UsageError: for an unknown name or split, or a root without data.
    """
    if settings.name not in SOURCES:
        raise UsageError(
            f"config.data.name: no data {settings.name!r}; there are {', '.join(SOURCES)}"
        )
    return SOURCES[settings.name](settings)


def identity(sources: Mapping[str, Records]) -> dict[str, str]:
    """Tells the images that are trained on and validated on from others.

    Returns:
        Digests of their ids and of the sizes of their files, by what is digested.
    """
    listed = {part: list(sources[part].sizes) for part in ("train", "val") if part in sources}
    of_ids = {part: [image_id for image_id, _ in sizes] for part, sizes in listed.items()}
    return {
        name: hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()
        for name, what in (("names", of_ids), ("sizes", listed))
    }
