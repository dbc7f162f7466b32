"""Shrinks training photographs at random, as if they were taken from farther away.

A small set of photographs has structure of a few sizes. A network that has never seen a texture
of one or two px takes it for noise. `data/resize.py` does the same in the host's pipeline.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from restore_jax.degradation.definition import Range
from restore_jax.errors import UsageError

UNCHANGED: Range = (1.0, 1.0)


def factors(settings: ConfigDict) -> Range:
    """Returns the range of the factors, `config.data.shrink`; `UNCHANGED` for older runs.

    Args:
        settings: `config.data`.

    Raises:
        UsageError: if it is no range of factors of at least 1, or if the photographs are
            resized anyway.
    """
    given = tuple(settings.get("shrink", UNCHANGED))
    if len(given) != 2 or not 1 <= given[0] <= given[1] < math.inf:
        raise UsageError(
            f"config.data.shrink: {given} must be (low, high) with 1 <= low <= high"
        )
    if settings.image_size and given != UNCHANGED:
        raise UsageError(
            f"config.data.shrink: {given} needs photographs of native size; set "
            f"config.data.image_size=0, or config.data.shrink={UNCHANGED}"
        )
    return float(given[0]), float(given[1])


def draw_size(key: jax.Array, native: jax.Array, bounds: Range, shortest: int) -> jax.Array:
    """Draws the size of a shrunk photograph.

    Args:
        key: random key.
        native: int32 [2], its height and width, px.
        bounds: of the factor, whose logarithm is uniform.
        shortest: the sides do not become shorter than this, px; shorter ones stay.

    Returns:
        int32 [2].
    """
    if bounds == UNCHANGED:
        return native
    low, high = map(math.log, bounds)
    factor = jnp.exp(jax.random.uniform(key, minval=low, maxval=high))
    size = jnp.round(native / factor).astype(jnp.int32)
    return jnp.maximum(size, jnp.minimum(native, shortest))


def window(
    clean: jax.Array,
    mask: jax.Array,
    native: jax.Array,
    size: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns a window of a shrunk photograph, whose other pixels are not computed.

    Args:
        clean: uint8 [S, S, 3], a photograph in the upper left corner of the padded array.
        mask: uint8 [S, S, 1] in {0, 1}.
        native: int32 [2], the photograph's height and width, px.
        size: int32 [2], its height and width once shrunk.
        rows: int32 [R], the window's rows in the shrunk photograph.
        columns: int32 [C], its columns.

    Returns:
        Its pixels, uint8 [R, C, 3], each the mean of those that it covers, and its mask, uint8
        [R, C, 1], 1 where a pixel covers any of the defect.
    """
    by_row = _shares(rows, size[0], native[0], clean.shape[0])
    by_column = _shares(columns, size[1], native[1], clean.shape[1])

    def covered(by_row: jax.Array, by_column: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.einsum(
            "rh,cw,hwd->rcd", by_row, by_column, image.astype(jnp.float32), precision="highest"
        )

    means = covered(by_row, by_column, clean)
    # Shares below this are rounding errors of pixels that only touch.
    touched = [(shares > 1e-4).astype(jnp.float32) for shares in (by_row, by_column)]
    return jnp.round(means).astype(jnp.uint8), (covered(*touched, mask) > 0).astype(jnp.uint8)


def _shares(places: jax.Array, size: jax.Array, native: jax.Array, length: int) -> jax.Array:
    """Returns by how much each pixel of an axis contributes to pixels of the shrunk axis.

    Args:
        places: int32 [P], of the pixels of the shrunk axis.
        size: the length of the shrunk axis.
        native: the length of the axis.
        length: its length in memory, with padding that contributes nothing.

    Returns:
        float32 [P, length], rows that sum to 1: the part of each pixel that is covered.
    """
    ratio = native / size
    start = places[:, None] * ratio
    pixels = jnp.arange(length)
    overlap = jnp.minimum(start + ratio, pixels + 1) - jnp.maximum(start, pixels)
    overlap = jnp.where(pixels < native, jnp.maximum(overlap, 0), 0)
    return overlap / jnp.sum(overlap, axis=1, keepdims=True)
