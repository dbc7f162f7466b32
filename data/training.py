"""The batches of a training, from any step on.

An epoch is a shuffled order of *rows*, each one draw of one photograph. Order, draws and
augmentation are keyed on the seed, the epoch and the position in it, so there are two ways to
the same batches. The first reads photographs batch by batch, as training needs them. It serves
several processes, of which each reads only its own rows, and the first epoch of one process,
which would otherwise wait for all photographs to be read. The second shuffles what has been
read within tf.data, which prepares batches in parallel and ahead of the training.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from data import augmentation, batching, pairs, process_rows, records, resize
from restore_jax import batches
from restore_jax.batches import Batch, Share

# Placeholder for the number of a draw that is not fixed: it is replaced by the epoch.
_FRESH_EVERY_EPOCH = -1

_CONTEXT = {"context": tf.TensorSpec([None, None, 3], tf.uint8)}

# An item of a row is what is kept of it in memory: its pair, or its record and draw.
Item = Any


class TrainingBatches:
    """Makes the training batches of a configuration.

    Args:
        config: the whole configuration.
        make_pair: makes the pair of a record and draw.
        source: the photographs.
        share: the rows of each batch that this process reads.
    """

    def __init__(
        self,
        config: ConfigDict,
        make_pair: pairs.MakePair,
        source: records.Records,
        share: Share,
    ) -> None:
        settings = config.data
        self._settings, self._seed, self._share = settings, config.seed, share
        self._source = source
        self._draws = (
            range(settings.realisations) if settings.realisations else (_FRESH_EVERY_EPOCH,)
        )
        self._count = source.count * len(self._draws)
        self._crops = settings.crops_per_image
        self._batch_size = config.train.batch_size
        self._make_pair = make_pair
        # Native photographs are large and stay encoded; so do those that are drawn anew.
        self._keeps_pairs = settings.image_size > 0 and settings.realisations > 0
        self._prepare_rows = tf.function(self._prepared, autograph=False)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yields the batches from a step on, without end."""
        steps_per_epoch = math.ceil(self._count * self._crops / self._batch_size)
        first_epoch, done = divmod(step, steps_per_epoch)
        rows = process_rows.Rows(
            self._source, self._draws, self._kept, self._share, self._batch_size
        )
        yield from self._read_epoch(rows, first_epoch, done)
        if self._share.count > 1:
            for epoch in itertools.count(first_epoch + 1):
                yield from self._read_epoch(rows, epoch, 0)
        kept = rows.all().cache()
        epochs = tf.data.Dataset.range(first_epoch + 1, np.iinfo(np.int64).max)
        later = epochs.flat_map(
            pairs.as_written(lambda epoch: self._shuffled_epoch(kept, epoch))
        )
        for batch in batching.as_numpy(later):
            yield batching.pad_batch(batch, self._batch_size)

    def _read_epoch(self, rows: process_rows.Rows, epoch: int, done: int) -> Iterator[Batch]:
        """Yields the batches of an epoch but the first `done`, reading what they need."""
        number = tf.constant(epoch, tf.int64)
        numbers = tf.data.Dataset.range(self._count)
        shuffled = self._shuffled(numbers, self._key(number)).batch(self._count)
        order = shuffled.get_single_element().numpy()
        # A block of `batch_size` photographs makes `crops` batches, each with one crop of every
        # photograph; those of the first block that are done are skipped.
        blocks_done, skipped = divmod(done, self._crops)
        for positions, items, valid in rows.epoch_rows(order, blocks_done):
            with batching.tensorflow_errors_as_lines():
                # Converted to floats outside the graph, which would replace the division by a
                # multiplication.
                block = pairs.as_floats(self._prepare_rows(number, positions, items))
            if self._crops == 1:
                batch = {name: value.numpy() for name, value in block.items()}
                yield batching.pad_batch(batch, len(valid)) | {"valid": valid}
            else:
                count = np.count_nonzero(valid)
                crops = {name: value[:count] for name, value in block.items()}
                yield from self._crop_batches(crops, skipped)
                skipped = 0

    def _crop_batches(self, block: pairs.Fields, skipped: int) -> Iterator[Batch]:
        """Yields the batches of a block of photographs [photographs, crops, …]."""
        flat = {name: augmentation.flatten_crops(v).numpy() for name, v in block.items()}
        size = self._batch_size
        for start in range(skipped * size, len(flat["id"]), size):
            batch = {name: value[start : start + size] for name, value in flat.items()}
            yield batching.pad_batch(batch, size)

    def _shuffled_epoch(self, kept: tf.data.Dataset, epoch: tf.Tensor) -> tf.data.Dataset:
        """Makes the batches of an epoch, not padded, of the items of all rows."""
        key = self._key(epoch)
        prepared = (
            self._shuffled(kept, key)
            .enumerate()
            .map(
                lambda position, item: self._prepare(epoch, key, position, item),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
        )
        if self._crops > 1:
            prepared = prepared.batch(self._batch_size).flat_map(
                lambda block: tf.data.Dataset.from_tensor_slices(
                    {name: augmentation.flatten_crops(v) for name, v in block.items()}
                )
            )
        return prepared.batch(self._batch_size).map(pairs.as_floats)

    def _key(self, epoch: tf.Tensor) -> tf.Tensor:
        return augmentation.fold_in(tf.constant([self._seed, 0], tf.int64), epoch)

    def _shuffled(self, rows: tf.data.Dataset, key: tf.Tensor) -> tf.data.Dataset:
        """Shuffles a dataset of all rows, be it of their numbers or of their items."""
        # `shuffle` takes a single integer, and neither half of a key is unique on its own.
        seed = tf.random.stateless_uniform([], key, None, None, tf.int64, alg="philox")
        return rows.shuffle(self._count, seed=seed, reshuffle_each_iteration=False)

    def _kept(self, numbered: tf.data.Dataset) -> tf.data.Dataset:
        """Maps a dataset of (record, draw) to the items that are kept in memory."""
        if not self._keeps_pairs:
            return numbered
        return numbered.map(
            pairs.as_written(lambda record, draw: self._make_pair(record, self._seed, draw)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def _prepare(
        self, epoch: tf.Tensor, key: tf.Tensor, position: tf.Tensor, item: Item
    ) -> pairs.Fields:
        """Makes the augmented pair of a row, or its crops."""
        if self._keeps_pairs:
            pair = item
        else:
            record, draw = item
            draw = draw if self._settings.realisations else epoch
            pair = self._make_pair(record, self._seed, draw)
        if not self._settings.image_size:
            whole = resize.resize(pair["degraded"], batches.CONTEXT_SIZE, "bilinear")
            pair = pair | {"context": pairs.to_bytes(whole)}
        seed = augmentation.fold_in(key, position)
        augment = augmentation.augment if self._crops == 1 else augmentation.augmented_crops
        return augment(pair, self._settings, seed)

    def _prepared(self, epoch: tf.Tensor, positions: tf.Tensor, items: Item) -> pairs.Fields:
        """Prepares the rows of a batch."""
        key = self._key(epoch)
        spec = pairs.PAIR if self._settings.image_size else pairs.PAIR | _CONTEXT
        if self._settings.get("undo_gain", False):
            spec = spec | pairs.GAIN
        if self._crops > 1:
            spec = {
                name: tf.TensorSpec([self._crops, *one.shape], one.dtype)
                for name, one in spec.items()
            }
        return tf.map_fn(
            lambda row: self._prepare(epoch, key, *row),
            (positions, items),
            fn_output_signature=spec,
        )
