"""Defect preservation: per-image metrics of what a restoration does to defects, on the host.

Every function takes one image: `restored` and `clean` are floating-point `[H, W, 3]` on the
scale 0 to 1 (clipped to it here), `mask` is `[H, W, 1]` of zeros and ones (one = defect). To
measure what remains of a defect in the degraded image, pass that as `restored`. The arithmetic
is float64. An undefined figure is NaN, never infinite; `summarise_preservation` leaves those
out. The figures of a restoration that itself contains NaN are meaningless; `fidelity.summarise`
rejects such an image by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from restore_jax.metrics import fidelity, gaussian_window

ERASED_BELOW = 0.5
"""A defect region that keeps less than this share of its contrast counts as erased."""

HALLUCINATION_QUANTILE = 0.999

INVENTED_ABOVE = 0.1
"""Error of the pixels of an invented region: 25.5 grey levels."""

INVENTED_PIXELS = 9
"""Smallest number of pixels of an invented region."""

FIGURES = (
    "erased_regions",
    "input_erased_regions",
    "regions",
    "error_ratio",
    "masked_frame_psnr",
    "masked_frame_ssim",
    "hallucination",
)
"""Figures of `preservation_figures`; any of them may be undefined for an image."""

_COUNTS = ("regions", "erased_regions", "input_erased_regions")
_RATES = ("erasure_rate", "input_erasure_rate")
_MEANS = tuple(figure for figure in FIGURES if figure not in _COUNTS)
# Constants of SSIM: (K · peak)² for K 0.01 and 0.03 and a peak of 1.
_C1, _C2 = 0.01**2, 0.03**2


def check_images(restored: np.ndarray, clean: np.ndarray) -> None:
    """Checks that both arguments are floating-point RGB images of one shape.

    Raises:
        ValueError: unless both are `[H, W, 3]`, of the same shape, and of a floating dtype.
    """
    first, second = np.shape(restored), np.shape(clean)
    if len(first) != 3 or first[-1] != 3 or first != second:
        raise ValueError(f"expected two equal [H, W, 3] shapes, got {first} and {second}")
    fidelity.check_images(np.asarray(restored)[None], np.asarray(clean)[None])


def check_mask(image: np.ndarray, mask: np.ndarray) -> None:
    """Checks that the shape of a mask fits its image.

    Raises:
        ValueError: unless `mask` is `[H, W, 1]` for an `image` of `[H, W, C]`.
    """
    if np.shape(mask) != (*np.shape(image)[:2], 1):
        raise ValueError(
            f"expected an [H, W, 1] mask for an image of shape {np.shape(image)}, "
            f"got shape {np.shape(mask)}"
        )


def region_contrasts(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of its contrast that each defect region keeps.

    `⟨Δrestored, Δclean⟩ / ⟨Δclean, Δclean⟩` as in `fidelity.defect_contrast`, but for each
    8-connected region of the mask separately: Δ is the mean over the region minus the mean over
    the ring around it, per channel. The ring is the region dilated by `fidelity.ring_width` px
    in each direction (by a square), minus the pixels of this and all other regions.

    Returns:
        float64 `[R]`, one per region in the order of `scipy.ndimage.label`. Any real number:
        1 kept, 0 erased, negative reversed, above 1 exaggerated. NaN where the clean region has
        no contrast to keep (under `fidelity.MIN_CONTRAST`) or there is no ring.
    """
    restored, clean, defect = _prepare(restored, clean, mask)
    labels, count = ndimage.label(defect, structure=np.ones((3, 3)))
    width = fidelity.ring_width(*defect.shape)
    contrasts = np.full(count, np.nan)
    for index, box in enumerate(ndimage.find_objects(labels)):
        window = tuple(slice(max(0, side.start - width), side.stop + width) for side in box)
        region = labels[window] == index + 1
        dilated = ndimage.maximum_filter(region, 2 * width + 1, mode="constant", cval=0)
        ring = dilated & (labels[window] == 0)
        if not ring.any():
            continue
        kept, whole = (
            image[window][region].mean(axis=0) - image[window][ring].mean(axis=0)
            for image in (restored, clean)
        )
        if whole @ whole >= fidelity.MIN_CONTRAST**2:
            contrasts[index] = kept @ whole / (whole @ whole)
    return contrasts


