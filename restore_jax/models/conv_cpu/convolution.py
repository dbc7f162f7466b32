"""A convolution, computed in ways of its own where the device is a CPU.

The forward pass and the input's gradient, which is a convolution too, take what suits their
channels: half of the multiplications (`winograd`), or two columns of the result at once, or
XLA's own. Another device gets XLA's own always, and so does a file for other programs, which
has no choice of the device in it (`portable`).

The kernel's gradient is computed in blocks: XLA writes it as a convolution with a window as
large as the image whose channels are the images of the batch. It does not hand that to its fast
library, and takes five times as long as with the forward pass. Here it is a sum over blocks of
pixels that fit a core's cache, of products that the library does take.

Where the batch is divided among devices, each sums over its own images (`steps` says among
which).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from restore_jax.models import portable
from restore_jax.models.conv_cpu import winograd

_NHWC = ("NHWC", "HWIO", "NHWC")

# Rows of a block, and the most values of both operands in it: half a megabyte of float32.
# Measured for 3 to 192 channels with 2 MB of second-level cache per core; twice or half as
# much changes little.
_ROWS = 8
_VALUES = 2**17

# With so many channels or fewer on both sides, XLA does not give a convolution to that library.
_LEFT_OUT = 16


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Does what `lax.conv_general_dilated` does, results and gradients the same to rounding.

    To be given to `nn.Conv` as its `conv_general_dilated`. What is not a plain convolution
    (stride 1, padding "SAME", an odd kernel, one group, [B, H, W, C]) passes through. Only
    reverse-mode differentiation is possible.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spread = tuple(rhs_dilation or (1,) * (lhs.ndim - 2))
    is_plain = (
        lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and padding == "SAME"
        and all(stride == 1 for stride in window_strides)
        and all(factor == 1 for factor in lhs_dilation or ())
        and feature_group_count == 1
        and rhs.shape[0] % 2 == 1
        and rhs.shape[1] % 2 == 1
    )
    if is_plain:
        return _convolve(lhs, rhs, spread, precision)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )


def _plain(
    x: jax.Array, kernel: jax.Array, spread: tuple[int, int], precision: Any
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=spread,
        dimension_numbers=_NHWC,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
    x: jax.Array, kernel: jax.Array, spread: tuple[int, int], precision: Any
) -> jax.Array:
    """Computes the convolution by what is fastest on the device."""
    if portable.is_on():
        return _plain(x, kernel, spread, precision)
    if winograd.is_faster(x, kernel, spread):
        on_cpu = winograd.convolve
    elif _is_narrow(x, kernel, spread):
        on_cpu = _two_columns
    else:
        return _plain(x, kernel, spread, precision)
    options = {"spread": spread, "precision": precision}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(on_cpu, **options),
        default=functools.partial(_plain, **options),
    )


def _is_narrow(x: jax.Array, kernel: jax.Array, spread: tuple[int, int]) -> bool:
    """Tells whether a convolution is one that XLA keeps from its fast library for its size."""
    width = x.shape[2]
    return (
        max(kernel.shape[2:]) <= _LEFT_OUT
        and kernel.shape[1] > 1
        and spread[1] == 1
        # While an export is traced it may be unknown.
        and isinstance(width, int)
        and width % 2 == 0
    )


def _two_columns(
    x: jax.Array, kernel: jax.Array, spread: tuple[int, int], precision: Any
) -> jax.Array:
    """Computes two columns of the result at once, as if they were twice the channels.

    That takes a kernel which is a column wider, with a column of zeros at either end, and is
    more arithmetic, but the library does it.
    """
    height, width, inputs, outputs = kernel.shape
    right, left = (jnp.pad(kernel, ((0, 0), ends, (0, 0), (0, 0))) for ends in ((0, 1), (1, 0)))
    reach = [
        (step * (side // 2),) * 2 for side, step in zip((height, width), spread, strict=True)
    ]
    pairs = lax.conv_general_dilated(
        x,
        jnp.stack([right, left], axis=3).reshape(height, width + 1, inputs, 2 * outputs),
        (1, 2),
        reach,
        rhs_dilation=spread,
        dimension_numbers=_NHWC,
        precision=precision,
    )
    return pairs.reshape(*x.shape[:3], outputs)


def _forward(
    x: jax.Array, kernel: jax.Array, spread: tuple[int, int], precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, spread, precision), (x, kernel)


def _backward(
    spread: tuple[int, int], precision: Any, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # The kernel is odd and the stride 1: the transpose is a convolution of the same kind.
    transposed = kernel[::-1, ::-1].swapaxes(2, 3)
    by_input = _convolve(g, transposed, spread, precision)

    def by_xla(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _plain(x, kernel, spread, precision), kernel)[1](g)[0]

    def in_blocks(x: jax.Array, g: jax.Array) -> jax.Array:
        return kernel_gradient(x, g, kernel.shape[:2], spread)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and jax.device_count() > 1:
        # A loop over blocks of a batch that is divided, nobody knows how, would gather it.
        return by_input, by_xla(x, g)
    if not mesh.empty and mesh.size > 1:
        in_blocks = _summed_over(mesh, in_blocks)
    by_kernel = lax.platform_dependent(
        x, g, cpu=lambda x, g: in_blocks(x, g).astype(kernel.dtype), default=by_xla
    )
    return by_input, by_kernel


def _summed_over(
    mesh: jax.sharding.AbstractMesh, of_images: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Has each device of a mesh do its images, and sums what they give."""
    divided = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        lambda x, g: lax.psum(of_images(x, g), mesh.axis_names),
        mesh=mesh,
        in_specs=(divided, divided),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


