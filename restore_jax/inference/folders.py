"""Restores files and folders of images with a trained model."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from restore_jax import progress
from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import image_files, image_paths
from restore_jax.image_io.image_files import ImageFileError, Photograph
from restore_jax.inference import pixels
from restore_jax.inference.restorer import Restorer
from restore_jax.parallel import cores, host_memory

# Read ahead and written behind the model, so that it need not wait for the disk; but not so far
# that large photographs fill the memory.
_AHEAD_BYTES = 256 << 20
# Threads: so many at least for a disk that is far away; each may hold a large photograph.
_LEAST_THREADS = 4
# After so many batches freed memory goes back to the system: it stays flat in any folder.
_BATCHES_OF_MEMORY = 25
_MOST_READERS, _MOST_WRITERS = 16, 32


@dataclasses.dataclass(frozen=True)
class Item:
    """One image to restore.

    Attributes:
        source: where it is.
        target: where its restoration goes.
        relative: the same, from the folder of the output.
    """

    source: pathlib.Path
    target: pathlib.Path
    relative: pathlib.Path


@dataclasses.dataclass
class Outcome:
    """What became of the images.

    Attributes:
        restored: written now.
        skipped: there before.
        failed: a line for each that could not be read, restored or written.
    """

    restored: int = 0
    skipped: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)


def plan(
    inputs: Sequence[str],
    output: pathlib.Path,
    file_format: str | None = None,
    shard: str | None = None,
    passed_over: collections.Counter[str] | None = None,
) -> list[Item]:
    """Lists the images to restore.

    Args:
        inputs: files, folders (searched throughout) and globs.
        output: the folder of the restorations; what is in it is no input.
        file_format: of all restorations, e.g. "png"; None: each input's own.
        shard: "I/N" for the I-th of N parts, of which each image belongs to one, by a hash of
            its output's name; None for all.
        passed_over: gains the number of files that are no images, by suffix.

    Raises:
        UsageError: as `image_paths.find`, or for a wrong shard.
    """
    part, parts = _parse_shard(shard)
    return [
        Item(source, output / relative, relative)
        for source, relative in image_paths.find(inputs, file_format, output, passed_over)
        if parts == 1 or _number(relative) % parts == part - 1
    ]


def restore_files(
    restorer: Restorer,
    items: Sequence[Item],
    file_format: str | None = None,
    overwrite: bool = False,
    comparisons: pathlib.Path | None = None,
    max_pixels: int = image_files.MAX_PIXELS,
    pages: str = "all",
    white: int | None = None,
) -> Outcome:
    """Restores images and writes them, each in one step.

    An image that cannot be read or written is told of and left out; the others go on.

    Args:
        restorer: the model.
        items: from `plan`.
        file_format: as for `plan`.
        overwrite: writes restorations that are there already anew, rather than skip them.
        comparisons: a folder for pictures of each input beside its restoration.
        max_pixels: how many an image may have.
        pages: of TIFF files, "all" (of the series with the most pixels) or "first".
        white: the level of 16-bit files that is white. None: what the file tells, or else what
            its highest level tells, see `pixels.found_white`, which is said.

    Returns:
        What became of them.

    Raises:
        RunError: where the model gives values that are not finite, or memory runs out.
    """
    outcome = Outcome()
    todo = [item for item in items if overwrite or not item.target.exists()]
    outcome.skipped = len(items) - len(todo)
    bar = progress.bar(total=len(todo))

    def fail(item: Item, error: Exception) -> None:
        line = " ".join(str(error).split())
        line = line if str(item.source) in line else f"{item.source}: {line}"
        outcome.failed.append(line)
        bar.write(f"error: {line}", file=sys.stderr)
        bar.update()

    def tell(item: Item, notes: Sequence[str]) -> None:
        for note in notes:
            bar.write(f"{item.source}: {note}", file=sys.stderr)

    def read_one(item: Item) -> Photograph:
        # Only TIFF has room for the pictures of a stack.
        name = image_paths.format_name(file_format) if file_format else "TIFF"
        whole = pages if name == "TIFF" else "first"
        photograph = image_files.read(item.source, max_pixels, whole)
        # Here, so that one image that cannot be restored does not end the others.
        photograph = _with_white(photograph, white)
        for plane in photograph.planes:
            pixels.checked(plane, str(item.source), white=photograph.white)
        return photograph

    batch = restorer.options.cut[2]
    readers, writers = _threads()
    read: collections.deque[tuple[Item, Photograph]] = collections.deque()

    def arrays(reading: _ReadAhead) -> Iterator[np.ndarray | pixels.Levels]:
        for item, photograph in reading.take(fail):
            tell(item, photograph.notes)
            read.append((item, photograph))
            for plane in photograph.planes:
                white = photograph.white
                yield plane if white is None else pixels.Levels(plane, white)

    writing: collections.deque[tuple[Item, concurrent.futures.Future[tuple[str, ...]], int]]
    writing = collections.deque()

    def too_many() -> bool:
        # While the images of one batch are written, those of the next come.
        held = sum(size for *_, size in writing)
        return len(writing) > 2 * max(batch, writers) or held > _AHEAD_BYTES

    def finish_one() -> None:
        item, future, _ = writing.popleft()
        try:
            tell(item, future.result())
        except (ImageFileError, OSError) as error:
            fail(item, error)
        else:
            outcome.restored += 1
            bar.update()

    with (
        bar,
        concurrent.futures.ThreadPoolExecutor(writers) as threads,
        _ReadAhead(todo, readers, batch + readers, read_one) as reading,
    ):
        done: list[np.ndarray] = []
        for count, plane in enumerate(restorer.restore_many(arrays(reading)), start=1):
            done.append(plane)
            item, photograph = read[0]
            if len(done) < len(photograph.planes):
                continue
            read.popleft()
            restored, done = done, []
            future = threads.submit(
                _write, item, restored, photograph, file_format, comparisons
            )
            writing.append((item, future, sum(plane.nbytes for plane in restored)))
            while writing and (writing[0][1].done() or too_many()):
                finish_one()
            if count % (_BATCHES_OF_MEMORY * batch) == 0:
                host_memory.give_back()
        while writing:
            finish_one()
    return outcome


def check_output(output: pathlib.Path) -> None:
    """Makes the folder of the restorations, and sees that it can be written to.

    Raises:
        UsageError: it cannot; better told now than of every image once it is restored.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UsageError(
            f"--output={output}: cannot be written to: {error.strerror}; name another folder"
        ) from error


