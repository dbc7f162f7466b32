"""The pairs file: degraded and clean images of a data set, ready to train on without it.

One file holds the pixels of every split, the images' names, and the settings that they were
made with. The format is safetensors, a JSON header and plain arrays, so that any program
can read it and opening a file of unknown origin cannot execute code. For each split:

  SPLIT.degraded   uint8 [K·N, S, S, 3], the first realisation of all N images, the second, …
  SPLIT.clean      uint8 [N, S, S, 3]
  SPLIT.mask       uint8 [N, S, S, 1] in {0, 1}
  SPLIT.has_mask   uint8 [N] in {0, 1}

If photographs are degraded anew in every epoch, "train" and "val" also have `native`, int32
[N, 2], their heights and widths. If the blur is fixed, "train" also has `blurred`, uint8
[N, S, S, 3]. Its `degraded` is then the realisation for evaluation. If the digital gain of
photographs is undone, every split with `degraded` has `gain`, float32 [K·N, 3], the factors
that were measured.

At native size, the photographs of "train" are padded at the bottom and right to the size of the
largest, and "train" has no `degraded`; "val" has centre crops of its photographs, no `native`,
and `context`, uint8 [N, 64, 64, 3], thumbnails of the whole degraded photographs. There are no
other splits.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from restore_jax.batches import CONTEXT, CONTEXT_SIZE, GAIN
from restore_jax.config import schema
from restore_jax.degradation import law_file
from restore_jax.errors import UsageError, one_line
from restore_jax.files import replacing

FORMAT = "restore_jax pairs"
VERSION = "1"

# The fields of config.data that the pixels depend on, besides the degradation.
_FIELDS = ("name", "split", "image_size", "resize", "realisations", "references")
_SAMPLE_FIELDS = ("sample_size", "sample_count")


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of a split: [N] names of each kind, and arrays by name."""

    ids: Sequence[str]
    categories: Sequence[str]
    defect_types: Sequence[str]
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The content of a pairs file.

    Attributes:
        path: the file.
        settings: the settings it was made with, from `settings_of`.
        images: a digest of the photographs it was made from.
        law: the fields of the degradation, none of them None.
        symmetries: the strongest `config.data.augment` that the degradation allows.
        draws: fixed realisations of each training image; 0 for a new one in every epoch.
        splits: the splits by name.
        white: the white level of the 16-bit photographs it was made from; 0 if there were none.
    """

    path: pathlib.Path
    settings: Mapping[str, Any]
    images: str
    law: Mapping[str, Any]
    symmetries: str
    draws: int
    splits: Mapping[str, Split]
    white: int = 0


def as_split(found: Mapping[str, Any]) -> Split:
    """Makes a split from its arrays and the lists "id", "category" and "defect_type"."""
    arrays = dict(found)
    names = (arrays.pop(name) for name in ("id", "category", "defect_type"))
    return Split(*names, arrays)


def batch_at(split: Split, start: int, batch_size: int) -> dict[str, np.ndarray]:
    """Returns the batch that begins at image `start`, see `batches`, with 8-bit images.

    The last batch is padded with copies of the last image, with "valid" false.
    """
    places = np.arange(start, start + batch_size)
    rows = np.minimum(places, len(split) - 1)
    extra = [name for name in (CONTEXT, GAIN) if name in split.arrays]
    images = ("degraded", "clean", "mask", *extra)
    return {
        **{name: split.arrays[name][rows] for name in images},
        "has_mask": split.arrays["has_mask"][rows] > 0,
        "valid": places < len(split),
        "category": np.array(split.categories)[rows],
        "defect_type": np.array(split.defect_types)[rows],
        "id": np.array(split.ids)[rows],
    }


def without_gain(pairs: Pairs) -> Pairs:
    """Returns pairs without their gains, for networks that take photographs as they are."""
    splits = {
        name: dataclasses.replace(
            split, arrays={key: x for key, x in split.arrays.items() if key != GAIN}
        )
        for name, split in pairs.splits.items()
    }
    return dataclasses.replace(pairs, splits=splits)


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that determine the pixels, by path, as JSON values."""
    data = config.data
    fields = (*_FIELDS, *_SAMPLE_FIELDS * (data.name == "sample"))
    settings = {f"config.data.{name}": data[name] for name in fields}
    if schema.undoes_gain(config):
        settings["config.data.undo_gain"] = True
    settings |= {
        f"config.data.degradation.{name}": value
        for name, value in law_file.resolved(data.degradation.to_dict()).items()
    }
    if data.realisations:
        settings["config.seed"] = config.seed
    return json.loads(json.dumps(settings))


