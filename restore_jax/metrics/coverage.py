"""How good a trust map is: the errors that its intervals contain, the regions that it flags.

An error of a pixel is the largest of its three channels, |restored − clean| on images clipped
to [0, 1]. Everything here takes one image, on the host.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from restore_jax.metrics import defects, fidelity

FLAGGED_SHARE = 0.05
"""The share of an image's pixels, those with the widest intervals, that count as flagged."""

FIGURES = (
    "trust_pixels",
    "trust_covered",
    "trust_defect_pixels",
    "trust_defect_covered",
    "wrong_regions",
    "flagged_regions",
    "flagged_by_chance",
    "alarm_pixels",
    "alarmed_regions",
    "wrong_pixels",
    "alarmed_wrong_pixels",
    "half_width",
)
"""Figures of `trust_figures`; all but the last are counts."""

_RATES = (
    "trust_coverage",
    "trust_defect_coverage",
    "flagged_share",
    "chance_share",
    "alarm_area",
    "alarm_share",
    "alarm_pixel_share",
)


def errors(restored: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Returns the error of each pixel, [..., H, W] from [..., H, W, 3]."""
    return np.abs(np.clip(restored, 0.0, 1.0) - np.clip(clean, 0.0, 1.0)).max(axis=-1)


def trust_figures(
    half_width: np.ndarray,
    restored: np.ndarray,
    clean: np.ndarray,
    mask: np.ndarray,
    has_mask: bool,
    alarm: float,
) -> dict[str, float]:
    """Computes the figures of one image's trust map.

    Args:
        half_width: [H, W].
        restored: the model's output, [H, W, 3].
        clean: the target, likewise.
        mask: [H, W, 1], one on the defect.
        has_mask: false if the mask is unknown (and its zeros mean nothing).
        alarm: half-width above which a pixel counts as alarming, in all images.

    Returns:
        `FIGURES`: the pixels, and those whose error lies within the half-width; the same of the
        defect; the regions that are wrong, see `wrong_regions`, and those of them that overlap
        the `FLAGGED_SHARE` of the pixels with the widest intervals; how many overlap the same
        map turned by 180°, which knows nothing of them; the alarming pixels, the wrong regions
        with at least one of these, the pixels of wrong regions, and those of them that are
        alarming; and the mean half-width.
    """
    covered = errors(restored, clean) <= half_width
    known = mask[..., 0] > 0.5 if has_mask else np.zeros_like(covered)
    wrong = wrong_regions(restored, clean, mask if has_mask else np.zeros_like(mask))
    widest = flagged(half_width)
    alarming = half_width > alarm
    return {
        "trust_pixels": float(covered.size),
        "trust_covered": float(np.count_nonzero(covered)),
        "trust_defect_pixels": float(np.count_nonzero(known)),
        "trust_defect_covered": float(np.count_nonzero(covered & known)),
        "wrong_regions": float(wrong.max()),
        "flagged_regions": float(_overlapping(wrong, widest)),
        "flagged_by_chance": float(_overlapping(wrong, widest[::-1, ::-1])),
        "alarm_pixels": float(np.count_nonzero(alarming)),
        "alarmed_regions": float(_overlapping(wrong, alarming)),
        "wrong_pixels": float(np.count_nonzero(wrong)),
        "alarmed_wrong_pixels": float(np.count_nonzero(wrong[alarming])),
        "half_width": float(half_width.mean()),
    }


def flagged(half_width: np.ndarray) -> np.ndarray:
    """Returns which pixels of an image have the widest intervals, `FLAGGED_SHARE` of them."""
    return half_width > np.quantile(half_width, 1.0 - FLAGGED_SHARE)


def wrong_regions(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Labels the defect regions that are erased and the regions that are invented.

    Returns:
        int [H, W]: 0 elsewhere, then 1, 2, … for each region; see `defects.erased_regions` and
        `defects.invented_regions`.
    """
    erased = defects.erased_regions(restored, clean, mask)
    invented = defects.invented_regions(restored, clean, mask)
    return np.where(invented > 0, invented + erased.max(), erased)


def summarise_trust(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of `trust_figures`, and their quotients.

    Args:
        rows: one mapping per image with `category` and `FIGURES`.

    Returns:
        As `fidelity.by_category`. M has `trust_coverage` (covered pixels / pixels),
        `trust_defect_coverage` (the same inside defects), `wrong_regions`, `flagged_share` and
        `chance_share` of them, `alarm_area` (alarming pixels / pixels), `alarm_share` of the
        wrong regions, `alarm_pixel_share` of their pixels, and the mean `half_width`; None
        where there is nothing.
    """
    return fidelity.by_category(rows, _quotients, (*_RATES, "half_width"))


def _quotients(rows: Sequence[Mapping[str, Any]]) -> dict[str, int | float | None]:
    total = {figure: math.fsum(row[figure] for row in rows) for figure in FIGURES}

    def quotient(part: str, whole: str) -> float | None:
        return total[part] / total[whole] if total[whole] else None

    return {
        "trust_coverage": quotient("trust_covered", "trust_pixels"),
        "trust_defect_coverage": quotient("trust_defect_covered", "trust_defect_pixels"),
        "wrong_regions": int(total["wrong_regions"]),
        "flagged_share": quotient("flagged_regions", "wrong_regions"),
        "chance_share": quotient("flagged_by_chance", "wrong_regions"),
        "alarm_area": quotient("alarm_pixels", "trust_pixels"),
        "alarm_share": quotient("alarmed_regions", "wrong_regions"),
        "alarm_pixel_share": quotient("alarmed_wrong_pixels", "wrong_pixels"),
        "half_width": total["half_width"] / len(rows) if rows else None,
    }


def _overlapping(labels: np.ndarray, flagged: np.ndarray) -> int:
    """Returns how many regions have a flagged pixel."""
    return np.count_nonzero(np.unique(labels[flagged]))
