"""A convolution with implementations of its own, most of them for CPUs.

The forward pass and the gradient by the input, which is a convolution too, take half of the
multiplications (`winograd`) where that saves much, and are XLA's own elsewhere. Other devices
always use XLA's, and so does an exported model, which cannot choose by device (`portable`).

The gradient by the kernel is computed in blocks. XLA formulates it as a convolution whose
window is as large as the image and whose channels are the images of the batch, which its fast
CPU library does not accept: it takes five times as long as the forward pass. Here it is a sum,
over blocks of pixels that fit into a core's cache, of convolutions that the library accepts.
For small images it is XLA's, which is as fast there and compiled in a third of the time.

If the batch is sharded over devices, each sums over its own images; `steps` sets the mesh.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from restore_jax.models import portable
from restore_jax.models.conv import winograd

_NHWC = ("NHWC", "HWIO", "NHWC")

# Rows of a block, and the largest number of values of both operands in it: 0.5 MB of float32.
# Measured for 3 to 192 channels with 2 MB of second-level cache per core; twice or half as
# much changes little.
_ROWS = 8
_VALUES = 2**17

# Largest image in px whose gradients by the kernel are XLA's.
_SMALL = 32 * 32


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
    """Computes `lax.conv_general_dilated`; results and gradients are equal up to rounding.

    Pass it to `nn.Conv` as `conv_general_dilated`. Convolutions other than plain ones
    (stride 1, padding "SAME", an odd kernel, one group, [B, H, W, C]) go to `lax` unchanged.
    Plain ones support reverse-mode differentiation only.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    dilation = tuple(rhs_dilation or (1,) * (lhs.ndim - 2))
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
        return _convolve(lhs, rhs, dilation, precision)
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
    x: jax.Array, kernel: jax.Array, dilation: tuple[int, int], precision: Any
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=dilation,
        dimension_numbers=_NHWC,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
    x: jax.Array, kernel: jax.Array, dilation: tuple[int, int], precision: Any
) -> jax.Array:
    """Convolves with the fastest implementation for the device."""
    if portable.is_on() or not winograd.is_faster(x, kernel, dilation):
        return _plain(x, kernel, dilation, precision)
    options = {"dilation": dilation, "precision": precision}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(winograd.convolve, **options),
        default=functools.partial(_plain, **options),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, dilation: tuple[int, int], precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, dilation, precision), (x, kernel)


