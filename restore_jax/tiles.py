"""Restoring images of any size in bounded memory: overlapping tiles, blended without a seam.

A model that pools over the whole image or attends to all of it sees only its tile here, so
tiles should have the size of the images it was trained on. Neighbours overlap, and in the
overlap the weight passes from one to the other along a raised cosine; the weights of a pixel
sum to one, and those at a tile's edge, where convolutions see its frame, are next to nothing.

An image is blended in a band as high as one tile and as wide as the image, from which rows are
handed on as soon as no further tile touches them. A side that is longer than the tile is
covered by tiles of just that size. A shorter one is padded by reflection to the next multiple
of 32, so that all the images there are need no more than (tile / 32)² shapes, each compiled
once per batch size, which is a power of two or the largest allowed.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from restore_jax.errors import RunError

LEAST_TILE = 32
"""Tiles are no smaller, and sides shorter than a tile are padded to a multiple of this."""

Apply = Callable[[np.ndarray], np.ndarray | jax.Array]

# Images that wait until a batch of tiles of their shape is full.
_MOST_WAITING = 32
_MOST_PIXELS_WAITING = 2**25


class Picture(Protocol):
    """An image to restore: where tiles are read from and finished rows are written to."""

    height: int
    width: int

    def read(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
        """Returns the pixels of some rows and columns, float32 [h, w, 3] in [0, 1]."""

    def write(self, top: int, rows: np.ndarray) -> None:
        """Takes restored rows from `top` on, float32 [n, width, 3].

        From top to bottom, each once; from the top again where the memory did not suffice.
        """


AnyPicture = TypeVar("AnyPicture", bound=Picture)


@dataclasses.dataclass
class Sizes:
    """How images are cut; smaller from the moment that the device's memory did not suffice.

    Attributes:
        tile: side of a tile, in px.
        overlap: of neighbouring tiles, at least, in px; at most half a tile.
        batch_size: tiles restored at once, at most.
    """

    tile: int
    overlap: int
    batch_size: int

    def halve(self, shape: tuple[int, int, int]) -> None:
        """Makes less of a batch [B, h, w] that was too large: half the batch, or the tile.

        Raises:
            RunError: where it was a single tile of the smallest size.
        """
        batch, side = shape[0], max(shape[1:])
        if batch > 1:
            self.batch_size = batch // 2
            logging.warning("out of memory: batches of %d tiles from here on", self.batch_size)
            return
        if side <= LEAST_TILE:
            raise RunError(
                f"out of memory for one tile of {shape[1]}×{shape[2]} px; free some memory, or "
                "take a smaller model"
            )
        tile = max(LEAST_TILE, side // 2)
        self.overlap = self.overlap * tile // self.tile
        self.tile = tile
        logging.warning("out of memory: tiles of %d px from here on", tile)


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


class Job:
    """An image on its way: its tiles go out and come back in the same order.

    Args:
        picture: the image.
        sizes: how it is cut, from now on.
    """

    def __init__(self, picture: Picture, sizes: Sizes) -> None:
        self.picture = picture
        self.start(sizes)

    def start(self, sizes: Sizes) -> None:
        """Begins with the first tile, whatever was done before."""
        self.plan = plan(self.picture.height, self.picture.width, sizes.tile, sizes.overlap)
        self.done = self.sent = 0
        self._top = 0
        width = max(self.plan.width, self.plan.tile_width)
        self._band: np.ndarray | None = None
        self._band_shape = (self.plan.tile_height, width, 3)

    @property
    def remaining(self) -> int:
        """How many tiles are still to come back."""
        return self.plan.count - self.done

    @property
    def unsent(self) -> int:
        """How many tiles are still to go out."""
        return self.plan.count - self.sent

    def read(self, index: int) -> np.ndarray:
        """Returns a tile of the image as it is, float32 [tile_height, tile_width, 3]."""
        row, column = divmod(index, len(self.plan.lefts))

        def along(begin: int, tile: int, length: int) -> np.ndarray | slice:
            return slice(begin, begin + tile) if tile <= length else reflected(length, tile)

        return self.picture.read(
            along(self.plan.tops[row], self.plan.tile_height, self.plan.height),
            along(self.plan.lefts[column], self.plan.tile_width, self.plan.width),
        )

    def add(self, tile: np.ndarray) -> None:
        """Blends the next tile in; rows that are complete go to the picture."""
        row, column = divmod(self.done, len(self.plan.lefts))
        if self._band is None:
            self._band = np.zeros(self._band_shape, np.float32)
        if column == 0:
            self._hand_on(self.plan.tops[row])
        down, across = self.plan.weights
        left = self.plan.lefts[column]
        self._band[:, left : left + self.plan.tile_width] += (
            tile * down[row][:, None, None] * across[column][None, :, None]
        )
        self.done += 1
        if not self.remaining:
            self._hand_on(self.plan.height)
            self._band = None

    def _hand_on(self, until: int) -> None:
        """Writes the rows above `until` and moves the band down to it."""
        count = until - self._top
        if count:
            self.picture.write(self._top, self._band[:count, : self.plan.width])
            self._band[:-count] = self._band[count:]
            self._band[-count:] = 0.0
            self._top = until


def is_out_of_memory(error: Exception) -> bool:
    """Tells whether an error means that an allocation failed, on the device or beside it."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    )