def pixel_limit(megapixels: int | None) -> int:
    """Returns the limit that `--max_megapixels` sets.

    Raises:
        UsageError: it is below 1.
    """
    if megapixels is None:
        return image_files.MAX_PIXELS
    if megapixels < 1:
        raise UsageError(f"--max_megapixels={megapixels}: must be at least 1")
    return megapixels * 1_000_000


def format_outcome(
    outcome: Outcome,
    output: pathlib.Path,
    passed_over: collections.Counter[str] | None = None,
) -> str:
    """Formats what a run ends with.

    Args:
        outcome: of the images.
        output: their folder.
        passed_over: from `plan`.

    Raises:
        RunError: with the same, where an image failed.
    """
    plural = "" if outcome.restored == 1 else "s"
    parts = [f"{outcome.restored} image{plural} restored into {output}"]
    if outcome.skipped:
        parts.append(f"{outcome.skipped} skipped, which were there (--overwrite replaces them)")
    if passed_over:
        parts.append(f"passed over: {image_paths.format_passed_over(passed_over)}")
    if outcome.failed:
        parts.append(f"{len(outcome.failed)} failed")
        raise RunError("; ".join(parts))
    return "; ".join(parts)


def _parse_shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 1, 1
    first, _, second = shard.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError(f"--shard={shard}: give I/N, the I-th of N parts, for example 1/4")
    return int(first), int(second)


def _number(relative: pathlib.Path) -> int:
    return int.from_bytes(hashlib.sha256(relative.as_posix().encode()).digest()[:8])


