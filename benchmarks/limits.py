"""Lower bounds on the cost of a model per image: arithmetic and memory traffic.

Arithmetic: the multiply-accumulates of `metrics.cost`, two operations each. A training step
takes three times those of the forward pass (the output, the gradient with respect to the input
and that with respect to the kernel), minus the gradient with respect to the image, which is not
needed. Elementwise work (biases, activations, gates, pooling, resampling, the loss) is left
out: fused into other operations, it is free. Convolutions are counted directly; where they are
computed with fewer multiplications (`restore_jax.models.conv.winograd`), the share of this
limit can exceed 1.

Traffic: convolutions and dense layers exchange their inputs and outputs through memory, and
everything between two of them is assumed to be fused into one or the other. In the forward
pass, each layer's input is read once (once in total by layers that share it) and its output
written once. In the backward pass, the input is read again for the kernel's gradient, the
output's gradient is read once for both gradients, and the input's gradient is written once. The
image itself has no gradient. Attention between positions is assumed to be fused, so that its
weights never leave the chip. Activations have the size of `dtype`. Per step rather than per
image, there are the float32 parameters: read in the forward and backward pass, gradients
written, and Adam, which reads gradient, two moments and parameter and writes the last three:
ten accesses of 4 bytes. A program could need less by recomputing across layers; none here does.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.metrics import cost, gaussian_window
from restore_jax.metrics.cost import parameter_count
from restore_jax.models import layers

_ADAM_STEP = 10
_LAYERS = (nn.Conv, nn.Dense, layers.TransposedConv2)


@dataclasses.dataclass(frozen=True)
class Least:
    """The minimum cost of a piece of work per image.

    Attributes:
        operations: arithmetic operations.
        bytes: bytes read from and written to memory.
    """

    operations: float
    bytes: float


def restoring(model: nn.Module, size: int, batch: int, dtype: str) -> Least:
    """Returns the minimum cost of restoring an image of `size`×`size` px, in a batch."""
    variables, read, written, _ = _trace(model, size)
    macs = cost.model_macs(model, variables, size, size)
    parameters = 4.0 * parameter_count(variables["params"]) / batch
    return Least(2.0 * macs, jnp.dtype(dtype).itemsize * (read + written) + parameters)


def training(model: nn.Module, size: int, batch: int, dtype: str) -> Least:
    """Returns the minimum cost of a training step with Adam, per image of the batch."""
    variables, read, written, first_macs = _trace(model, size)
    macs = 3 * cost.model_macs(model, variables, size, size) - first_macs
    image = 3 * size * size
    moved = 3 * read - image + 2 * written
    parameters = 4.0 * _ADAM_STEP * parameter_count(variables["params"]) / batch
    # In addition to the layers' traffic, the loss reads the clean image.
    return Least(2.0 * macs, jnp.dtype(dtype).itemsize * moved + 4.0 * image + parameters)


def similarity(size: int) -> Least:
    """Returns the minimum cost of the SSIM of two images: five separable windowed means."""
    values = 3.0 * size * size
    return Least(2.0 * 2 * 5 * gaussian_window.SSIM_WINDOW * values, 2 * 4 * values)


def _trace(model: nn.Module, size: int) -> tuple[Mapping[str, Any], int, int, int]:
    """Traces a model on one image.

    Returns:
        The shapes of its variables; the number of values that layers read and that they write,
        each tensor once; and the multiply-accumulates of the layers whose input is the image.
    """
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    # Arrays are kept alive to the end, since `id` may be reused once an object is gone.
    read: dict[int, jax.Array] = {}
    written: dict[int, jax.Array] = {}
    first = 0

    def intercept(following: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        nonlocal first
        result = following(*arguments, **keywords)
        if isinstance(context.module, _LAYERS) and context.method_name == "__call__":
            (x,) = arguments
            read[id(x)] = x
            written[id(result)] = result
            if x.shape[-1] == 3:  # an image, not features
                kernel = context.module.variables["params"]["kernel"]
                first += kernel.size * result.size // result.shape[-1]
        return result

    def apply(variables: Any, image: jax.Array) -> jax.Array:
        with nn.intercept_methods(intercept):
            return model.apply(variables, image)

    jax.eval_shape(apply, variables, image)
    sizes = [sum(array.size for array in kept.values()) for kept in (read, written)]
    return variables, *sizes, first
