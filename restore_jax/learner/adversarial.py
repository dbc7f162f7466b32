"""Adversarial training: a discriminator that learns to tell restored images from clean ones.

The restoring network gets the non-saturating loss of Goodfellow et al. 2014, `softplus(-D)`, in
addition to its other terms, which compare with the clean image; the discriminator sees the
degraded image beside the one it judges (Isola et al., CVPR 2017).
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
        optimizer: turns its gradients into updates.
        weight: of the loss that it gives the restoring network.
    """

    discriminator: nn.Module
    optimizer: optax.GradientTransformation
    weight: float


@flax.struct.dataclass
class AdversaryState:
    """What a discriminator needs to go on: parameters, BatchNorm and optimizer state."""

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
    """What the restoring network loses where its images are told from clean ones.

    Args:
        adversary: the discriminator.
        state: its state, which the loss does not change.
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
    """One step of the discriminator, a pure function.

    Args:
        adversary: the discriminator.
        state: its state before.
        batch: the arrays of a batch (see `batches`).
        restored: [B, H, W, 3], what the restoring network made of it; no gradient passes.

    Returns:
        The state after, and the loss before: the mean over patches and valid images of
        `(softplus(-D(clean)) + softplus(D(restored))) / 2`, ln 2 for one that guesses.
    """
    restored = jax.lax.stop_gradient(restored)

    def objective(params: Any) -> tuple[jax.Array, Any]:
        # Apart, so that BatchNorm never sees clean and restored images mixed.
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
