"""The positions of an image's tiles, and their weights where they overlap."""

import dataclasses
import functools
import itertools
import math

import numpy as np

MIN_TILE = 32
"""Smallest side of a tile, px; sides shorter than a tile are padded to a multiple of it."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the starts of evenly spaced tiles along an axis.

    A network that pools, or works on blocks of pixels, restores a pixel a little differently
    for each of its positions in a block. The starts are therefore multiples of 32, the largest
    block of any network, as far as the sizes of tile and overlap are: each pixel then lies in
    its tile as it lies in the whole image. The last tile may end up to 31 px after the axis.

    Args:
        length: length of the axis, in px.
        tile: length of a tile; if it is at least `length`, there is one tile.
        overlap: smallest overlap of neighbouring tiles; below `tile`.
    """
    if length <= tile:
        return [0]
    # Not so large that reflected pixels make up much of the last tile.
    unit = math.gcd(tile, tile - overlap, MIN_TILE, 2 ** (tile.bit_length() - 3))
    last, step = math.ceil((length - tile) / unit), (tile - overlap) // unit
    gaps = math.ceil(last / step)
    return [unit * round(i * last / gaps) for i in range(gaps + 1)]


def axis_weights(begins: list[int], tile: int) -> np.ndarray:
    """Returns the weights of the tiles along an axis, float32 [tiles, tile].

    Where two tiles overlap, they are cross-faded by a raised cosine over the whole overlap. The
    weights of a pixel sum to one over all tiles.

    Args:
        begins: starts of the tiles, from `starts`.
        tile: length of a tile, in px.
    """
    weights = np.ones((len(begins), tile))
    for i, (begin, following) in enumerate(itertools.pairwise(begins)):
        shared = begin + tile - following
        rise = np.sin(0.5 * np.pi * (np.arange(shared) + 0.5) / max(1, shared)) ** 2
        weights[i, tile - shared :] *= rise[::-1]
        weights[i + 1, :shared] *= rise
    # Up to three tiles can share a pixel, so the weights are normalised.
    total = np.zeros(begins[-1] + tile)
    for begin, row in zip(begins, weights, strict=True):
        total[begin : begin + tile] += row
    for begin, row in zip(begins, weights, strict=True):
        row /= total[begin : begin + tile]
    return weights.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tiles of an image, row by row.

    Attributes:
        height, width: size of the image.
        tile_height, tile_width: size of each tile.
        tops, lefts: starts of the rows and columns of tiles; the last ones may extend beyond
            the image.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    tops: list[int]
    lefts: list[int]

    @property
    def count(self) -> int:
        """The number of tiles."""
        return len(self.tops) * len(self.lefts)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of each tile."""
        return self.tile_height, self.tile_width

    @functools.cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Vertical weights [len(tops), tile_height], horizontal [len(lefts), tile_width]."""
        return (
            axis_weights(self.tops, self.tile_height),
            axis_weights(self.lefts, self.tile_width),
        )


def plan(height: int, width: int, tile: int, overlap: int) -> Plan:
    """Plans the tiles of an image.

    Args:
        height: height of the image, at least 1.
        width: width of the image, at least 1.
        tile: side of a tile; shorter sides of the image are padded to a multiple of 32, but
            not beyond it.
        overlap: smallest overlap of neighbouring tiles, at most half a tile.
    """

    def side(length: int) -> int:
        return min(tile, MIN_TILE * math.ceil(length / MIN_TILE))

    return Plan(
        height,
        width,
        side(height),
        side(width),
        starts(height, tile, overlap),
        starts(width, tile, overlap),
    )


def reflected(length: int, padded: int) -> np.ndarray:
    """Returns the pixel indices that pad an axis by reflection, repeated as often as needed.

    The border pixel is not repeated: 0 1 2 1 0 1 … for a length of 3.

    Args:
        length: length of the axis, at least 1.
        padded: length after padding.

    Returns:
        Indices below `length`, int [padded].
    """
    position = np.arange(padded) % max(1, 2 * (length - 1))
    return np.minimum(position, 2 * (length - 1) - position) if length > 1 else position
