"""A compact file of pairs, easy to transfer: a zip archive of the clean photographs.

A plain file of pairs (`restore_jax.train.on_device.pairs_file`) holds every photograph three
times and uncompressed: 200 MB for 314 photographs at 256×256. Here each is stored once, as
WebP, and everything that can be recomputed from it is left out:

- `blurred`, if the blur is fixed, is `working_size.blur` of the clean photograph; it differs
  from that of the plain file, blurred at native size, by 0.2 grey levels (60 dB).
- `degraded` of "train" is drawn within the training step, so only files with fresh draws
  (`realisations=0`) can be made compact.
- `degraded` of "val" is stored exactly if the file is lossless, so that metrics are measured on
  the same images as in an evaluation. If the file is lossy, it is not stored, since its noise
  would take more space than everything else; it is drawn by `working_size.degrade` with fixed
  keys. Metrics are then measured on other draws of the same law, and on photographs with
  compression losses.

Native photographs lie in the upper left corner of arrays that fit the largest one. Their file
is always lossy, and for "val" a central crop of each is degraded, with the thumbnail of the
whole photograph, so that all have the same shape.

Reading needs Pillow and JAX, no TensorFlow.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from restore_jax.batches import GAIN
from restore_jax.degradation import native_size, working_size
from restore_jax.errors import UsageError
from restore_jax.files import replacing
from restore_jax.train.on_device import crops, pairs_file, shrinking
from restore_jax.train.on_device.pairs_file import Pairs, Split

FORMAT = "restore_jax compact pairs"
VERSION = 1

_ABOUT = "about.json"
# The fields of `Pairs` that are stored unchanged.
_FIELDS = ("settings", "images", "law", "symmetries", "draws")
# Images per call of the programs that blur or degrade; more would take too much memory.
_CHUNK = 16
_VALIDATION_SEED = 20_240_613


def write(pairs: Pairs, path: pathlib.Path, quality: int | None = None) -> None:
    """Writes the photographs of "train" and "val" to a compact file, atomically.

    Args:
        pairs: pairs with fresh draws (`pairs.draws` 0).
        path: the zip archive to write.
        quality: WebP quality, 0 to 100; None: lossless.

    Raises:
        UsageError: the pairs have fixed draws, or the file cannot be written.
    """
    if pairs.draws:
        raise UsageError(
            f"{pairs.path}: has {pairs.draws} fixed draws of each photograph; only pairs made "
            "with config.data.realisations=0 become compact"
        )
    for name in ("train", "val"):
        if "native" not in pairs.splits[name].arrays:
            raise UsageError(
                f"{pairs.path}: an earlier version made it, without the sizes of the "
                "photographs; delete it, and it is made anew"
            )
    if pairs_file.is_native(pairs.settings) and quality is None:
        raise UsageError(
            "--quality: photographs of their native size are not stored losslessly"
        )
    encode = functools.partial(_encode, quality=quality)
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION, "quality": quality}
    about |= {name: getattr(pairs, name) for name in _FIELDS}
    about["splits"] = {name: _described(pairs.splits[name]) for name in ("train", "val")}
    try:
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            archive.writestr(_ABOUT, json.dumps(about))
            for name in ("train", "val"):
                arrays = pairs.splits[name].arrays
                kinds = ["clean"] + ["degraded"] * (name == "val" and quality is None)
                for kind in kinds:
                    images = [*arrays[kind]]
                    if pairs_file.is_native(pairs.settings):
                        sizes = arrays["native"]
                        images = [x[:h, :w] for x, (h, w) in zip(images, sizes, strict=True)]
                    for number, content in enumerate(pool.map(encode, images)):
                        archive.writestr(_entry(name, kind, number), content)
                masks = np.packbits(arrays["mask"] > 0).tobytes()
                archive.writestr(f"{name}/mask", zlib.compress(masks, 9))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def _described(split: Split) -> dict[str, Any]:
    return {
        "ids": list(split.ids),
        "categories": list(split.categories),
        "defect_types": list(split.defect_types),
        "has_mask": split.arrays["has_mask"].tolist(),
        "native": split.arrays["native"].tolist(),
        **{name: array.tolist() for name, array in split.arrays.items() if name == GAIN},
        "size": int(split.arrays["clean"].shape[1]),
    }


def _entry(split: str, kind: str, number: int) -> str:
    return f"{split}/{kind}/{number:05d}.webp"


def _encode(image: np.ndarray, quality: int | None) -> bytes:
    """Encodes uint8 [H, W, 3] as WebP; lossless if `quality` is None."""
    file = io.BytesIO()
    how: dict[str, Any] = {"lossless": True, "quality": 60}
    if quality is not None:
        how = {"quality": quality}
    Image.fromarray(image).save(file, "WEBP", method=4, **how)
    return file.getvalue()


class About(NamedTuple):
    """The side length of a file's images in px (0: native), and their numbers by split."""

    size: int
    train: int
    val: int


