"""One train step, a pure function, and the sums of its metrics over an epoch."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import models
from restore_jax.errors import RunError
from restore_jax.learner import adversarial
from restore_jax.learner.state import Learner, TrainState
from restore_jax.losses import loss_terms
from restore_jax.metrics import fidelity
from restore_jax.parallel import device_mesh

Scalars = dict[str, jax.Array]
StepFn = Callable[
    [TrainState, Mapping[str, jax.Array], loss_terms.LossParams], tuple[TrainState, Scalars]
]


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    loss_params: loss_terms.LossParams | None = None,
    *,
    learner: Learner,
    loss_fn: loss_terms.BatchLoss,
    seed: int,
    mask_dropout: float = 0.0,
) -> tuple[TrainState, Scalars]:
    """Takes one step of gradient descent; a pure function.

    With an adversary, both steps start from the old state: the model's against the
    discriminator before its update, the discriminator's on the images restored by the model
    before its update.

    Args:
        state: the state before the step.
        batch: the arrays of a batch (see `batches`).
        loss_params: fixed parameters of the loss terms (see `loss_terms`).
        learner: the model and how it is trained.
        loss_fn: the loss, from `loss_terms.weighted_sum`.
        seed: the run's seed; together with the step, it seeds all randomness in the model.
        mask_dropout: probability of hiding an image's mask from the model, in [0, 1].

    Returns:
        The state after the step, and scalars of this batch: "loss", "loss_NAME" for each term,
        "psnr" (dB), "ssim", "grad_norm" and "count" (valid images).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    valid = batch["valid"]
    shown = jax.random.bernoulli(
        jax.random.fold_in(key, 1), 1.0 - mask_dropout, (len(valid), 1, 1, 1)
    )

    def objective(params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        restored, updates = learner.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            models.input_of(batch),
            mask=jnp.where(shown, batch["mask"], 0.0),
            train=True,
            valid=valid,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            **models.context_of(learner.model, batch),
        )
        total, terms = loss_fn(restored, batch["clean"], batch["mask"], valid, loss_params)
        if learner.adversary is not None:
            fooling = adversarial.fooling_loss(
                learner.adversary, state.adversary, batch, restored
            )
            total += learner.adversary.weight * fooling
            terms = terms | {"adversarial": fooling}
        return total, (terms, restored, updates.get("batch_stats", {}))

    gradient = jax.value_and_grad(objective, has_aux=True)
    (total, (terms, restored, batch_stats)), grads = gradient(state.params)
    updates, opt_state = learner.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params, ema_batch_stats = state.ema_params, state.ema_batch_stats
    if ema_params is not None:
        # A shorter average at first, so that the random initial parameters are soon forgotten.
        decay = jnp.minimum(learner.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
        if ema_batch_stats is not None:
            ema_batch_stats = optax.incremental_update(
                batch_stats, ema_batch_stats, 1.0 - decay
            )
    adversary = state.adversary
    if learner.adversary is not None:
        adversary, terms["discriminator"] = adversarial.update(
            learner.adversary, state.adversary, batch, restored
        )
    after = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema_params=ema_params,
        adversary=adversary,
        ema_batch_stats=ema_batch_stats,
    )
    scalars = {
        "loss": total,
        **{f"loss_{name}": value for name, value in terms.items()},
        "psnr": fidelity.mean_of_valid(fidelity.psnr(restored, batch["clean"]), valid),
        "ssim": fidelity.mean_of_valid(fidelity.ssim(restored, batch["clean"]), valid),
        "grad_norm": optax.tree.norm(grads),
        "count": jnp.sum(valid),
    }
    return after, scalars


def configured_step(
    config: ConfigDict, learner: Learner, loss_fn: loss_terms.BatchLoss, mesh: Mesh
) -> Callable[..., tuple[TrainState, Scalars]]:
    """Returns the `train_step` of a configuration, to be traced for the devices of a mesh."""
    step = functools.partial(
        train_step,
        learner=learner,
        loss_fn=loss_fn,
        seed=config.seed,
        mask_dropout=config.train.mask_dropout,
    )
    return with_mesh(mesh, step)


def compile_step(
    config: ConfigDict, learner: Learner, loss_fn: loss_terms.BatchLoss, mesh: Mesh
) -> StepFn:
    """Returns the `train_step` of a configuration, jitted for the devices of a mesh.

    The batch is sharded over the devices and the state is replicated. The step donates the
    state that it is given.
    """
    return jax.jit(
        configured_step(config, learner, loss_fn, mesh),
        in_shardings=(
            device_mesh.replicated(mesh),
            device_mesh.split_over(mesh),
            device_mesh.replicated(mesh),
        ),
        out_shardings=device_mesh.replicated(mesh),
        donate_argnums=0,
    )


def with_mesh(mesh: Mesh, step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a step that is traced with a mesh, so that it knows how its batch is sharded."""

    @functools.wraps(step)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*args, **kwargs)

    return traced


def check_finite(step: int, values: Mapping[str, float], kind: str = "") -> None:
    """Checks that all scalars of a step are finite.

    Args:
        step: the step, named in the error.
        values: the scalars by name.
        kind: prefix of the name in the error, for example "validation ".

    Raises:
        RunError: with the step and the name of the scalar that is not finite.
    """
    # The terms before their sum, so that the message names the culprit.
    for name in sorted(values, key=lambda name: (not name.startswith("loss_"), name)):
        if not math.isfinite(values[name]):
            raise RunError(
                f"step {step}: {kind}{name} is {values[name]}; the run stops and its "
                "checkpoints are kept. In a new workdir, lower config.optimizer.learning_rate "
                "or set config.optimizer.clip_norm"
            )


def add(sums: Mapping[str, float], scalars: Mapping[str, float]) -> dict[str, float]:
    """Adds a step's scalars, weighted by its number of images, to the sums of an epoch.

    The sums are Python floats, added step by step and kept exactly by JSON: an epoch that is
    interrupted and resumed ends with bitwise identical sums.

    Args:
        sums: the sums so far; {} at the start of an epoch.
        scalars: means over the images of a step, and "count", their number.

    Returns:
        The new sums, and "count", the number of images so far.
    """
    count = scalars["count"]
    return {
        name: sums.get(name, 0.0) + (count if name == "count" else value * count)
        for name, value in scalars.items()
    }


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns the means over an epoch's images, from the sums of `add`."""
    return {name: total / sums["count"] for name, total in sums.items() if name != "count"}