_convolve.defvjp(_forward, _backward)


def kernel_gradient(
    x: jax.Array, g: jax.Array, size: tuple[int, int], spread: tuple[int, int] = (1, 1)
) -> jax.Array:
    """Computes the gradient of a plain convolution by its kernel, block by block.

    For each of the kernel's columns, the pixels of a row are contracted as if they were
    channels, and the kernel's rows are the places of a window of the block's height. That takes
    the narrower operand with its channels before its columns; the other one stays as it is.

    Args:
        x: the convolution's input [B, H, W, I].
        g: the gradient by its result [B, H, W, O].
        size: the kernel's height and width, odd.
        spread: its dilation along both.

    Returns:
        [height, width, I, O] float32, whatever the inputs' type.
    """
    batch, height, width, inputs = x.shape
    outputs = g.shape[-1]
    of_input = inputs < outputs
    narrow, wide = (x, g) if of_input else (g, x)
    if tuple(size) == (1, 1):
        # The first operand is the one that the library has transposed.
        # Cast before: a CPU has no product of two bfloat16 arrays for every shape.
        pair = (z.astype(jnp.float32) for z in (narrow, wide))
        found = jnp.einsum("bhwn,bhwm->nm", *pair)
        return (found if of_input else found.T)[None, None]
    reach = [step * (side // 2) for side, step in zip(size, spread, strict=True)]
    rows = min(_ROWS, height)
    columns = min(max(8, _VALUES // (rows * (inputs + outputs)) // 8 * 8), width)
    # The same number of blocks, but as little beyond the image's border as possible.
    columns = -(-width // -(-width // columns))
    down, along = -(-height // rows), -(-width // columns)
    beyond = (down * rows - height, along * columns - width)
    around = [(r, r + b) for r, b in zip(reach, beyond, strict=True)]
    narrow = jnp.pad(narrow, ((0, 0), *around, (0, 0)))
    wide = jnp.pad(wide, ((0, 0), *((0, b) for b in beyond), (0, 0)))
    block = (1, rows, columns, wide.shape[-1])
    seen = (1, rows + 2 * reach[0], columns + 2 * reach[1], narrow.shape[-1])

    def add(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        image, place = index // (down * along), index % (down * along)
        start = (image, place // along * rows, place % along * columns, 0)
        kernel = lax.dynamic_slice(wide, start, block).astype(jnp.float32)[0][:, None]
        pixels = lax.dynamic_slice(narrow, start, seen).astype(jnp.float32)
        # Barriers keep XLA from computing the copies anew, value by value, in each product.
        kernel, pixels = lax.optimization_barrier((kernel, pixels))
        products = []
        for column in range(size[1]):
            first = column * spread[1]
            shifted = pixels[:, :, first : first + columns].transpose(0, 1, 3, 2)
            products.append(
                lax.conv_general_dilated(
                    lax.optimization_barrier(shifted),
                    kernel,
                    (spread[0], 1),
                    "VALID",
                    dimension_numbers=_NHWC,
                )[0]
            )
        return [one + more for one, more in zip(sums, products, strict=True)]

    zeros = jnp.zeros((size[0], narrow.shape[-1], wide.shape[-1]), jnp.float32)
    sums = lax.fori_loop(0, batch * down * along, add, [zeros] * size[1])
    found = jnp.stack(sums, axis=1)  # [kernel's rows, its columns, narrow, wide]
    # Of the gradient's pixels, those above the input's belong to the kernel's lower rows.
    return found if of_input else found[::-1, ::-1].swapaxes(2, 3)
