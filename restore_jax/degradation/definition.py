"""What a degradation is: its fields, the presets, and what a configuration says of them.

A `Law` says what happens to a clean photograph, in this order and at its native size: blur,
photon noise, Gaussian noise, clip and quantise, gain, clip and quantise. It is drawn by
`data/degrade.py` in the host's pipeline, and within a step by `native_size` and `working_size`.

The preset `kla` is the law by which the degraded MVTec AD photographs of the IIT Madras reports
of 2024 were made, as recovered from 15 original pairs: it gives their native PSNR within
0.01 dB.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from restore_jax.degradation import law_file
from restore_jax.errors import UsageError

Range = tuple[float, float]

OFF: Range = (0.0, 0.0)
KINDS = ("none", "gaussian", "motion", "defocus")
QUANTISERS = ("truncate", "round", "none")

FLOAT_DUST = 2.0**-10
"""Added before truncating: of a flat 255, a blur in float32 may leave 254.9995."""

# Each has all that stands before it.
_AUGMENTATIONS = ("none", "flips", "all8")


@dataclasses.dataclass(frozen=True)
class Law:
    """A degradation. Ranges are (low, high), drawn from uniformly; the defaults do nothing.

    Attributes:
        blur: kinds of blur, one of which is drawn per image: "none", "gaussian", "motion" or
            "defocus". A kind named twice is drawn twice as often.
        sigma_x: standard deviation of the Gaussian blur along x (columns), in px, per image.
        sigma_y: the same along y (rows), drawn independently of sigma_x.
        motion_length: length of the motion's path, in px, per image.
        motion_angle: its direction in degrees, counter-clockwise from the x axis, per image.
        defocus_radius: radius of the disc of confusion, in px, per image.
        noise_sigma: standard deviation of Gaussian noise in grey levels, per image and channel.
        poisson_peak: photons counted at white (255), per image; (0, 0) switches it off.
        gain: factor per image and channel; (1, 1) switches it off.
        quantise: to whole grey levels by "truncate" or "round", or "none".
        clean_share: probability that an image is left as it is, for models that are to leave
            good photographs alone.
        skew: blur widths and noise are `low + (high - low) · u^skew` with u from U(0, 1): above
            1, small values are drawn more often. Gain, angle and photons stay uniform.
    """

    blur: tuple[str, ...] = ("none",)
    sigma_x: Range = OFF
    sigma_y: Range = OFF
    motion_length: Range = OFF
    motion_angle: Range = OFF
    defocus_radius: Range = OFF
    noise_sigma: Range = OFF
    poisson_peak: Range = OFF
    gain: Range = (1.0, 1.0)
    quantise: str = "none"
    clean_share: float = 0.0
    skew: float = 1.0


PRESETS: dict[str, Law] = {
    "kla": Law(
        blur=("gaussian",),
        sigma_x=(10.0, 10.0),
        sigma_y=(2.0, 2.0),
        noise_sigma=(50.0, 80.0),
        gain=(0.9, 1.1),
        quantise="truncate",
    ),
    # An ordinary camera in poor light: the lens is slightly soft, few photons, some read noise.
    "mild": Law(
        blur=("gaussian",),
        sigma_x=(0.5, 1.5),
        sigma_y=(0.5, 1.5),
        noise_sigma=(2.0, 6.0),
        poisson_peak=(150.0, 600.0),
        gain=(0.97, 1.03),
        quantise="round",
    ),
    # For a restorer that does not know what it will meet; contains `kla`, near enough.
    "blind": Law(
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
    ),
    # For a restorer of any camera's photographs that leaves good ones alone. Colours are kept:
    # nothing in a photograph of an unknown camera tells its gain from the objects' own colour.
    "wide": Law(
        blur=("none", "gaussian", "gaussian", "gaussian", "motion", "defocus"),
        sigma_x=(0.0, 12.0),
        sigma_y=(0.0, 12.0),
        motion_length=(2.0, 24.0),
        motion_angle=(0.0, 180.0),
        defocus_radius=(0.5, 8.0),
        noise_sigma=(0.0, 80.0),
        quantise="round",
        clean_share=0.15,
        skew=2.0,
    ),
    # For laws that are made of their fields alone, such as a fitted one.
    "none": Law(),
}


def law_from_config(degradation: Mapping[str, Any]) -> Law:
    """Resolves `config.data.degradation`: a preset, then every field that is not None.

    Args:
        degradation: a mapping (an `ml_collections.ConfigDict` or what its JSON gives back) of
            `preset` (default "kla"), `file` (a fitted law in its place, see `law_file`; "" for
            none) and the fields of `Law`.

    Raises:
        UsageError: a field or a preset is unknown, or a value is not one the field can take.
    """
    fields = [field.name for field in dataclasses.fields(Law)]
    degradation = law_file.resolved(degradation)
    for name in degradation:
        if name not in ("preset", *fields):
            raise _refusal(name, f"no such field; there are preset, file, {', '.join(fields)}")
    given = {name: value for name, value in degradation.items() if value is not None}
    preset = given.pop("preset", "kla")
    if preset not in tuple(PRESETS):
        raise _refusal("preset", f"{preset!r} is unknown; choose from {', '.join(PRESETS)}")
    law = dataclasses.replace(PRESETS[preset], **{k: _checked(k, v) for k, v in given.items()})
    # A kind of blur that the preset does not use has no range there to fall back on.
    for kind, name in (("motion", "motion_length"), ("defocus", "defocus_radius")):
        if kind in law.blur and name not in given and getattr(law, name) == OFF:
            reason = f"blur draws {kind!r}, for which preset {preset!r} has no range"
            raise _refusal(name, f"{reason}; give (low, high) in px")
    return law


def _refusal(name: str, reason: str) -> UsageError:
    return UsageError(f"config.data.degradation.{name}: {reason}")


def _checked(name: str, value: Any) -> Any:
    """The value as `Law` holds it."""
    if name == "blur":
        kinds = [value] if isinstance(value, str) else value
        known = isinstance(kinds, tuple | list) and all(kind in KINDS for kind in kinds)
        if not known or not kinds:
            raise _refusal(name, f"{value!r} must be one or more of {', '.join(KINDS)}")
        return tuple(kinds)
    if name in ("clean_share", "skew"):
        return _checked_number(name, value)
    if name == "quantise":
        if value not in QUANTISERS:
            raise _refusal(name, f"{value!r} is unknown; choose from {', '.join(QUANTISERS)}")
        return value
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or not all(isinstance(v, numbers.Real) and math.isfinite(v) for v in value):
        raise _refusal(name, f"{value!r} is not a range; give two numbers, (low, high)")
    low, high = map(float, value)
    if low > high:
        raise _refusal(name, f"{value!r} has its low above its high; give (low, high)")
    if low < 0 and name != "motion_angle":
        raise _refusal(name, f"{value!r} is negative; give numbers from 0 up")
    if low == 0 and (name == "gain" or (name == "poisson_peak" and high > 0)):
        raise _refusal(name, f"{value!r} starts at 0, which leaves nothing of the image")
    return low, high


def _checked_number(name: str, value: Any) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = (lambda v: 0 <= v <= 1) if name == "clean_share" else (lambda v: 0 < v <= 10)
    if not is_number or not fits(value):
        where = "[0, 1]" if name == "clean_share" else "(0, 10]"
        raise _refusal(name, f"{value!r} must lie in {where}")
    return float(value)


def symmetries(law: Law) -> str:
    """Which flips and rotations of a (degraded, clean) pair leave pairs of the same law.

    Noise, gain and defocus have no direction. The Gaussian blur keeps its axes under a flip and
    swaps them under a quarter turn, which the law does not notice if both widths are drawn from
    the same range. A flip takes a motion's angle θ to −θ modulo 180°.

    Returns:
        "all8" (flips and quarter turns), "flips" (horizontal and vertical) or "none". All of it
        holds for square photographs: stretching to a square gives isotropic blur a direction.
    """
    low, high = law.motion_angle
    moves = "motion" in law.blur and law.motion_length[1] > 0
    every_direction = high > low and _is_multiple(high - low, 180)
    if moves and not every_direction and not _is_multiple(low + high, 180):
        return "none"
    has_axes = "gaussian" in law.blur and law.sigma_x != law.sigma_y
    return "flips" if has_axes or (moves and not every_direction) else "all8"


def check_augmentation(augment: str, allowed: str) -> None:
    """Checks `config.data.augment`.

    Args:
        augment: "none", "flips" or "all8".
        allowed: the most that the degradation's symmetries allow, one of these as well.

    Raises:
        UsageError: for an unknown one, or one that would show pairs which the law never makes.
    """
    if augment not in _AUGMENTATIONS:
        raise UsageError(
            f"config.data.augment: {augment!r} is not one of {list(_AUGMENTATIONS)}"
        )
    if _AUGMENTATIONS.index(augment) > _AUGMENTATIONS.index(allowed):
        raise UsageError(
            f"config.data.augment: {augment!r} would show pairs that the degradation never "
            f"makes (its blur is directed); take {allowed}"
        )


def _is_multiple(value: float, of: float) -> bool:
    return abs(math.remainder(value, of)) < 1e-6
