"""MVTec AD as records: prepared once on disk, then read in the order of the ids."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from data.sources import bad_files, images, splits
from data.sources.mvtec_ad import source
from data.sources.mvtec_ad.mvtec_ad_dataset_builder import Builder, unreadable
from restore_jax import files
from restore_jax.errors import RunError, UsageError, one_line
from restore_jax.image_io.photograph import Levels, common_white

# Small shards, so that a subset of the photographs can be read without reading the others.
_SHARD_BYTES = 32 << 20
# The fields of `data.records.Records`: the dataset, the number of records, a function that
# picks records by position, the id of each record with the size of its files in bytes, and the
# white level.
Part = tuple[
    tf.data.Dataset,
    int,
    Callable[[Sequence[int]], tf.data.Dataset],
    Sequence[tuple[str, int]],
    int,
]

_DISK_FACTOR = 1.1  # disk space for the prepared data, as a multiple of the data set's size


def load(
    root: str,
    split: str = "defects",
    cache_dir: str | None = None,
    references: int = 0,
    skip_bad: bool = False,
    max_pixels: int = images.MAX_PIXELS,
    white: int = 0,
) -> dict[str, Part]:
    """Reads MVTec AD for training and evaluation.

    The first call for a data set checks its files and copies them, undecoded, into a folder of
    the cache that is specific to its content (names, sizes and modification times), so that
    another or a changed data set never uses outdated records. The copy takes as much disk space
    as the data set and may be deleted at any time. Later calls only list the data set's files.
    Several processes may call concurrently: one prepares and the others wait for it.

    Args:
        root: `config.data.root`: the extracted data set or its archives (`source.find`).
        split: `config.data.split`: `defects`, `good` or `all` (`splits.divide`).
        cache_dir: folder for prepared data; None: `restore_jax/tfds` in the user's cache folder
            (`$XDG_CACHE_HOME`, else `~/.cache`).
        references: `config.data.references` (`splits.parts`).
        skip_bad: `config.data.skip_bad`: leaves out photographs with an unreadable file, after
            the split, and prints their number. The data prepared without them have their own
            folder in the cache.
        max_pixels: maximum number of pixels per file, from `config.data.max_megapixels`.
        white: `config.data.white`, the white level of 16-bit photographs; 0: found from the
            highest level of all of them, which is printed.

    Returns:
        For each non-empty list of `splits.parts` (`train` and `val` always are), the fields of
        `data.records.Records`, in the order of the ids. A record is a dict of scalars: `image`
        and `mask`, encoded PNG files; `has_mask`, bool, whether the mask is known (for
        photographs without defects it is known to be empty); `id`, `category` and
        `defect_type`, strings.

    Raises:
        UsageError: the split is unknown, there is no MVTec AD at `root` or it has no
            photographs for the split, a file cannot be decoded, or the cache is not writable.
        RunError: the preparation failed, for example because the disk is full.
    """
    splits.check_split(split)
    found = source.find(root, max_pixels)
    folder = _cache(cache_dir) / f"mvtec_ad-{found.fingerprint()[:16]}"
    with _quiet():
        builder = _prepared(folder)
    if builder is not None and (problem := _too_large(builder, max_pixels)):
        if not skip_bad:
            raise UsageError(problem)
        builder = None
    if builder is None and skip_bad:
        builder = _prepare_readable(root, found, folder, max_pixels)
    if builder is None:
        builder = _prepare(root, found, folder, max_pixels)

    left_out = builder.info.metadata.get("left_out", {})
    ids = builder.info.metadata["ids"]
    positions = {
        example: (name, position)
        for name, members in ids.items()
        for position, example in enumerate(members)
    }
    bad_files.report("mvtec_ad", list(left_out.values()), len(positions) + len(left_out))
    white = _white_level(builder.info.metadata["highest"], white)
    blank = builder.info.metadata.get("blank_masks", [])
    bad_files.report_blank("mvtec_ad", blank, sum(_is_defective(i) for i in positions))
    # Split including those left out, so that the others stay in the same part.
    parts = splits.parts([*positions, *left_out], split, references)
    _check_split_not_empty(parts["train"], parts["val"], split, root)
    parts = {part: [i for i in of if i not in left_out] for part, of in parts.items()}
    for part in ("train", "val"):
        if not parts[part]:
            raise UsageError(
                f"config.data.root={root!r} with config.data.split={split!r}: none of the"
                f" photographs for {part} can be read: download them again"
            )
    with _quiet():
        return {
            part: _record_fields(builder, members, positions, white)
            for part, members in parts.items()
            if members
        }


def _too_large(builder: Builder, max_pixels: int) -> str | None:
    """Returns what is wrong with the largest photograph; None if it is within the limit."""
    count, where = builder.info.metadata["largest"]
    if count <= max_pixels:
        return None
    needed = -(-count // 1_000_000)
    return (
        f"{where}: has {count:,} pixels, more than {max_pixels / 1e6:g} megapixels; "
        f"config.data.max_megapixels={needed} allows it"
    )


def _white_level(highest: int, given: int) -> int:
    """Returns the white level of photographs whose highest 16-bit level is given."""
    if not highest or given >= highest:
        return given if highest else 0
    if given:
        raise UsageError(
            f"config.data.white: {given:,} is below the levels of mvtec_ad, which reach "
            f"{highest:,}"
        )
    white, how = common_white([Levels("", None, highest)])
    print(f"mvtec_ad: its 16-bit images {how}")
    return white


def _prepare_readable(
    root: str, found: source.Tree | source.Archives, folder: Path, max_pixels: int
) -> Builder | None:
    """Prepares the readable part of a damaged data set; None if nothing is damaged."""
    # The limit decides which photographs are left out.
    folder = folder.with_name(f"{folder.name}-readable-{max_pixels}")
    with _quiet():
        builder = _prepared(folder)
    if builder is None and (left_out := unreadable(found, max_pixels)):
        readable = source.Readable(found, left_out)
        if not readable.photographs:
            raise UsageError(
                f"config.data.root={root!r}: none of its photographs can be read, the first is"
                f" {min(left_out.values())}"
            )
        builder = _prepare(root, readable, folder, max_pixels)
    return builder


def _check_split_not_empty(train: list[str], val: list[str], split: str, root: str) -> None:
    """Refuses a data set if the split leaves nothing to train on or to validate on."""
    where = f"config.data.root={root!r} with config.data.split={split!r}"
    if split == "good" and not train:
        raise UsageError(
            f"{where}: there are no photographs in <category>/train/good to train on:"
            " add them, or choose another split (defects, all)"
        )
    if (split == "good" and not val) or (split == "defects" and not train):
        raise UsageError(
            f"{where}: there are no defective photographs (<category>/test/<defect type>):"
            " add them, or train on all photographs with config.data.split=all"
        )
    if not val:
        raise UsageError(
            f"{where}: no category has two photographs, one for training and one for"
            " validation: add photographs"
        )


def _is_defective(example: str) -> bool:
    return splits.defect_type(example) != "good"


def _cache(cache_dir: str | None) -> Path:
    if cache_dir:
        return Path(cache_dir).expanduser()
    return files.cache_folder() / "tfds"


def _prepared(folder: Path) -> Builder | None:
    """Returns the builder of the data prepared in a folder; None if they are incomplete."""
    if not (folder / Builder.name / str(Builder.VERSION) / "dataset_info.json").exists():
        return None
    builder = Builder(data_dir=files.plain_path(folder))
    shards = [path for part in builder.info.splits.values() for path in part.filepaths]
    complete = shards and builder.is_prepared() and all(path.exists() for path in shards)
    return builder if complete else None


def _prepare(root: str, found: source.Source, folder: Path, max_pixels: int) -> Builder:
    """Prepares the data set in a folder, unless another process has done so meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise UsageError(
            f"{folder}: prepared data cannot be saved there ({error.strerror}):"
            " choose another cache folder"
        ) from error
    with lock:
        alone = _locked(lock)
        with _quiet():
            if builder := _prepared(folder):
                return builder
        version = folder / Builder.name / str(Builder.VERSION)
        # Remains of a killed process, or of prepared data that were partly deleted. Data of
        # another version of the builder stay: a running training may be reading them.
        remains = version.parent.glob(f"incomplete.*_{version.name}") if alone else ()
        for path in (version, *remains):
            shutil.rmtree(path, ignore_errors=True)
        free, needed = shutil.disk_usage(folder).free, _DISK_FACTOR * found.bytes
        if free < needed:
            raise UsageError(
                f"{folder}: {free / 1e9:.1f} GB are free and preparing mvtec_ad takes about"
                f" {needed / 1e9:.1f} GB: make room or choose another cache folder"
            )
        print(
            f"preparing mvtec_ad from {root} ({found.summary}) in {folder} ...", file=sys.stderr
        )
        with _quiet():
            builder = Builder(
                root=found, max_pixels=max_pixels, data_dir=files.plain_path(folder)
            )
            try:
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(
                        try_download_gcs=False, num_shards=_shards(found)
                    )
                )
            # TensorFlow Datasets turns some of these errors into a RuntimeError.
            except (OSError, tf.errors.OpError, RuntimeError) as error:
                # Without working locks, another process may have finished first.
                builder = _prepared(folder)
                if builder is None:
                    reason = one_line(error, 300)
                    raise RunError(f"{folder}: preparing mvtec_ad failed: {reason}") from error
        return builder


