"""Exports the pairs of every split as arrays, for training runs that keep them on the device.

All arrays are made by the host's pipeline, so that their pixels are identical to its own.
`restore_jax.train.on_device.pairs_file` documents the arrays.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data import batching, pairs, pipeline, records, resize
from data.sources import images
from data.vgg16 import load_loss_params
from restore_jax import batches, progress
from restore_jax.degradation import definition
from restore_jax.errors import UsageError
from restore_jax.train.on_device import crops

Arrays = dict[str, np.ndarray]

__all__ = ["Realised", "load", "load_loss_params", "whole"]


class Realised(NamedTuple):
    """The data of a configuration, whose arrays are made on demand.

    Attributes:
        images: digest of all photographs.
        law: the fields of the degradation.
        symmetries: the augmentation that the law allows, see `definition.symmetries`.
        draws: number of fixed draws per training photograph; 0: a new draw in every epoch.
        white: the white level of the 16-bit photographs; 0 if there are none.
        realise: makes the arrays of each split, with lists of "id", "category" and
            "defect_type"; takes as long as one or a few epochs of the pipeline.
    """

    images: str
    law: dict[str, Any]
    symmetries: str
    draws: int
    white: int
    realise: Callable[[], dict[str, dict[str, Any]]]


def load(config: ConfigDict) -> Realised:
    """Reads the photographs of a configuration once and describes the data made of them.

    Raises:
        UsageError: a field is invalid, or the data cannot be kept in device memory.
    """
    if not config.data.image_size and config.data.realisations:
        raise UsageError(
            "config.data.resident: crops of native photographs are degraded anew at each step; "
            "set config.data.realisations=0, or config.data.resident=False"
        )
    if config.data.name == "shots":
        raise UsageError(
            "config.data.resident: shots are drawn by the host in every epoch; set it to False"
        )
    config, law, sources = pipeline.load(config)
    if not sources["train"].count:
        raise UsageError(
            f"config.data.root={config.data.root!r}: holds no images to train on; it can be "
            "evaluated with config.data.resident=False"
        )
    return Realised(
        _digest(sources),
        dataclasses.asdict(law),
        definition.symmetries(law),
        config.data.realisations,
        sources["train"].white,
        functools.partial(_splits, sources, config, law),
    )


def whole(config: ConfigDict) -> batches.Data:
    """Returns the data of the host's pipeline, which evaluates whole native photographs."""
    return pipeline.make_data(config)


def _splits(
    sources: dict[str, records.Records], config: ConfigDict, law: definition.Law
) -> dict[str, dict[str, Any]]:
    make_pair = pairs.pair_maker(config.data, law)  # one for all splits: tracing takes a second
    if not config.data.image_size:
        return {
            name: _native_split(name, sources[name], config, make_pair)
            for name in ("train", "val")
        }
    found = {name: _split(name, source, config, make_pair) for name, source in sources.items()}
    if not config.data.realisations:
        found["train"] |= _fixed_blur(sources["train"], config.data, law)
    return found


def _digest(sources: dict[str, records.Records]) -> str:
    """Returns a digest of all encoded photographs and their names."""
    digest = hashlib.sha256()
    for split, source in sorted(sources.items()):
        digest.update(split.encode())
        for record in batching.as_numpy(source.dataset):
            for name in ("id", "image", "mask", "degraded"):
                if name in record:
                    digest.update(len(record[name]).to_bytes(8, "little") + record[name])
    return digest.hexdigest()


def _split(
    split: str, source: records.Records, config: ConfigDict, make_pair: pairs.MakePair
) -> dict[str, Any]:
    """Makes the arrays of a split at the working size, as the host's pipeline does."""
    settings, count, side = config.data, source.count, config.data.image_size
    trained = split == "train" and settings.realisations > 0
    if split == "reference":
        draws = [pairs.clean_pairs(source.dataset, settings)]
    else:
        seed = config.seed if trained else pipeline.EVAL_SEED
        draws = [
            pairs.realise(source.dataset, make_pair, seed, draw)
            for draw in range(settings.realisations if trained else 1)
        ]
    found: dict[str, Any] = {
        "degraded": np.empty((len(draws) * count, side, side, 3), np.uint8),
        "clean": np.empty((count, side, side, 3), np.uint8),
        "mask": np.empty((count, side, side, 1), np.uint8),
        "has_mask": np.empty(count, np.uint8),
    }
    if gains := settings.get("undo_gain", False) and split != "reference":
        found[batches.GAIN] = np.empty((len(draws) * count, 3), np.float32)
    names = ("id", "category", "defect_type")
    found |= {name: [] for name in names}
    for number, draw in enumerate(draws):
        for i, pair in enumerate(_with_progress(draw, count, f"{settings.name}, {split}")):
            found["degraded"][number * count + i] = pair["degraded"]
            if gains:
                found[batches.GAIN][number * count + i] = pair[batches.GAIN]
            if number == 0:
                for name in ("clean", "mask", "has_mask"):
                    found[name][i] = pair[name]
                for name in names:
                    found[name].append(pair[name].decode())
    if split in ("train", "val") and not settings.realisations:
        found["native"] = _native_sizes(source)
    return found


