"""Divides the data among processes: rows of training batches, images of an evaluation.

Every process computes the order of the whole epoch, as row numbers, and reads those rows of
each batch that belong to its own devices. The batches are therefore the same for any number of
processes. The price is that, after some epochs, a process has read nearly every image and
keeps as many in memory as a single process would. A fixed subset of the images per process
would need less memory, but then a run would depend on the number of its processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data import batching
from data.records import Records
from restore_jax.batches import Share


def eval_records(source: Records, share: Share) -> tf.data.Dataset:
    """Returns the records that a process evaluates: every `share.count`-th one."""
    if share.count == 1:
        return source.dataset
    positions = range(share.index, source.count, share.count)
    return source.pick(positions) if positions else source.dataset.take(0)


class Rows:
    """The rows of the global batches that one process reads.

    A row is one draw of one photograph. Its item is made when the process first needs it, and
    then kept in memory.

    Args:
        source: the photographs.
        draws: the numbers of the fixed draws of each photograph.
        make_items: maps a dataset of (record, draw) to the items that are kept.
        share: the part of the process.
        batch_size: rows of a global batch, over all processes.
    """

    def __init__(
        self,
        source: Records,
        draws: Sequence[int],
        make_items: Callable[[tf.data.Dataset], tf.data.Dataset],
        share: Share,
        batch_size: int,
    ) -> None:
        self._source = source
        self._draws = draws
        self._make_items = make_items
        self._own = share.rows(batch_size)
        self._batch_size = batch_size
        self._items: dict[int, Any] = {}

    def epoch_rows(
        self, order: np.ndarray, done: int
    ) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
        """Yields the remaining rows of an epoch, one batch at a time.

        Args:
            order: the numbers of all rows in the order of the epoch; row number
                `draw · photographs + photograph`.
            done: number of batches of the epoch to skip.

        Yields:
            The position of each row in the epoch; the items of the rows, stacked; and which
            rows are valid: those past the end of the epoch repeat its last row.
        """
        starts = np.arange(done * self._batch_size, len(order), self._batch_size)
        rows = starts[:, None] + np.arange(self._batch_size)[self._own]
        positions = np.minimum(rows, len(order) - 1)
        numbers = order[positions]
        missing = [n for n in dict.fromkeys(numbers.ravel().tolist()) if n not in self._items]
        made = batching.as_numpy(self._read(missing)) if missing else iter(())
        for row, position, of_batch in zip(rows, positions, numbers.tolist(), strict=True):
            for number in of_batch:
                if number not in self._items:
                    self._items[number] = next(made)
            items = [self._items[number] for number in of_batch]
            yield position, tf.nest.map_structure(_stack, *items), row < len(order)

    def all(self) -> tf.data.Dataset:
        """Returns the items of all rows, in the order of their numbers.

        Images that this process has not read yet are read. The dataset is for a single pass,
        which releases the kept items one by one, so that no image is in memory twice.
        """
        signature = self._read([0]).element_spec

        def generate() -> Iterator[Any]:
            missing = [n for n in range(self._count) if n not in self._items]
            made = batching.as_numpy(self._read(missing)) if missing else iter(())
            for number in range(self._count):
                item = self._items.pop(number) if number in self._items else next(made)
                yield tf.nest.map_structure(_as_array, item)

        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    @property
    def _count(self) -> int:
        return self._source.count * len(self._draws)

    def _read(self, numbers: Sequence[int]) -> tf.data.Dataset:
        draws, positions = np.divmod(np.array(numbers), self._source.count)
        chosen = self._source.pick(positions.tolist())
        numbered = tf.data.Dataset.from_tensor_slices(np.array(self._draws, np.int64)[draws])
        return self._make_items(tf.data.Dataset.zip((chosen, numbered)))


def _as_array(value: Any) -> np.ndarray:
    # As objects: NumPy's byte strings drop trailing zero bytes.
    return np.array(value, object) if isinstance(value, bytes) else value


def _stack(*values: Any) -> np.ndarray:
    # As objects: NumPy's byte strings drop trailing zero bytes.
    return np.array(values, object) if isinstance(values[0], bytes) else np.stack(values)
