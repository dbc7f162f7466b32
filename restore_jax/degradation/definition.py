"""The definition of a degradation: its parameters, the presets, and how a config selects them.

A `Law` describes what happens to a clean photograph, in this order and at its native size:
blur, photon noise, Gaussian noise, clipping and quantisation, gain, clipping and quantisation,
storage as a JPEG.
It is sampled by `data/degrade.py` in the host's pipeline, and within a training step by
`native_size` and `working_size`.

The preset `kla` is the law behind the degraded MVTec AD photographs of the 2024 IIT Madras
reports, recovered from 15 original pairs: it reproduces their PSNR at native size to within
0.01 dB.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from restore_jax.degradation import law_file
from restore_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Range = tuple[float, float]

OFF: Range = (0.0, 0.0)
KINDS = ("none", "gaussian", "motion", "defocus")
NOISES = ("independent", "grey", "demosaiced")
QUANTISERS = ("truncate", "round", "none")

FLOAT_DUST = 2.0**-10
"""Added before truncating: a float32 blur may turn a flat 255 into 254.9995."""

_CORNERS = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))
_CROSS = ((0.0, 0.25, 0.0), (0.25, 1.0, 0.25), (0.0, 0.25, 0.0))
DEMOSAIC = (_CORNERS, _CROSS, _CORNERS)
"""A kernel for each channel of Bayer's pattern that interpolates it linearly, where pixels of
the other channels are 0."""

# In ascending order: each includes all before it.
_AUGMENTATIONS = ("none", "flips", "all8")


@dataclasses.dataclass(frozen=True)
class Law:
    """A degradation. Ranges are (low, high), sampled uniformly; the defaults do nothing.

    Attributes:
        blur: kinds of blur, one of which is drawn per image: "none", "gaussian", "motion" or
            "defocus". A kind listed twice is drawn twice as often.
        sigma_x: standard deviation of the Gaussian blur along x (columns), in px, per image.
        sigma_y: the same along y (rows), drawn independently of sigma_x.
        motion_length: length of the motion path, in px, per image.
        motion_angle: its direction in degrees, counter-clockwise from the x axis, per image.
        defocus_radius: radius of the circle of confusion, in px, per image.
        noise: kinds of Gaussian noise, one of which is drawn per image: "independent" in every
            pixel and channel; "grey", alike in all channels, as in a photograph of a monochrome
            camera; or "demosaiced": noise of the sensor of a colour camera, which has one
            channel per pixel (Bayer's pattern) and is interpolated linearly, so that neighbours
            share it. A kind listed twice is drawn twice as often.
        noise_sigma: standard deviation of Gaussian noise in grey levels, per image and channel
            ("grey": per image; "demosaiced": before the interpolation, which leaves three
            quarters of it).
        poisson_peak: photon count at white (255), per image; (0, 0) disables photon noise.
        gain: factor per image and channel; (1, 1) disables it.
        quantise: "truncate" or "round" to whole grey levels, or "none".
        jpeg_quality: quality of the JPEG that the image is stored as, 1 to 100 on libjpeg's
            scale, with colours at half the resolution (4:2:0); (0, 0) disables it.
        jpeg_share: probability that an image is stored as a JPEG.
        clean_share: probability that an image is not degraded at all, for models that should
            leave good photographs unchanged.
        skew: blur widths and noise are `low + (high - low) · u^skew` with u from U(0, 1): above
            1, small values are drawn more often. Gain, angle and photon count stay uniform.
    """

    blur: tuple[str, ...] = ("none",)
    sigma_x: Range = OFF
    sigma_y: Range = OFF
    motion_length: Range = OFF
    motion_angle: Range = OFF
    defocus_radius: Range = OFF
    noise: tuple[str, ...] = ("independent",)
    noise_sigma: Range = OFF
    poisson_peak: Range = OFF
    gain: Range = (1.0, 1.0)
    quantise: str = "none"
    jpeg_quality: Range = OFF
    jpeg_share: float = 1.0
    clean_share: float = 0.0
    skew: float = 1.0


# For blind restoration, of unknown degradations; very nearly contains `kla`.
_BLIND = Law(
    blur=KINDS,
    sigma_x=(0.0, 12.0),
    sigma_y=(0.0, 12.0),
    motion_length=(2.0, 24.0),
    motion_angle=(0.0, 180.0),
    defocus_radius=(0.5, 8.0),
    noise_sigma=(0.0, 80.0),
    poisson_peak=(50.0, 2000.0),
    gain=(0.85, 1.15),
    quantise="round",
)

# For restoring photographs while leaving good ones unchanged. No gain: with an unknown camera,
# nothing separates a colour cast from the colours of the objects.
_WIDE = dataclasses.replace(
    _BLIND,
    blur=("none", "gaussian", "gaussian", "gaussian", "motion", "defocus"),
    poisson_peak=OFF,
    gain=(1.0, 1.0),
    clean_share=0.15,
    skew=2.0,
)

PRESETS: dict[str, Law] = {
    "kla": Law(
        blur=("gaussian",),
        sigma_x=(10.0, 10.0),
        sigma_y=(2.0, 2.0),
        noise_sigma=(50.0, 80.0),
        gain=(0.9, 1.1),
        quantise="truncate",
    ),
    # An ordinary camera in poor light: a slightly soft lens, few photons, some read noise.
    "mild": Law(
        blur=("gaussian",),
        sigma_x=(0.5, 1.5),
        sigma_y=(0.5, 1.5),
        noise_sigma=(2.0, 6.0),
        poisson_peak=(150.0, 600.0),
        gain=(0.97, 1.03),
        quantise="round",
    ),
    "blind": _BLIND,
    "wide": _WIDE,
    # As photographs of any camera are found: its colours interpolated or none, or a JPEG.
    "camera": dataclasses.replace(
        _WIDE,
        noise=("independent", "demosaiced", "independent", "demosaiced", "grey"),
        jpeg_quality=(50.0, 98.0),
        jpeg_share=0.4,
    ),
    # For laws that are made of their fields alone, such as a fitted one.
    "none": Law(),
}


def law_from_config(degradation: Mapping[str, Any]) -> Law:
    """Resolves `config.data.degradation`: the preset, overridden by every field that is set.

    Args:
        degradation: a mapping (an `ml_collections.ConfigDict`, or the same read from JSON) with
            `preset` (default "kla"), `file` (a fitted law used instead, see `law_file`; "" for
            none) and the fields of `Law`; None keeps the preset's value.

    Raises:
        UsageError: if a field or the preset is unknown, or a value is invalid for its field.
    """
    fields = [field.name for field in dataclasses.fields(Law)]
    degradation = law_file.resolved(degradation)
    for name in degradation:
        if name not in ("preset", *fields):
            raise _error(
                name, f"no such field; the fields are preset, file, {', '.join(fields)}"
            )
    given = {name: value for name, value in degradation.items() if value is not None}
    preset = given.pop("preset", "kla")
    if preset not in tuple(PRESETS):
        raise _error("preset", f"{preset!r} is unknown; choose from {', '.join(PRESETS)}")
    law = dataclasses.replace(
        PRESETS[preset], **{k: _validated(k, v) for k, v in given.items()}
    )
    # The preset has no default range for a kind of blur that it does not use.
    for kind, name in (("motion", "motion_length"), ("defocus", "defocus_radius")):
        if kind in law.blur and name not in given and getattr(law, name) == OFF:
            reason = f"blur draws {kind!r}, for which preset {preset!r} has no range"
            raise _error(name, f"{reason}; give (low, high) in px")
    return law


def _error(name: str, reason: str) -> UsageError:
    return UsageError(f"config.data.degradation.{name}: {reason}")


def _validated(name: str, value: Any) -> Any:
    """Validates the value of a field and converts it to the type that `Law` holds."""
    choices = {"blur": KINDS, "noise": NOISES}.get(name)
    if choices:
        kinds = [value] if isinstance(value, str) else value
        known = isinstance(kinds, tuple | list) and all(kind in choices for kind in kinds)
        if not known or not kinds:
            raise _error(name, f"{value!r} is not one or more of {', '.join(choices)}")
        return tuple(kinds)
    if name in ("clean_share", "jpeg_share", "skew"):
        return _validated_number(name, value)
    if name == "quantise":
        if value not in QUANTISERS:
            raise _error(name, f"{value!r} is unknown; choose from {', '.join(QUANTISERS)}")
        return value
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or not all(isinstance(v, numbers.Real) and math.isfinite(v) for v in value):
        raise _error(name, f"{value!r} is not a range; give two numbers, (low, high)")
    low, high = map(float, value)
    if low > high:
        raise _error(name, f"{value!r}: low is above high; give (low, high)")
    if low < 0 and name != "motion_angle":
        raise _error(name, f"{value!r} is negative; give numbers of 0 or more")
    if low == 0 and (name == "gain" or (name == "poisson_peak" and high > 0)):
        raise _error(name, f"{value!r} starts at 0, which leaves nothing of the image")
    if name == "jpeg_quality" and (low, high) != OFF and not 1 <= low <= high <= 100:
        raise _error(name, f"{value!r} must lie in [1, 100], or be (0, 0) for none")
    return low, high


def _validated_number(name: str, value: Any) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = (lambda v: 0 < v <= 10) if name == "skew" else (lambda v: 0 <= v <= 1)
    if not is_number or not fits(value):
        where = "(0, 10]" if name == "skew" else "[0, 1]"
        raise _error(name, f"{value!r} must lie in {where}")
    return float(value)


def bayer(odd_row: Any, odd_column: Any) -> tuple[Any, Any, Any]:
    """Returns which channel a pixel of Bayer's pattern has, red, green or blue, as 0 or 1.

    Args:
        odd_row: 1 in odd rows, 0 in even ones; an integer array.
        odd_column: likewise.
    """
    red, blue = (1 - odd_row) * (1 - odd_column), odd_row * odd_column
    return red, 1 - red - blue, blue


def symmetries(law: Law) -> str:
    """Returns the flips and rotations under which the law's distribution of pairs is invariant.

    Noise, gain and defocus have no direction, and that of a JPEG's tables is not felt. The
    Gaussian blur keeps its axes under a flip and swaps them under a quarter turn, which changes
    nothing if both widths are drawn from the same range. A flip takes a motion angle θ to −θ
    modulo 180°.

    Returns:
        "all8" (flips and quarter turns), "flips" (horizontal and vertical) or "none". This
        holds for square photographs only: stretching others to a square makes an isotropic blur
        anisotropic.
    """
    low, high = law.motion_angle
    has_motion = "motion" in law.blur and law.motion_length[1] > 0
    all_directions = high > low and _is_multiple(high - low, 180)
    if has_motion and not all_directions and not _is_multiple(low + high, 180):
        return "none"
    has_axes = "gaussian" in law.blur and law.sigma_x != law.sigma_y
    return "flips" if has_axes or (has_motion and not all_directions) else "all8"


def check_augmentation(augment: str, allowed: str) -> None:
    """Checks `config.data.augment`.

    Args:
        augment: "none", "flips" or "all8".
        allowed: the largest of these that the degradation allows, see `symmetries`.

    Raises:
        UsageError: if it is unknown, or would produce pairs that the degradation never does.
    """
    if augment not in _AUGMENTATIONS:
        raise UsageError(
            f"config.data.augment: {augment!r} is not one of {list(_AUGMENTATIONS)}"
        )
    if _AUGMENTATIONS.index(augment) > _AUGMENTATIONS.index(allowed):
        raise UsageError(
            f"config.data.augment: {augment!r} would produce pairs that the degradation never "
            f"does (its blur has a direction); use {allowed}"
        )


def inline_file(config: "ConfigDict") -> None:
    """Copies the law of `config.data.degradation.file` into the configuration.

    Configurations choose `config.data.augment` for their own law. That of a file may have a
    direction; the augmentation is then limited to what the law allows, and a line says so.

    Args:
        config: is changed, see `law_file.inline`. Without a file, nothing is done.

    Raises:
        UsageError: the file is not a law.
    """
    path = config.data.degradation.get("file")
    if not path:
        return
    law_file.inline(config)
    given, allowed = config.data.augment, symmetries(law_from_config(config.data.degradation))
    if given in _AUGMENTATIONS[_AUGMENTATIONS.index(allowed) + 1 :]:
        config.data.augment = allowed
        print(
            f"config.data.augment: {allowed}, not {given}, since the blur of {path} has a "
            "direction"
        )


def _is_multiple(value: float, of: float) -> bool:
    return abs(math.remainder(value, of)) < 1e-6