def _backward(
    dilation: tuple[int, int],
    precision: Any,
    residuals: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # The kernel is odd and the stride 1, so the transpose is a convolution of the same kind.
    transposed = kernel[::-1, ::-1].swapaxes(2, 3)
    by_input = _convolve(g, transposed, dilation, precision)

    def by_xla(x: jax.Array, g: jax.Array) -> jax.Array:
        return gradient_by_xla(x, g, kernel, dilation, precision)

    def on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
        if _is_small(x):
            return by_xla(x, g)
        return kernel_gradient(x, g, kernel.shape[:2], dilation)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and jax.device_count() > 1:
        # The batch may be sharded in an unknown way; a loop over its blocks would gather it.
        return by_input, by_xla(x, g)
    if not mesh.empty and mesh.size > 1:
        on_cpu = _sharded_sum(mesh, on_cpu)
    by_kernel = lax.platform_dependent(
        x, g, cpu=lambda x, g: on_cpu(x, g).astype(kernel.dtype), default=by_xla
    )
    return by_input, by_kernel


def _is_small(x: jax.Array) -> bool:
    """Returns whether blocks would be no faster for the gradient by the kernel on a CPU."""
    return (
        x.shape[1] * x.shape[2] <= _SMALL
        and x.dtype == jnp.float32  # the sums would be bfloat16
    )


def _sharded_sum(
    mesh: jax.sharding.AbstractMesh, function: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Applies a function to the images of each device and sums the results over the mesh."""
    sharded = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        lambda x, g: lax.psum(function(x, g), mesh.axis_names),
        mesh=mesh,
        in_specs=(sharded, sharded),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


_convolve.defvjp(_forward, _backward)


def gradient_by_xla(
    x: jax.Array, g: jax.Array, kernel: jax.Array, dilation: tuple[int, int], precision: Any
) -> jax.Array:
    """Computes the gradient of a plain convolution by its kernel with XLA's implementation.

    Pixels that a dilated kernel does not combine are separated first, as images of their own,
    on which the convolution is not dilated. XLA would turn the gradient of a dilated one into a
    convolution by the whole image, which on an H100 in bfloat16 takes 24 ms for eight images of
    256×256 px and 64 channels; this way it takes 0.2 ms.

    Args:
        x: the convolution's input [B, H, W, I].
        g: the gradient by its result [B, H, W, O].
        kernel: [height, width, I, O], odd height and width; only its shape and dtype matter.
        dilation: dilation of the kernel along both.
        precision: as in `lax.conv_general_dilated`.

    Returns:
        The gradient, like `kernel`.
    """
    x, g = _phases(x, dilation), _phases(g, dilation)
    shape = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
    return jax.linear_transpose(lambda k: _plain(x, k, (1, 1), precision), shape)(g)[0]


def _phases(x: jax.Array, dilation: tuple[int, int]) -> jax.Array:
    """Takes every d-th row and every e-th column: [B, H, W, C] → [B·d·e, H/d, W/e, C].

    The sides are rounded up, by zeros like those that the convolution pads with.
    """
    if dilation == (1, 1):
        return x
    down, along = dilation
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % down), (0, -x.shape[2] % along), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // down, down, w // along, along, c)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, h // down, w // along, c)


def kernel_gradient(
    x: jax.Array, g: jax.Array, size: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> jax.Array:
    """Computes the gradient of a plain convolution by its kernel, block by block.

    Each column of the kernel takes one convolution per block, in which the pixels of a row are
    contracted as if they were channels, and the rows of the kernel are the positions of a
    window as high as the block. The operand with fewer channels is transposed for it, channels
    before columns; the other one stays as it is.

    Args:
        x: the convolution's input [B, H, W, I].
        g: the gradient by its result [B, H, W, O].
        size: height and width of the kernel, odd.
        dilation: dilation of the kernel along both.

    Returns:
        [height, width, I, O] float32, whatever the dtype of the inputs.
    """
    batch, height, width, inputs = x.shape
    outputs = g.shape[-1]
    input_is_narrow = inputs < outputs
    narrow, wide = (x, g) if input_is_narrow else (g, x)
    reach = [step * (side // 2) for side, step in zip(size, dilation, strict=True)]
    rows = min(_ROWS, height)
    columns = min(max(8, _VALUES // (rows * (inputs + outputs)) // 8 * 8), width)
    # The same number of blocks with as little padding beyond the image as possible.
    columns = -(-width // -(-width // columns))
    down, along = -(-height // rows), -(-width // columns)
    beyond = (down * rows - height, along * columns - width)
    around = [(r, r + b) for r, b in zip(reach, beyond, strict=True)]
    narrow = jnp.pad(narrow, ((0, 0), *around, (0, 0)))
    wide = jnp.pad(wide, ((0, 0), *((0, b) for b in beyond), (0, 0)))
    wide_block = (1, rows, columns, wide.shape[-1])
    narrow_block = (1, rows + 2 * reach[0], columns + 2 * reach[1], narrow.shape[-1])

    def add(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        image, place = index // (down * along), index % (down * along)
        start = (image, place // along * rows, place % along * columns, 0)
        kernel = lax.dynamic_slice(wide, start, wide_block).astype(jnp.float32)[0][:, None]
        pixels = lax.dynamic_slice(narrow, start, narrow_block).astype(jnp.float32)
        # Barriers keep XLA from recomputing the copies, value by value, in each product.
        kernel, pixels = lax.optimization_barrier((kernel, pixels))
        products = []
        for column in range(size[1]):
            first = column * dilation[1]
            shifted = pixels[:, :, first : first + columns].transpose(0, 1, 3, 2)
            products.append(
                lax.conv_general_dilated(
                    lax.optimization_barrier(shifted),
                    kernel,
                    (dilation[0], 1),
                    "VALID",
                    dimension_numbers=_NHWC,
                )[0]
            )
        return [one + more for one, more in zip(sums, products, strict=True)]

    zeros = jnp.zeros((size[0], narrow.shape[-1], wide.shape[-1]), jnp.float32)
    sums = lax.fori_loop(0, batch * down * along, add, [zeros] * size[1])
    found = jnp.stack(sums, axis=1)  # [kernel rows, kernel columns, narrow, wide]
    # With the gradient as the shifted operand, all shifts are reversed: the kernel is flipped.
    return found if input_is_narrow else found[::-1, ::-1].swapaxes(2, 3)
