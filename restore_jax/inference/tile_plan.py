"""Where the tiles of an image lie, and how much each counts where they overlap."""

import dataclasses
import functools
import itertools
import math

import numpy as np

LEAST_TILE = 32
"""Tiles are no smaller, and sides shorter than a tile are padded to a multiple of this."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns where tiles begin along an axis: evenly spread, the last one ends with the axis.

    Args:
        length: of the axis, in px.
        tile: length of a tile; where it is not below `length`, there is one tile.
        overlap: of neighbours, at least; below `tile`.
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def axis_weights(begins: list[int], tile: int) -> np.ndarray:
    """Returns the weights of the tiles along an axis, float32 [tiles, tile].

    Where two tiles overlap, the one's weight falls as the other's rises, by a raised cosine
    over the whole of the overlap. Over all tiles the weights of a pixel sum to one.

    Args:
        begins: from `starts`.
        tile: length of a tile, in px.
    """
    weights = np.ones((len(begins), tile))
    for i, (begin, following) in enumerate(itertools.pairwise(begins)):
        shared = begin + tile - following
        rise = np.sin(0.5 * np.pi * (np.arange(shared) + 0.5) / max(1, shared)) ** 2
        weights[i, tile - shared :] *= rise[::-1]
        weights[i + 1, :shared] *= rise
    # Where the last tiles crowd, three can share a pixel.
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
        height, width: of the image.
        tile_height, tile_width: of each tile.
        tops, lefts: where the rows and columns of tiles begin.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    tops: list[int]
    lefts: list[int]

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return len(self.tops) * len(self.lefts)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of each tile."""
        return self.tile_height, self.tile_width

    @functools.cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Those along the rows, [len(tops), tile_height], and along the columns."""
        return (
            axis_weights(self.tops, self.tile_height),
            axis_weights(self.lefts, self.tile_width),
        )


def plan(height: int, width: int, tile: int, overlap: int) -> Plan:
    """Cuts an image into tiles.

    Args:
        height: of the image, at least 1.
        width: of the image, at least 1.
        tile: side of a tile; shorter sides are padded to a multiple of 32, but not beyond it.
        overlap: of neighbouring tiles, at least; at most half a tile.
    """

    def side(length: int) -> int:
        return min(tile, LEAST_TILE * math.ceil(length / LEAST_TILE))

    return Plan(
        height,
        width,
        side(height),
        side(width),
        starts(height, tile, overlap),
        starts(width, tile, overlap),
    )


def reflected(length: int, padded: int) -> np.ndarray:
    """Returns which pixels of an axis continue it by reflection, as often as needed.

    The border pixel is not repeated: 0 1 2 1 0 1 … for a length of 3.

    Args:
        length: of the axis, at least 1.
        padded: the length wanted.

    Returns:
        Indices below `length`, int [padded].
    """
    position = np.arange(padded) % max(1, 2 * (length - 1))
    return np.minimum(position, 2 * (length - 1) - position) if length > 1 else position
