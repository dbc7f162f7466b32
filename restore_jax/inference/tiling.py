"""Restores images of any size in bounded memory, in overlapping tiles blended without seams.

A model that pools or attends over the whole image sees only its tile here, so tiles should have
the size of the images it was trained on. Neighbouring tiles overlap, and in the overlap they
are cross-faded by a raised cosine; the weights of a pixel sum to one and are close to zero at
the edge of a tile, where convolutions see its border.

An image is blended in a band as high as one tile and as wide as the image, from which rows are
written as soon as no further tile touches them. A side that is longer than the tile is covered
by tiles of exactly that size. A shorter one is padded by reflection to the next multiple of 32,
so that images of all sizes need at most (tile / 32)² tile shapes, each compiled once per batch
size, which is a power of two or the largest allowed. The last, incomplete batch has the largest
size too if that adds little to the work, as compiling another takes as long as many tiles.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from restore_jax.errors import RunError
from restore_jax.inference.tile_plan import MIN_TILE, plan, reflected
from restore_jax.parallel import host_memory

Apply = Callable[[np.ndarray, np.ndarray | None], np.ndarray | jax.Array]

# Limits of the images that are taken but not yet yielded. Four batches: if images of two shapes
# alternate, each shape has a batch on the device and fills the next one. At least 32 images, as
# small batches have room for more.
_BATCHES_WAITING = 4
_MIN_IMAGES_WAITING = 32
_MAX_PIXELS_WAITING = 2**25
# After this many batches, freed memory is returned to the system, so that the process does not
# grow with the number and the size of images.
_BATCHES_PER_TRIM = 25
# Largest number of tiles that are added to a batch to complete it, as a share of the tiles of
# that shape that were restored before it. One tile of nine for a photograph of 1024×1024 px in
# tiles of 512.
_MAX_ADDED = 1 / 8


class Tileable(Protocol):
    """An image to restore: where tiles are read from and finished rows are written to."""

    height: int
    width: int
    context: np.ndarray | None
    """The whole image as its tiles see it, float32 [h, w, 3], for models that use it.

    Either all images of a run have one, of the same shape, or none has."""

    def read(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> np.ndarray:
        """Returns the pixels of given rows and columns, float32 [h, w, 3] in [0, 1]."""

    def write(self, top: int, rows: np.ndarray) -> None:
        """Receives restored rows from `top` on, float32 [n, width, C], C as `apply` returns.

        The array is only valid during the call. Each row is written once, from top to bottom;
        after an out-of-memory error, writing may start again from the top.
        """


AnyTileable = TypeVar("AnyTileable", bound=Tileable)


@dataclasses.dataclass
class Sizes:
    """How images are tiled; reduced when the device runs out of memory.

    Attributes:
        tile: side of a tile, in px.
        overlap: smallest overlap of neighbouring tiles, in px; at most half a tile.
        batch_size: largest number of tiles restored at once.
    """

    tile: int
    overlap: int
    batch_size: int

    def halve(self, shape: tuple[int, int, int]) -> None:
        """Halves the batch size, or else the tile, after a batch [B, h, w] was too large.

        Raises:
            RunError: if it was a single tile of the smallest size.
        """
        batch, side = shape[0], max(shape[1:])
        if batch > 1:
            self.batch_size = batch // 2
            logging.warning("out of memory: batches of %d tiles from here on", self.batch_size)
            return
        if side <= MIN_TILE:
            raise RunError(
                f"out of memory for one tile of {shape[1]}×{shape[2]} px; free some memory, or "
                "use a smaller model"
            )
        tile = max(MIN_TILE, side // 2)
        self.overlap = self.overlap * tile // self.tile
        self.tile = tile
        logging.warning("out of memory: tiles of %d px from here on", tile)


class ImageInFlight:
    """An image being restored: its tiles are sent and received in the same order.

    Args:
        picture: the image.
        sizes: how it is tiled.
    """

    def __init__(self, picture: Tileable, sizes: Sizes) -> None:
        self.picture = picture
        self.start(sizes)

    def start(self, sizes: Sizes) -> None:
        """Starts with the first tile, discarding what was done before."""
        self.plan = plan(self.picture.height, self.picture.width, sizes.tile, sizes.overlap)
        self.done = self.sent = 0
        self._top = 0
        width = self.plan.lefts[-1] + self.plan.tile_width
        self._band: np.ndarray | None = None
        self._band_shape = (self.plan.tile_height, width)

    @property
    def remaining(self) -> int:
        """The number of tiles not yet received."""
        return self.plan.count - self.done

    @property
    def unsent(self) -> int:
        """The number of tiles not yet sent."""
        return self.plan.count - self.sent

    def read(self, index: int) -> np.ndarray:
        """Returns a tile of the degraded image, float32 [tile_height, tile_width, 3]."""
        row, column = divmod(index, len(self.plan.lefts))

        def along(begin: int, tile: int, length: int) -> np.ndarray | slice:
            end = begin + tile
            return slice(begin, end) if end <= length else reflected(length, end)[begin:]

        return self.picture.read(
            along(self.plan.tops[row], self.plan.tile_height, self.plan.height),
            along(self.plan.lefts[column], self.plan.tile_width, self.plan.width),
        )

    def add(self, tile: np.ndarray) -> None:
        """Blends in the next restored tile and writes completed rows to the picture."""
        if self.plan.count == 1:  # all weights are 1
            self.done = 1
            self.picture.write(0, tile[: self.plan.height, : self.plan.width])
            return
        row, column = divmod(self.done, len(self.plan.lefts))
        if self._band is None:
            self._band = np.zeros((*self._band_shape, tile.shape[-1]), np.float32)
        if column == 0:
            self._flush(self.plan.tops[row])
        down, across = self.plan.weights
        left = self.plan.lefts[column]
        weighted = tile * down[row][:, None, None]
        channels = tile.shape[-1]  # repeated, which is far faster than [:, None]
        weighted *= np.repeat(across[column], channels).reshape(-1, channels)
        self._band[:, left : left + self.plan.tile_width] += weighted
        self.done += 1
        if not self.remaining:
            self._flush(self.plan.height)
            self._band = None

    def _flush(self, until: int) -> None:
        """Writes the rows above `until` and moves the band down to it."""
        count = until - self._top
        if count:
            self.picture.write(self._top, self._band[:count, : self.plan.width])
            self._band[:-count] = self._band[count:]
            self._band[-count:] = 0.0
            self._top = until


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error means that an allocation failed, on the device or the host."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and (
        "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    )


def restore(
    pictures: Iterable[AnyTileable], apply: Apply, sizes: Sizes
) -> Iterator[AnyTileable]:
    """Restores images tile by tile; tiles of several images share a batch.

    Images are taken from `pictures` only as needed to fill a batch. While the device works on
    one batch, the host prepares the next and blends the previous one: a batch is sent before
    another is waited for, unless too many images are unfinished. If the device runs out of
    memory, the batch size and then the tile are halved in `sizes`, and the work continues;
    unfinished images start again with smaller tiles.

    Args:
        pictures: the images, of any sizes.
        apply: the model: tiles, float32 [B, h, w, 3] in [0, 1] → [B, h, w, C]; its second
            argument is the `context` of each tile's image, [B, h', w', 3] or None. It may
            return before the device is done.
        sizes: how to tile them; reduced after an out-of-memory error.

    Yields:
        The images, with all rows written, in the order of `pictures`.

    Raises:
        RunError: if memory runs out even for the smallest tile.
    """
    waiting: collections.deque[ImageInFlight] = collections.deque()
    source = iter(pictures)
    ended = False
    sent: _SentBatch | None = None
    in_full: collections.Counter[tuple[int, ...]] = collections.Counter()
    batches = 0
    while waiting or not ended:
        while waiting and not waiting[0].remaining:
            yield waiting.popleft().picture
        room = not ended and _has_room(waiting, sizes)
        # While a batch is on the device, whose return makes room, only full batches are sent.
        batch = _next_batch(waiting, sizes, room or not (ended or sent is None))
        if room and not batch:
            picture = next(source, None)
            ended = picture is None
            if picture is not None:
                waiting.append(ImageInFlight(picture, sizes))
            continue
        previous, sent = sent, _send(batch, apply, sizes, in_full) if batch else None
        for due in (previous, sent):
            # The new batch is left on the device, unless it failed at once.
            if due is None or (due is sent and due.error is None):
                continue
            if not _receive(due, waiting, sizes):
                sent = None
                in_full.clear()
                break
            batches += 1
            if batches % _BATCHES_PER_TRIM == 0:
                host_memory.give_back()


def _has_room(waiting: collections.deque[ImageInFlight], sizes: Sizes) -> bool:
    """Returns whether another image may be taken before a batch is full."""
    pixels = sum(job.plan.height * job.plan.width for job in waiting)
    most = max(_MIN_IMAGES_WAITING, _BATCHES_WAITING * sizes.batch_size)
    return len(waiting) < most and pixels < _MAX_PIXELS_WAITING


def _next_batch(
    waiting: collections.deque[ImageInFlight], sizes: Sizes, only_full: bool
) -> list[tuple[ImageInFlight, int]]:
    """Picks the next batch of tiles with one shape.

    The first shape that fills a batch is taken; if there is none, the first shape, or no tiles
    with `only_full`.
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


