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
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from restore_jax.errors import RunError
from restore_jax.inference.tile_plan import LEAST_TILE, plan, reflected

Apply = Callable[[np.ndarray, np.ndarray | None], np.ndarray | jax.Array]

# Images that were taken in and not handed back, at most: where those of two shapes take turns,
# each has a batch on the device and fills the next one. Smaller batches have more.
_BATCHES_WAITING = 4
_LEAST_ROOM = 32
_MOST_PIXELS_WAITING = 2**25


class Tileable(Protocol):
    """An image to restore: where tiles are read from and finished rows are written to."""

    height: int
    width: int
    context: np.ndarray | None
    """What each of its tiles is shown of the whole, float32 [h, w, 3]; None: nothing.

    Either all images of a run have one, of the same shape, or none has."""

    def read(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
        """Returns the pixels of some rows and columns, float32 [h, w, 3] in [0, 1]."""

    def write(self, top: int, rows: np.ndarray) -> None:
        """Takes restored rows from `top` on, float32 [n, width, 3], to be read at once only.

        From top to bottom, each once; from the top again where the memory did not suffice.
        """


AnyTileable = TypeVar("AnyTileable", bound=Tileable)


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


class ImageInFlight:
    """An image on its way: its tiles go out and come back in the same order.

    Args:
        picture: the image.
        sizes: how it is cut, from now on.
    """

    def __init__(self, picture: Tileable, sizes: Sizes) -> None:
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
        if self.plan.count == 1:  # whose weights are all 1
            self.done = 1
            self.picture.write(0, tile[: self.plan.height, : self.plan.width])
            return
        row, column = divmod(self.done, len(self.plan.lefts))
        if self._band is None:
            self._band = np.zeros(self._band_shape, np.float32)
        if column == 0:
            self._hand_on(self.plan.tops[row])
        down, across = self.plan.weights
        left = self.plan.lefts[column]
        share = tile * down[row][:, None, None]
        share *= np.repeat(across[column], 3).reshape(-1, 3)  # far faster than [:, None]
        self._band[:, left : left + self.plan.tile_width] += share
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


def restore(
    pictures: Iterable[AnyTileable], apply: Apply, sizes: Sizes
) -> Iterator[AnyTileable]:
    """Restores images tile by tile; tiles of several images share a batch.

    Only as many images are taken from `pictures` as are needed to fill a batch. While the
    device works on one batch, the host cuts the next and blends the one before: a batch is sent
    before one is waited for, unless images that are not handed back leave no room. Where the
    memory of the device does not suffice, the batch and then the tile are halved, `sizes` says
    so from then on, and the work goes on; what is not finished begins anew with smaller tiles.

    Args:
        pictures: the images, of any sizes.
        apply: the model: tiles, float32 [B, h, w, 3] in [0, 1] → the same shape; its second
            argument is the `context` of each tile's image, [B, h', w', 3] or None. It may
            return before the device is done.
        sizes: how to cut them; changed where that turns out to be too large.

    Yields:
        The images, all rows written, in the order they came in.

    Raises:
        RunError: where the memory does not suffice for the smallest tile.
    """
    waiting: collections.deque[ImageInFlight] = collections.deque()
    source = iter(pictures)
    ended = False
    flight: _Flight | None = None
    while waiting or not ended:
        while waiting and not waiting[0].remaining:
            yield waiting.popleft().picture
        room = not ended and _room(waiting, sizes)
        # What is on the device makes room when it is back: no need yet for less than a batch.
        batch = _next_batch(waiting, sizes, room or not (ended or flight is None))
        if room and not batch:
            picture = next(source, None)
            ended = picture is None
            if picture is not None:
                waiting.append(ImageInFlight(picture, sizes))
            continue
        before, flight = flight, _launch(batch, apply, sizes) if batch else None
        for landing in (before, flight):
            # There is no use in sending more after one that failed at once.
            if landing is None or (landing is flight and landing.error is None):
                continue
            if not _land(landing, waiting, sizes):
                flight = None
                break


def _room(waiting: collections.deque[ImageInFlight], sizes: Sizes) -> bool:
    """Tells whether another image may be taken in before a batch is full."""
    pixels = sum(job.plan.height * job.plan.width for job in waiting)
    most = max(_LEAST_ROOM, _BATCHES_WAITING * sizes.batch_size)
    return len(waiting) < most and pixels < _MOST_PIXELS_WAITING


def _next_batch(
    waiting: collections.deque[ImageInFlight], sizes: Sizes, only_full: bool
) -> list[tuple[ImageInFlight, int]]:
    """Picks the next tiles of one shape: those of the first image that fills a batch.

    Where none does and `only_full` is off, those of the first image of all.
    """
    by_shape: dict[tuple[int, int], list[tuple[ImageInFlight, int]]] = {}
    for job in waiting:
        if not job.unsent:
            continue
        tiles = by_shape.setdefault(job.plan.shape, [])
        missing = sizes.batch_size - len(tiles)
        tiles.extend(
            (job, index) for index in range(job.sent, job.sent + min(missing, job.unsent))
        )
    found = list(by_shape.values())
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

    tiles: list[tuple[ImageInFlight, int]]
    shape: tuple[int, ...]
    restored: np.ndarray | jax.Array | None = None
    error: Exception | None = None


_FAILURES = (jax.errors.JaxRuntimeError, MemoryError)


def _launch(batch: list[tuple[ImageInFlight, int]], apply: Apply, sizes: Sizes) -> _Flight:
    """Sends a batch of tiles to the device, and does not wait for it.

    A batch that is not full is padded to a power of two: every size is a program to compile.
    """
    shape = batch[0][0].plan.shape
    size = min(sizes.batch_size, 2 ** (len(batch) - 1).bit_length())
    tiles = np.empty((size, *shape, 3), np.float32)
    for place, (job, index) in zip(tiles, batch, strict=False):
        place[...] = job.read(index)
    tiles[len(batch) :] = tiles[len(batch) - 1]
    contexts = None
    if batch[0][0].picture.context is not None:
        shown = [job.picture.context for job, _ in batch]
        contexts = np.stack(shown + shown[-1:] * (size - len(batch)))
    for job, _ in batch:
        job.sent += 1
    try:
        return _Flight(batch, tiles.shape, apply(tiles, contexts))
    except _FAILURES as error:
        return _Flight(batch, tiles.shape, error=error)


def _land(flight: _Flight, waiting: collections.deque[ImageInFlight], sizes: Sizes) -> bool:
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
