"""The state of a training run: one explicit pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding


@flax.struct.dataclass
class TrainState:
    """All that a run needs to go on, and nothing else.

    Attributes:
        step: int32 scalar, optimizer steps done.
        params: the model's parameters, float32.
        batch_stats: running statistics of BatchNorm; {} for models without it.
        opt_state: the optimizer's state.
        ema_params: exponential moving average of `params`; None where it is off.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, ema: bool
) -> TrainState:
    """Makes the state of step 0.

    Args:
        model: the architecture; its parameters do not depend on the image size.
        optimizer: gives the optimizer's state.
        seed: of the initial parameters.
        ema: whether an average of the parameters is kept.

    Returns:
        The state, on the default device.
    """
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    ema: bool,
    sharding: NamedSharding,
) -> TrainState:
    """Returns the shapes and types of `create_state`, which is all that reading one needs."""
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, seed=0, ema=ema))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def inference_variables(state: TrainState) -> dict[str, Any]:
    """Returns what `model.apply` takes to restore: the averaged parameters where there are."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, "batch_stats": state.batch_stats}


def parameter_count(params: Any) -> int:
    """Returns the number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
