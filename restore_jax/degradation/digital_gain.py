"""Finds the digital gain of a photograph from the comb that it leaves in the histogram.

A camera, or software after it, that multiplies whole grey levels k by a gain g and quantises
them again maps 0…255 to floor(g·k) or round(g·k). With a gain above 1, some levels have no k
and stay empty. Below 1, some have two and hold about twice as many pixels, and no level is
higher than that of 255. In a photograph with noise, whose histogram would otherwise be smooth,
this comb determines g to a few parts in 100,000, without the clean photograph. Resizing and
lossy compression erase it. Pure functions of arrays in NumPy.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from restore_jax.degradation.definition import FLOAT_DUST

_LEVELS = np.arange(256)
_LOWEST, _HIGHEST = 0.8, 1.25
# Half the width, in levels, over which a histogram without comb is taken as straight.
_REACH = 4
# A level in whose place this many pixels are expected is not empty by chance.
_SURE = 25.0
# Levels that speak against a comb, empty or not where they should be: more than these few are
# not due to how k·g was rounded where it lies between two levels (k · 1.06 = 26.5).
_MOST_AGAINST = 6
# Differences of the log-likelihood up to this leave gains undecided.
_UNDECIDED = 8.0
# Histograms of fewer levels than this have no comb to speak of.
_FEWEST = 16
# Gains less certain than this are reported as unknown.
_WIDEST = 0.01


@dataclasses.dataclass(frozen=True)
class DigitalGain:
    """A gain and the range of gains that the histogram does not distinguish from it.

    Attributes:
        value: factor on the grey levels; 1 where there is no comb.
        low: lower end of the range.
        high: upper end of the range.
        quantise: "truncate" or "round".
    """

    value: float
    low: float
    high: float
    quantise: str


@functools.cache
def _combs(quantise: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns every distinct comb of gains in `_LOWEST`…`_HIGHEST`.

    The comb changes only where g·k crosses a threshold of the quantisation for some k.

    Returns:
        The N + 1 gains between which the combs lie; [N, 256], how many k have each level; [N],
        the level of 255.
    """
    offset = FLOAT_DUST if quantise == "truncate" else 0.5
    k = _LEVELS[1:]
    changes = (k[None, :] - offset) / k[:, None]
    inside = changes[(changes > _LOWEST) & (changes < _HIGHEST)]
    ends = np.unique(np.concatenate([[_LOWEST], inside.round(10), [_HIGHEST]]))
    # Where two changes all but coincide, what lies between them is rounding.
    ends = ends[np.concatenate([[True], np.diff(ends) > 1e-8])]
    middle = (ends[1:] + ends[:-1]) / 2
    levels = np.clip(np.floor(middle[:, None] * _LEVELS + offset), 0, 255).astype(np.int64)
    count = np.zeros((len(middle), 256), np.float32)
    np.add.at(count, (np.arange(len(middle))[:, None], levels), 1)
    return ends, count, levels[:, 255]


def estimate(counts: np.ndarray) -> DigitalGain | None:
    """Finds the gain of a channel.

    Args:
        counts: integer [256], the number of pixels at each grey level.

    Returns:
        The gain; None if no gain explains the histogram, or too many do.
    """
    counts = np.asarray(counts, np.float64)
    if np.count_nonzero(counts) < _FEWEST:
        return None
    found = [one for mode in ("truncate", "round") for one in _fits(counts, mode)]
    if not found:
        return None
    best = max(found, key=lambda fit: fit[0])
    likely = [fit for fit in found if fit[0] > best[0] - _UNDECIDED]
    low, high = min(fit[1] for fit in likely), max(fit[2] for fit in likely)
    if high - low > _WIDEST:
        return None
    value = 1.0 if low <= 1.0 <= high else (best[1] + best[2]) / 2
    return DigitalGain(value, low, high, best[3])


def _fits(counts: np.ndarray, quantise: str) -> list[tuple[float, float, float, str]]:
    """Returns log-likelihood, lowest and highest gain of each comb that can be true."""
    ends, combs, tops = _combs(quantise)
    top = int(np.flatnonzero(counts)[-1])
    # Noise clipped at white leaves many pixels at the image of 255; without, any top may be.
    clipped = counts[top] > 3 * counts[max(top - 4, 0) : top].mean() + _SURE
    chosen = np.flatnonzero(tops == top if clipped else tops >= top)
    inner = np.ones(256, bool)
    inner[:2] = False
    # Next to the top lies what was clipped; beyond it nothing.
    inner[top - 1 :] = False
    combs = combs[chosen]
    empty = (combs == 0).astype(np.float32)
    against = empty @ (inner & (counts > 0)).astype(np.float32)
    chosen, combs, against = (x[against <= _MOST_AGAINST] for x in (chosen, combs, against))
    if not len(chosen):
        return []
    window = np.ones(2 * _REACH + 1)
    seen = ndimage.correlate1d(np.where(inner, counts, 0), window, mode="constant")
    held = ndimage.correlate1d(np.where(inner, combs, 0), window, axis=1, mode="constant")
    rate = combs * (seen / np.maximum(held, 1))
    against = against + ((counts == 0) & inner & (rate > _SURE)).sum(1)
    chosen, rate = (x[against <= _MOST_AGAINST] for x in (chosen, rate))
    likelihood = np.where(inner, counts * np.log(np.maximum(rate, 1e-3)) - rate, 0).sum(1)
    return [
        (float(value), float(ends[index]), float(ends[index + 1]), quantise)
        for value, index in zip(likelihood, chosen, strict=True)
    ]


def of_photograph(photograph: np.ndarray) -> np.ndarray:
    """Finds the gain of each channel of a photograph; 1 where it is unknown.

    Args:
        photograph: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], whose alpha is ignored. Gains are
            found in uint8 only.

    Returns:
        float32 [1] or [3].
    """
    channels = photograph[..., None] if photograph.ndim == 2 else photograph[..., :3]
    gains = np.ones(channels.shape[-1], np.float32)
    if photograph.dtype == np.uint8:
        for number in range(len(gains)):
            counts = np.bincount(channels[..., number].ravel(), minlength=256)
            if found := estimate(counts):
                gains[number] = found.value
    return gains
