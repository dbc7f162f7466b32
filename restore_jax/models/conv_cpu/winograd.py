"""A 3×3 convolution with half of the multiplications, for CPUs.

Four rows of the result take twelve 1×3 convolutions along the rows, three each. Instead, six
sums of the six input rows that they see are convolved with six sums of the kernel's rows, and
the four results are sums of those: Winograd's minimal filtering F(4, 3) along one axis. Along
both it would need a quarter of the multiplications, but then what is copied and added takes
longer than it saves.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016;
the polynomials' points are 0, ±1, ±2 and infinity.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")

# Rows of the result that are computed together.
_ROWS = 4

# [6 sums, 6 rows of the input]
_OF_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
# [6 sums, 3 rows of the kernel]
_OF_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
# [4 rows of the result, 6 products]
_OF_PRODUCTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)

# With fewer channels on either side the additions take longer than they save. Measured at
# 32 to 256 pixels a side.
_LEAST_CHANNELS = 32


def is_faster(x: jax.Array, kernel: jax.Array, spread: tuple[int, int]) -> bool:
    """Tells whether `convolve` can do a convolution, and in less time.

    Args:
        x: [B, H, W, I], of which the type and the shape are looked at.
        kernel: [height, width, I, O], the same.
        spread: the kernel's dilation along both.
    """
    height = x.shape[1]
    return (
        x.dtype == kernel.dtype == jnp.float32  # the sums would take bfloat16 too many digits
        and kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _LEAST_CHANNELS
        # While an export is traced it may be unknown.
        and isinstance(height, int)
        # Where rows are missing in the last group, zeros are computed.
        and height >= 2 * _ROWS * spread[0]
    )


def convolve(
    x: jax.Array, kernel: jax.Array, spread: tuple[int, int], precision: Any = None
) -> jax.Array:
    """Convolves with stride 1 and zeros around the image, as `padding="SAME"` does.

    Equals the plain convolution but for rounding: the largest difference is near 5e-6 of the
    largest value of the result (plain sums differ by a tenth of that among each other).

    Args:
        x: [B, H, W, I] float32.
        kernel: [3, 3, I, O] float32.
        spread: its dilation along both axes.
        precision: of the products, as in `lax.conv_general_dilated`.

    Returns:
        [B, H, W, O] float32.
    """
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    # Rows that the dilated kernel sees together lie `apart`: so many groups are interleaved.
    apart = spread[0]
    groups = -(-height // (_ROWS * apart))
    missing = groups * _ROWS * apart - height
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
    grouped = x.reshape(batch, groups, _ROWS, apart * width * inputs)
    rows = [grouped[:, :, row] for row in range(_ROWS)]
    # The barrier has the zeros beyond the image written, not looked for in every sum.
    above, below = lax.optimization_barrier((_shifted(rows[-1], 1), _shifted(rows[0], -1)))
    seen = (above, *rows, below)
    kernels = jnp.einsum("sr,rcio->scio", jnp.array(_OF_KERNEL), kernel, precision="highest")
    products = []
    for of_input, of_kernel in zip(_OF_INPUT, kernels, strict=True):
        product = lax.conv_general_dilated(
            _sum(of_input, seen).reshape(batch, groups * apart, width, inputs),
            of_kernel[None],
            (1, 1),
            "SAME",
            rhs_dilation=(1, spread[1]),
            dimension_numbers=_NHWC,
            precision=precision,
        )
        products.append(product.reshape(batch, groups, apart * width * outputs))
    result = jnp.stack([_sum(factors, products) for factors in _OF_PRODUCTS], axis=2)
    return result.reshape(batch, groups * _ROWS * apart, width, outputs)[:, :height]


def _shifted(x: jax.Array, steps: int) -> jax.Array:
    """Moves the groups [B, groups, values] on by `steps`, with zeros where there was none."""
    around = [(0, 0, 0), (steps, -steps, 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _sum(factors: Sequence[float], terms: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Adds arrays with factors; those of zero are left out."""
    taken = [
        term if factor == 1 else factor * term
        for factor, term in zip(factors, terms, strict=True)
        if factor
    ]
    return sum(taken[1:], taken[0])
