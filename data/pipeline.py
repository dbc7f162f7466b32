"""From records to batches: decode, degrade, resize, cache, shuffle, augment, batch.

A source yields *records*: encoded photographs with their masks. The pipeline degrades each
photograph at its native size (unless the record has its own degraded version), resizes the
pair and keeps its 8-bit pixels in memory. Every random draw is stateless, keyed on the seed,
the image's id and the number of the draw, so that a given step of a run always sees the same
batch, also after a restart.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data import degrade, process_rows, recolour, records, resize, shot_pairs, vgg16
from data.sources import images
from restore_jax import batches
from restore_jax.batches import ALL, Batch, Data, Share
from restore_jax.degradation import definition
from restore_jax.errors import RunError, UsageError

# Seed of the draws for evaluation, independent of the run's seed, so that runs with different
# seeds are measured on the same degraded images.
EVAL_SEED = 20_240_613

_STRINGS = ("category", "defect_type", "id")

# A pair of 8-bit images, as it is cached and batched.
_PAIR = {
    "degraded": tf.TensorSpec([None, None, 3], tf.uint8),
    "clean": tf.TensorSpec([None, None, 3], tf.uint8),
    "mask": tf.TensorSpec([None, None, 1], tf.uint8),
    "has_mask": tf.TensorSpec([], tf.bool),
    **{name: tf.TensorSpec([], tf.string) for name in _STRINGS},
}

# Stream of the random recolouring; the streams of the degradation are numbered from 0.
_RECOLOURS = 100
_CONTEXT = {"context": tf.TensorSpec([None, None, 3], tf.uint8)}

# Makes a pair from a record and the number of its draw.
MakePair = Callable[[dict[str, tf.Tensor], tf.Tensor], dict[str, tf.Tensor]]

# Placeholder for the number of a draw that is not fixed: it is replaced by the epoch.
_FRESH_EVERY_EPOCH = -1


def make_data(config: ConfigDict, share: Share = ALL) -> Data:
    """Makes the data of a configuration; nothing is decoded yet.

    Args:
        config: the whole configuration; `config.data`, `config.seed` and the batch sizes are
            used.
        share: the part of the data that this process reads: its rows of each global training
            batch, and every `share.count`-th image of an evaluation.

    Returns:
        The data; `restore_jax.batches` documents its batches.

    Raises:
        UsageError: a field is invalid, or the root has no data.
    """
    config, law, sources = load(config)
    settings, train = config.data, sources["train"]
    if settings.crops_per_image > 1 and share.count > 1:
        raise UsageError(
            f"config.data.crops_per_image: {settings.crops_per_image} needs a single process; "
            "use 1 with several processes"
        )
    pairs = {}
    for split, source in sources.items():
        own = process_rows.eval_records(source, share)
        if split == "reference":
            pairs[split] = clean_pairs(own, settings).map(_as_floats)
            continue
        # With fixed draws, evaluating "train" uses exactly the pairs that were trained on.
        seed = config.seed if split == "train" and settings.realisations else EVAL_SEED
        realised = realise(own, settings, law, seed, realisation=0)
        # Cached after the first pass, except at native size, where the images are too large.
        pairs[split] = (realised.cache() if settings.image_size else realised).map(_as_floats)

    def train_batches(step: int) -> Iterator[Batch]:
        if not train.count:
            raise UsageError(
                f"config.data.root={settings.root!r}: holds no images to train on; it can be "
                "evaluated with --mode=evaluate"
            )
        return _train_batches(config, law, train, step, share)

    def eval_batches(split: str) -> Iterator[Batch]:
        return group_by_size(as_numpy(pairs[split]), config.eval.batch_size // share.count)

    return Data(
        name=settings.name,
        counts={split: source.count for split, source in sources.items()},
        train_images=train.count * max(1, settings.realisations) * settings.crops_per_image,
        train_batches=train_batches,
        eval_batches=eval_batches,
        load_loss_params=functools.partial(vgg16.load_loss_params, config),
        identity=records.identity(sources),
        target=shot_pairs.TARGET if "shots" in train.dataset.element_spec else "",
    )


def load(config: ConfigDict) -> tuple[ConfigDict, definition.Law, dict[str, records.Records]]:
    """Checks the data fields of a configuration and loads its records.

    Returns:
        The configuration, with `data.realisations` set to 1 if the records have their own
        degraded photographs, and to 0 if they have several; the degradation law; the records
        by split.

    Raises:
        UsageError: as `make_data`.
    """
    # TensorFlow only reads and degrades on the CPU; the GPU's memory is left to JAX.
    with contextlib.suppress(RuntimeError):  # TensorFlow is already in use, as in a notebook
        tf.config.set_visible_devices([], "GPU")
    law = definition.law_from_config(config.data.degradation)
    _check_fields(config.data, law)
    sources = records.load(config.data)
    if "degraded" in sources["train"].dataset.element_spec:
        # There is one degraded version of each photograph, and the law is not applied.
        config = config.copy_and_resolve_references()
        config.data.realisations = 1
    elif "shots" in sources["train"].dataset.element_spec:
        # Two shots are drawn in every epoch, and the law is not applied.
        config = config.copy_and_resolve_references()
        config.data.realisations = 0
    return config, law, sources


def _check_fields(settings: ConfigDict, law: definition.Law) -> None:
    field = "image_size" if settings.image_size else "crop_size"
    if settings[field] < batches.MIN_SIZE:
        raise UsageError(
            f"config.data.{field}: {settings[field]} is too small; SSIM needs "
            f"{batches.MIN_SIZE} px"
        )
    if settings.resize not in ("bilinear", "area"):
        raise UsageError(f"config.data.resize: {settings.resize!r} is not bilinear or area")
    if settings.references < 0:
        raise UsageError(
            f"config.data.references: {settings.references} is negative; 0 switches the "
            "detectability off"
        )
    if settings.crops_per_image < 1 or (settings.crops_per_image > 1 and settings.image_size):
        raise UsageError(
            f"config.data.crops_per_image: {settings.crops_per_image} must be at least 1, and "
            "exactly 1 unless config.data.image_size is 0"
        )
    if settings.realisations < 0:
        raise UsageError(
            f"config.data.realisations: {settings.realisations} is negative; 0 means a new "
            "draw every epoch"
        )
    # Also checked for ready-made pairs: the direction of their blur is known only from the
    # configuration, whose default law allows flips but no rotations.
    definition.check_augmentation(settings.augment, definition.symmetries(law))


def _decode(record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the photograph, uint8 [H, W, 3], and its mask, uint8 [H, W, 1]."""
    return images.decode(record["image"], 3), images.decode(record["mask"], 1)