def restore(pictures: Iterable[AnyPicture], apply: Apply, sizes: Sizes) -> Iterator[AnyPicture]:
    """Restores images tile by tile; tiles of several images share a batch.

    Only as many images are taken from `pictures` as are needed to fill a batch. While the
    device works on one batch, the host cuts the next and blends the one before. Where the
    memory of the device does not suffice, the batch and then the tile are halved, `sizes` says
    so from then on, and the work goes on; what is not finished begins anew with smaller tiles.

    Args:
        pictures: the images, of any sizes.
        apply: the model: float32 [B, h, w, 3] in [0, 1] → the same shape. It may return before
            the device is done.
        sizes: how to cut them; changed where that turns out to be too large.

    Yields:
        The images, all rows written, in the order they came in.

    Raises:
        RunError: where the memory does not suffice for the smallest tile.
    """
    waiting: collections.deque[Job] = collections.deque()
    source = iter(pictures)
    ended = False
    flight: _Flight | None = None
    while waiting or not ended:
        while waiting and not waiting[0].remaining:
            yield waiting.popleft().picture
        batch = _next_batch(waiting, sizes, not ended and _room(waiting))
        if not batch and not ended and _room(waiting):
            picture = next(source, None)
            ended = picture is None
            if picture is not None:
                waiting.append(Job(picture, sizes))
            continue
        before, flight = flight, _launch(batch, apply, sizes) if batch else None
        for landing in (before, flight):
            # There is no use in sending more after one that failed at once.
            if landing is None or (landing is flight and landing.error is None):
                continue
            if not _land(landing, waiting, sizes):
                flight = None
                break


def _room(waiting: collections.deque[Job]) -> bool:
    """Tells whether another image may be taken in before a batch is full."""
    pixels = sum(job.plan.height * job.plan.width for job in waiting)
    return len(waiting) < _MOST_WAITING and pixels < _MOST_PIXELS_WAITING


def _next_batch(
    waiting: collections.deque[Job], sizes: Sizes, only_full: bool
) -> list[tuple[Job, int]]:
    """Picks the next tiles of one shape: those of the first image that fills a batch.

    Where none does and `only_full` is off, those of the first image of all.
    """
    by_shape: dict[tuple[int, int], list[tuple[Job, int]]] = {}
    for job in waiting:
        tiles = by_shape.setdefault(job.plan.shape, [])
        missing = sizes.batch_size - len(tiles)
        tiles.extend(
            (job, index) for index in range(job.sent, job.sent + min(missing, job.unsent))
        )
    found = [tiles for tiles in by_shape.values() if tiles]
    full = [tiles for tiles in found if len(tiles) == sizes.batch_size]
    return next(iter(full or ([] if only_full else found)), [])


class _Flight(NamedTuple):
    """A batch of tiles that was sent to the device.

    Attributes:
        tiles: of which image, and which of its tiles, in the order of the batch.
        shape: of the batch.
        restored: what comes back, which the device may still be at.
        error: why it could not be sent; None where it was.
    """

    tiles: list[tuple[Job, int]]
    shape: tuple[int, ...]
    restored: np.ndarray | jax.Array | None = None
    error: Exception | None = None


_FAILURES = (jax.errors.JaxRuntimeError, MemoryError)


def _launch(batch: list[tuple[Job, int]], apply: Apply, sizes: Sizes) -> _Flight:
    """Sends a batch of tiles to the device, and does not wait for it."""
    # A power of two, so that the rest of an image does not compile a size of its own.
    size = min(sizes.batch_size, 2 ** math.ceil(math.log2(len(batch))))
    tiles = np.stack([job.read(index) for job, index in batch])
    tiles = np.concatenate([tiles, np.repeat(tiles[-1:], size - len(batch), axis=0)])
    for job, _ in batch:
        job.sent += 1
    try:
        return _Flight(batch, tiles.shape, apply(tiles))
    except _FAILURES as error:
        return _Flight(batch, tiles.shape, error=error)


def _land(flight: _Flight, waiting: collections.deque[Job], sizes: Sizes) -> bool:
    """Hands each tile of a batch to its image, or makes do with less memory.

    Returns:
        Whether it came back. If not, all that was sent after it must be sent anew.
    """
    try:
        if flight.error is not None:
            raise flight.error
        restored = np.asarray(flight.restored)
    except _FAILURES as error:
        if not is_out_of_memory(error):
            raise
        before = sizes.tile
        sizes.halve(flight.shape[:3])
        for job in waiting:
            job.sent = job.done
            if sizes.tile != before and job.remaining:
                job.start(sizes)
        return False
    for (job, _), tile in zip(flight.tiles, restored, strict=False):
        job.add(tile)
    return True
