"""From records to batches: decode, degrade, resize, cache, shuffle, augment, batch.

A source yields *records*: encoded photographs with their masks. The pipeline degrades each at
its native size, unless the record brings a degraded one of its own, resizes the pair and keeps
it as 8-bit pixels in memory. Every random draw is stateless, keyed on the seed, the image's id
and the number of the draw, so the same step of the same run sees the same batch, whenever it is
asked for.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data import degrade, process_rows, recolour, records, resize, vgg16
from data.sources import images
from restore_jax import batches
from restore_jax.batches import ALL, Batch, Data, Share
from restore_jax.degradation import definition
from restore_jax.errors import RunError, UsageError

# The seed of the draws of evaluation, whatever the run's own: figures of runs that differ in
# their seed are of the same degraded images.
EVAL_SEED = 20_240_613

_STRINGS = ("category", "defect_type", "id")

# A pair of 8-bit images, as it is kept and batched.
_PAIR = {
    "degraded": tf.TensorSpec([None, None, 3], tf.uint8),
    "clean": tf.TensorSpec([None, None, 3], tf.uint8),
    "mask": tf.TensorSpec([None, None, 1], tf.uint8),
    "has_mask": tf.TensorSpec([], tf.bool),
    **{name: tf.TensorSpec([], tf.string) for name in _STRINGS},
}

# Beside the streams of the degradation, which have the numbers from 0 on.
_RECOLOURS = 100
_CONTEXT = {"context": tf.TensorSpec([None, None, 3], tf.uint8)}

# Makes the pair of a record and the number of its draw.
MakePair = Callable[[dict[str, tf.Tensor], tf.Tensor], dict[str, tf.Tensor]]

# Stands where a fixed draw has its number; the epoch takes its place.
_EVERY_EPOCH_ANEW = -1


def make_data(config: ConfigDict, share: Share = ALL) -> Data:
    """Makes the data that a configuration asks for; nothing is decoded yet.

    Args:
        config: all fields; `config.data`, `config.seed` and the batch sizes matter.
        share: what of them this process reads: its rows of the batches that one process would
            train on, and every so many-th image to evaluate.

    Returns:
        The data, with its batches as `restore_jax.batches` describes them.

    Raises:
        UsageError: for a wrong field, or a root without data.
    """
    config, law, sources = load(config)
    settings, train = config.data, sources["train"]
    if settings.crops_per_image > 1 and share.count > 1:
        raise UsageError(
            f"config.data.crops_per_image: {settings.crops_per_image} is for one process; "
            "several take 1"
        )
    pairs = {}
    for split, source in sources.items():
        own = process_rows.to_evaluate(source, share)
        if split == "reference":
            pairs[split] = clean_pairs(own, settings).map(_as_floats)
            continue
        # Of fixed pairs that a run trained on, these are the very same ones.
        seed = config.seed if split == "train" and settings.realisations else EVAL_SEED
        realised = realise(own, settings, law, seed, realisation=0)
        # Kept once it was gone over, unless the photographs have their native size.
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
    )


def load(config: ConfigDict) -> tuple[ConfigDict, definition.Law, dict[str, records.Records]]:
    """Checks what a configuration asks for and loads its records.

    Returns:
        The configuration, with one draw of each photograph where the records bring a degraded
        one of their own; the law; the records by part.

    Raises:
        UsageError: as `make_data`.
    """
    # TensorFlow only reads and degrades; the GPU's memory is JAX's.
    with contextlib.suppress(RuntimeError):  # a notebook may have used TensorFlow before
        tf.config.set_visible_devices([], "GPU")
    law = definition.law_from_config(config.data.degradation)
    _check(config.data, law)
    sources = records.load(config.data)
    if "degraded" in sources["train"].dataset.element_spec:
        # There is one photograph of each, and the law is not applied.
        config = config.copy_and_resolve_references()
        config.data.realisations = 1
    return config, law, sources


def _check(settings: ConfigDict, law: definition.Law) -> None:
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
            f"config.data.references: {settings.references} is negative; 0 leaves the "
            "detectability out"
        )
    if settings.crops_per_image < 1 or (settings.crops_per_image > 1 and settings.image_size):
        raise UsageError(
            f"config.data.crops_per_image: {settings.crops_per_image} must be at least 1, and "
            "just 1 unless config.data.image_size is 0"
        )
    if settings.realisations < 0:
        raise UsageError(
            f"config.data.realisations: {settings.realisations} is negative; 0 is a new draw "
            "every epoch"
        )
    # It is asked of pairs that come ready as well: nothing tells which way theirs are blurred
    # but what the configuration says, and by default that only allows flips.
    definition.check_augmentation(settings.augment, definition.symmetries(law))


def _decode(record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the photograph, uint8 [H, W, 3], and its mask, uint8 [H, W, 1]."""
    return images.decode(record["image"], 3), images.decode(record["mask"], 1)