def _to_bytes(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)


def _make_pair(
    record: dict[str, tf.Tensor],
    settings: ConfigDict,
    law: definition.Law,
    seed: int,
    realisation: tf.Tensor | int,
    recolours: bool = False,
) -> dict[str, tf.Tensor]:
    """Degrades one photograph at native size and resizes the pair, to uint8.

    A record that has its own degraded photograph is only resized. Of several shots, two are
    drawn.
    """
    clean, mask = _decode(record)
    if "shots" in record:
        key = degrade.draw_seed(seed, record["id"], realisation)
        degraded, target = shot_pairs.drawn(record, key)
        return _resize_pair(record, degraded, target, mask, settings)
    if recolours and "degraded" not in record:
        # A separate stream, so that noise and blur are the same as without recolouring.
        key = _fold_in(degrade.draw_seed(seed, record["id"], realisation), _RECOLOURS)
        clean = recolour.recolour(clean, key)
    if "degraded" in record:
        degraded = images.decode(record["degraded"], 3)
    else:
        key = degrade.draw_seed(seed, record["id"], realisation)
        degraded = degrade.degrade(clean, law, key)
    return _resize_pair(record, degraded, clean, mask, settings)


def _resize_pair(
    record: dict[str, tf.Tensor],
    degraded: tf.Tensor,
    clean: tf.Tensor,
    mask: tf.Tensor,
    settings: ConfigDict,
) -> dict[str, tf.Tensor]:
    size = settings.image_size
    if size:
        degraded = resize.resize(degraded, size, settings.resize)
        clean = resize.resize(clean, size, settings.resize)
        mask = resize.resize_mask(mask, size)
    return {
        "degraded": _to_bytes(tf.cast(degraded, tf.float32)),
        "clean": _to_bytes(tf.cast(clean, tf.float32)),
        "mask": tf.cast(mask > 0, tf.uint8),
        **{name: record[name] for name in ("has_mask", *_STRINGS)},
    }


