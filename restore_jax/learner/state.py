"""What is trained, and the training state: one explicit pytree."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from restore_jax import models
from restore_jax.errors import UsageError
from restore_jax.learner import adversarial, optim
from restore_jax.learner.adversarial import Adversary, AdversaryState


@dataclasses.dataclass(frozen=True)
class Learner:
    """The model and how it is trained.

    Attributes:
        model: the restoration network.
        optimizer: the model's optimizer.
        ema_decay: decay of the moving average of the parameters, which is then used to
            restore; 0 for no average. Early in training the average is shorter: about a ninth
            of the steps taken.
        adversary: a discriminator trained alongside; None for none.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    ema_decay: float = 0.0
    adversary: Adversary | None = None


@flax.struct.dataclass
class TrainState:
    """The arrays that a run needs to resume, and nothing else.

    Attributes:
        step: int32 scalar, number of optimizer steps taken.
        params: the model's parameters, float32.
        batch_stats: running statistics of BatchNorm; {} for models without it.
        opt_state: the optimizer's state.
        ema_params: exponential moving average of `params`; None if it is off.
        adversary: the discriminator's state; None without one.
        ema_batch_stats: the same average of `batch_stats`, since averaged parameters do not
            belong to the current statistics; None without BatchNorm or without the average.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    adversary: AdversaryState | None = None
    ema_batch_stats: Any = None


def make_learner(
    config: ConfigDict, steps_per_epoch: int = 1, total_steps: int | None = None
) -> Learner:
    """Makes the learner of `config.model`, `config.optimizer` and `config.adversarial`.

    Args:
        config: all fields.
        steps_per_epoch: for the learning-rate schedule.
        total_steps: steps of the whole run; None for a constant learning rate, which is enough
            to know the structure of the state.

    Raises:
        UsageError: for an invalid field.
    """

    def optimizer(learning_rate: float) -> optax.GradientTransformation:
        settings = config.optimizer.copy_and_resolve_references()
        settings.learning_rate = learning_rate
        schedule = None
        if total_steps is not None:
            schedule = optim.make_schedule(settings, steps_per_epoch, total_steps)
        return optim.make_optimizer(settings, schedule)

    adversary, settings = None, config.adversarial
    for field, least in (("weight", 0.0), ("learning_rate", 1e-12)):
        if settings[field] < least:
            raise UsageError(f"config.adversarial.{field}: {settings[field]} is too small")
    if settings.weight:
        adversary = Adversary(
            models.discriminator(settings.discriminator, config.dtype),
            optimizer(settings.learning_rate),
            settings.weight,
        )
    return Learner(
        model=models.from_config(config),
        optimizer=optimizer(config.optimizer.learning_rate),
        ema_decay=config.optimizer.ema_decay,
        adversary=adversary,
    )


def create_state(learner: Learner, seed: int) -> TrainState:
    """Makes the state of step 0, with initial parameters drawn from a seed."""
    # Jitted, since every layer's forward pass would be compiled and run otherwise; it runs only
    # once, so optimising the program would take longer than it saves.
    initial = jax.jit(
        functools.partial(_initial, learner),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return initial(jax.random.key(seed))


def _initial(learner: Learner, key: jax.Array) -> TrainState:
    # No architecture's parameters depend on the image size.
    variables = learner.model.init(key, jnp.zeros((1, 32, 32, 3)))
    params = variables["params"]
    adversary = None
    if learner.adversary is not None:
        adversary = adversarial.create(learner.adversary, jax.random.fold_in(key, 1))
    batch_stats = variables.get("batch_stats", {})
    averages_stats = learner.ema_decay and batch_stats
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=learner.optimizer.init(params),
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if learner.ema_decay else None,
        adversary=adversary,
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if averages_stats else None,
    )


def start_from(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """Returns the state of step 0 with other parameters and BatchNorm statistics.

    Args:
        state: from `create_state`; its optimizer state is kept.
        variables: "params" and "batch_stats" of the same model.
    """
    params = jax.tree.map(jnp.asarray, variables["params"])
    batch_stats = jax.tree.map(jnp.asarray, variables["batch_stats"])
    has_averaged_stats = state.ema_batch_stats is not None
    return state.replace(
        params=params,
        batch_stats=batch_stats,
        # Copies, for the same reason as in `_initial`.
        ema_params=None if state.ema_params is None else jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if has_averaged_stats else None,
    )


def abstract_state(learner: Learner, sharding: NamedSharding | None) -> TrainState:
    """Returns the shapes and dtypes of `create_state`, as a template to restore into."""
    shapes = jax.eval_shape(functools.partial(_initial, learner), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def inference_variables(state: TrainState) -> dict[str, Any]:
    """Returns the variables for `model.apply` in inference, averaged ones if there are any."""
    params = state.params if state.ema_params is None else state.ema_params
    averaged = state.ema_batch_stats
    return {
        "params": params,
        "batch_stats": state.batch_stats if averaged is None else averaged,
    }