def check(path: pathlib.Path) -> About:
    """Checks a file without decoding its images; verifies the checksums of all entries.

    Raises:
        UsageError: as `read`.
    """
    with _opened(path) as archive:
        about = _about(archive)
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is another than was written")
        train, val = (about["splits"][name] for name in ("train", "val"))
        size = 0 if pairs_file.is_native(about["settings"]) else int(train["size"])
        return About(size, len(train["ids"]), len(val["ids"]))


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"{path}: no compact file of pairs, or a damaged one ({reason}); copy it again, or "
            "make it anew with python -m benchmarks.make_pairs"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _about(archive: zipfile.ZipFile) -> dict[str, Any]:
    about = json.loads(archive.read(_ABOUT))
    if (about["format"], about["version"]) != (FORMAT, VERSION):
        raise ValueError(f"{about['format']!r}, version {about['version']!r}")
    return about


def read(path: pathlib.Path) -> tuple[Pairs, bool]:
    """Reads a compact file into memory.

    Returns:
        The pairs, with their arrays in memory; "train" has no `degraded`, which is drawn within
        the training step. And whether the photographs are bit-identical to the pipeline's.

    Raises:
        UsageError: the file cannot be read, is not a compact file of pairs, or is damaged.
    """
    with _opened(path) as archive:
        about = _about(archive)
        contents = {name: archive.read(name) for name in archive.namelist()}
        splits = {
            name: _read_split(name, described, contents, about["quality"] is None)
            for name, described in about["splits"].items()
        }
        if pairs_file.is_native(about["settings"]):
            splits["val"] = cropped(splits["val"], about["law"])
        else:
            resize = about["settings"].get("config.data.resize", "bilinear")
            _derive(splits, about["law"], resize)
    fields = {name: about[name] for name in _FIELDS}
    return Pairs(path=path, splits=splits, **fields), about["quality"] is None


