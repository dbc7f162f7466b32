"""Per-image metrics of a restoration, and their means over a data set.

The metrics are pure functions of batches: images `[B, H, W, 3]` on the scale 0 to 1 (clipped to
it and cast to float32 here) and masks `[B, H, W, 1]` of zeros and ones (one = defect). They
return a float32 array `[B]`, with NaN for an image for which the metric is undefined (an empty
mask, no ring around the defect); `summarise`, on the host, leaves those out and never returns a
NaN.

Values of PSNR and SSIM depend on the variant. Here they are: RGB, per image, on clipped values,
peak 1; SSIM after Wang et al. 2004 with an 11x11 Gaussian window of σ 1.5, K 0.01 and 0.03, per
channel, over the valid region (the border of 5 px has no value).

Nothing here uses a convolution, and the window's matrix products request full float32, so that
a GPU does not fall back to TF32.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp

from restore_jax.errors import RunError
from restore_jax.metrics.gaussian_window import SSIM_WINDOW, gaussian_window

_SSIM_BORDER = SSIM_WINDOW // 2

# 100 dB, so that a restoration that equals the clean image has a finite, comparable PSNR.
MIN_MSE = 1e-10

# A clean contrast between defect and surroundings of less than one grey level of 255 (the norm
# over the three channels) is within 8-bit rounding error, and a quotient of it is meaningless.
MIN_CONTRAST = 1.0 / 255.0

IMAGE_FIGURES = ("psnr", "ssim", "mae", "input_psnr", "input_ssim")
"""Figures of `image_metrics` that every image has."""

DEFECT_FIGURES = (
    "defect_psnr",
    "background_psnr",
    "defect_ssim",
    "input_defect_psnr",
    "defect_contrast",
    "input_defect_contrast",
)
"""Figures of `image_metrics` that need a mask, and may be undefined (NaN) even with one."""


def check_images(first: jax.Array, second: jax.Array) -> None:
    """Checks that both arguments are batches of floating-point RGB images of one shape.

    Raises:
        ValueError: unless both are `[B, H, W, 3]`, of the same shape, and of a floating dtype.
    """
    if first.ndim != 4 or first.shape[-1] != 3 or first.shape != second.shape:
        raise ValueError(
            f"expected two equal [B, H, W, 3] shapes, got {first.shape} and {second.shape}"
        )
    for image in (first, second):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"expected floating-point images on the scale 0 to 1, got {image.dtype}"
            )


def check_mask(images: jax.Array, mask: jax.Array) -> None:
    """Checks that the shape of a mask fits its images.

    Raises:
        ValueError: unless `mask` is `[B, H, W, 1]` for `images` of `[B, H, W, C]`.
    """
    if mask.shape != (*images.shape[:3], 1):
        raise ValueError(
            f"expected a [B, H, W, 1] mask for images of shape {images.shape}, "
            f"got shape {mask.shape}"
        )


def unclipped_ssim_map(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Structural similarity at each pixel, without clipping the values.

    Args:
        restored: `[B, H, W, 3]`, any floating dtype, H and W at least 11; on the scale 0 to 1.
        clean: the same shape.

    Returns:
        `[B, H-10, W-10, 3]` float32, at most 1; differentiable.

    Raises:
        ValueError: if shapes differ, a dtype is not floating, or a side is under 11 px, for
            which `dm_pix.ssim` would silently return a wrong value.
    """
    check_images(restored, clean)
    if min(restored.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} px, got shapes "
            f"{restored.shape} and {clean.shape}"
        )
    images = (image.astype(jnp.float32) for image in (restored, clean))
    return dm_pix.ssim(*images, filter_fn=gaussian_window, return_map=True)