class _SentBatch(NamedTuple):
    """A batch of tiles that was sent to the device.

    Attributes:
        tiles: the image and the index of each tile, in the order of the batch.
        shape: shape of the batch.
        restored: the result, which the device may still be computing.
        error: why it could not be sent; None if it was.
    """

    tiles: list[tuple[ImageInFlight, int]]
    shape: tuple[int, ...]
    restored: np.ndarray | jax.Array | None = None
    error: Exception | None = None


_FAILURES = (jax.errors.JaxRuntimeError, MemoryError)


def _send(
    batch: list[tuple[ImageInFlight, int]],
    apply: Apply,
    sizes: Sizes,
    in_full: collections.Counter[tuple[int, ...]],
) -> _SentBatch:
    """Sends a batch of tiles to the device without waiting for the result.

    A batch that is not full is padded, because each size is compiled: to a power of two, or to
    the full size, for which there is a program, if few tiles are missing.

    Args:
        batch: the image and the index of each tile.
        apply: the model.
        sizes: how images are tiled.
        in_full: by shape, the number of tiles sent in full batches; updated.
    """
    shape = batch[0][0].plan.shape
    size = sizes.batch_size
    if size - len(batch) > _MAX_ADDED * in_full[shape]:
        size = min(size, 2 ** (len(batch) - 1).bit_length())
    if len(batch) == sizes.batch_size:
        in_full[shape] += size
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
        return _SentBatch(batch, tiles.shape, apply(tiles, contexts))
    except _FAILURES as error:
        return _SentBatch(batch, tiles.shape, error=error)


def _receive(sent: _SentBatch, waiting: collections.deque[ImageInFlight], sizes: Sizes) -> bool:
    """Adds each tile of a batch to its image, or reduces the sizes if memory ran out.

    Returns:
        Whether it was received. If not, everything sent after it must be sent again.
    """
    try:
        if sent.error is not None:
            raise sent.error
        restored = np.asarray(sent.restored)
    except _FAILURES as error:
        if not is_out_of_memory(error):
            raise
        before = sizes.tile
        sizes.halve(sent.shape[:3])
        for job in waiting:
            job.sent = job.done
            if sizes.tile != before and job.remaining:
                job.start(sizes)
        return False
    for (job, _), tile in zip(sent.tiles, restored, strict=False):
        job.add(tile)
    return True
