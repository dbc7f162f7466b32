"""What noise and blur hide of an object, by the detail that it should have.

A restoration tells how its model understood the photograph: the blur that takes it back to the
photograph is the one that the model has undone. Detail that this blur and the noise hide does
not show, but the spectrum of an object falls with about a power of the frequency, alike along
both axes, and so continues from what does. Pure functions of NumPy arrays.
"""

import dataclasses
import itertools

import numpy as np
from scipy import optimize

from restore_jax.degradation import estimate

# Relative error of a filter between two images, and by how much noise alone imitates one.
_FILTER_ERROR, _CHANCE = 0.1, 0.3
# The logarithm of the power density at 0.03 cycles/px, grey levels², with its spread: of
# objects of which nothing can be seen. They fall as `estimate.FALL` says.
_REFERENCE, _LEVEL, _LEVEL_SPREAD = 0.03, 7.0, 3.0
# Above so many px, a width tells nothing more.
_WIDEST = 14.0
# Frequencies in cycles/px up to which the noise is not told from the object.
_HIGH = 0.3
# Frequencies at which an error is added up.
_LOWEST, _STEPS = 1 / 320, 28


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What cannot be seen in a photograph.

    Attributes:
        widths: of the blur that the restoration has undone, standard deviations along x and y,
            px; an underestimate where blur is left in it.
        error: mean squared error of the best linear restoration of such an object from such
            blur and noise, grey levels².
    """

    widths: tuple[float, float]
    error: float


def find(before: np.ndarray, after: np.ndarray, noise: float) -> Hidden:
    """Estimates what noise and blur hide.

    Args:
        before: the photograph [H, W], grey levels 0…255, at least 64 px each way.
        after: its restoration.
        noise: standard deviation of the noise of `before`, grey levels.
    """
    seen, count, fx, fy = estimate.spectrum(before[..., None])
    restored = estimate.spectrum(after[..., None])[0]
    shared = estimate.spectrum(before[..., None], after[..., None])[0]
    # Clipped noise has less power than an estimate that allows for clipping says.
    is_high = (fx > _HIGH) & (fy > _HIGH)
    floor = max(min(noise**2, float(np.median(seen[is_high]))), 1 / 12)
    squares = np.stack([fx**2, fy**2])
    variances = _undone(seen, restored, shared, count, floor, squares)
    scale, fall = _object(seen, count, floor, squares, variances)
    widths = np.sqrt(variances)
    return Hidden((float(widths[0]), float(widths[1])), _error(scale, fall, floor, variances))


def _transfer(variances: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The power transfer of a Gaussian blur at squared frequencies [2, …]."""
    return np.exp(-4 * np.pi**2 * np.tensordot(variances, squares, 1))


def _undone(
    seen: np.ndarray,
    restored: np.ndarray,
    shared: np.ndarray,
    count: np.ndarray,
    floor: float,
    squares: np.ndarray,
) -> np.ndarray:
    """The variances along x and y of the blur that takes the restoration to the photograph."""
    # The restoration contains some of the noise, by which it would resemble the photograph.
    signal = np.clip(1 - floor / np.maximum(seen, 1e-9), 0.0, 1.0)
    restored = np.maximum(restored, 1e-9)
    found = shared / restored * signal
    error = np.sqrt(
        2 * floor / (restored * count)
        + (_FILTER_ERROR * np.maximum(found, 0.1)) ** 2
        + (_CHANCE * (1 - signal)) ** 2
    )

    def misfit(widths: np.ndarray) -> np.ndarray:
        return (found - np.sqrt(_transfer(widths**2, squares))) / error

    fits = [
        optimize.least_squares(misfit, start, bounds=(0, _WIDEST), loss="soft_l1")
        for start in itertools.product((1.0, 6.0), repeat=2)
    ]
    return min(fits, key=lambda fit: fit.cost).x ** 2


def _object(
    seen: np.ndarray,
    count: np.ndarray,
    floor: float,
    squares: np.ndarray,
    variances: np.ndarray,
) -> tuple[float, float]:
    """The power density of the object at `_REFERENCE`, and the power by which it falls."""
    transfer = _transfer(variances, squares)
    distance = np.log(np.sqrt(squares.sum(0)) / _REFERENCE)
    trusted = np.sqrt(estimate.BAND_ERROR**2 + 1 / count)
    chance = floor * np.sqrt(estimate.FLOOR_ERROR**2 + 1 / count)

    def misfit(parameters: np.ndarray) -> np.ndarray:
        level, fall = parameters
        expected = np.exp(level - fall * distance) * transfer
        total = expected + floor
        left = np.log(np.maximum(seen, 1e-9) / total) * total
        prior = (fall - estimate.FALL) / estimate.FALL_SPREAD, (level - _LEVEL) / _LEVEL_SPREAD
        return np.append(left / np.hypot(trusted * expected, chance), prior)

    fits = [
        optimize.least_squares(misfit, (level, estimate.FALL), loss="soft_l1")
        for level in (5.0, 9.0)
    ]
    level, fall = min(fits, key=lambda fit: fit.cost).x
    return float(np.exp(level)), float(fall)


def _error(scale: float, fall: float, floor: float, variances: np.ndarray) -> float:
    edges = np.append(0.0, np.geomspace(_LOWEST, 0.5, _STEPS + 1)[1:])
    middle = np.sqrt(np.maximum(edges[:-1], _LOWEST / 2) * edges[1:])
    squares = np.stack(np.meshgrid(middle**2, middle**2))
    power = scale * (np.sqrt(squares.sum(0)) / _REFERENCE) ** -fall
    left = power * floor / (power * _transfer(variances, squares) + floor)
    # Of all four quadrants.
    return float(4 * np.sum(left * np.outer(np.diff(edges), np.diff(edges))))
