"""The photographs a model knows: how noisy and how blurred those of its training were.

`measure` estimates noise and blur of a photograph; a `KnownRange` holds the limits that they
are compared with. These are measured on photographs degraded as in the training, so that they
contain the bias of the estimates, or else follow from the degradation law.

Channels with little noise tell the most about the blur, and a wide blur shows best in a reduced
photograph. The estimates of `estimate` are therefore made of a weighted mean of the channels,
at its own size and reduced.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from restore_jax.degradation import definition, estimate
from restore_jax.degradation.calibration import MIN_SIZE, Estimate
from restore_jax.degradation.definition import Law, Range
from restore_jax.errors import UsageError

# Larger photographs are judged by one window of this side in px.
_WINDOW = 1024
# Of the reduced photograph: below so many px, no blur is estimated.
_MIN_REDUCED = 96
# Reduction at which a wide blur is estimated; from `_WIDE` px on, this estimate is right.
_REDUCTION = 4
_WIDE = 4.0
# Of a shrunk photograph: frequencies in cycles/px along both axes above which there is noise
# alone, its relative error, and the share of the bands that may lie below it by chance.
_HIGH, _FLOOR_ERROR, _BELOW = 0.3, 0.05, 0.05
# Rounding to whole levels adds this variance.
_ROUNDING = 1 / 12
# Of limits by a law: how far a known noise is from its estimate, the noise of a good photograph
# in grey levels, and what the blur of a material itself adds, in px.
_NOISE_ERROR, _OWN_NOISE, _OWN_BLUR = 0.15, 3.0, 1.5
# A photograph shrunk to the size of the training keeps at least this share of its noise.
_SHRUNK_NOISE = 0.05
# So much of the photographs of a training lies within each measured limit.
_QUANTILE = 0.99
_FEWEST = 10
_ANY_WIDTH = 1000.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """The estimated noise and blur of a photograph.

    Attributes:
        noise: standard deviation at the mean level, in grey levels of 0…255, per channel; ()
            if it cannot be estimated.
        blur: standard deviations along x and y in px; None where nothing tells them.
    """

    noise: tuple[Estimate, ...] = ()
    blur: tuple[Estimate | None, Estimate | None] = (None, None)

    @property
    def overall_noise(self) -> Estimate | None:
        """The root mean square over the channels."""
        if not self.noise:
            return None
        values = np.array([channel.value for channel in self.noise])
        errors = np.array([channel.error for channel in self.noise])
        overall = math.sqrt(np.mean(values**2))
        error = math.sqrt(np.sum((values * errors) ** 2)) / (len(values) * max(overall, 1e-6))
        return Estimate(overall, error)


def measure(image: np.ndarray, scale: float = 1.0, is_resized: bool = False) -> Measured:
    """Estimates the noise and blur of a photograph.

    Args:
        image: [H, W] or [H, W, C] of any dtype.
        scale: factor to grey levels of 0…255.
        is_resized: whether it was shrunk after it was taken, so that its noise is correlated.
    """
    if min(image.shape[:2]) < MIN_SIZE:
        return Measured()
    channels = _window(np.atleast_3d(image)) * np.float64(scale)
    try:
        noise = estimate.noise(channels)
        found = tuple(_at_mean(noise, channels[..., c], c) for c in range(len(noise.sigma)))
    except ValueError:
        return Measured()
    weights = 1 / (np.array([channel.value for channel in found]) ** 2 + _ROUNDING)
    mean = channels @ (weights / weights.sum())
    try:
        return Measured(found, (_blur_resized if is_resized else _blur)(mean))
    except ValueError:
        return Measured(found)


def _window(image: np.ndarray) -> np.ndarray:
    """The part of a large photograph that shows the most: [≤ 1024, ≤ 1024, C]."""
    for axis in (0, 1):
        length = image.shape[axis]
        if length <= _WINDOW:
            continue
        # A sixteenth of the rows and columns, so that most of the photograph is not read.
        sparse = image[::16, ::16].astype(np.float32)
        profile = np.square(np.diff(sparse, axis=axis)).mean(axis=(1 - axis, 2))
        starts = np.linspace(0, length - _WINDOW, 5).astype(int)
        shown = [profile[start // 16 : (start + _WINDOW) // 16].sum() for start in starts]
        start = starts[int(np.argmax(shown))]
        image = np.take(image, range(start, start + _WINDOW), axis=axis)
    return image


def _at_mean(noise: estimate.Noise, image: np.ndarray, channel: int) -> Estimate:
    level = float(image.mean())
    sigma, photons = noise.channel(channel)
    value = float(noise.at(level, channel))
    error = math.hypot(2 * sigma.value * sigma.error, level * photons.error)
    return Estimate(value, error / (2 * max(value, 0.1)))


def _blur(image: np.ndarray) -> tuple[Estimate | None, Estimate | None]:
    noise = float(estimate.noise(image).at(image.mean()))
    noise = math.sqrt(noise**2 + _ROUNDING)
    wide = _blur_reduced(image, _REDUCTION, noise / _REDUCTION)
    if all(width is not None and width.value >= _WIDE for width in wide):
        return wide
    fine = _blur_reduced(image, 1, noise)
    along_x, along_y = map(_agreed, wide, fine)
    return along_x, along_y


def _agreed(wide: Estimate | None, fine: Estimate | None) -> Estimate | None:
    """Of a width found in the reduced photograph and in the photograph, the better one."""
    if wide is not None and wide.value >= _WIDE:
        return wide
    if fine is not None and fine.value < 1.5 * _WIDE:
        return fine
    return wide


def _blur_resized(image: np.ndarray) -> tuple[Estimate | None, Estimate | None]:
    if min(image.shape) < _MIN_REDUCED:
        return None, None
    bands = estimate.spectrum(image[..., None])
    return estimate.widths(*bands, _shrunk_noise(*bands))


def _shrunk_noise(
    seen: np.ndarray, count: np.ndarray, fx: np.ndarray, fy: np.ndarray
) -> np.ndarray:
    """The power of the noise of a shrunk photograph in each band of its spectrum.

    Interpolation over triangles of two output pixels weakens high frequencies, means over areas
    do not. The strongest fall that the spectrum allows is the right one: it lies nowhere below
    the noise.
    """
    response = np.ones_like(seen)
    for along in (fx, fy):
        response = response * sum(np.sinc(along + alias) ** 4 for alias in (-1, 0, 1))
    is_high = (fx > _HIGH) & (fy > _HIGH)
    chance = np.sqrt(1 / count + _FLOOR_ERROR**2)
    for strength in (1.0, 0.75, 0.5, 0.25, 0.0):
        floor = response**strength
        floor = floor * np.median(seen[is_high] / floor[is_high])
        if np.mean(seen < floor * (1 - 3 * chance)) < _BELOW:
            break
    return floor


def _blur_reduced(
    image: np.ndarray, reduction: int, noise: float
) -> tuple[Estimate | None, Estimate | None]:
    """The blur in px of the image, as seen in a reduced one with a known white noise."""
    reduced = _reduced(image, reduction)
    if reduction > 1 and min(reduced.shape) < _MIN_REDUCED:
        return None, None
    white = estimate.Noise((Estimate(noise, 0.0),), (Estimate(0.0, 0.0),))
    along_x, along_y = (
        None if one is None else Estimate(reduction * one.value, reduction * one.error)
        for one in estimate.blur(reduced, white)
    )
    return along_x, along_y


def _reduced(image: np.ndarray, by: int) -> np.ndarray:
    height, width = (length // by for length in image.shape)
    blocks = image[: height * by, : width * by].reshape(height, by, width, by)
    return blocks.mean((1, 3))


@dataclasses.dataclass(frozen=True)
class KnownRange:
    """Limits of noise and blur, (low, high) each.

    A photograph is outside if the interval of one of its estimates is.

    Attributes:
        noise: root mean square over the channels, grey levels.
        blur_x: standard deviation along x, px. From 0: of a sharp texture in noise, the
            estimate is too small as often as the photograph is too sharp.
        blur_y: the same along y.
        photographs: how many it was measured on; 0: it follows from the law.
    """

    noise: Range
    blur_x: Range
    blur_y: Range
    photographs: int = 0

    def reasons(self, measured: Measured) -> tuple[str, ...]:
        """What of a photograph lies outside, one phrase each."""
        rows = (
            ("noise", "grey levels", measured.overall_noise, self.noise),
            ("blur along x", "px", measured.blur[0], self.blur_x),
            ("blur along y", "px", measured.blur[1], self.blur_y),
        )
        return tuple(
            f"{name} of {found.value:.3g} {unit} (known: {low:.3g} to {high:.3g})"
            for name, unit, found, (low, high) in rows
            if found is not None and (found.interval[1] < low or found.interval[0] > high)
        )

    def widened(self, other: "KnownRange") -> "KnownRange":
        """These limits, widened to hold those of another range too."""

        def union(one: Range, two: Range) -> Range:
            return min(one[0], two[0]), max(one[1], two[1])

        return KnownRange(
            union(self.noise, other.noise),
            union(self.blur_x, other.blur_x),
            union(self.blur_y, other.blur_y),
            max(self.photographs, other.photographs),
        )

    def as_text(self) -> str:
        """One line of JSON, for `read`."""
        return json.dumps(dataclasses.asdict(self))


def read(text: str, source: str) -> KnownRange:
    """Reads the text of `KnownRange.as_text`.

    Raises:
        UsageError: if it is another text.
    """
    try:
        fields = json.loads(text)
        ranges = {
            name: tuple(map(float, fields[name])) for name in ("noise", "blur_x", "blur_y")
        }
        if any(not low <= high for low, high in ranges.values()):
            raise ValueError("low is above high")
        return KnownRange(**ranges, photographs=int(fields["photographs"]))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{source}: known_range cannot be read ({error}); export the model again"
        ) from error


def of_photographs(found: Sequence[Measured]) -> KnownRange | None:
    """The limits that photographs degraded as in the training keep to.

    A limit is compared with the end of an interval that is nearer to it; it is therefore a
    quantile of those ends.

    Returns:
        None for fewer than ten photographs whose noise is known. Of a blur that fewer have,
        any width is known.
    """

    def limits(estimates: Sequence[Estimate | None], default: Range) -> Range:
        ends = np.array([one.interval for one in estimates if one is not None])
        if len(ends) < _FEWEST:
            return default
        # Of photographs that are all alike, the intervals overlap: the lesser end is the low.
        low, high = sorted(
            (np.quantile(ends[:, 1], 1 - _QUANTILE), np.quantile(ends[:, 0], _QUANTILE))
        )
        return round(float(low), 3), round(float(high), 3)

    noise = [one.overall_noise for one in found]
    if sum(one is not None for one in noise) < _FEWEST:
        return None
    any_width = (0.0, _ANY_WIDTH)
    blur_x, blur_y = (
        (0.0, limits([one.blur[axis] for one in found], any_width)[1]) for axis in (0, 1)
    )
    return KnownRange(limits(noise, any_width), blur_x, blur_y, len(found))


def of_config(data: Mapping[str, Any]) -> KnownRange | None:
    """The limits that follow from the law of a configuration's `data` section.

    Returns:
        None if the photographs were not degraded by a law.
    """
    if not data.get("degradation") or data.get("name") in ("pairs", "shots"):
        return None
    try:
        law = definition.law_from_config(data["degradation"])
    except UsageError:
        return None
    return _of_law(law, is_resized=bool(data.get("image_size")))


def _of_law(law: Law, is_resized: bool) -> KnownRange:
    """The limits of a law at native size, or of photographs shrunk after it."""
    has_clean = law.clean_share > 0
    most_photons = 255.0 / law.poisson_peak[0] if law.poisson_peak[1] else 0.0
    low = 0.0 if has_clean else law.noise_sigma[0] * min(1.0, law.gain[0])
    high = math.hypot(law.noise_sigma[1], math.sqrt(most_photons * 255)) * law.gain[1]
    noise = low * (1 - _NOISE_ERROR), math.hypot(high, _OWN_NOISE) * (1 + _NOISE_ERROR)
    blur_x, blur_y = (_blur_of_law(law, sigma) for sigma in (law.sigma_x, law.sigma_y))
    if is_resized:
        # By how much is not known, so that noise may have kept any share.
        noise = noise[0] * _SHRUNK_NOISE, noise[1]
    return KnownRange((round(noise[0], 3), round(noise[1], 3)), blur_x, blur_y)


def _blur_of_law(law: Law, sigma: Range) -> Range:
    """The widths along an axis, of any kind of blur as the Gaussian of its variance."""
    # A path of length l along the axis has the variance l² / 12, a disc of radius r, r² / 4.
    widths = {
        "none": 0.0,
        "gaussian": sigma[1],
        "motion": law.motion_length[1] / math.sqrt(12),
        "defocus": law.defocus_radius[1] / 2,
    }
    return 0.0, max(widths[kind] for kind in law.blur) + _OWN_BLUR