def _locked(file: IO[str]) -> bool:
    """Waits for the exclusive lock; returns False if the file system does not support locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _shards(found: source.Source) -> int:
    """Returns the number of shards per split, none of which may be empty."""
    per_split = collections.Counter(p.split for p in found.photographs)
    return max(1, min(found.bytes // _SHARD_BYTES, *per_split.values()))


def _record_fields(
    builder: Builder,
    ids: Sequence[str],
    position_of: Mapping[str, tuple[str, int]],
    white: int,
) -> Part:
    positions = [position_of[example] for example in ids]
    taken = builder.info.metadata["bytes"]
    sizes = [taken[name][position] for name, position in positions]

    def pick(chosen: Sequence[int]) -> tf.data.Dataset:
        with _quiet():
            return _read(builder, [positions[i] for i in chosen], white)

    dataset = _read(builder, positions, white)
    return dataset, len(ids), pick, list(zip(ids, sizes, strict=True)), white


def _read(builder: Builder, positions: list[tuple[str, int]], white: int) -> tf.data.Dataset:
    """Reads records by split and position, in the order given."""
    runs: list[list[Any]] = []
    for name, position in positions:
        if runs and runs[-1][0] == name and runs[-1][2] == position:
            runs[-1][2] = position + 1
        else:
            runs.append([name, position, position + 1])
    instructions = [tfds.core.ReadInstruction(*run, unit="abs") for run in runs]
    records = builder.as_dataset(
        split=_sum(instructions),
        decoders={"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()},
        # Caching is left to the pipeline, which decodes.
        read_config=tfds.ReadConfig(try_autocache=False, skip_prefetch=True),
    )
    if not white:  # all are plain 8-bit PNG files
        return records

    def to_8_bits(encoded: bytes) -> np.ndarray:
        return np.array(images.encode(encoded, sys.maxsize, white).data, dtype=object)

    def converted(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = tf.numpy_function(to_8_bits, [record["image"]], tf.string)
        return record | {"image": tf.ensure_shape(image, [])}

    return records.map(converted, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _sum(instructions: list[Any]) -> Any:
    """Adds instructions pairwise: added in sequence, hundreds would nest too deeply."""
    if len(instructions) == 1:
        return instructions[0]
    half = len(instructions) // 2
    return _sum(instructions[:half]) + _sum(instructions[half:])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TensorFlow Datasets' progress bars, printed notices and log messages."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
