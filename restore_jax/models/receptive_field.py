"""Receptive field of an architecture: which input pixels a restored pixel can depend on.

It is measured on a narrow copy of the architecture, which has the same layers and thus the same
receptive field. All its kernels are positive and its biases zero, so that nothing cancels, no
ReLU is inactive, and an image of zeros stays exactly zero. If a column of ones in the input
leaves an output column zero, no local operation connects the two; a maximum hides nothing, as
it is taken over zeros and positive values. Channel attention multiplies zeros by a factor,
which leaves them zero; non-local attention is left out. A second measurement detects whether
the architecture has any of these global operations.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from restore_jax.models import gain_unet, layers

# Columns of the first measurement; doubled until enough columns have their whole receptive
# field inside the image.
_SIDE = 320
_MAX_SIDE = 2560

# Attributes that set the number of channels, and their values in the narrow copy. At least 2
# channels: the non-local block works on half of them.
_NARROW: dict[str, Callable[[Any], Any]] = {
    "width": lambda width: 2,
    "widths": lambda widths: (2,) * len(widths),
    "bottleneck": lambda bottleneck: 16,
}


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that a restored pixel can depend on.

    Attributes:
        side: side in px of the square of input pixels that reach a restored pixel through
            convolutions, pooling and upsampling; the largest, where the size depends on the
            pixel's position in the pooling grid.
        whole_image: whether every pixel also depends on all others, through the global means
            of a channel attention or through a non-local attention.
    """

    side: int
    whole_image: bool


def receptive_field(model: nn.Module) -> ReceptiveField:
    """Measures the receptive field of an architecture that restores images.

    Args:
        model: from `restore_jax.models.create`. Upsampling with aligned corners shifts by a
            fraction of a pixel that varies along the image; the receptive field is then the
            largest over a row of 320 px.

    Raises:
        ValueError: for an architecture whose local operations reach over 1,900 px.
    """
    narrow = _narrow(model)
    variables = _averaging_variables(narrow)
    side = _SIDE
    while side <= _MAX_SIDE:
        reach = _reach(narrow, variables, side)
        first, last = reach.argmax(axis=0), side - 1 - reach[::-1].argmax(axis=0)
        # A receptive field that touches the border may be truncated by it.
        complete = reach.any(axis=0) & (first > 0) & (last < side - 1)
        if complete.sum() >= side // 4:
            return ReceptiveField(
                side=int((last - first + 1)[complete].max()),
                whole_image=_has_global_operation(narrow, variables, side),
            )
        side *= 2
    raise ValueError(f"the receptive field of {type(model).__name__} is too large to measure")


def _narrow(model: nn.Module) -> nn.Module:
    options = {
        name: narrow(getattr(model, name))
        for name, narrow in _NARROW.items()
        if hasattr(model, name)
    }
    return model.clone(dtype=jnp.float32, **options)


def _averaging_variables(model: nn.Module) -> dict[str, Any]:
    """Returns variables with averaging kernels and identity normalisations."""

    def constant(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1] == "kernel":
            value = 1.0 / np.prod(leaf.shape[:-1])
        else:
            value = 1.0 if path[-1] in ("scale", "var") else 0.0
        return jnp.full(leaf.shape, value, jnp.float32)

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return flax.traverse_util.path_aware_map(constant, shapes)


def _reach(model: nn.Module, variables: dict[str, Any], side: int) -> np.ndarray:
    """Returns whether input column i changes output column j, bool [i, j]."""

    def without_global_operations(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if isinstance(context.module, layers.NonLocal):
            return args[0]
        found = call(*args, **kwargs)
        if isinstance(context.module, gain_unet.GainBranch):
            return jax.tree.map(jnp.zeros_like, found)
        return found

    @jax.jit
    def restore(row: jax.Array) -> jax.Array:
        # A single row of pixels; the models pad it to the height that they need.
        image = jnp.broadcast_to(row[None, None, :, None], (1, 1, side, 3))
        with nn.intercept_methods(without_global_operations):
            return model.apply(variables, image)[0, 0]

    columns = jax.jit(lambda rows: jax.lax.map(restore, rows, batch_size=64))(jnp.eye(side))
    return np.asarray(columns != 0).any(axis=-1)


def _has_global_operation(model: nn.Module, variables: dict[str, Any], side: int) -> bool:
    """Returns whether the first column changes the last, which no local operation can do."""
    restore = jax.jit(model.apply)
    grey = jnp.full((1, 1, side, 3), 0.5)
    # Two calls of one compiled program: equal inputs would give the same bits.
    one, other = (restore(variables, image) for image in (grey, grey.at[:, :, 0].set(10.0)))
    return bool(np.any(np.asarray(one)[:, :, -1] != np.asarray(other)[:, :, -1]))