def realise(
    source: tf.data.Dataset,
    settings: ConfigDict,
    law: definition.Law,
    seed: int,
    realisation: tf.Tensor | int,
) -> tf.data.Dataset:
    """Makes the pairs of one draw: uint8 images of the working size, with the other fields.

    Of several shots, one is drawn, and its pair is the mean of the others.
    """

    def pair(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if "shots" in record:
            key = degrade.draw_seed(seed, record["id"], realisation)
            shot, mean = shot_pairs.to_the_mean(record, key)
            _, mask = _decode(record)
            return _resize_pair(record, shot, mean, mask, settings)
        return _make_pair(record, settings, law, seed, realisation)

    return source.map(
        pair,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def clean_pairs(source: tf.data.Dataset, settings: ConfigDict) -> tf.data.Dataset:
    """Makes pairs whose degraded image is the clean one."""

    def pair(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        clean, mask = _decode(record)
        return _resize_pair(record, clean, clean, mask, settings)

    return source.map(pair, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _as_floats(pair: dict[str, Any]) -> dict[str, Any]:
    images = [name for name in ("degraded", "clean", "context") if name in pair]
    floats = {name: tf.cast(pair[name], tf.float32) / 255.0 for name in images}
    return pair | floats | {"mask": tf.cast(pair["mask"], tf.float32)}


def _augment(
    pair: dict[str, tf.Tensor], settings: ConfigDict, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Crops, flips and rotates the images of a pair and its mask identically.

    Args:
        pair: uint8 images of one pair, with its other fields.
        settings: `config.data`.
        seed: int64 [2], of this pair in this epoch.

    Returns:
        The augmented pair. At native size (`settings.image_size` 0), its images are cropped to
        `settings.crop_size`, and its "context", the thumbnail of the whole degraded photograph,
        is flipped and rotated with them.
    """
    if settings.image_size and settings.augment == "none":
        return pair
    draws = tf.random.stateless_uniform([5], seed, alg="philox")
    channels = (3, 3, 1)
    stack = tf.concat([pair["degraded"], pair["clean"], pair["mask"]], axis=-1)
    found = {}
    if not settings.image_size:
        found["context"] = _flip_and_transpose(pair["context"], settings.augment, draws)
        stack = _random_crop(stack, settings.crop_size, draws, pair["id"])
    stack = _flip_and_transpose(stack, settings.augment, draws)
    degraded, clean, mask = tf.split(stack, channels, axis=-1)
    return pair | found | {"degraded": degraded, "clean": clean, "mask": mask}


def _random_crop(stack: tf.Tensor, side: int, draws: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Crops a square from an image, at the position given by the first two of `draws`."""
    room = tf.shape(stack)[:2] - side
    enough = tf.reduce_all(room >= 0)
    refusal = tf.strings.join(["config.data.crop_size: ", str(side), " is larger than ", name])
    with tf.control_dependencies([tf.debugging.Assert(enough, [refusal])]):
        start = tf.cast(draws[:2] * tf.cast(room + 1, tf.float32), tf.int32)
    # A draw just below 1 can round up to the excluded upper end.
    start = tf.minimum(start, room)
    return tf.slice(stack, [start[0], start[1], 0], [side, side, stack.shape[-1]])


def _flip_and_transpose(stack: tf.Tensor, augment: str, draws: tf.Tensor) -> tf.Tensor:
    """Flips an image, and for "all8" transposes it, each if its draw (2, 3, 4) is below 0.5."""
    if augment != "none":
        stack = tf.cond(draws[2] < 0.5, lambda: tf.reverse(stack, [0]), lambda: stack)
        stack = tf.cond(draws[3] < 0.5, lambda: tf.reverse(stack, [1]), lambda: stack)
    if augment == "all8":
        stack = tf.cond(draws[4] < 0.5, lambda: tf.transpose(stack, [1, 0, 2]), lambda: stack)
    return stack


def _augmented_crops(
    pair: dict[str, tf.Tensor], settings: ConfigDict, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Takes `settings.crops_per_image` crops of one photograph, stacked on a new first axis."""
    seeds = [_fold_in(seed, number) for number in range(settings.crops_per_image)]
    crops = [_augment(pair, settings, seed) for seed in seeds]
    return {name: tf.stack([crop[name] for crop in crops]) for name in crops[0]}


def _fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def _train_batches(
    config: ConfigDict, law: definition.Law, source: records.Records, step: int, share: Share
) -> Iterator[Batch]:
    settings, batch_size = config.data, config.train.batch_size
    draws = range(settings.realisations) if settings.realisations else (_FRESH_EVERY_EPOCH,)
    count, crops = source.count * len(draws), settings.crops_per_image
    # Whether pairs are cached in memory; native photographs are large and stay encoded.
    caches_pairs = settings.image_size > 0 and settings.realisations > 0

    def pair_of(record: dict[str, tf.Tensor], draw: tf.Tensor) -> dict[str, tf.Tensor]:
        recolours = settings.get("recolour", False)
        return _make_pair(record, settings, law, config.seed, draw, recolours)

    def cached_items(pair_of: MakePair, items: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the pairs of (record, draw), or these themselves if pairs are not cached."""
        if not caches_pairs:
            return items
        return items.map(pair_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def key_of(epoch: tf.Tensor) -> tf.Tensor:
        seed = tf.constant([config.seed, 0], tf.int64)
        return _fold_in(seed, epoch)

    def shuffled(items: tf.data.Dataset, key: tf.Tensor) -> tf.data.Dataset:
        # `shuffle` takes a single integer, and neither half of a key is unique on its own.
        order = tf.random.stateless_uniform([], key, None, None, tf.int64, alg="philox")
        return items.shuffle(count, seed=order, reshuffle_each_iteration=False)

    def prepare(
        pair_of: MakePair, epoch: tf.Tensor, key: tf.Tensor, position: tf.Tensor, item: Any
    ) -> Any:
        if caches_pairs:
            pair = item
        else:
            record, draw = item
            pair = pair_of(record, draw if settings.realisations else epoch)
        if not settings.image_size:
            whole = resize.resize(pair["degraded"], batches.CONTEXT_SIZE, "bilinear")
            pair["context"] = _to_bytes(whole)
        seed = _fold_in(key, position)
        return (
            _augment(pair, settings, seed)
            if crops == 1
            else _augmented_crops(pair, settings, seed)
        )

    steps_per_epoch = math.ceil(count * crops / batch_size)
    first_epoch, first_step = divmod(step, steps_per_epoch)
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    traced_pair_of = tf.function(pair_of)  # traced once rather than for every epoch
    numbers = tf.data.Dataset.range(count)
    orders = epochs.flat_map(lambda epoch: shuffled(numbers, key_of(epoch)).batch(count))
    rows = process_rows.Rows(
        source,
        draws,
        functools.partial(cached_items, traced_pair_of),
        as_numpy,
        share,
        batch_size,
    )

    prepared_spec = _PAIR if settings.image_size else _PAIR | _CONTEXT
    if crops > 1:
        prepared_spec = {
            name: tf.TensorSpec([crops, *spec.shape], spec.dtype)
            for name, spec in prepared_spec.items()
        }

    @tf.function
    def prepared(epoch: tf.Tensor, positions: tf.Tensor, items: Any) -> Any:
        key = key_of(epoch)
        return tf.map_fn(
            lambda row: prepare(traced_pair_of, epoch, key, *row),
            (positions, items),
            fn_output_signature=prepared_spec,
        )

    # All epochs of several processes, but also the first epoch of a single one: photographs
    # are read batch by batch, whereas shuffling a dataset of them would first read them all.
    for epoch, order in enumerate(as_numpy(orders), first_epoch):
        if share.count == 1 and epoch > first_epoch:
            break
        # A block of `batch_size` photographs makes `crops` batches, each with one crop of every
        # photograph; `ahead` batches of the first block are skipped.
        done, ahead = divmod(first_step, crops) if epoch == first_epoch else (0, 0)
        for positions, items, valid in rows.epoch_rows(order, done):
            with _tensorflow_errors_as_lines():
                # Converted to floats outside the graph, which would replace the division by a
                # multiplication.
                block = _as_floats(prepared(tf.constant(epoch, tf.int64), positions, items))
            if crops == 1:
                batch = {name: value.numpy() for name, value in block.items()}
                yield pad_batch(batch, len(valid)) | {"valid": valid}
                continue
            joined = {
                name: _flatten_crops(value[: np.count_nonzero(valid)]).numpy()
                for name, value in block.items()
            }
            for start in range(ahead * batch_size, len(joined["id"]), batch_size):
                batch = {n: value[start : start + batch_size] for n, value in joined.items()}
                yield pad_batch(batch, batch_size)
            ahead = 0

    stored = rows.all().cache()

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        key = key_of(epoch)
        pairs = (
            shuffled(stored, key)
            .enumerate()
            .map(
                functools.partial(prepare, pair_of, epoch, key),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
        )
        if crops > 1:
            pairs = pairs.batch(batch_size).flat_map(
                lambda block: tf.data.Dataset.from_tensor_slices(
                    {name: _flatten_crops(values) for name, values in block.items()}
                )
            )
        return pairs.batch(batch_size).map(_as_floats)

    for batch in as_numpy(epochs.skip(1).flat_map(epoch_of)):
        yield pad_batch(batch, batch_size)


def _flatten_crops(values: tf.Tensor) -> tf.Tensor:
    """Reshapes [photographs, crops, …] to [crops · photographs, …], first crops first."""
    axes = [1, 0, *range(2, values.shape.rank)]
    return tf.reshape(tf.transpose(values, axes), tf.concat([[-1], tf.shape(values)[2:]], 0))


def as_numpy(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Iterates over a dataset in NumPy; TensorFlow's errors become UsageError or RunError."""
    with _tensorflow_errors_as_lines():
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


@contextlib.contextmanager
def _tensorflow_errors_as_lines() -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        raise _one_line_error(error) from error


def _one_line_error(error: tf.errors.OpError) -> Exception:
    """Finds the line meant for the user in TensorFlow's message, or makes one of it."""
    for line in error.message.splitlines():
        if "config.data." in line:
            return UsageError(line[line.index("config.data.") :].rstrip("'] "))
    reason = error.message.splitlines()[0]
    if isinstance(error, tf.errors.DataLossError):
        return RunError(
            f"config.data.cache_dir: the prepared data set is damaged ({reason}); delete it "
            "(by default restore_jax/tfds in the user's cache folder) to have it prepared again"
        )
    return RunError(f"an image could not be read: {reason}")


def pad_batch(batch: Batch, batch_size: int) -> Batch:
    """Pads a batch to its full size with copies of its last row, marked as not valid."""
    count = len(batch["id"])
    rows = np.minimum(np.arange(batch_size), count - 1)
    padded = {
        name: value[rows] if count < batch_size else value for name, value in batch.items()
    }
    # Not `astype(str)`, which decodes ASCII only.
    strings = {name: np.array([text.decode() for text in padded[name]]) for name in _STRINGS}
    return padded | strings | {"valid": np.arange(batch_size) < count}


def group_by_size(pairs: Iterator[dict[str, np.ndarray]], batch_size: int) -> Iterator[Batch]:
    """Batches pairs by image size; the last batch of each size is padded.

    Args:
        pairs: single pairs, of any image sizes.
        batch_size: images per batch.

    Yields:
        Batches as documented in `restore_jax.batches`.

    Raises:
        UsageError: an image is too small for the SSIM to be computed.
    """
    waiting: dict[tuple[int, ...], list[dict[str, np.ndarray]]] = {}

    def batch_of(group: list[dict[str, np.ndarray]]) -> Batch:
        stacked = {name: np.stack([pair[name] for pair in group]) for name in group[0]}
        return pad_batch(stacked, batch_size)

    for pair in pairs:
        height, width = pair["clean"].shape[:2]
        if min(height, width) < batches.MIN_SIZE:
            raise UsageError(
                f"{pair['id'].decode()}: {width}×{height} px is too small, SSIM needs "
                f"{batches.MIN_SIZE} px; remove it from the data or set config.data.image_size"
            )
        group = waiting.setdefault(pair["clean"].shape, [])
        group.append(pair)
        if len(group) == batch_size:
            yield batch_of(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield batch_of(group)
