"""Adversarial training: a discriminator that learns to tell restored images from clean ones.

The restoration network's loss gains the non-saturating term of Goodfellow et al. 2014,
`softplus(-D)`, in addition to the terms that compare with the clean image. The discriminator is
conditioned on the degraded image (Isola et al., CVPR 2017).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from restore_jax.metrics import fidelity


@dataclasses.dataclass(frozen=True)
class Adversary:
    """A discriminator and how it is trained.

    Attributes:
        discriminator: `apply(variables, degraded, candidate, train, valid)` → logits
            [B, h, w, 1], above 0 where a patch looks clean.
        optimizer: the discriminator's optimizer.
        weight: weight of the adversarial term in the restoration network's loss.
    """

    discriminator: nn.Module
    optimizer: optax.GradientTransformation
    weight: float


@flax.struct.dataclass
class AdversaryState:
    """A discriminator's parameters, BatchNorm statistics and optimizer state."""

    params: Any
    batch_stats: Any
    opt_state: Any


def create(adversary: Adversary, key: jax.Array) -> AdversaryState:
    """Makes the state of step 0 from a random key."""
    image = jnp.zeros((1, 32, 32, 3))
    variables = adversary.discriminator.init(key, image, image)
    return AdversaryState(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=adversary.optimizer.init(variables["params"]),
    )


def fooling_loss(
    adversary: Adversary,
    state: AdversaryState,
    batch: Mapping[str, jax.Array],
    restored: jax.Array,
) -> jax.Array:
    """Returns the adversarial loss of the restoration network.

    Args:
        adversary: the discriminator.
        state: its state, which does not change.
        batch: the arrays of a batch (see `batches`).
        restored: [B, H, W, 3].

    Returns:
        Mean of `softplus(-D(restored))` over patches and valid images, a scalar of 0 or more.
    """
    logits, _ = _judge(adversary, state.params, state.batch_stats, batch, restored)
    return fidelity.mean_of_valid(_mean(jax.nn.softplus(-logits)), batch["valid"])


def update(
    adversary: Adversary,
    state: AdversaryState,
    batch: Mapping[str, jax.Array],
    restored: jax.Array,
) -> tuple[AdversaryState, jax.Array]:
    """Takes one step of the discriminator; a pure function.

    Args:
        adversary: the discriminator.
        state: its state before the step.
        batch: the arrays of a batch (see `batches`).
        restored: [B, H, W, 3], the batch's restored images; no gradient flows into them.

    Returns:
        The state after the step, and the loss before it: the mean over patches and valid
        images of `(softplus(-D(clean)) + softplus(D(restored))) / 2`, ln 2 at chance.
    """
    restored = jax.lax.stop_gradient(restored)

    def objective(params: Any) -> tuple[jax.Array, Any]:
        # Two passes, so that BatchNorm never sees clean and restored images mixed.
        real, stats = _judge(adversary, params, state.batch_stats, batch, batch["clean"])
        fake, stats = _judge(adversary, params, stats, batch, restored)
        loss = (_mean(jax.nn.softplus(-real)) + _mean(jax.nn.softplus(fake))) / 2
        return fidelity.mean_of_valid(loss, batch["valid"]), stats

    (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = adversary.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return AdversaryState(params=params, batch_stats=stats, opt_state=opt_state), loss


def _judge(
    adversary: Adversary,
    params: Any,
    batch_stats: Any,
    batch: Mapping[str, jax.Array],
    candidate: jax.Array,
) -> tuple[jax.Array, Any]:
    logits, updates = adversary.discriminator.apply(
        {"params": params, "batch_stats": batch_stats},
        batch["degraded"],
        candidate,
        train=True,
        valid=batch["valid"],
        mutable=["batch_stats"],
    )
    return logits, updates.get("batch_stats", {})


def _mean(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=(1, 2, 3))