def _read_split(
    name: str, described: Mapping[str, Any], contents: Mapping[str, bytes], lossless: bool
) -> Split:
    count, size = len(described["ids"]), described["size"]

    def images(kind: str) -> np.ndarray:
        encoded = [contents[_entry(name, kind, number)] for number in range(count)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            decoded = crops.pad_to_square(list(pool.map(_decode, encoded)), size)
        if decoded.shape != (count, size, size, 3):
            raise ValueError(f"{name}/{kind} is {decoded.shape}")
        return decoded

    bits = np.frombuffer(zlib.decompress(contents[f"{name}/mask"]), np.uint8)
    pixels = np.unpackbits(bits, count=count * size * size)
    arrays = {
        "clean": images("clean"),
        "mask": pixels.reshape(count, size, size, 1),
        "has_mask": np.array(described["has_mask"], np.uint8),
        "native": np.array(described["native"], np.int32).reshape(count, 2),
    }
    if lossless and name == "val":
        arrays["degraded"] = images("degraded")
        if GAIN in described:
            arrays[GAIN] = np.array(described[GAIN], np.float32).reshape(count, 3)
    names = (described["ids"], described["categories"], described["defect_types"])
    return Split(*names, arrays)


def cropped(split: Split, fields: Mapping[str, Any]) -> Split:
    """Returns central crops of native photographs, degraded with fixed keys.

    Args:
        split: with the arrays "clean", "mask", "has_mask" and "native".
        fields: the fields of the degradation law.

    Returns:
        The split of the crops, with "degraded" and, if the law allows to draw thumbnails, with
        these.
    """
    arrays = {name: split.arrays[name] for name in ("clean", "mask", "has_mask", "native")}
    side = crops.validation_side(arrays["native"])
    try:
        whole = working_size.from_fields(fields, blurred=False)
    except UsageError:
        whole = None
    plan = crops.SamplingPlan(
        seed=_VALIDATION_SEED,
        images=len(split),
        crops_per_image=1,
        batch_size=1,
        crop_size=side,
        augment="none",
        recolours=False,
        shrink=shrinking.UNCHANGED,
        law=native_size.from_fields(fields),
        undo_gain=True,
        whole=whole,
    )
    if whole is not None:
        arrays |= crops.thumbnail_inputs(arrays["clean"], arrays["native"])
    inputs = jax.device_put(arrays)

    @jax.jit
    def draw(number: jax.Array) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(_VALIDATION_SEED), number)
        size = inputs["native"][number]
        start = (size - side) // 2
        gain = native_size.draw_gain(key, plan.law)
        return crops.draw_crop(inputs, plan, key, number, size, start) | {GAIN: gain}

    drawn = [jax.device_get(draw(number)) for number in range(len(split))]
    found = {name: np.stack([crop[name] for crop in drawn]) for name in drawn[0]}
    found["has_mask"] = arrays["has_mask"]
    return dataclasses.replace(split, arrays=found)


def _decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _derive(splits: Mapping[str, Split], fields: Mapping[str, Any], resize: str) -> None:
    """Adds the arrays that are not stored: "blurred", and "degraded" of "val"."""
    for name, split in splits.items():
        arrays: Any = split.arrays
        size = arrays["clean"].shape[1]
        ratio = (size / arrays["native"]).astype(np.float32)
        source = arrays["clean"]
        fixed = all(fields[name][0] == fields[name][1] for name in ("sigma_x", "sigma_y"))
        blurs = set(fields["blur"]) == {"gaussian"} and fixed
        if blurs:
            widths = np.array([fields["sigma_y"][0], fields["sigma_x"][0]], np.float32)
            source = _in_chunks(_blurred, source, ratio * widths)
        if name == "train":
            if blurs:
                arrays["blurred"] = source
        elif "degraded" not in arrays:
            drawn = working_size.from_fields(fields, blurred=blurs)
            shapes = [(int(height), int(width)) for height, width in arrays["native"]]
            keys = np.arange(len(source))
            arrays[GAIN] = _in_chunks(functools.partial(_gain, drawn=drawn), keys)
            arrays["degraded"] = _in_chunks(
                functools.partial(_degraded, drawn=drawn),
                keys,
                source,
                working_size.correlations(shapes, size, resize),
                ratio,
            )


def _blurred(image: jax.Array, sigmas: jax.Array) -> jax.Array:
    blurred = working_size.blur(image.astype(jnp.float32), sigmas[0], sigmas[1])
    return jnp.clip(jnp.round(blurred), 0.0, 255.0).astype(jnp.uint8)


def _gain(number: jax.Array, drawn: working_size.StepLaw) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(_VALIDATION_SEED), number)
    return working_size.draw_gain(key, drawn.gain)


def _degraded(
    number: jax.Array,
    image: jax.Array,
    factors: jax.Array,
    ratio: jax.Array,
    drawn: working_size.StepLaw,
) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(_VALIDATION_SEED), number)
    return working_size.degrade(key, image, factors, ratio, drawn)


def _in_chunks(function: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
    """Applies a function to each image and its arguments, in chunks of `_CHUNK`."""
    program = jax.jit(jax.vmap(function))
    count, found = len(arrays[0]), []
    for start in range(0, count, _CHUNK):
        # Padded with the last row, so that all chunks have one shape and compile once.
        rows = np.minimum(np.arange(start, start + _CHUNK), count - 1)
        found.append(np.asarray(program(*(array[rows] for array in arrays))))
    return np.concatenate(found)[:count]
