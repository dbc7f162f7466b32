"""Colour augmentation of training photographs, so that a network does not rely on any colour.

A small number of rendered surfaces has a small number of colours. A network that has never seen
a blue background takes one for a grey background in a wrong light. `data/recolour.py` does the
same in the host's pipeline.
"""

import jax
import jax.numpy as jnp

EXPONENT, FACTOR = (0.8, 1.25), (0.5, 1.15)
"""Ranges of the tone curves `factor · level^exponent`, drawn uniformly, levels from 0 to 1:
the exponent per photograph, the factor per channel."""

KEPT = 0.25
"""Share of the photographs that are left unchanged."""

GREY = 0.15
"""Share of the photographs whose channels are made alike, as those of a monochrome camera."""


def recolour(key: jax.Array, window: jax.Array) -> jax.Array:
    """Permutes the channels of a photograph and changes their tones, or averages them.

    Args:
        key: random key.
        window: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]; unchanged with probability `KEPT`, grey with probability `GREY`.
    """
    keys = jax.random.split(key, 4)
    factor = jax.random.uniform(keys[0], (3,), minval=FACTOR[0], maxval=FACTOR[1])
    exponent = jax.random.uniform(keys[1], minval=EXPONENT[0], maxval=EXPONENT[1])
    levels = window.astype(jnp.float32) / 255.0
    swapped = jax.random.permutation(keys[2], levels, axis=-1)
    changed = jnp.minimum(factor * swapped**exponent, 1.0)
    drawn = jax.random.uniform(keys[3])
    grey = jnp.mean(levels, axis=-1, keepdims=True)
    changed = jnp.round(255.0 * jnp.where(drawn > 1.0 - GREY, grey, changed))
    return jnp.where(drawn < KEPT, window, changed.astype(jnp.uint8))
