"""Estimates noise and blur from a single degraded photograph, without the clean one.

Noise that is added after the blur is white, whatever the blur: a second difference along both
axes removes the photograph and keeps the noise. Blur shows in how fast the power spectrum
falls. That of edges and texture is a power of the frequency, the same in every direction; a
Gaussian blur multiplies it by exp(−4 π² (σx² fx² + σy² fy²)). Pure functions of NumPy arrays.
"""

import dataclasses
import itertools

import numpy as np
from scipy import ndimage, optimize, special

from restore_jax.degradation.calibration import Estimate, truncated_moments

_BLOCK = 16
# Effective degrees of freedom of a block: its squared second differences are correlated.
_FREEDOM = _BLOCK**2 / (70 / 36) ** 2
_QUANTILE = 0.3
_BINS = 10
# Share of the blocks that is used: those with the least coarse structure, to avoid edges.
_FLATTEST = 0.4

FALL, FALL_SPREAD = 2.6, 0.3
"""The power of the frequency with which the power spectrum of a photograph falls, and its
spread: the second power for texture, the third for edges."""

BAND_ERROR, FLOOR_ERROR = 0.4, 0.03
"""Relative errors: of a band against this model, and of the noise floor."""

# Minimum number of bands that must rise above the noise.
_FEWEST = 16
_WIDEST = 30.0
# The width of the blur in a sharp photograph, from lens, sampling and demosaicing, px.
_OWN_WIDTH = 0.4
# Relative error of a width, because the spectra of materials differ; and the relative error
# above which no width is reported.
_MODEL_ERROR, _WORST = 0.15, 0.22


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise of a photograph, per channel: the variance is sigma² + photons · level.

    Attributes:
        sigma: standard deviation at black, grey levels; [C].
        photons: variance per grey level; [C].
    """

    sigma: tuple[Estimate, ...]
    photons: tuple[Estimate, ...]

    def at(self, level: float | np.ndarray, channel: int = 0) -> np.ndarray:
        """Returns the standard deviation in grey levels at a level 0…255."""
        variance = self.sigma[channel].value ** 2 + self.photons[channel].value * np.asarray(
            level
        )
        return np.sqrt(variance)

    def channel(self, number: int) -> tuple[Estimate, Estimate]:
        """Returns `sigma` and `photons` of a channel."""
        return self.sigma[number], self.photons[number]


def noise(image: np.ndarray) -> Noise:
    """Estimates a photograph's noise from its flattest parts.

    Args:
        image: [H, W] or [H, W, C], grey levels 0…255, at least 64 px each way.

    Raises:
        ValueError: the photograph is uniform, or clipped everywhere.
    """
    channels = np.asarray(image, np.float64)
    channels = channels[..., None] if channels.ndim == 2 else channels
    if np.std(channels) < 1e-6:
        raise ValueError("has the same level everywhere")
    found = [_channel_noise(channels[..., c]) for c in range(channels.shape[-1])]
    return Noise(tuple(row[0] for row in found), tuple(row[1] for row in found))


def _channel_noise(image: np.ndarray) -> tuple[Estimate, Estimate]:
    height, width = (length // _BLOCK * _BLOCK for length in image.shape)
    second = image
    for axis in (0, 1):
        second = ndimage.correlate1d(second, [1.0, -2.0, 1.0], axis, mode="mirror")
    rough = _blocks(second[:height, :width] ** 2 / 36, _BLOCK).mean((1, 3)).ravel()
    level = _blocks(image[:height, :width], _BLOCK).mean((1, 3)).ravel()
    # Means over 4 × 4 px are nearly independent of the second differences, so that selecting by
    # them does not prefer blocks in which the noise happens to be small.
    coarse = _blocks(image[:height, :width], 4).mean((1, 3))
    structure = _blocks(coarse, _BLOCK // 4).var((1, 3)).ravel()
    top = _highest(image)
    seen = (level > 1) & (level < top - 1) & (rough > 0)
    if seen.sum() < 8:
        raise ValueError("is clipped all over, or has no noise at all")
    rough, level, structure = rough[seen], level[seen], structure[seen]
    order = np.argsort(level, kind="stable")
    points = []
    for members in np.array_split(order, min(_BINS, max(1, len(order) // 12))):
        flattest = members[np.argsort(structure[members])]
        flattest = flattest[: max(4, int(_FLATTEST * len(members)))]
        # A low quantile, since texture only adds.
        expected = special.chdtri(_FREEDOM, 1 - _QUANTILE) / _FREEDOM
        variance = np.quantile(rough[flattest], _QUANTILE) / expected
        latent = _unclipped(level[flattest].mean(), variance, top)
        if latent is not None:
            points.append((*latent, len(flattest)))
    if not points:
        raise ValueError("is clipped all over")
    return _line(*np.array(points).T)


def _blocks(image: np.ndarray, side: int) -> np.ndarray:
    """Reshapes an image [H, W] to [H / side, side, W / side, side]."""
    height, width = (length // side for length in image.shape)
    return image.reshape(height, side, width, side)


def _highest(image: np.ndarray) -> float:
    """Returns the level that bright values were clipped to; 255 if there is no sign of one."""
    counts = np.bincount(np.clip(image, 0, 255).astype(np.int64).ravel(), minlength=256)
    top = int(np.nonzero(counts)[0][-1])
    below = counts[max(top - 8, 0) : top].mean() if top else 0.0
    return float(top) if counts[top] > 3 * below + 10 else 255.0


def _unclipped(mean: float, variance: float, top: float) -> tuple[float, float] | None:
    """Returns mean and variance before clipping to 0…top; None if too much was clipped."""
    mu, spread = mean, variance
    for _ in range(200):
        sigma = np.sqrt(spread)
        low, high = -mu / sigma, (top - mu) / sigma
        if special.ndtr(low) + special.ndtr(-high) > 0.6:
            return None
        inside, centre, scale = truncated_moments(low, high)
        above, middle = special.ndtr(-high), mu + sigma * centre
        first = inside * middle + top * above
        square = inside * (middle**2 + spread * scale) + top**2 * above
        clipped = max(square - first**2, 1e-9)
        mu, spread = mu + mean - first, spread * variance / clipped
    return (float(mu), float(spread)) if np.isfinite(mu + spread) else None


def _line(
    level: np.ndarray, variance: np.ndarray, count: np.ndarray
) -> tuple[Estimate, Estimate]:
    """Fits sigma² + photons · level, both non-negative, to variances at levels."""
    level, variance = np.maximum(level, 0), np.maximum(variance - 1 / 12, 1e-3)
    # A quantile of the variances is less certain than their mean would be.
    error = 1.5 * variance * np.sqrt(2 / (_FREEDOM * count))
    design = np.stack([np.ones_like(level), level], 1) / error[:, None]
    (constant, slope), _ = optimize.nnls(design, variance / error)
    errors = np.sqrt(np.diag(np.linalg.pinv(design.T @ design)))
    if slope < 2 * errors[1]:
        weights = 1 / error**2
        constant, slope = float(np.sum(weights * variance) / np.sum(weights)), 0.0
        errors = np.array([1 / np.sqrt(np.sum(weights)), 0.0])
    sigma = float(np.sqrt(max(constant, 0.0)))
    return (
        Estimate(sigma, float(errors[0] / (2 * max(sigma, np.sqrt(errors[0]), 1e-3)))),
        Estimate(float(slope), float(errors[1])),
    )


def blur(image: np.ndarray, noise: Noise) -> tuple[Estimate | None, Estimate | None]:
    """Estimates the widths of a Gaussian blur from a photograph's spectrum.

    Args:
        image: [H, W] or [H, W, C], grey levels 0…255.
        noise: its noise, from `noise`.

    Returns:
        The standard deviations along x and along y in px; None for an axis along which neither
        edges nor texture rise above the noise. A material that is itself smooth along an axis,
        such as wood along its grain, appears blurred along it.
    """
    channels = np.asarray(image, np.float64)
    channels = channels[..., None] if channels.ndim == 2 else channels
    variances = [noise.at(channels[..., c].mean(), c) ** 2 for c in range(len(noise.sigma))]
    return widths(*spectrum(channels), np.mean(variances))


def widths(
    seen: np.ndarray,
    count: np.ndarray,
    fx: np.ndarray,
    fy: np.ndarray,
    floor: float | np.ndarray,
) -> tuple[Estimate | None, Estimate | None]:
    """Estimates the widths of a Gaussian blur from the bands of `spectrum`.

    Args:
        seen: mean power of each band, [N].
        count: number of its values.
        fx: its frequency along x, cycles/px.
        fy: the same along y.
        floor: power of the noise, in all bands or in each.

    Returns:
        As `blur`.
    """
    floor = np.broadcast_to(floor, seen.shape)
    radius = np.hypot(fx, fy)
    chance = floor * np.sqrt(1 / count + FLOOR_ERROR**2)
    seen = np.maximum(seen, 1e-9)
    if np.sum(seen - floor > 6 * chance) < _FEWEST:
        return None, None
    # Shapes have a finite size; below the corresponding frequency, the spectrum falls less.
    trusted = np.sqrt(BAND_ERROR**2 * np.where(radius < 0.02, 4.0, 1.0) + 1 / count)

    def misfit(parameters: np.ndarray) -> np.ndarray:
        log_scale, fall, along_x, along_y = parameters
        blurred = (2 * np.pi) ** 2 * ((along_x * fx) ** 2 + (along_y * fy) ** 2)
        expected = np.exp(log_scale - fall * np.log(radius / radius.min()) - blurred)
        total = expected + floor
        left = np.log(seen / total) / np.hypot(trusted * expected / total, chance / total)
        return np.append(left, (fall - FALL) / FALL_SPREAD)

    lowest = radius.argmin()
    start = np.log(max((seen - floor)[lowest], floor[lowest]))
    fits = [
        optimize.least_squares(
            misfit, [start, FALL, *first],
            bounds=([-60, 0, 0.05, 0.05], [60, 6, _WIDEST, _WIDEST]), loss="soft_l1",
            x_scale=[1.0, 0.1, 0.1 * first[0], 0.1 * first[1]],
        )
        for first in itertools.product((0.7, 4.0), repeat=2)
    ]  # fmt: skip
    best = min(fits, key=lambda fit: fit.cost)
    errors = np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac)))
    along_x, along_y = (_width(*both) for both in zip(best.x[2:], errors[2:], strict=True))
    return along_x, along_y


def _width(width: float, error: float) -> Estimate | None:
    """Subtracts the width of a sharp photograph; returns None if it is too uncertain."""
    error = float(np.hypot(error, _MODEL_ERROR * width))
    added = float(np.sqrt(max(width**2 - _OWN_WIDTH**2, 0.0)))
    is_found = error < _WORST * width and width < 0.95 * _WIDEST
    return Estimate(added, error) if is_found else None


def spectrum(
    channels: np.ndarray, other: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Averages the power spectrum in bands of both frequencies.

    Args:
        channels: [H, W, C].
        other: of the same shape, for the power that both share in phase instead.

    Returns:
        Of each band, [N]: mean power (white noise of variance v has the power v), number of
        values, and the frequencies along x and y in cycles/px.
    """
    height, width = channels.shape[:2]
    taper = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    taper /= np.sqrt(np.mean(taper**2))
    first, second = (
        np.fft.rfft2((one - one.mean((0, 1))) * taper[..., None], axes=(0, 1))
        for one in (channels, channels if other is None else other)
    )
    power = np.mean((first * second.conj()).real, -1) / (height * width)
    half = height // 2 + 1
    # Positive and negative vertical frequencies are averaged.
    power = (power[:half] + power[(-np.arange(half)) % height]) / 2
    rows, columns = (_bands(length) for length in power.shape)
    found = []
    for of_y, of_x in itertools.product(rows, columns):
        values = power[of_y, of_x]
        fx = np.mean(np.arange(of_x.start, of_x.stop)) / width
        fy = np.mean(np.arange(of_y.start, of_y.stop)) / height
        if max(fx * width, fy * height) >= 3:  # below, the taper smears
            found.append((values.mean(), 2 * values.size, fx, fy))
    seen, count, fx, fy = np.array(found).T
    return seen, count, fx, fy


def _bands(length: int) -> list[slice]:
    """Returns bands of frequencies, narrow at low ones, so that these have as much weight."""
    edges = np.unique(np.round(np.geomspace(3, length, 18)).astype(int))
    return [slice(0, 1), slice(1, 3), *(slice(a, b) for a, b in itertools.pairwise(edges))]
