"""The terms of the training loss, one value per image, and their weighted sum.

A term is a pure function `(restored, clean, mask) -> [B]` in float32. `restored` and `clean`
are `[B, H, W, 3]`, on the scale 0 to 1 but not clipped to it (clipping has no gradient where
the model is most wrong), in any floating dtype: bfloat16 is cast to float32 first. `mask` is
`[B, H, W, 1]`, one on the defect, or None if it is unknown, which is treated as empty; terms
that need no mask ignore it. A term in `WITH_PARAMETERS` takes fixed (loaded, not trained)
parameters as a last argument; they are passed around as `loss_params`,
`{name of the term: its parameters}`.

The losses of the published systems:
  SCA U-Net (Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024):
    `{"charbonnier": 1.0, "edge": 0.1, "ssim": 0.3}`; its released code has `edge_pyramid` in
    place of `edge`.
  RCAN and plain U-Net (Mahesh, Malapaka, Garimella and Singh, IIT Madras 2024):
    `{"masked_mse": 1.0}`.
  CBAM U-Net ("Image Restoration Model with Defect Preservation"):
    `{"defect": 0.25, "ssim": 0.30, "perceptual": 0.20, "sobel": 0.15, "basic": 0.10}`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from restore_jax.errors import UsageError
from restore_jax.losses.perceptual import perceptual
from restore_jax.metrics.fidelity import (
    check_images,
    check_mask,
    mean_of_valid,
    unclipped_ssim_map,
)

LossTerm = Callable[..., jax.Array]
LossParams = Mapping[str, Any]
BatchLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

CHARBONNIER_EPSILON = 1e-3
MASKED_MSE_ALPHA = 0.3
_PSNR_FLOOR = 1e-6
_PYRAMID_TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)


def charbonnier(
    restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Charbonnier loss, the mean of `sqrt(d² + ε²)` with ε = 1e-3, `[B]`.

    Its minimum, for equal images, is ε.
    """
    return _mean_charbonnier(_difference(restored, clean, mask))


