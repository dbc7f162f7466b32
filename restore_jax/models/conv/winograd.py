"""A 3×3 convolution with half of the multiplications, for CPUs.

Directly, four rows of the result take twelve 1×3 convolutions along the rows, three each. Here,
six sums of the six input rows that they depend on are convolved with six sums of the kernel
rows, and the four results are sums of these products: Winograd's minimal filtering F(4, 3)
along one axis. Along both axes it would need a quarter of the multiplications, but the
additional copies and additions would take longer than that saves.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016;
the interpolation points of the polynomials are 0, ±1, ±2 and infinity.
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

# With fewer input or output channels, the additions take longer than they save. Measured on
# images of 32 to 256 pixels a side.
_MIN_CHANNELS = 32

# Smallest number of multiply-accumulates per image. Each convolution adds a quarter of a second
# to the compilation, which this one saves in some hundred images.
_MIN_MACS = 2**28


def is_faster(x: jax.Array, kernel: jax.Array, dilation: tuple[int, int]) -> bool:
    """Returns whether `convolve` supports a convolution and saves more time than it costs.

    Args:
        x: [B, H, W, I]; only its dtype and shape matter.
        kernel: [height, width, I, O]; only its dtype and shape matter.
        dilation: dilation of the kernel along both axes.
    """
    height, width = x.shape[1:3]
    return (
        x.dtype == kernel.dtype == jnp.float32  # the sums lose too much precision in bfloat16
        and kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _MIN_CHANNELS
        # The sides may be symbolic while an export is traced.
        and isinstance(height, int)
        and isinstance(width, int)
        and height * width * kernel.size >= _MIN_MACS
        # In a low image, the padding of the last group of rows would waste too much.
        and height >= 2 * _ROWS * dilation[0]
    )


def convolve(
    x: jax.Array, kernel: jax.Array, dilation: tuple[int, int], precision: Any = None
) -> jax.Array:
    """Convolves with stride 1 and zero padding, as with `padding="SAME"`.

    Equals the plain convolution up to rounding: the largest difference is about 5e-6 of the
    largest value of the result (plain implementations differ by a tenth of that).

    Args:
        x: [B, H, W, I] float32.
        kernel: [3, 3, I, O] float32.
        dilation: dilation of the kernel along both axes.
        precision: precision of the products, as in `lax.conv_general_dilated`.

    Returns:
        [B, H, W, O] float32.
    """
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    # A dilated kernel combines rows that are `apart` rows from each other, so that as many sets
    # of rows are interleaved.
    apart = dilation[0]
    groups = -(-height // (_ROWS * apart))
    missing = groups * _ROWS * apart - height
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
    grouped = x.reshape(batch, groups, _ROWS, apart * width * inputs)
    rows = [grouped[:, :, row] for row in range(_ROWS)]
    # The barrier materialises the padded arrays: without it, every sum would check for the
    # border.
    above, below = lax.optimization_barrier((_shifted(rows[-1], 1), _shifted(rows[0], -1)))
    input_rows = (above, *rows, below)
    kernels = jnp.einsum("sr,rcio->scio", jnp.array(_OF_KERNEL), kernel, precision="highest")
    products = []
    for of_input, of_kernel in zip(_OF_INPUT, kernels, strict=True):
        product = lax.conv_general_dilated(
            _sum(of_input, input_rows).reshape(batch, groups * apart, width, inputs),
            of_kernel[None],
            (1, 1),
            "SAME",
            rhs_dilation=(1, dilation[1]),
            dimension_numbers=_NHWC,
            precision=precision,
        )
        products.append(product.reshape(batch, groups, apart * width * outputs))
    result = jnp.stack([_sum(factors, products) for factors in _OF_PRODUCTS], axis=2)
    return result.reshape(batch, groups * _ROWS * apart, width, outputs)[:, :height]


def _shifted(x: jax.Array, steps: int) -> jax.Array:
    """Shifts the groups [B, groups, values] by `steps` along their axis, filling with zeros."""
    around = [(0, 0, 0), (steps, -steps, 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _sum(factors: Sequence[float], terms: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Returns a linear combination of arrays, skipping factors of zero."""
    scaled = [
        term if factor == 1 else factor * term
        for factor, term in zip(factors, terms, strict=True)
        if factor
    ]
    return sum(scaled[1:], scaled[0])