def is_native(settings: Mapping[str, Any]) -> bool:
    """Returns whether a file's settings are of photographs at native size."""
    return settings.get("config.data.image_size") == 0


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Describes the first field in which two settings differ; None if they are equal."""
    for field in sorted(stored.keys() | wanted.keys()):
        if stored.get(field) != wanted.get(field):
            return (
                f"{field} is {wanted.get(field)!r}, but the file was made with "
                f"{stored.get(field)!r}"
            )
    return None


def write(
    path: pathlib.Path,
    splits: Mapping[str, Split],
    settings: Mapping[str, Any],
    images: str,
    law: Mapping[str, Any],
    symmetries: str,
    draws: int,
    white: int = 0,
) -> None:
    """Writes a pairs file atomically; the arguments are the fields of `Pairs`.

    Raises:
        UsageError: if it cannot be written.
    """
    arrays = {
        f"{split}.{name}": np.ascontiguousarray(array)
        for split, part in sorted(splits.items())
        for name, array in sorted(part.arrays.items())
    }
    names = {
        split: [list(part.ids), list(part.categories), list(part.defect_types)]
        for split, part in splits.items()
    }
    about = {
        "settings": settings, "images": images, "law": law, "symmetries": symmetries,
        "draws": draws, "white": white, "names": names, "digest": _digest(arrays),
    }  # fmt: skip
    metadata = {"format": FORMAT, "version": VERSION, "about": json.dumps(about)}
    try:
        with replacing(path) as temporary:
            safetensors.numpy.save_file(arrays, temporary, metadata)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise UsageError(f"{path}: cannot be written ({error})") from error


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a digest of the arrays in the order of the file: widest type first, then name."""
    digest = hashlib.sha256()
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        digest.update(arrays[name].data)
    return digest.hexdigest()


def read(path: pathlib.Path) -> Pairs:
    """Reads a pairs file and checks its digest.

    Raises:
        UsageError: for a file that cannot be read, is not a pairs file, is damaged, or has
            another version.
    """
    try:
        with path.open("rb"):  # raises a clearer error than the library if it cannot be read
            pass
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise _damaged(path, "not written by restore_jax")
            if metadata["version"] != VERSION:
                raise _damaged(path, f"version {metadata['version']!r:.20}, not {VERSION!r}")
            about = json.loads(metadata["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["digest"] != _digest(arrays):
            raise _damaged(path, "its digest does not match")
        splits = {
            split: _split(split, names, arrays, about["draws"], is_native(about["settings"]))
            for split, names in about["names"].items()
        }
        return Pairs(
            path=path,
            settings=dict(about["settings"]),
            images=str(about["images"]),
            law=dict(about["law"]),
            symmetries=str(about["symmetries"]),
            draws=int(about["draws"]),
            splits=splits,
            white=int(about.get("white", 0)),
        )
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise _damaged(path, one_line(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {one_line(error)}") from error


def _damaged(path: pathlib.Path, reason: str) -> UsageError:
    return UsageError(
        f"{path}: not a pairs file, or damaged ({reason}); copy it again, or delete it to have "
        "it made again on a machine with the photographs"
    )


def _split(
    split: str,
    names: Sequence[Sequence[str]],
    arrays: Mapping[str, np.ndarray],
    draws: int,
    native: bool,
) -> Split:
    ids, categories, defect_types = names
    found = {
        name.removeprefix(f"{split}."): array
        for name, array in arrays.items()
        if name.startswith(f"{split}.")
    }
    count, side = len(ids), found["clean"].shape[1]
    realisations = max(1, draws) if split == "train" else 1
    expected = {
        "degraded": (realisations * count, side, side, 3),
        "clean": (count, side, side, 3),
        "blurred": (count, side, side, 3),
        "mask": (count, side, side, 1),
        "has_mask": (count,),
        "native": (count, 2),
        CONTEXT: (count, CONTEXT_SIZE, CONTEXT_SIZE, 3),
        GAIN: (realisations * count, 3),
    }
    required = {"degraded", "clean", "mask", "has_mask"}
    if split == "train" and not draws:
        required.add("native")
        if native:
            required.remove("degraded")
    if not required <= found.keys() or len(categories) != count or len(defect_types) != count:
        raise ValueError(f"{split} is incomplete")
    for name, array in found.items():
        dtype = {"native": np.int32, GAIN: np.float32}.get(name, np.uint8)
        if array.shape != expected[name] or array.dtype != dtype:
            raise ValueError(
                f"{split}.{name} is {array.dtype} {array.shape}, not "
                f"{np.dtype(dtype)} {expected[name]}"
            )
    return Split(list(ids), list(categories), list(defect_types), found)
