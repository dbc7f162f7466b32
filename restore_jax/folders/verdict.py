"""Judges restorations without the true image: what to expect of each, and which are the worst.

The expected PSNR is an estimate from the photograph's noise and blur and from what the output
shows; it serves to order the files of a folder, see docs/verdict.md.
"""

import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from restore_jax.degradation import estimate
from restore_jax.folders import hidden
from restore_jax.inference import pixels
from restore_jax.inference.assessment import Assessment
from restore_jax.metrics import residual

# Larger photographs are judged by windows of this side in px, one in each quarter.
_WINDOW = 512
# Side of a picture of a page, px.
_SHOWN = 384
# Of the expected error by what the output shows: how many times `residual.unexplained` it is,
# how it grows with the variance of the blur, and its share of what that blur would take from
# the output's edges. And the weight of the error by what is hidden, in decibels.
# Chosen by the ranking of rendered images and of photographs, see docs/verdict.md.
_RATIO, _BLUR_POWER, _OF_EDGES = 2.8, 0.25, 0.07
_OF_HIDDEN = 0.2
# Blur that is not known: that of a somewhat soft photograph, in px.
_USUAL_BLUR = 1.5
# Rounding to whole levels leaves this error, grey levels².
_LEAST_ERROR = 1 / 12


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a restoration looks like without the true image.

    Attributes:
        expected_psnr: what its PSNR may be, dB.
        noise_after: standard deviation of the noise left in it, grey levels; None if it cannot
            be estimated.
        correlation: of neighbouring pixels of the residual, see `residual.Residual`.
        structure: share of the blocks whose residual shows detail, [0, 1].
        place: row and column of the middle of the block that shows the most, px.
        trust: mean half width of the error bars, grey levels; None without a trust map.
    """

    expected_psnr: float
    noise_after: float | None
    correlation: float
    structure: float
    place: tuple[int, int]
    trust: float | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
    """A part of a restoration for a page, at most 384 px each way; uint8 [H, W, 3] each.

    Attributes:
        before, after: the photograph and its restoration.
        residual: the first less the second: grey for 0, black or white for three times the
            noise.
    """

    before: np.ndarray
    after: np.ndarray
    residual: np.ndarray


def judge(
    before: np.ndarray,
    after: np.ndarray,
    white: int | None,
    found: Assessment,
    half_width: np.ndarray | None = None,
) -> tuple[Verdict, Picture] | None:
    """Judges a restoration; of a large photograph, by four windows of 512 px each way.

    Args:
        before: the photograph, as for `Restorer`, without a batch axis.
        after: its restoration.
        white: white level of integers; None: the highest of their dtype.
        found: the assessment of the photograph.
        half_width: of the error bars, [H, W], 1 being white; None without a trust map.

    Returns:
        The verdict, and a picture of the part that shows the most; None if the photograph's
        noise is not known, or it is too small (below about 80 px each way).
    """
    noise = found.overall_noise
    if noise is None:
        return None
    scale = 255.0 / pixels.white_of(before.dtype, white)
    judged, left, errors, place, most = [], [], [], (0, 0), -math.inf
    for top, bottom in _spans(before.shape[0]):
        for start, stop in _spans(before.shape[1]):
            pair = [_colours(one[top:bottom, start:stop], scale) for one in (before, after)]
            one = residual.judge(*pair, noise)
            if one is None:
                continue
            judged.append(one)
            errors.append(_expected_error(one.unexplained, *pair, found, noise))
            left += _noise(pair[1])
            row, column = np.unravel_index(one.deviations.argmax(), one.deviations.shape)
            if one.deviations[row, column] > most:
                most = one.deviations[row, column]
                middle = residual.BLOCK // 2
                place = (top + middle * (int(row) + 1), start + middle * (int(column) + 1))
    if not judged:
        return None
    correlation, structure = (
        float(np.mean([getattr(one, name) for one in judged]))
        for name in ("correlation", "structure")
    )
    verdict = Verdict(
        10 * math.log10(255**2 / np.mean(errors)),
        float(np.median(left)) if left else None,
        correlation,
        structure,
        place,
        None if half_width is None else 255 * float(np.mean(half_width)),
    )
    return verdict, _picture(before, after, scale, noise, place)


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """The parts of an axis that are judged, (start, stop)."""
    if length <= 2 * _WINDOW:
        return iter([(0, length)])
    starts = ((length - 2 * _WINDOW) // 4, length // 2 + (length - 2 * _WINDOW) // 4)
    return iter([(start, start + _WINDOW) for start in starts])


def _colours(image: np.ndarray, scale: float) -> np.ndarray:
    """An image without alpha in grey levels 0…255, float32 [H, W, C]."""
    return np.atleast_3d(image)[..., :3].astype(np.float32) * np.float32(scale)


def _noise(image: np.ndarray) -> list[float]:
    """The noise of an image; [] if it cannot be estimated."""
    try:
        found = estimate.noise(image)
    except ValueError:
        return []
    channels = [float(found.at(image.mean(), c)) for c in range(len(found.sigma))]
    return [math.sqrt(np.mean(np.square(channels)))]


def _expected_error(
    unexplained: float, before: np.ndarray, after: np.ndarray, found: Assessment, noise: float
) -> float:
    """The mean squared error to expect, grey levels²: of the noise and of the blur.

    Args:
        unexplained: see `residual.Residual`.
        before: the photograph [H, W, C], grey levels.
        after: its restoration.
        found: the assessment of the photograph.
        noise: standard deviation of its noise, grey levels.
    """
    widths = [one.value for one in found.blur if one is not None] or [_USUAL_BLUR]
    blurred = float(1 + np.mean(np.square(widths))) ** _BLUR_POWER
    # A blur of variance v takes about v times the mean squared slope from an image.
    smooth = ndimage.gaussian_filter(after, (1, 1, 0))
    edges = sum(
        one.value**2 * float(np.mean(np.diff(smooth, axis=axis) ** 2))
        for one, axis in zip(found.blur, (1, 0), strict=True)
        if one is not None
    )
    shown = _RATIO * unexplained * blurred + _OF_EDGES * edges + _LEAST_ERROR
    grey = before.mean(-1), after.mean(-1)
    of_hidden = hidden.find(*grey, noise / math.sqrt(before.shape[2])).error + _LEAST_ERROR
    return shown ** (1 - _OF_HIDDEN) * of_hidden**_OF_HIDDEN


def _picture(
    before: np.ndarray, after: np.ndarray, scale: float, noise: float, place: tuple[int, int]
) -> Picture:
    part = tuple(
        slice(max(0, min(middle - _SHOWN // 2, length - _SHOWN)), None)
        for middle, length in zip(place, before.shape[:2], strict=True)
    )
    old, new = (_colours(one[part][:_SHOWN, :_SHOWN], scale) for one in (before, after))
    shown = (old, new, 128 + (old - new) * (42 / max(noise, 1.0)))
    return Picture(
        *(
            np.broadcast_to(
                np.clip(np.round(one), 0, 255).astype(np.uint8), (*one.shape[:2], 3)
            )
            for one in shown
        )
    )


class Pictures:
    """The pictures for a page: of the worst files, and of some of the others.

    Args:
        worst: of how many.
        others: of how many of the rest, each as likely as any other.
    """

    def __init__(self, worst: int = 24, others: int = 8) -> None:
        self._most, self._most_others = worst, others
        self._worst: list[tuple[float, int, str, Picture]] = []  # a heap, the best on top
        self._others: list[tuple[str, Picture]] = []
        self._numbers = itertools.count()
        self._passed = 0
        self._draws = random.Random(0)

    def add(self, name: str, score: float, picture: Picture) -> None:
        """Adds the picture of a file; `score` is the lower, the worse."""
        heapq.heappush(self._worst, (-score, next(self._numbers), name, picture))
        if len(self._worst) <= self._most:
            return
        _, _, name, picture = heapq.heappop(self._worst)
        self._passed += 1
        if len(self._others) < self._most_others:
            self._others.append((name, picture))
        elif (place := self._draws.randrange(self._passed)) < self._most_others:
            self._others[place] = (name, picture)

    @property
    def by_name(self) -> dict[str, Picture]:
        """The pictures that were kept, by the name of the file."""
        return {name: picture for _, _, name, picture in self._worst} | dict(self._others)
