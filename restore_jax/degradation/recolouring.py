"""Other colours for photographs to train on, so that a network does not take any for granted.

Few rendered surfaces have few colours. A network that has seen no blue ground takes a blue one
for a grey one in a wrong light. `data/recolour.py` does the same in the host's pipeline.
"""

import jax
import jax.numpy as jnp

EXPONENT, FACTOR = (0.8, 1.25), (0.5, 1.15)
"""Of the tone curves, drawn uniformly: the exponent per photograph, the factor per channel."""

KEPT = 0.25
"""The share of photographs that are left as they are."""


def recolour(key: jax.Array, window: jax.Array) -> jax.Array:
    """Swaps the channels of a photograph and gives each another tone curve.

    Args:
        key: of the draw.
        window: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]; a quarter of the windows as they were.
    """
    keys = jax.random.split(key, 4)
    factor = jax.random.uniform(keys[0], (3,), minval=FACTOR[0], maxval=FACTOR[1])
    exponent = jax.random.uniform(keys[1], minval=EXPONENT[0], maxval=EXPONENT[1])
    swapped = jax.random.permutation(keys[2], window.astype(jnp.float32) / 255.0, axis=-1)
    changed = jnp.round(255.0 * jnp.minimum(factor * swapped**exponent, 1.0))
    kept = jax.random.uniform(keys[3]) < KEPT
    return jnp.where(kept, window, changed.astype(jnp.uint8))