def ssim(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """One minus the mean structural similarity, `[B]`, 0 (equal) to 2.

    The variant of `fidelity.ssim`, but on unclipped values. Where a window of either image is
    flat, `dm_pix.ssim` clamps its variance to a tiny positive number, so that the gradient
    stays finite (and nearly vanishes where `restored` is exactly flat).

    Raises:
        ValueError: if shapes or types do not fit, or a side is under 11 px.
    """
    _check(restored, clean, mask)
    return 1.0 - jnp.mean(unclipped_ssim_map(restored, clean), axis=(1, 2, 3))


def edge(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Charbonnier loss of the Laplacians, `[B]`, as in the report.

    The Laplacian is the sum of the four neighbours minus four times the pixel, per channel,
    with replicated borders.
    """
    # The Laplacian is linear: the Laplacian of the difference is the difference of Laplacians.
    return _mean_charbonnier(_laplacian(_difference(restored, clean, mask)))


def edge_pyramid(
    restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Charbonnier loss of the Gaussian-pyramid Laplacians, `[B]`, as in the released code.

    `L(x) = x - G(4 · U(D(G(x))))`: G is a separable 5x5 Gaussian with replicated borders, D
    takes every second pixel, starting with the first, and U upsamples to the size of x by
    inserting zeros; H and W may be odd.
    """
    d = _difference(restored, clean, mask)
    blurred = _pyramid_blur(d)
    # Downsampling and zero-insertion together set three pixels of every four to zero.
    even_rows = jnp.arange(d.shape[1])[:, None, None] % 2 == 0
    even_columns = jnp.arange(d.shape[2])[:, None] % 2 == 0
    coarse = jnp.where(even_rows & even_columns, 4.0 * blurred, 0.0)
    return _mean_charbonnier(d - _pyramid_blur(coarse))


def mse(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of `d²`, `[B]`."""
    return _mean(jnp.square(_difference(restored, clean, mask)))


def psnr(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`10·log₁₀(1 + mean(d²) / 1e-6)`, `[B]`: how far PSNR is below 60 dB; 0 for equal images.

    Reducing the error by ten per cent counts the same whether the error is small or large:
    images that need hardly any restoration are not outweighed by those beyond it. Source:
    L. Chen, X. Chu, X. Zhang and J. Sun, "Simple Baselines for Image Restoration", ECCV 2022.
    """
    squared = _mean(jnp.square(_difference(restored, clean, mask)))
    return (10.0 / math.log(10.0)) * jnp.log1p(squared / _PSNR_FLOOR)


def l1(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of `|d|`, `[B]`."""
    return _mean(jnp.abs(_difference(restored, clean, mask)))


def basic(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of `|d| + d²`, `[B]`: the sum of `l1` and `mse`."""
    return _mean(_basic_error(_difference(restored, clean, mask)))


def masked_mse(
    restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """`α · mean(d²) + (1 - α) · mean(mask · d²)` with α = 0.3, `[B]`.

    Both means are over all pixels, as in Mahesh, Malapaka, Garimella and Singh, IIT Madras
    2024: a pixel of the defect has 1/0.3 times the weight of any other, and without a defect
    the second term is 0.
    """
    squared = jnp.square(_difference(restored, clean, mask))
    total = MASKED_MSE_ALPHA * _mean(squared)
    if mask is None:
        return total
    return total + (1.0 - MASKED_MSE_ALPHA) * _mean(mask.astype(jnp.float32) * squared)


def defect(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of `|d| + d²` over the pixels of the defect only, `[B]`.

    `Σ mask · (|d| + d²) / (3 · Σ mask)`: `basic`, restricted to the mask, so that a small
    defect counts as much as a large one. 0, with zero gradient, if the mask is empty or
    unknown. "Image Restoration Model with Defect Preservation" has such a term but gives no
    formula for it.
    """
    error = _basic_error(_difference(restored, clean, mask))
    if mask is None:
        return jnp.zeros(len(error), jnp.float32)
    mask = mask.astype(jnp.float32)
    count = error.shape[-1] * jnp.sum(mask, axis=(1, 2, 3))
    return jnp.sum(mask * error, axis=(1, 2, 3)) / jnp.maximum(count, 1.0)


def sobel(restored: jax.Array, clean: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`mean |Sx(restored) - Sx(clean)| + mean |Sy(restored) - Sy(clean)|`, `[B]`.

    Sx and Sy are the Sobel gradients along columns and rows, per channel, with taps
    [-1, 0, 1] and [1, 2, 1] (no division by 8) and replicated borders. The gradient magnitude
    is not used: it is not differentiable where an image is flat.
    """
    # Linear, so applied to the difference as in `edge`.
    d = _difference(restored, clean, mask)
    p = jnp.pad(d, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    down = p[:, :-2] + 2.0 * p[:, 1:-1] + p[:, 2:]
    across = p[:, :, :-2] + 2.0 * p[:, :, 1:-1] + p[:, :, 2:]
    along_columns = down[:, :, 2:] - down[:, :, :-2]
    along_rows = across[:, 2:] - across[:, :-2]
    return _mean(jnp.abs(along_columns)) + _mean(jnp.abs(along_rows))


LOSSES: dict[str, LossTerm] = {
    "charbonnier": charbonnier,
    "ssim": ssim,
    "edge": edge,
    "edge_pyramid": edge_pyramid,
    "mse": mse,
    "psnr": psnr,
    "l1": l1,
    "basic": basic,
    "masked_mse": masked_mse,
    "defect": defect,
    "sobel": sobel,
    "perceptual": perceptual,
}

NEED_CLEAN = ("ssim", "perceptual")
"""Names of the terms that learn the noise of a noisy target.

They are not linear in the target. All others depend on the difference to it alone, or on linear
maps of that: for targets with independent noise, their minimum is the mean (`mse`, `psnr`) or
the median (`charbonnier`, `l1`, `edge`, …) of the targets.
"""

WITH_PARAMETERS = ("perceptual",)
"""Names of the terms that take fixed parameters as their last argument."""


def compute(
    name: str,
    restored: jax.Array,
    clean: jax.Array,
    mask: jax.Array | None,
    loss_params: LossParams | None = None,
) -> jax.Array:
    """Computes a term by its name, `[B]`, passing its fixed parameters if it takes any."""
    if name in WITH_PARAMETERS:
        return LOSSES[name](restored, clean, mask, (loss_params or {}).get(name))
    return LOSSES[name](restored, clean, mask)


def active(weights: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the names of the terms with nonzero weight, in the order of `weights`."""
    return tuple(name for name, weight in weights.items() if weight)


def weighted_sum(weights: Mapping[str, float]) -> BatchLoss:
    """Builds the training loss from a config's `loss = {name: weight}`.

    Args:
        weights: weight by name in `LOSSES`, 0 or more. A term of weight 0 is not computed.

    Returns:
        A function `(restored, clean, mask, valid, loss_params=None) -> (total, terms)`. `valid`
        is bool `[B]`, false for padding; `loss_params` holds the parameters of the terms in
        `WITH_PARAMETERS` that have a weight. `terms` holds, by name, the unweighted mean of
        each term over the valid images (0 if there are none), and `total` is their weighted
        sum; all are float32 scalars. Padding affects neither the value nor the gradient,
        whatever it contains.

    Raises:
        UsageError: for an unknown name, a weight that is negative or not finite, or no weight
            above 0.
    """
    for name, weight in weights.items():
        if name not in LOSSES:
            raise UsageError(
                f"config.loss.{name}: no such loss term; the terms are {', '.join(LOSSES)}"
            )
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise UsageError(
                f"config.loss.{name}: the weight is {weight!r}; give a number of 0 or more"
            )
    chosen = {name: float(weights[name]) for name in active(weights)}
    if not chosen:
        raise UsageError(
            f"config.loss: no term has a weight above 0; give one to any of {', '.join(LOSSES)}"
        )

    def loss(
        restored: jax.Array,
        clean: jax.Array,
        mask: jax.Array | None,
        valid: jax.Array,
        loss_params: LossParams | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        _check(restored, clean, mask)
        if valid.shape != restored.shape[:1]:
            raise ValueError(
                f"expected valid of shape {restored.shape[:1]} for images of shape "
                f"{restored.shape}, got {valid.shape}"
            )
        # A weight of zero would still let a NaN through (0 · NaN is NaN, in the gradient too),
        # so padding is replaced before it reaches any term.
        keep = valid[:, None, None, None]
        restored, clean = jnp.where(keep, restored, 0), jnp.where(keep, clean, 0)
        if mask is not None:
            mask = jnp.where(keep, mask, 0)
        terms = {
            name: mean_of_valid(compute(name, restored, clean, mask, loss_params), valid)
            for name in chosen
        }
        total = sum((weight * terms[name] for name, weight in chosen.items()), start=0.0)
        return total, terms

    return loss


def _check(restored: jax.Array, clean: jax.Array, mask: jax.Array | None) -> None:
    check_images(restored, clean)
    if mask is not None:
        check_mask(restored, mask)


def _difference(restored: jax.Array, clean: jax.Array, mask: jax.Array | None) -> jax.Array:
    _check(restored, clean, mask)
    return restored.astype(jnp.float32) - clean.astype(jnp.float32)


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=(1, 2, 3))


def _mean_charbonnier(difference: jax.Array) -> jax.Array:
    return _mean(jnp.sqrt(jnp.square(difference) + CHARBONNIER_EPSILON**2))


def _laplacian(image: jax.Array) -> jax.Array:
    """Sum of the four neighbours minus four times the pixel, borders replicated."""
    p = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    vertical = p[:, :-2, 1:-1] + p[:, 2:, 1:-1]
    horizontal = p[:, 1:-1, :-2] + p[:, 1:-1, 2:]
    return vertical + horizontal - 4.0 * image


def _basic_error(difference: jax.Array) -> jax.Array:
    return jnp.abs(difference) + jnp.square(difference)


def _pyramid_blur(image: jax.Array) -> jax.Array:
    # Shifted multiply-adds: XLA's depthwise convolution is several times slower on a CPU.
    for axis in (1, 2):
        length = image.shape[axis]
        pad = [(0, 0)] * image.ndim
        pad[axis] = (2, 2)
        padded = jnp.pad(image, pad, mode="edge")
        image = sum(
            tap * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
            for i, tap in enumerate(_PYRAMID_TAPS)
        )
    return image