def erased_regions(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Labels the regions that `erasure` counts as erased.

    Returns:
        int [H, W], 0 elsewhere, then 1, 2, … for each region.
    """
    labels, _ = ndimage.label(np.asarray(mask)[..., 0] > 0.5, structure=np.ones((3, 3)))
    return _relabelled(labels, region_contrasts(restored, clean, mask) < ERASED_BELOW)


def invented_regions(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Labels the regions where the restoration shows something that is not there.

    They are the 8-connected regions outside of the defect, of at least `INVENTED_PIXELS`, whose
    pixels all have an error above `INVENTED_ABOVE` in some channel, and that stand out from
    their ring in the restoration while the clean image has less than half of that contrast:
    `region_contrasts` with the two images exchanged.

    Returns:
        int [H, W], 0 elsewhere, then 1, 2, … for each region.
    """
    restored, clean, defect = _prepare(restored, clean, mask)
    wrong = (np.abs(restored - clean).max(axis=-1) > INVENTED_ABOVE) & ~defect
    labels, count = ndimage.label(wrong, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    labels = _relabelled(labels, sizes >= INVENTED_PIXELS)
    contrasts = region_contrasts(clean, restored, labels[..., None] > 0)
    return _relabelled(labels, contrasts < ERASED_BELOW)


def _relabelled(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Keeps some regions, bool [R], and numbers them from 1."""
    numbers = np.where(kept, np.cumsum(kept), 0)
    return np.concatenate([[0], numbers])[labels]


def erasure(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """Counts the defect regions that the restoration erases, out of those with a contrast.

    Returns:
        `(erased, regions)`, 0 ≤ erased ≤ regions: the regions whose `region_contrasts` are
        below `ERASED_BELOW`, including reversed ones, and the regions that have a contrast.
    """
    contrasts = region_contrasts(restored, clean, mask)
    return (
        int(np.count_nonzero(contrasts < ERASED_BELOW)),
        int(np.count_nonzero(~np.isnan(contrasts))),
    )


def error_ratio(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> float:
    """Ratio of the mean squared error inside the defect to that outside.

    `max(MSE(defect), m) / max(MSE(rest), m)` with m = `fidelity.MIN_MSE`, which equals
    `10^((background PSNR - defect PSNR) / 10)`.

    Returns:
        1e-10 to 1e10: 1 if the error is the same inside and outside (or zero in both), above 1
        if it is larger on the defect. NaN if the mask is empty or covers the whole image.
    """
    restored, clean, defect = _prepare(restored, clean, mask)
    if not defect.any() or defect.all():
        return math.nan
    error = np.square(restored - clean)
    inside, outside = (
        np.maximum(error[region].mean(), fidelity.MIN_MSE) for region in (defect, ~defect)
    )
    return float(inside / outside)


def hallucination(restored: np.ndarray, clean: np.ndarray) -> float:
    """Measures the structure that a restoration invents in a defect-free image.

    The 99.9th percentile over the pixels (linearly interpolated) of `|restored - clean|`, where
    each pixel counts with the largest error of its three channels: one pixel in a thousand has
    a larger error. Taking the maximum keeps an artefact in a single colour channel from being
    averaged away.

    Returns:
        0 (nothing invented) to 1.
    """
    check_images(restored, clean)
    error = np.abs(_clip(restored) - _clip(clean)).max(axis=-1)
    return float(np.quantile(error, HALLUCINATION_QUANTILE))


def masked_frame(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of image · mask over the whole frame. Flattering: never quote them alone.

    Reports that state a "defect PSNR" of 42 to 44 dB and a "defect SSIM" of 0.99 compared
    `restored · mask` with `clean · mask` in this way. The black frame around the defect counts
    as perfectly restored: the PSNR is `fidelity.defect_psnr` plus `10·log10(1 / mask share)`,
    18 dB for the median defect of MVTec AD, and the SSIM approaches 1 for small defects,
    however they are restored. They are provided only for comparison with such reports, under
    this name and next to the defect PSNR and SSIM of `fidelity`.

    Returns:
        `masked_frame_psnr` in dB, at most 100; `masked_frame_ssim`, at most 1, with the window
        and constants of `fidelity.ssim`. Both NaN if the mask is empty.

    Raises:
        ValueError: if shapes or types do not fit, or a side is under 11 px.
    """
    restored, clean, defect = _prepare(restored, clean, mask)
    margin = gaussian_window.SSIM_WINDOW - 1
    height, width = defect.shape
    if min(height, width) <= margin:
        raise ValueError(
            f"SSIM needs images of at least {margin + 1}x{margin + 1} px, got {height}x{width}"
        )
    if not defect.any():
        return {"masked_frame_psnr": math.nan, "masked_frame_ssim": math.nan}
    # Windows that contain no defect are black in both frames: error 0, similarity 1. Only the
    # bounding box of the mask, plus the margin of the window, has to be computed.
    box = ndimage.find_objects(defect.astype(np.uint8))[0]
    near = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
    frames = [
        np.where(defect[near][..., None], image[near], 0.0) for image in (restored, clean)
    ]
    error = np.sum(np.square(frames[0] - frames[1])) / restored.size
    loss = np.sum(1.0 - ssim_map(*frames, _gaussian_window))
    windows = (height - margin) * (width - margin) * restored.shape[-1]
    return {
        "masked_frame_psnr": decibels(error),
        "masked_frame_ssim": float(1.0 - loss / windows),
    }


def preservation_figures(
    restored: np.ndarray,
    degraded: np.ndarray,
    clean: np.ndarray,
    mask: np.ndarray,
    has_mask: bool,
    is_good: bool,
) -> dict[str, float]:
    """Computes all figures of this module for one image.

    Args:
        restored: the model's output, `[H, W, 3]`.
        degraded: its input, the same shape.
        clean: the target, the same shape.
        mask: `[H, W, 1]`, one on the defect.
        has_mask: false if the mask is unknown (and its zeros mean nothing).
        is_good: true for an image that is known to have no defect.

    Returns:
        `FIGURES`; `input_erased_regions` counts the regions already erased in the degraded
        input. `hallucination` is NaN unless `is_good`; the others are NaN if the mask is
        unknown or empty, or if they are undefined.

    Raises:
        ValueError: if shapes do not fit, a dtype is not floating, or a side is under 11 px.
    """
    _, _, defect = _prepare(restored, clean, mask)
    figures = dict.fromkeys(FIGURES, math.nan)
    if has_mask and defect.any():
        erased, regions = erasure(restored, clean, mask)
        figures["erased_regions"], figures["regions"] = float(erased), float(regions)
        figures["input_erased_regions"] = float(erasure(degraded, clean, mask)[0])
        figures["error_ratio"] = error_ratio(restored, clean, mask)
        figures |= masked_frame(restored, clean, mask)
    if is_good:
        figures["hallucination"] = hallucination(restored, clean)
    return figures


def summarise_preservation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums and means of `preservation_figures`.

    Args:
        rows: one mapping per image with `category` and `FIGURES` as numbers; None or NaN where
            undefined.

    Returns:
        As `fidelity.by_category`. M has the sums `regions`, `erased_regions` and
        `input_erased_regions`; the quotients of the sums `erasure_rate` and
        `input_erasure_rate`, in which every region has the same weight, None without regions;
        `good_count`, the number of images without defects; and the means of the other figures
        over the images that have them, None if none has.
    """
    return fidelity.by_category(rows, _sums_and_means, _RATES + _MEANS)


def _sums_and_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, int | float | None]:
    counts = {
        figure: int(sum(row[figure] for row in rows if fidelity.is_defined(row[figure])))
        for figure in _COUNTS
    }
    regions = counts["regions"]
    return {
        **counts,
        "erasure_rate": counts["erased_regions"] / regions if regions else None,
        "input_erasure_rate": counts["input_erased_regions"] / regions if regions else None,
        "good_count": sum(fidelity.is_defined(row["hallucination"]) for row in rows),
        **{figure: fidelity.mean_of_defined(rows, figure) for figure in _MEANS},
    }


def ssim_map(
    first: np.ndarray, second: np.ndarray, window: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) at each pixel, per channel, for a peak of 1.

    K is 0.01 and 0.03. Variances and covariance are weighted by the window, without bias
    correction (for a uniform window of N pixels they are divided by N, not by N - 1).

    Args:
        first: float64 `[H, W, C]` on the scale 0 to 1.
        second: the same shape.
        window: computes the weighted mean around each pixel, over the first two axes.

    Returns:
        An array of the shape that `window` returns, -1 to 1.
    """
    mean, other = window(first), window(second)
    covariance = window(first * second) - mean * other
    variances = window(first**2 + second**2) - mean**2 - other**2
    return ((2 * mean * other + _C1) * (2 * covariance + _C2)) / (
        (mean**2 + other**2 + _C1) * (variances + _C2)
    )


def decibels(mean_squared_error: float) -> float:
    """PSNR in dB for a peak of 1, at most 100: the error is clamped to `fidelity.MIN_MSE`."""
    return float(-10.0 * np.log10(np.maximum(mean_squared_error, fidelity.MIN_MSE)))


def _clip(image: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(image), 0.0, 1.0, dtype=np.float64)


def _prepare(
    restored: np.ndarray, clean: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks the arguments; returns the clipped images, and the mask as bool `[H, W]`."""
    check_images(restored, clean)
    check_mask(restored, mask)
    return _clip(restored), _clip(clean), np.asarray(mask)[..., 0] > 0.5


def _gaussian_window(image: np.ndarray) -> np.ndarray:
    """Applies the window of `fidelity.ssim`, valid region only: `[H-10, W-10, C]`."""
    border = gaussian_window.SSIM_WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(-border, border + 1) / gaussian_window.SSIM_SIGMA) ** 2)
    for axis in (0, 1):
        image = ndimage.correlate1d(image, taps / taps.sum(), axis)
    return image[border:-border, border:-border]