def ssim_map(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Structural similarity at each pixel of the clipped images, `[B, H-10, W-10, 3]`.

    Pixel (i, j) of the map corresponds to pixel (i + 5, j + 5) of the images.

    Raises:
        ValueError: as `unclipped_ssim_map`.
    """
    check_images(restored, clean)
    return unclipped_ssim_map(_clip(restored), _clip(clean))


def ssim(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Mean of `ssim_map` over pixels and channels, `[B]`."""
    return jnp.mean(ssim_map(restored, clean), axis=(1, 2, 3))


def mae(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Mean absolute error of the clipped images, `[B]`, 0 to 1."""
    check_images(restored, clean)
    return jnp.mean(jnp.abs(_clip(restored) - _clip(clean)), axis=(1, 2, 3))


def psnr(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB, `[B]`, at most 100.

    The mean squared error is clamped to 1e-10 or more, so that equal images score 100 dB.
    """
    return _decibels(jnp.mean(_squared_error(restored, clean), axis=(1, 2, 3)))


def defect_psnr(restored: jax.Array, clean: jax.Array, mask: jax.Array) -> jax.Array:
    """PSNR with the mean squared error over the pixels of the mask only, `[B]`.

    At most 100 dB as in `psnr`; NaN if the mask is empty.
    """
    check_mask(restored, mask)
    return _decibels(_mean_over(_squared_error(restored, clean), _is_defect(mask)))


def background_psnr(restored: jax.Array, clean: jax.Array, mask: jax.Array) -> jax.Array:
    """PSNR with the mean squared error over the pixels outside the mask, `[B]`.

    At most 100 dB as in `psnr`; NaN if the mask covers the whole image.
    """
    check_mask(restored, mask)
    return _decibels(_mean_over(_squared_error(restored, clean), ~_is_defect(mask)))


def defect_ssim(restored: jax.Array, clean: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the SSIM map over the pixels of the mask and the channels, `[B]`.

    The mask is cropped to the map, by 5 px on each side. NaN if nothing of the mask remains.
    """
    check_mask(restored, mask)
    inner = slice(_SSIM_BORDER, -_SSIM_BORDER)
    return _mean_over(ssim_map(restored, clean), _is_defect(mask)[:, inner, inner])


def defect_contrast(restored: jax.Array, clean: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the defect's contrast that the restoration keeps, `[B]`.

    `⟨Δrestored, Δclean⟩ / ⟨Δclean, Δclean⟩`, with Δ the mean over the defect minus the mean
    over a ring around it, per channel. 1: kept; 0: erased; negative: reversed. The ring is the
    mask dilated by `ring_width` px in each direction (by a square), minus the mask.

    NaN if the mask is empty, if it leaves no ring, or if the clean contrast (the norm of
    Δclean) is under one grey level of 255.
    """
    check_images(restored, clean)
    check_mask(restored, mask)
    defect = _is_defect(mask)
    ring = _dilate(defect, ring_width(*mask.shape[1:3])) & ~defect

    def contrast(image: jax.Array) -> jax.Array:
        image = _clip(image)
        return _mean_over(image, defect, axis=(1, 2)) - _mean_over(image, ring, axis=(1, 2))

    clean_contrast = contrast(clean)
    energy = jnp.sum(jnp.square(clean_contrast), axis=-1)
    product = jnp.sum(contrast(restored) * clean_contrast, axis=-1)
    # Also False for a NaN energy (no mask, no ring).
    defined = energy >= MIN_CONTRAST**2
    return jnp.where(defined, product / jnp.where(defined, energy, 1.0), jnp.nan)


def ring_width(height: int, width: int) -> int:
    """Width in px of the ring around a defect: 3 % of the image's short side, at least 2."""
    return max(2, round(0.03 * min(height, width)))


def image_metrics(
    restored: jax.Array,
    degraded: jax.Array,
    clean: jax.Array,
    mask: jax.Array,
    has_mask: jax.Array,
) -> dict[str, jax.Array]:
    """Computes all figures of each image of a batch; meant to be jitted.

    Args:
        restored: the model's output, `[B, H, W, 3]`.
        degraded: its input, the same shape.
        clean: the target, the same shape.
        mask: `[B, H, W, 1]`, one on the defect.
        has_mask: bool `[B]`, false where the mask is unknown (and its zeros mean nothing).

    Returns:
        `IMAGE_FIGURES` and `DEFECT_FIGURES`, each `[B]` float32. The latter are NaN where
        `has_mask` is false or the figure is undefined. Padding images get values like any
        other; the caller drops them.

    Raises:
        ValueError: if shapes do not fit, a dtype is not floating, or a side is under 11 px.
    """
    check_mask(restored, mask)
    if has_mask.shape != restored.shape[:1]:
        raise ValueError(
            f"expected has_mask of shape {restored.shape[:1]} for images of shape "
            f"{restored.shape}, got {has_mask.shape}"
        )
    over_all = {
        "psnr": psnr(restored, clean),
        "ssim": ssim(restored, clean),
        "mae": mae(restored, clean),
        "input_psnr": psnr(degraded, clean),
        "input_ssim": ssim(degraded, clean),
    }
    over_defect = {
        "defect_psnr": defect_psnr(restored, clean, mask),
        "background_psnr": background_psnr(restored, clean, mask),
        "defect_ssim": defect_ssim(restored, clean, mask),
        "input_defect_psnr": defect_psnr(degraded, clean, mask),
        "defect_contrast": defect_contrast(restored, clean, mask),
        "input_defect_contrast": defect_contrast(degraded, clean, mask),
    }
    # Without a defect there is no background either: all figures are undefined.
    known = has_mask & jnp.any(_is_defect(mask), axis=(1, 2, 3))
    return over_all | {
        name: jnp.where(known, value, jnp.nan) for name, value in over_defect.items()
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of per-image figures, over the images and over the categories.

    Args:
        rows: one mapping per image with `id`, `category` and the figures of `image_metrics` as
            numbers; those of `DEFECT_FIGURES` may be None or NaN for an image without them.

    Returns:
        As `by_category`. M holds `count` (images), `mask_count` (images with a known mask that
        is not empty) and the mean of each figure over the images that have it, None if none
        has.

    Raises:
        RunError: if a figure of `IMAGE_FIGURES` is not finite (the model's output contained
            NaN). Leaving that image out would flatter the model.
    """
    check_finite(rows, IMAGE_FIGURES)
    return by_category(rows, _means, IMAGE_FIGURES + DEFECT_FIGURES)


def by_category(
    rows: Sequence[Mapping[str, Any]],
    means: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    averaged: Sequence[str],
) -> dict[str, Any]:
    """Summarises images over the whole data set and by category.

    Args:
        rows: one mapping per image, with `category`.
        means: summarises any set of rows.
        averaged: the figures of a summary to take macro means of. The others, counts, are taken
            over all images.

    Returns:
        `{"micro": M, "macro": M, "categories": {name: M}}`, categories in alphabetical order, M
        as returned by `means`. Micro means are over the images, macro means over the means of
        the categories that have one. JSON-serialisable: plain numbers, no NaN.
    """
    categories = {
        name: means([row for row in rows if row["category"] == name])
        for name in sorted({row["category"] for row in rows})
    }
    micro = means(rows)
    macro = {figure: mean_of_defined(categories.values(), figure) for figure in averaged}
    return {"micro": micro, "macro": micro | macro, "categories": categories}


def merge(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merges summaries from `by_category`; the categories are those of the first."""

    def merged(means: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        return {figure: value for one in means for figure, value in one.items()}

    return {
        "micro": merged(one["micro"] for one in summaries),
        "macro": merged(one["macro"] for one in summaries),
        "categories": {
            name: merged(one["categories"][name] for one in summaries)
            for name in summaries[0]["categories"]
        },
    }


def check_finite(rows: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> None:
    """Checks that figures are defined for every image.

    Raises:
        RunError: naming the first image and figure that is not a finite number.
    """
    for row in rows:
        for figure in figures:
            if not is_defined(row[figure]):
                raise RunError(
                    f"image {row['id']}: {figure} is {row[figure]}; the image or its "
                    "restoration contains values that are not finite"
                )


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, int | float | None]:
    # An image has a defect PSNR exactly when its mask is known and not empty.
    masked = sum(is_defined(row["defect_psnr"]) for row in rows)
    return {
        "count": len(rows),
        **{figure: mean_of_defined(rows, figure) for figure in IMAGE_FIGURES},
        "mask_count": masked,
        **{figure: mean_of_defined(rows, figure) for figure in DEFECT_FIGURES},
    }


def mean_of_defined(rows: Iterable[Mapping[str, Any]], figure: str) -> float | None:
    """Mean of a figure over the rows where it is defined; None if there are none."""
    values = [float(row[figure]) for row in rows if is_defined(row[figure])]
    return math.fsum(values) / len(values) if values else None


def is_defined(value: float | None) -> bool:
    """Returns whether a figure has a value: not None, NaN or infinite."""
    return value is not None and math.isfinite(value)


def _clip(image: jax.Array) -> jax.Array:
    return jnp.clip(image.astype(jnp.float32), 0.0, 1.0)


def _is_defect(mask: jax.Array) -> jax.Array:
    return mask > 0.5


def _squared_error(restored: jax.Array, clean: jax.Array) -> jax.Array:
    check_images(restored, clean)
    return jnp.square(_clip(restored) - _clip(clean))


def _decibels(mean_squared_error: jax.Array) -> jax.Array:
    return -10.0 * jnp.log10(jnp.maximum(mean_squared_error, MIN_MSE))


def _mean_over(
    values: jax.Array, region: jax.Array, axis: tuple[int, ...] = (1, 2, 3)
) -> jax.Array:
    """Means of `values` over a boolean `region` (broadcast to them); NaN if it is empty."""
    region = jnp.broadcast_to(region, values.shape)
    count = jnp.sum(region, axis=axis)
    total = jnp.sum(jnp.where(region, values, 0.0), axis=axis)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _dilate(region: jax.Array, width: int) -> jax.Array:
    """Dilates bool `[B, H, W, 1]` by `width` px in each direction, one axis at a time."""
    span = 2 * width + 1
    for window in ((1, span, 1, 1), (1, 1, span, 1)):
        region = jax.lax.reduce_window(
            region, False, jax.lax.bitwise_or, window, (1, 1, 1, 1), "SAME"
        )
    return region


def mean_of_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of a figure over the valid images, a scalar; 0 if there are none.

    Args:
        values: [B]; values of padding images are ignored, even NaN.
        valid: bool [B], false for padding.
    """
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