def _native_split(
    split: str, source: records.Records, config: ConfigDict, make_pair: pairs.MakePair
) -> dict[str, Any]:
    """Returns the native photographs of "train", or central crops of those of "val"."""
    if split == "train":
        return native_photographs(split, source, config)
    settings = config.data
    realised = pairs.realise(source.dataset, make_pair, pipeline.EVAL_SEED, 0)
    rows = list(_with_progress(realised, source.count, f"{settings.name}, {split}"))
    found = _metadata(rows)
    side = crops.validation_side(found.pop("native"))
    for name in ("degraded", "clean", "mask"):
        found[name] = np.stack([_central_crop(row[name], side) for row in rows])
    found[batches.CONTEXT] = np.stack([_thumbnail(row["degraded"]) for row in rows])
    if settings.get("undo_gain", False):
        found[batches.GAIN] = np.stack([row[batches.GAIN] for row in rows])
    return found


def native_photographs(
    split: str, source: records.Records, config: ConfigDict
) -> dict[str, Any]:
    """Returns the photographs of a split, padded to one size as `pairs_file` describes."""
    whole_pairs = pairs.clean_pairs(source.dataset, config.data)
    rows = list(_with_progress(whole_pairs, source.count, f"{config.data.name}, {split}"))
    found = _metadata(rows)
    side = int(found["native"].max())
    for name in ("clean", "mask"):
        found[name] = crops.pad_to_square([row[name] for row in rows], side)
    return found


def _metadata(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns everything about native pairs but their pixels."""
    names = ("id", "category", "defect_type")
    found: dict[str, Any] = {name: [row[name].decode() for row in rows] for name in names}
    found["has_mask"] = np.array([row["has_mask"] for row in rows], np.uint8)
    found["native"] = np.array([row["clean"].shape[:2] for row in rows], np.int32)
    return found


def _central_crop(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _thumbnail(image: np.ndarray) -> np.ndarray:
    shrunk = resize.resize(image, batches.CONTEXT_SIZE, "bilinear").numpy()
    return np.clip(np.round(shrunk), 0, 255).astype(np.uint8)


def _native_sizes(source: records.Records) -> np.ndarray:
    """Returns the heights and widths of the photographs, int32 [N, 2]."""
    shapes = source.dataset.map(
        pairs.as_written(lambda record: tf.shape(images.decode(record["image"], 3))[:2]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return np.stack(list(batching.as_numpy(shapes))).astype(np.int32)


def _fixed_blur(source: records.Records, settings: ConfigDict, law: definition.Law) -> Arrays:
    """Returns the blurred photographs if their blur is constant, else nothing.

    The draws within a training step then only add noise and gain to them.
    """
    fixed = all(low == high for low, high in (law.sigma_x, law.sigma_y))
    if set(law.blur) != {"gaussian"} or not fixed:
        return {}
    only_blur = definition.Law(law.blur, law.sigma_x, law.sigma_y)
    blurred = pairs.realise(source.dataset, pairs.pair_maker(settings, only_blur), 0, 0)
    rows = _with_progress(blurred, source.count, f"{settings.name}, blurred")
    return {"blurred": np.stack([pair["degraded"] for pair in rows])}


def _with_progress(dataset: tf.data.Dataset, count: int, name: str) -> Iterator[dict[str, Any]]:
    """Iterates over pairs with a progress bar on stderr."""
    yield from progress.bar(
        batching.as_numpy(dataset), total=count, title=f"{name}: prepared for the device"
    )
