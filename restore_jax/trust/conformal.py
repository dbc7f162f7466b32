"""Split-conformal calibration: makes predicted half-widths contain nine errors in ten.

The photographs that the factors are measured on are in neither the training of the restorer nor
that of the error bar. For a new photograph that is exchangeable with them, the interval then
contains an error with the stated probability, however good or bad the prediction is. Pixels of
one photograph are alike, so what counts for this is the number of photographs.
"""

import math

import numpy as np

from restore_jax.trust.network import LEVELS

COVERAGE = 0.9
"""The share of pixels whose error lies within the half-width."""

# Where a restorer leaves most pixels of a level exactly as they should be, the factor would be
# 0, which has no logarithm.
_LEAST_FACTOR = 1e-3
# Between neighbouring levels, where a constant prediction would make them equal.
_LEAST_STEP = 1e-4


def factor(ratios: np.ndarray, coverage: float = COVERAGE) -> float:
    """Returns what the half-widths have to be multiplied by.

    Args:
        ratios: error / half-width of calibration pixels, [N].
        coverage: the share of new pixels that the interval must contain.

    Returns:
        The ⌈(N + 1) · coverage⌉-th smallest ratio: the half-width times this contains a new
        error with at least the given probability.

    Raises:
        ValueError: for too few pixels: N below coverage / (1 - coverage).
    """
    rank = math.ceil((ratios.size + 1) * coverage)
    if rank > ratios.size:
        raise ValueError(f"{ratios.size} pixels are too few to calibrate {coverage:.0%}")
    return float(np.partition(ratios, rank - 1)[rank - 1])


def calibrate(
    half_widths: np.ndarray, errors: np.ndarray, coverage: float = COVERAGE
) -> dict[str, np.ndarray]:
    """Measures the factors by which predicted half-widths become intervals.

    One factor for each eighth of the pixels, ordered by prediction, so that pixels said to be
    certain and pixels said to be uncertain are covered alike; then one for all of them, because
    interpolating between these factors shifts the overall coverage slightly.

    Args:
        half_widths: predictions for calibration pixels before calibration, [N], above 0.
        errors: their absolute errors, [N].
        coverage: as for `factor`.

    Returns:
        "levels" and "factors", the variables "calibration" of `network.ErrorBar`.

    Raises:
        ValueError: as `factor`, for an eighth of the pixels.
    """
    order = np.argsort(half_widths)
    parts = [(half_widths[part], errors[part]) for part in np.array_split(order, LEVELS)]
    levels = np.log([np.median(predicted) for predicted, _ in parts])
    levels = np.maximum.accumulate(levels) + _LEAST_STEP * np.arange(LEVELS)
    factors = np.log(
        [max(_LEAST_FACTOR, factor(wrong / predicted, coverage)) for predicted, wrong in parts]
    )
    predicted = np.log(half_widths)
    widened = np.exp(predicted + np.interp(predicted, levels, factors))
    factors += math.log(max(_LEAST_FACTOR, factor(errors / widened, coverage)))
    return {"levels": levels.astype(np.float32), "factors": factors.astype(np.float32)}
