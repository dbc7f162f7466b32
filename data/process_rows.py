"""What a process reads when: its rows of a training, its images of an evaluation.

The order of an epoch is that of one process: each knows all of it, as numbers, and takes the
rows of every batch that its devices get. So the batches are the same however many processes
there are. The price is that after some epochs a process has met nearly every image, and keeps
it in memory as one process would. A fixed part of the images for each would keep fewer, but
then a run would depend on the number of its processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data.records import Records
from restore_jax.batches import Share


def with_draw(source: tf.data.Dataset, draw: int) -> tf.data.Dataset:
    """Puts the number of a fixed draw beside every record."""
    return source.map(lambda record: (record, tf.constant(draw, tf.int64)))


def to_evaluate(source: Records, share: Share) -> tf.data.Dataset:
    """Returns the records of a part that a process evaluates: every so many-th one."""
    if share.count == 1:
        return source.dataset
    positions = range(share.index, source.count, share.count)
    return source.pick(positions) if positions else source.dataset.take(0)


class Rows:
    """The rows of a process in the batches of all.

    An image is read and realised when the process first meets it, and kept.

    Args:
        source: the photographs.
        draws: the numbers of the fixed draws of each.
        kept: makes what is kept of records with their draws.
        iterate: over a set, in NumPy.
        share: whose rows.
        batch_size: rows of a batch of all processes.
    """

    def __init__(
        self,
        source: Records,
        draws: Sequence[int],
        kept: Callable[[tf.data.Dataset], tf.data.Dataset],
        iterate: Callable[[tf.data.Dataset], Iterator[Any]],
        share: Share,
        batch_size: int,
    ) -> None:
        self._source = source
        self._draws = draws
        self._make = kept
        self._iterate = iterate
        self._own = share.rows(batch_size)
        self._batch_size = batch_size
        self._kept: dict[int, Any] = {}

    def of_epoch(
        self, order: np.ndarray, done: int
    ) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
        """Yields the rows of an epoch that are still to come, a batch at a time.

        Args:
            order: the numbers of all rows, of draw after draw of all photographs.
            done: batches of the epoch that were before.

        Yields:
            The position of each row in the epoch; what is kept of each, stacked; and which of
            them are not past the epoch's end, where its last row stands again.
        """
        starts = np.arange(done * self._batch_size, len(order), self._batch_size)
        rows = starts[:, None] + np.arange(self._batch_size)[self._own]
        positions = np.minimum(rows, len(order) - 1)
        numbers = order[positions]
        missing = [n for n in dict.fromkeys(numbers.ravel().tolist()) if n not in self._kept]
        made = self._iterate(self._read(missing)) if missing else iter(())
        for row, position, of_batch in zip(rows, positions, numbers.tolist(), strict=True):
            for number in of_batch:
                if number not in self._kept:
                    self._kept[number] = next(made)
            items = [self._kept[number] for number in of_batch]
            yield position, tf.nest.map_structure(_stack, *items), row < len(order)

    def all(self) -> tf.data.Dataset:
        """Returns what is kept of every image, in the order of their numbers.

        Images that this process has not met yet are read. The set is for one pass, which lets
        go of them one by one, so that no image is in memory twice.
        """
        signature = self._read([0]).element_spec

        def generate() -> Iterator[Any]:
            missing = [n for n in range(self._count) if n not in self._kept]
            made = self._iterate(self._read(missing)) if missing else iter(())
            for number in range(self._count):
                item = self._kept.pop(number) if number in self._kept else next(made)
                yield tf.nest.map_structure(_as_array, item)

        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    @property
    def _count(self) -> int:
        return self._source.count * len(self._draws)

    def _read(self, numbers: Sequence[int]) -> tf.data.Dataset:
        draws, positions = np.divmod(np.array(numbers), self._source.count)
        chosen = self._source.pick(positions.tolist())
        of_each = tf.data.Dataset.from_tensor_slices(np.array(self._draws, np.int64)[draws])
        return self._make(tf.data.Dataset.zip((chosen, of_each)))


def _as_array(value: Any) -> np.ndarray:
    # As objects: NumPy's own strings lose the zeros at their end.
    return np.array(value, object) if isinstance(value, bytes) else value


def _stack(*values: Any) -> np.ndarray:
    # As objects: NumPy's own strings lose the zeros at their end.
    return np.array(values, object) if isinstance(values[0], bytes) else np.stack(values)
