"""Measures the noise and blur of the photographs of a training, which its model knows."""

import pathlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from restore_jax import batches, files
from restore_jax.checkpoints import weights_file
from restore_jax.degradation import known_range
from restore_jax.degradation.calibration import MIN_SIZE
from restore_jax.degradation.known_range import KnownRange

# Enough for a limit that one in a hundred exceeds by little; each takes about half a second.
_MOST = 60


def measure(
    config: ConfigDict, make_data: Callable[[ConfigDict], batches.Data]
) -> KnownRange | None:
    """Measures the limits on the degraded photographs of the validation set.

    At native size, these are widened to what follows from the law.

    Returns:
        None if the photographs are too small or too few.
    """
    size = config.data.image_size
    if 0 < size < MIN_SIZE:
        return None
    data = make_data(config)
    every = -(-data.counts["val"] // _MOST)
    found, number = [], 0
    for batch in data.eval_batches("val"):
        for image in batch["degraded"][np.asarray(batch["valid"])]:
            if number % every == 0:
                found.append(known_range.measure(image, 255.0, is_resized=bool(size)))
            number += 1
    measured = known_range.of_photographs(found)
    by_law = None if size else known_range.of_config(config.data)
    return measured if measured is None or by_law is None else measured.widened(by_law)


def write(
    folder: pathlib.Path, config: ConfigDict, make_data: Callable[[ConfigDict], batches.Data]
) -> None:
    """Writes the limits into a workdir, unless they are there."""
    path = folder / weights_file.RANGE_FILE
    if path.exists():
        return
    found = measure(config, make_data)
    if found is not None:
        files.write_text(path, found.as_text())
