"""Datasets as NumPy batches: padded ones, or of one image size each; errors as lines."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from data import pairs
from restore_jax import batches
from restore_jax.batches import Batch
from restore_jax.errors import RunError, UsageError


def as_numpy(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Iterates over a dataset in NumPy; TensorFlow's errors become UsageError or RunError."""
    with tensorflow_errors_as_lines():
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


@contextlib.contextmanager
def tensorflow_errors_as_lines() -> Iterator[None]:
    """Raises TensorFlow's errors as UsageError or RunError, of one line each."""
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
    strings = {
        name: np.array([text.decode() for text in padded[name]]) for name in pairs.STRINGS
    }
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
