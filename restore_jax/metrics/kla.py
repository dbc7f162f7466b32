"""The evaluation protocol of the KLA set, for comparison with published figures.

"KLA" is the script that came with the degraded data set of the reports (the KLA set; course
EE5179, IIT Madras, 2024). Its figures differ from those of `fidelity`; in particular, its SSIM
is considerably higher on the same images. It feeds the model degraded images of 256x256 made by
area averaging: to obtain its figures, degrade and restore at that size and by that method.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from restore_jax.metrics import fidelity
from restore_jax.metrics.defects import (
    check_images,
    check_mask,
    decibels,
    ssim_map,
)

KLA_SIZE = 256
KLA_IMAGE_FIGURES = ("kla_psnr", "kla_ssim")
"""Figures of `kla_figures` that are defined for every image."""

KLA_DEFECT_FIGURES = ("kla_defect_psnr", "kla_defect_ssim")
"""Figures of `kla_figures` that are only defined for an image with a defect."""

KLA_FIGURES = KLA_IMAGE_FIGURES + KLA_DEFECT_FIGURES
_KLA_WINDOW = 3


def area_resize(image: np.ndarray, size: int = KLA_SIZE) -> np.ndarray:
    """Resizes to a square by averaging the pixels under each new one, weighted by overlap.

    This is what OpenCV's `resize` with INTER_AREA does on floats when both axes shrink, by
    integer or fractional factors, and when both grow. An image that is not square is stretched.

    Args:
        image: `[H, W, C]`, any range.
        size: the side of the result, in px.

    Returns:
        float64 `[size, size, C]` in the input's range; unchanged if it already has that size.

    Raises:
        ValueError: if the image does not have three axes or is empty, or the size is under 1.
    """
    image = np.asarray(image, np.float64)
    if image.ndim != 3 or 0 in image.shape or size < 1:
        raise ValueError(
            f"expected an [H, W, C] image and a size of 1 px or more, got shape {image.shape} "
            f"and size {size}"
        )
    if image.shape[:2] == (size, size):
        return image
    rows, columns = (_area_weights(length, size) for length in image.shape[:2])
    return np.einsum("ih,hwc,jw->ijc", rows, image, columns, optimize=True)


def kla_figures(restored: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Computes the figures of one image by the protocol of the KLA set.

    Both images are clipped to 0…1 (the script does not clip) and, unless they are 256x256,
    resized to it by `area_resize`, along with the mask. The resized mask holds the share of
    each pixel that is defect, quantised to 8 bits as in the script; any share above zero counts
    as defect. A mask that is already 256x256 is used unchanged. The images are not quantised to
    8 bits again.

    - `kla_psnr`: from the mean squared error over pixels and channels, peak 1, dB, at most 100.
    - `kla_ssim`: the mean of `(1 + SSIM) / 2` over pixels and channels, 0 to 1: unrelated
      images score 0.5. SSIM has a 3x3 uniform window, K 0.01 and 0.03, data range 1, variances
      and covariance divided by 9, per channel. It has a value at every pixel: borders are
      reflected about the outermost pixel, which is not repeated.
    - `kla_defect_psnr`: as `kla_psnr`, over the pixels of the defect only.
    - `kla_defect_ssim`: `1 - mean(mask · (1 - SSIM) / 2)`. The SSIM term is multiplied by the
      mask, but the mean is still over the whole frame and the channels, so that everything
      outside the defect counts as perfect. The result lies between 1 - the defect's share of
      the frame and 1, and approaches 1 for small defects, however they are restored.

    Args:
        restored: the model's output, floating-point `[H, W, 3]`.
        clean: the target, the same shape.
        mask: `[H, W, 1]` of zeros and ones, one on the defect; all zeros if it is unknown.

    Returns:
        `KLA_IMAGE_FIGURES` and `KLA_DEFECT_FIGURES`; the latter NaN if there is no defect.

    Raises:
        ValueError: if shapes do not fit, or a dtype is not floating.
    """
    check_images(restored, clean)
    check_mask(restored, mask)
    restored, clean = (
        area_resize(np.clip(np.asarray(image), 0.0, 1.0, dtype=np.float64))
        for image in (restored, clean)
    )
    share = np.rint(255.0 * area_resize(np.asarray(mask) > 0.5)) / 255.0
    defect = share[..., 0] > 0
    error = np.square(restored - clean)
    loss = (1.0 - ssim_map(restored, clean, _kla_window)) / 2.0
    figures = {"kla_psnr": decibels(error.mean()), "kla_ssim": float(1.0 - loss.mean())}
    if not defect.any():
        return figures | dict.fromkeys(KLA_DEFECT_FIGURES, math.nan)
    return figures | {
        "kla_defect_psnr": decibels(error[defect].mean()),
        "kla_defect_ssim": float(1.0 - np.mean(share * loss)),
    }


def summarise_kla(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of `kla_figures`; the means that the protocol itself reports are the macro means.

    Args:
        rows: one mapping per image with `id`, `category` and the figures as numbers; a defect
            figure may be None or NaN for an image without it.

    Returns:
        As `fidelity.by_category`, M with the mean of each figure over the images that have it,
        None if none has.

    Raises:
        RunError: if a figure of `KLA_IMAGE_FIGURES` is not finite (the model's output contained
            NaN). Leaving that image out would flatter the model.
    """
    fidelity.check_finite(rows, KLA_IMAGE_FIGURES)

    def means(chosen: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        return {figure: fidelity.mean_of_defined(chosen, figure) for figure in KLA_FIGURES}

    return fidelity.by_category(rows, means, KLA_FIGURES)


def _area_weights(length: int, size: int) -> np.ndarray:
    """Returns `[size, length]` weights: row i holds the share of each pixel in new pixel i."""
    # In units of 1/size of a pixel, so that the overlaps are integers and zeros are exact.
    cell, pixel = np.arange(size)[:, None] * length, np.arange(length) * size
    overlap = np.minimum(cell + length, pixel + size) - np.maximum(cell, pixel)
    return np.maximum(overlap, 0) / length


def _kla_window(image: np.ndarray) -> np.ndarray:
    # SciPy's "mirror" does not repeat the outermost pixel, like the script's padding; its
    # "reflect" does.
    return ndimage.uniform_filter(image, (_KLA_WINDOW, _KLA_WINDOW, 1), mode="mirror")
