"""The file of pairs: what a data set's photographs became, ready to train on without it.

One file holds the 8-bit pixels of every split, the images' names, and the settings that they
were made with. The format is safetensors, a JSON header and plain arrays, so that any program
can read it and opening one of unknown origin cannot run anything. By split:

  SPLIT.degraded   uint8 [K·N, S, S, 3], the K draws of each image one after the other
  SPLIT.clean      uint8 [N, S, S, 3]
  SPLIT.mask       uint8 [N, S, S, 1] in {0, 1}
  SPLIT.has_mask   uint8 [N] in {0, 1}

Where photographs are degraded anew for every epoch, "train" has also `native`, int32 [N, 2],
their heights and widths, and `blurred`, uint8 [N, S, S, 3], where the blur is always the same;
`degraded` is then the draw of evaluation. "val" has `native` as well.

Photographs of their native size lie in the upper left corner of arrays that fit the largest of
"train", which has no `degraded`; "val" has the middles of its photographs, and `context`, uint8
[N, 64, 64, 3], the thumbnails of the whole degraded ones. There are no other splits.
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

from restore_jax.batches import CONTEXT, CONTEXT_SIZE
from restore_jax.degradation import law_file
from restore_jax.errors import UsageError
from restore_jax.files import replacing

FORMAT = "restore_jax pairs"
VERSION = "1"

# What the pixels depend on, besides the photographs.
_FIELDS = ("name", "split", "image_size", "resize", "realisations", "references")
_SAMPLE_FIELDS = ("sample_size", "sample_count")


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of a split, [N] each, and their arrays by name."""

    ids: Sequence[str]
    categories: Sequence[str]
    defect_types: Sequence[str]
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a file holds.

    Attributes:
        path: the file.
        settings: of `settings_of` as it was made.
        images: a digest of the photographs that it was made of.
        law: the fields of the degradation, none of them None.
        symmetries: the value of `config.data.augment` that the law allows at most.
        draws: fixed draws of each image of training; 0: a new one in every epoch.
        splits: by name.
    """

    path: pathlib.Path
    settings: Mapping[str, Any]
    images: str
    law: Mapping[str, Any]
    symmetries: str
    draws: int
    splits: Mapping[str, Split]


def as_split(found: Mapping[str, Any]) -> Split:
    """Returns the split of its arrays and of the lists "id", "category" and "defect_type"."""
    arrays = dict(found)
    names = (arrays.pop(name) for name in ("id", "category", "defect_type"))
    return Split(*names, arrays)


def batch_at(split: Split, start: int, batch_size: int) -> dict[str, np.ndarray]:
    """Returns the images from a place on, as `batches` has them, but of 8 bits as they are.

    The last batch is filled up with copies of the last image, which are not valid.
    """
    places = np.arange(start, start + batch_size)
    rows = np.minimum(places, len(split) - 1)
    images = ("degraded", "clean", "mask", *([CONTEXT] if CONTEXT in split.arrays else []))
    return {
        **{name: split.arrays[name][rows] for name in images},
        "has_mask": split.arrays["has_mask"][rows] > 0,
        "valid": places < len(split),
        "category": np.array(split.categories)[rows],
        "defect_type": np.array(split.defect_types)[rows],
        "id": np.array(split.ids)[rows],
    }


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields that decide over pixels, by their paths, as JSON has them."""
    data = config.data
    fields = (*_FIELDS, *_SAMPLE_FIELDS * (data.name == "sample"))
    settings = {f"config.data.{name}": data[name] for name in fields}
    settings |= {
        f"config.data.degradation.{name}": value
        for name, value in law_file.resolved(data.degradation.to_dict()).items()
    }
    if data.realisations:
        settings["config.seed"] = config.seed
    return json.loads(json.dumps(settings))


def is_native(settings: Mapping[str, Any]) -> bool:
    """Tells of a file's settings whether its photographs are of their native size."""
    return settings.get("config.data.image_size") == 0


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Names the first field in which two settings differ; None where they are the same."""
    for field in sorted(stored.keys() | wanted.keys()):
        if stored.get(field) != wanted.get(field):
            return (
                f"{field} is {wanted.get(field)!r}, and it was made with {stored.get(field)!r}"
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
) -> None:
    """Writes a file of pairs, whole or not at all; the arguments are the fields of `Pairs`.

    Raises:
        UsageError: where it cannot be written.
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
        "draws": draws, "names": names, "digest": _digest(arrays),
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
    """Digests the arrays, wide types first and then by name, as they lie in the file."""
    digest = hashlib.sha256()
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        digest.update(arrays[name].data)
    return digest.hexdigest()


def read(path: pathlib.Path) -> Pairs:
    """Reads a file of pairs and checks it by its digest.

    Raises:
        UsageError: for a file that cannot be read, is none of these, is damaged, or of another
            version.
    """
    try:
        with path.open("rb"):  # says better than the library why it cannot be read
            pass
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise _damaged(path, "it is of another program")
            if metadata["version"] != VERSION:
                raise _damaged(path, f"version {metadata['version']!r} and not {VERSION!r}")
            about = json.loads(metadata["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["digest"] != _digest(arrays):
            raise _damaged(path, "its digest is another")
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
        )
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: pathlib.Path, reason: str) -> UsageError:
    reason = " ".join(reason.split())[:200]
    return UsageError(
        f"{path}: no file of pairs, or a damaged one ({reason}); copy it again, or delete it "
        "and it is made anew where the photographs are"
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
    of_training = max(1, draws) if split == "train" else 1
    expected = {
        "degraded": (of_training * count, side, side, 3),
        "clean": (count, side, side, 3),
        "blurred": (count, side, side, 3),
        "mask": (count, side, side, 1),
        "has_mask": (count,),
        "native": (count, 2),
        CONTEXT: (count, CONTEXT_SIZE, CONTEXT_SIZE, 3),
    }
    required = {"degraded", "clean", "mask", "has_mask"}
    if split == "train" and not draws:
        required.add("native")
        if native:
            required.remove("degraded")
    if not required <= found.keys() or len(categories) != count or len(defect_types) != count:
        raise ValueError(f"{split} is not complete")
    for name, array in found.items():
        dtype = np.int32 if name == "native" else np.uint8
        if array.shape != expected[name] or array.dtype != dtype:
            raise ValueError(
                f"{split}.{name} is {array.dtype} {array.shape} and not "
                f"{np.dtype(dtype)} {expected[name]}"
            )
    return Split(list(ids), list(categories), list(defect_types), found)