def _to_bytes(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)


def _pair(
    record: dict[str, tf.Tensor],
    settings: ConfigDict,
    law: definition.Law,
    seed: int,
    realisation: tf.Tensor | int,
    recolours: bool = False,
) -> dict[str, tf.Tensor]:
    """Degrades one photograph at native size and resizes the pair, all in 8 bits.

    A record with a degraded photograph of its own is only resized.
    """
    clean, mask = _decode(record)
    if recolours and "degraded" not in record:
        # A stream of its own, so that noise and blur are drawn as without it.
        key = _fold_in(degrade.draw_seed(seed, record["id"], realisation), _RECOLOURS)
        clean = recolour.recolour(clean, key)
    if "degraded" in record:
        degraded = images.decode(record["degraded"], 3)
    else:
        key = degrade.draw_seed(seed, record["id"], realisation)
        degraded = degrade.degrade(clean, law, key)
    return _resized(record, degraded, clean, mask, settings)


def _resized(
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
    """Makes the pairs of a draw: uint8 images of the working size, with the other fields."""
    return source.map(
        lambda record: _pair(record, settings, law, seed, realisation),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def clean_pairs(source: tf.data.Dataset, settings: ConfigDict) -> tf.data.Dataset:
    """Pairs whose degraded image is the clean one."""

    def pair(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        clean, mask = _decode(record)
        return _resized(record, clean, clean, mask, settings)

    return source.map(pair, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _as_floats(pair: dict[str, Any]) -> dict[str, Any]:
    images = [name for name in ("degraded", "clean", "context") if name in pair]
    floats = {name: tf.cast(pair[name], tf.float32) / 255.0 for name in images}
    return pair | floats | {"mask": tf.cast(pair["mask"], tf.float32)}


def _augment(
    pair: dict[str, tf.Tensor], settings: ConfigDict, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Crops, flips and rotates the three images of a pair alike.

    Args:
        pair: uint8 images of one pair, with its other fields.
        settings: `config.data`.
        seed: int64 [2], of this pair in this epoch.

    Returns:
        The pair, its images cropped to the crop size if the image size is the native one, when
        its "context", the thumbnail of the whole degraded photograph, is turned alike.
    """
    if settings.image_size and settings.augment == "none":
        return pair
    draws = tf.random.stateless_uniform([5], seed, alg="philox")
    channels = (3, 3, 1)
    stack = tf.concat([pair["degraded"], pair["clean"], pair["mask"]], axis=-1)
    found = {}
    if not settings.image_size:
        found["context"] = _turned(pair["context"], settings.augment, draws)
        stack = _cropped(stack, settings.crop_size, draws, pair["id"])
    stack = _turned(stack, settings.augment, draws)
    degraded, clean, mask = tf.split(stack, channels, axis=-1)
    return pair | found | {"degraded": degraded, "clean": clean, "mask": mask}


def _cropped(stack: tf.Tensor, side: int, draws: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Cuts a square out of an image at a place drawn by the first two of `draws`."""
    room = tf.shape(stack)[:2] - side
    enough = tf.reduce_all(room >= 0)
    refusal = tf.strings.join(["config.data.crop_size: ", str(side), " is larger than ", name])
    with tf.control_dependencies([tf.debugging.Assert(enough, [refusal])]):
        start = tf.cast(draws[:2] * tf.cast(room + 1, tf.float32), tf.int32)
    # A draw next to 1 can round up to the excluded end.
    start = tf.minimum(start, room)
    return tf.slice(stack, [start[0], start[1], 0], [side, side, stack.shape[-1]])


def _turned(stack: tf.Tensor, augment: str, draws: tf.Tensor) -> tf.Tensor:
    """Flips an image, and transposes it for "all8", where the last three of `draws` say so."""
    if augment != "none":
        stack = tf.cond(draws[2] < 0.5, lambda: tf.reverse(stack, [0]), lambda: stack)
        stack = tf.cond(draws[3] < 0.5, lambda: tf.reverse(stack, [1]), lambda: stack)
    if augment == "all8":
        stack = tf.cond(draws[4] < 0.5, lambda: tf.transpose(stack, [1, 0, 2]), lambda: stack)
    return stack


def _crops(
    pair: dict[str, tf.Tensor], settings: ConfigDict, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Takes `settings.crops_per_image` crops of one photograph; each field gains an axis."""
    seeds = [_fold_in(seed, number) for number in range(settings.crops_per_image)]
    crops = [_augment(pair, settings, seed) for seed in seeds]
    return {name: tf.stack([crop[name] for crop in crops]) for name in crops[0]}


def _fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def _train_batches(
    config: ConfigDict, law: definition.Law, source: records.Records, step: int, share: Share
) -> Iterator[Batch]:
    settings, batch_size = config.data, config.train.batch_size
    draws = range(settings.realisations) if settings.realisations else (_EVERY_EPOCH_ANEW,)
    count, crops = source.count * len(draws), settings.crops_per_image
    # Native photographs are large: they stay encoded.
    realised = settings.image_size > 0 and settings.realisations > 0

    def pair_of(record: dict[str, tf.Tensor], draw: tf.Tensor) -> dict[str, tf.Tensor]:
        recolours = settings.get("recolour", False)
        return _pair(record, settings, law, config.seed, draw, recolours)

    def kept(pair_of: MakePair, items: tf.data.Dataset) -> tf.data.Dataset:
        """What stays in memory of records with their draws."""
        if not realised:
            return items
        return items.map(pair_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def key_of(epoch: tf.Tensor) -> tf.Tensor:
        seed = tf.constant([config.seed, 0], tf.int64)
        return _fold_in(seed, epoch)

    def shuffled(items: tf.data.Dataset, key: tf.Tensor) -> tf.data.Dataset:
        # Drawn, since no single half of a key differs from all others'.
        order = tf.random.stateless_uniform([], key, None, None, tf.int64, alg="philox")
        return items.shuffle(count, seed=order, reshuffle_each_iteration=False)

    def prepare(
        pair_of: MakePair, epoch: tf.Tensor, key: tf.Tensor, position: tf.Tensor, item: Any
    ) -> Any:
        if realised:
            pair = item
        else:
            record, draw = item
            pair = pair_of(record, draw if settings.realisations else epoch)
        if not settings.image_size:
            whole = resize.resize(pair["degraded"], batches.CONTEXT_SIZE, "bilinear")
            pair["context"] = _to_bytes(whole)
        seed = _fold_in(key, position)
        return _augment(pair, settings, seed) if crops == 1 else _crops(pair, settings, seed)

    steps_per_epoch = math.ceil(count * crops / batch_size)
    first_epoch, first_step = divmod(step, steps_per_epoch)
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    once = tf.function(pair_of)  # traced once, not for every epoch
    numbers = tf.data.Dataset.range(count)
    orders = epochs.flat_map(lambda epoch: shuffled(numbers, key_of(epoch)).batch(count))
    rows = process_rows.Rows(
        source, draws, functools.partial(kept, once), as_numpy, share, batch_size
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
            lambda row: prepare(once, epoch, key, *row),
            (positions, items),
            fn_output_signature=prepared_spec,
        )

    # The first epoch of one process, too: each photograph is read when its batch is asked for,
    # where a shuffled set would have to be read to its end before the first batch.
    for epoch, order in enumerate(as_numpy(orders), first_epoch):
        if share.count == 1 and epoch > first_epoch:
            break
        # So many photographs give so many batches, each with one crop of each of them.
        done, ahead = divmod(first_step, crops) if epoch == first_epoch else (0, 0)
        for positions, items, valid in rows.of_epoch(order, done):
            with _refusals_told():
                # Floats outside of the program, which would multiply where others divide.
                block = _as_floats(prepared(tf.constant(epoch, tf.int64), positions, items))
            if crops == 1:
                batch = {name: value.numpy() for name, value in block.items()}
                yield fill_up(batch, len(valid)) | {"valid": valid}
                continue
            joined = {
                name: _joined_crops(value[: np.count_nonzero(valid)]).numpy()
                for name, value in block.items()
            }
            for start in range(ahead * batch_size, len(joined["id"]), batch_size):
                batch = {n: value[start : start + batch_size] for n, value in joined.items()}
                yield fill_up(batch, batch_size)
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
                    {name: _joined_crops(values) for name, values in block.items()}
                )
            )
        return pairs.batch(batch_size).map(_as_floats)

    for batch in as_numpy(epochs.skip(1).flat_map(epoch_of)):
        yield fill_up(batch, batch_size)


def _joined_crops(values: tf.Tensor) -> tf.Tensor:
    """Joins [photographs, crops, …] to [crops · photographs, …], photographs side by side."""
    axes = [1, 0, *range(2, values.shape.rank)]
    return tf.reshape(tf.transpose(values, axes), tf.concat([[-1], tf.shape(values)[2:]], 0))


def as_numpy(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Iterates over a set in NumPy; what TensorFlow refuses becomes one clear line."""
    with _refusals_told():
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        raise _refusal(error) from error


def _refusal(error: tf.errors.OpError) -> Exception:
    """Finds the line that was meant for the user in what TensorFlow says of a failed check."""
    for line in error.message.splitlines():
        if "config.data." in line:
            return UsageError(line[line.index("config.data.") :].rstrip("'] "))
    reason = error.message.splitlines()[0]
    if isinstance(error, tf.errors.DataLossError):
        return RunError(
            f"config.data.cache_dir: what is prepared there is damaged ({reason}); delete it "
            "(by default restore_jax/tfds in the user's cache folder), and it is prepared anew"
        )
    return RunError(f"an image could not be read: {reason}")


def fill_up(batch: Batch, batch_size: int) -> Batch:
    """Fills up a batch to its size with copies of its last row, which are not valid."""
    count = len(batch["id"])
    rows = np.minimum(np.arange(batch_size), count - 1)
    filled = {
        name: value[rows] if count < batch_size else value for name, value in batch.items()
    }
    # Not `astype(str)`, which knows ASCII alone.
    strings = {name: np.array([text.decode() for text in filled[name]]) for name in _STRINGS}
    return filled | strings | {"valid": np.arange(batch_size) < count}


def group_by_size(pairs: Iterator[dict[str, np.ndarray]], batch_size: int) -> Iterator[Batch]:
    """Batches pairs, those of one image size together; the last batch of a size is filled up.

    Args:
        pairs: pairs of one image each, of any sizes.
        batch_size: images of a batch.

    Yields:
        Batches as `restore_jax.batches` describes them.

    Raises:
        UsageError: for an image that is too small to be measured.
    """
    waiting: dict[tuple[int, ...], list[dict[str, np.ndarray]]] = {}

    def batch_of(group: list[dict[str, np.ndarray]]) -> Batch:
        stacked = {name: np.stack([pair[name] for pair in group]) for name in group[0]}
        return fill_up(stacked, batch_size)

    for pair in pairs:
        height, width = pair["clean"].shape[:2]
        if min(height, width) < batches.MIN_SIZE:
            raise UsageError(
                f"{pair['id'].decode()}: {width}×{height} px is too small, SSIM needs "
                f"{batches.MIN_SIZE} px; take it out of the data or set config.data.image_size"
            )
        group = waiting.setdefault(pair["clean"].shape, [])
        group.append(pair)
        if len(group) == batch_size:
            yield batch_of(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield batch_of(group)
