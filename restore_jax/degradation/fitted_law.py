"""Combines the fits of single photographs into the law of a material."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from restore_jax.degradation.calibration import PARAMETERS, Estimate, PairFit
from restore_jax.degradation.definition import OFF, Law, Range

# Relative and angular accuracy of the fits: photographs that differ by less are degraded alike.
_ALIKE = 0.01
_ALIKE_DEGREES = 0.5
# Correlations of the residual from which on channels, or neighbours, share their noise.
_ALIKE_CHANNELS, _ALIKE_NEIGHBOURS = 0.8, 0.35
# Shares of the variance of a Bayer sensor's noise that interpolation leaves in each channel.
_LEFT = (9 / 16, 5 / 8, 9 / 16)


@dataclasses.dataclass(frozen=True)
class Found:
    """A fitted law, with what its file says about it; see `law_file`.

    Attributes:
        law: the fields of the law; None if unknown.
        intervals: 90 % confidence intervals, by field.
        unknown: why a field is unknown, by field.
        residual: statistics of the residuals, see `calibration.PairFit`.
    """

    law: Mapping[str, Any]
    intervals: Mapping[str, Range]
    unknown: Mapping[str, str]
    residual: Mapping[str, float]


def of_pairs(fits: Sequence[PairFit]) -> Found:
    """Combines the fits of pairs: a range covers all photographs and channels.

    If they agree within their errors, both ends are the weighted mean.
    """
    law: dict[str, Any] = dataclasses.asdict(Law())
    intervals: dict[str, Range] = {}
    law["blur"] = _kinds([fit.kind for fit in fits])
    for name in (name for names in PARAMETERS.values() for name in names):
        found = [fit.blur[name] for fit in fits if name in fit.blur]
        if found:
            law[name], intervals[name] = _pooled(found, name == "motion_angle")
    kinds = [_noise_kind(fit.residual) for fit in fits]
    law["noise"] = _kinds(kinds)
    sigmas = [
        _of_sensor(sigma, channel) if kind == "demosaiced" else sigma
        for fit, kind in zip(fits, kinds, strict=True)
        for channel, sigma in enumerate(fit.noise_sigma)
    ]
    law["noise_sigma"], intervals["noise_sigma"] = _pooled(sigmas)
    photons = [fit.photons for fit in fits if fit.photons.value > 0]
    if 2 * len(photons) > len(fits):
        law["poisson_peak"], intervals["poisson_peak"] = _pooled(list(map(_peak, photons)))
    gain, intervals["gain"] = _pooled([gain for fit in fits for gain in fit.gain])
    is_one = gain[0] == gain[1] and abs(gain[0] - 1) < _ALIKE / 2
    law["gain"] = (1.0, 1.0) if is_one else gain
    unknown = {}
    modes = {fit.quantise for fit in fits} - {None}
    law["quantise"] = next(iter(modes)) if len(modes) == 1 else None
    if not modes:
        unknown["quantise"] = "the levels do not tell truncating from rounding"
    elif len(modes) > 1:
        unknown["quantise"] = f"the pairs differ: {', '.join(sorted(modes))}"
    residual = {
        name: float(np.mean([fit.residual[name] for fit in fits])) for name in fits[0].residual
    }
    return Found(law, intervals, unknown, residual)


def of_photographs(
    noise: Sequence[tuple[Estimate, Estimate]],
    blur: Sequence[tuple[Estimate | None, Estimate | None]],
    shared: Sequence[float],
) -> Found:
    """Combines the estimates of single degraded photographs, see `estimate`.

    Args:
        noise: for each channel of each photograph, standard deviation at black and variance
            per grey level.
        blur: for each photograph, widths along x and y in px; None if unknown.
        shared: for each photograph, the noise that its channels share, a standard deviation.
    """
    law: dict[str, Any] = dataclasses.asdict(Law())
    intervals: dict[str, Range] = {}
    unknown = {
        "gain": "without the clean photograph nothing tells a gain from the material's colour",
        "quantise": "without the clean photograph nothing tells truncating from rounding",
    }
    law["gain"] = law["quantise"] = None
    law["noise_sigma"], intervals["noise_sigma"] = _pooled([sigma for sigma, _ in noise])
    if _shares_noise(noise, shared):
        law["noise"] = ("grey",)
    photons = [photons for _, photons in noise if photons.value > 0]
    if 2 * len(photons) > len(noise):
        law["poisson_peak"], intervals["poisson_peak"] = _pooled(list(map(_peak, photons)))
    for place, name in enumerate(("sigma_x", "sigma_y")):
        found = [widths[place] for widths in blur if widths[place] is not None]
        if found:
            law[name], intervals[name] = _pooled(found)
        else:
            law[name] = None
            unknown[name] = "no edges or texture above the noise tell a width"
    if law["sigma_x"] or law["sigma_y"]:
        law["blur"] = ("gaussian",)
        unknown["motion_length"] = unknown["defocus_radius"] = (
            "the blur was taken to be Gaussian; its kind shows only in pairs"
        )
        law["motion_length"] = law["motion_angle"] = law["defocus_radius"] = None
        unknown["motion_angle"] = unknown["motion_length"]
    return Found(law, intervals, unknown, {})


def _noise_kind(residual: Mapping[str, float]) -> str:
    """Returns the kind of noise whose correlations are nearest to those of the residual.

    Noise of a Bayer sensor that was interpolated linearly has a correlation of neighbours of
    0.67 in red and blue, and of 0.4 in green.
    """
    if residual["correlation_channels"] > _ALIKE_CHANNELS:
        return "grey"
    neighbours = [residual[f"correlation_{axis}"] for axis in "xy"]
    return "demosaiced" if min(neighbours) > _ALIKE_NEIGHBOURS else "independent"


def _shares_noise(noise: Sequence[tuple[Estimate, Estimate]], shared: Sequence[float]) -> bool:
    """Whether most of the noise is that which the channels share; as for `of_photographs`.

    Its variance is that of the flatter half of a photograph, of any brightness.
    """
    total = [sigma.value**2 + photons.value * 128 for sigma, photons in noise]
    return float(np.mean(np.square(shared))) > _ALIKE_CHANNELS * float(np.mean(total))


def _of_sensor(sigma: Estimate, channel: int) -> Estimate:
    """Returns the noise of a sensor from what linear interpolation left of it in a channel."""
    left = math.sqrt(_LEFT[channel])
    return Estimate(sigma.value / left, sigma.error / left)


def _kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Returns kinds of blur or noise, repeated in proportion to their frequencies."""
    counts = collections.Counter(kinds)
    divisor = math.gcd(*counts.values())
    return tuple(kind for kind, n in sorted(counts.items()) for _ in range(n // divisor))


def _peak(photons: Estimate) -> Estimate:
    peak = 255 / photons.value
    return Estimate(peak, peak * photons.error / photons.value)


def _pooled(found: Sequence[Estimate], is_angle: bool = False) -> tuple[Range, Range]:
    """Returns the range that covers the estimates, and its 90 % confidence interval."""
    values = np.array([estimate.value for estimate in found])
    if is_angle:  # directions repeat every 180 degrees
        values = values[0] + (values - values[0] + 90) % 180 - 90
    errors = np.array([estimate.error for estimate in found])
    alike = _ALIKE_DEGREES if is_angle else _ALIKE * np.abs(values)
    weights = 1 / np.maximum(errors**2 + alike**2, 1e-12)
    mean = float(np.sum(weights * values) / np.sum(weights))
    spread = float(np.sum(weights * (values - mean) ** 2))
    if len(found) == 1 or spread <= stats.chi2.ppf(0.95, len(found) - 1):
        low = high = Estimate(
            mean, float(1 / np.sqrt(np.sum(1 / np.maximum(errors**2, 1e-12))))
        )
    else:
        low, high = (
            Estimate(float(values[i]), found[i].error)
            for i in (values.argmin(), values.argmax())
        )
    bounds = low.interval[0], high.interval[1]
    if not is_angle:
        bounds = max(bounds[0], 0.0), bounds[1]
    return (low.value, high.value), bounds


def noise_curve(law: Mapping[str, Any], levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest standard deviation of the noise at grey levels."""
    left = math.sqrt(np.mean(_LEFT)) if set(law["noise"]) == {"demosaiced"} else 1.0
    low, high = (left * sigma for sigma in law["noise_sigma"])
    few, many = law["poisson_peak"] or OFF
    most, least = (255 / peak if peak else 0.0 for peak in (few, many))
    return np.sqrt(low**2 + least * levels), np.sqrt(high**2 + most * levels)