def _threads() -> tuple[int, int]:
    """Returns how many threads read and how many write, which takes five times as long."""
    count = cores.count()
    return (
        min(max(_LEAST_THREADS, count // 4), _MOST_READERS),
        min(max(_LEAST_THREADS, count), _MOST_WRITERS),
    )


class _ReadAhead:
    """Reads images ahead, in threads, in order.

    Nothing is begun that would not fit into `_AHEAD_BYTES` beside what waits to be taken, if it
    is as large as the largest that was read lately; so that where images become larger, those
    that are too many are no more than there are threads.

    Args:
        items: the images.
        threads: how many are read at the same time, at most.
        most: how many are read or wait to be taken, at most.
        read: reads one.
    """

    def __init__(
        self,
        items: Sequence[Item],
        threads: int,
        most: int,
        read: Callable[[Item], Photograph],
    ) -> None:
        self._read_one = read
        self._remaining = iter(items)
        self._most, self._most_reading = most, threads
        self._threads = concurrent.futures.ThreadPoolExecutor(threads)
        # What follows is changed by all threads.
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[Item, concurrent.futures.Future[Photograph]]]
        self._waiting = collections.deque()
        self._reading = self._held = 0
        self._lately: collections.deque[int] = collections.deque(maxlen=threads)

    def __enter__(self) -> "_ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._remaining = iter(())
        self._threads.shutdown(cancel_futures=True)

    def take(
        self, fail: Callable[[Item, Exception], None]
    ) -> Iterator[tuple[Item, Photograph]]:
        """Yields the images; what cannot be read is handed to `fail` and passed over."""
        while True:
            self._begin()
            if not self._waiting:
                return
            item, future = self._waiting[0]
            try:
                photograph = future.result()
            except (ImageFileError, OSError, ValueError, MemoryError) as error:
                self._let_go(0)
                fail(item, error)
            else:
                self._let_go(_size(photograph))
                yield item, photograph

    def _let_go(self, size: int) -> None:
        with self._lock:
            self._waiting.popleft()
            self._held -= size

    def _begin(self) -> None:
        """Has as many more read as there is room for; at least one where none is waiting."""
        with self._lock:
            while self._has_room() and (item := next(self._remaining, None)) is not None:
                self._reading += 1
                self._waiting.append((item, self._threads.submit(self._read, item)))

    def _has_room(self) -> bool:
        if not self._waiting:
            return True
        if len(self._waiting) >= self._most or self._reading >= self._most_reading:
            return False
        # Of the first one, nothing is known before it is read.
        size = max(self._lately, default=_AHEAD_BYTES)
        return self._held + (self._reading + 1) * size <= _AHEAD_BYTES

    def _read(self, item: Item) -> Photograph:
        size = 0
        try:
            photograph = self._read_one(item)
            size = _size(photograph)
            return photograph
        finally:
            with self._lock:
                self._reading -= 1
                self._held += size
                if size:
                    self._lately.append(size)
            self._begin()


def _with_white(photograph: Photograph, white: int | None) -> Photograph:
    """Gives a 16-bit photograph its white, and a note where that was found from its levels."""
    told = photograph.white
    if photograph.pixels.dtype != np.uint16:
        return photograph
    if white is not None:
        return dataclasses.replace(photograph, white=white)
    highest = max(int(plane.max()) for plane in photograph.planes)
    if told is not None and highest <= told:
        return photograph
    found = pixels.found_white(photograph.planes)
    if found is None:
        return dataclasses.replace(photograph, white=None)
    note = (
        f"no level is above {highest:,}: {found:,} ({found.bit_length()} bits) is taken for "
        "white; --white=65535 for the whole range"
    )
    return dataclasses.replace(photograph, white=found, notes=(*photograph.notes, note))


def _size(photograph: Photograph) -> int:
    return sum(plane.nbytes for plane in photograph.planes)


def _write(
    item: Item,
    restored: Sequence[np.ndarray],
    photograph: Photograph,
    file_format: str | None,
    comparisons: pathlib.Path | None,
) -> tuple[str, ...]:
    """Writes a restoration; returns what its format could not keep."""
    notes = image_files.write(item.target, restored, photograph, file_format)
    if comparisons is not None:
        path = comparisons / item.relative.with_name(f"{item.relative.name}.png")
        both = _side_by_side(photograph.pixels, restored[0], photograph.white)
        beside = Photograph(both)
        image_files.write(path, beside.pixels, beside)
    return notes


def _side_by_side(
    before: np.ndarray, after: np.ndarray, white: int | None = None
) -> np.ndarray:
    """The input left of its restoration, uint8 [H, W, 3]."""
    pair = [np.atleast_3d(_to_bytes(image, white)) for image in (before, after)]
    gap = np.full((pair[0].shape[0], 8, 3), 255, np.uint8)
    left, right = (np.broadcast_to(image, (*image.shape[:2], 3)) for image in pair)
    return np.concatenate([left, gap, right], axis=1)


def _to_bytes(image: np.ndarray, white: int | None) -> np.ndarray:
    if image.dtype == np.uint8 and white is None:
        return image
    highest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    return np.round(image.astype(np.float32) * (255.0 / (white or highest))).astype(np.uint8)
