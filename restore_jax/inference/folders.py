"""Restores files and folders of images with a trained model."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from restore_jax import files, progress
from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import image_files, image_paths
from restore_jax.image_io.image_files import ImageFileError, Photograph
from restore_jax.image_io.photograph import estimated_white
from restore_jax.inference import assessment, pixels, trust_maps
from restore_jax.inference.restorer import Restorer
from restore_jax.parallel import cores

# Images are read ahead of the model and written behind it, so that it does not wait for the
# disk; each way up to this size, so that large photographs do not fill the memory.
_AHEAD_BYTES = 256 << 20
# At least so many threads read and write, for a remote disk; not too many, because each may
# hold a large photograph.
_MIN_THREADS = 4
_MAX_READERS, _MAX_WRITERS = 16, 32


@dataclasses.dataclass(frozen=True)
class Item:
    """One image to restore.

    Attributes:
        source: path of the image.
        target: path of its restoration.
        relative: `target`, relative to the output folder.
    """

    source: pathlib.Path
    target: pathlib.Path
    relative: pathlib.Path


Listener = Callable[[Item, str | Exception], None]


@dataclasses.dataclass
class Outcome:
    """The result of restoring images.

    Attributes:
        restored: number of images restored and written.
        skipped: number of images whose restoration already existed.
        copied: number of images saved unchanged, as they lie outside of what the model knows.
        outside: number of images that lie outside, restored or not.
        failed: an error line for each image that could not be read, restored or written.
    """

    restored: int = 0
    skipped: int = 0
    copied: int = 0
    outside: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)


class _Written(NamedTuple):
    """What writing an image gave.

    Attributes:
        notes: on what its format could not preserve.
        is_copy: whether it is the input unchanged.
        change_db: PSNR against the input, dB; None for a copy, or where the restoration of a
            large image overwrote the input in memory.
    """

    notes: tuple[str, ...] = ()
    is_copy: bool = False
    change_db: float | None = None


def plan(
    inputs: Sequence[str],
    output: pathlib.Path,
    file_format: str | None = None,
    shard: str | None = None,
    passed_over: collections.Counter[str] | None = None,
) -> list[Item]:
    """Lists the images to restore.

    Args:
        inputs: files, folders (searched recursively) and globs.
        output: the output folder; files in it are not used as inputs.
        file_format: format of all restorations, e.g. "png"; None: that of each input.
        shard: "I/N" for the I-th of N parts; each image belongs to one part, by a hash of its
            output path. None: all images.
        passed_over: counter to which the files that are not images are added, by suffix.

    Raises:
        UsageError: as `image_paths.find`, or for an invalid shard.
    """
    part, parts = _parse_shard(shard)
    return [
        Item(source, output / relative, relative)
        for source, relative in image_paths.find(inputs, file_format, output, passed_over)
        if parts == 1 or _hash(relative) % parts == part - 1
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
    table: assessment.Table | None = None,
    skip_outside: bool = False,
    assesses: bool = True,
    maps: pathlib.Path | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Restores images and writes each of them atomically.

    An image that cannot be read or written is reported and skipped; the others are restored.

    Args:
        restorer: the model.
        items: from `plan`.
        file_format: as for `plan`.
        overwrite: replaces restorations that exist, instead of skipping them.
        comparisons: a folder for pictures of each input beside its restoration.
        max_pixels: largest number of pixels of an image.
        pages: the pages of TIFF files to restore, "all" (of the series with the most pixels) or
            "first".
        white: the white level of 16-bit files. None: as stated in the file, or else that of the
            model's training, or else estimated from the highest level, see
            `photograph.estimated_white`; both are reported.
        table: gets a row for each image; None: no table is written.
        skip_outside: saves images that lie outside of what the model knows unchanged.
        assesses: compares images with what the model knows.
        maps: a folder for the trust map of each restoration, see `trust_maps`.
        listener: called with each note on an image, and with the error of an image that fails.
            None: they are printed, and so is the progress.

    Returns:
        The numbers of images restored and skipped, and the errors.

    Raises:
        RunError: if the model gives values that are not finite, or memory runs out.
    """
    outcome = Outcome()
    trained = trained_white(restorer)
    todo = [item for item in items if overwrite or not item.target.exists()]
    outcome.skipped = len(items) - len(todo)
    bar = progress.bar(total=len(todo), shown=listener is None)

    assessed: dict[Item, assessment.Assessment] = {}

    def add_row(item: Item, action: str, **values: Any) -> None:
        found = assessed.pop(item, None)
        if table is not None:
            place = item.relative.as_posix()
            table.add(assessment.Row(place, str(item.source), action, found, **values))

    def fail(item: Item, error: Exception) -> None:
        line = " ".join(str(error).split())
        add_row(item, assessment.FAILED, error=line)
        line = line if str(item.source) in line else f"{item.source}: {line}"
        outcome.failed.append(line)
        if listener is None:
            bar.write(f"error: {line}", file=sys.stderr)
        else:
            listener(item, error)
        bar.update()

    def report(item: Item, notes: Sequence[str]) -> None:
        for note in notes:
            if listener is None:
                bar.write(f"{item.source}: {note}", file=sys.stderr)
            else:
                listener(item, note)

    def read_one(item: Item) -> Photograph:
        # Only TIFF can store several pages.
        name = image_paths.format_name(file_format) if file_format else "TIFF"
        which = pages if name == "TIFF" else "first"
        photograph = image_files.read(item.source, max_pixels, which)
        # Checked here, so that an image that cannot be restored does not stop the others.
        photograph = with_white(photograph, white, trained)
        for plane in photograph.planes:
            pixels.checked(plane, str(item.source), white=photograph.white)
        if assesses:
            with assessing:
                assessed[item] = restorer.assess(photograph.pixels, photograph.white)
        return photograph

    def is_left_alone(item: Item) -> bool:
        found = assessed.get(item)
        if found is None or found.inside is not False:
            return False
        outcome.outside += 1
        done = "copied unchanged" if skip_outside else "restored all the same"
        note = f"outside of what the model knows: {'; '.join(found.reasons)}; {done}"
        report(item, [note])
        return skip_outside

    batch = restorer.options.cut[2]
    readers, writers = _threads()
    # An assessment takes memory of its own.
    assessing = threading.BoundedSemaphore(cores.count())
    read: collections.deque[tuple[Item, Photograph]] = collections.deque()

    def arrays(reading: _ReadAhead) -> Iterator[pixels.Levels]:
        for item, photograph in reading.take(fail):
            report(item, photograph.notes)
            if is_left_alone(item):
                future = threads.submit(_copy, item, photograph, file_format)
                writing.append((item, future, _size(photograph)))
                while too_many():
                    finish_one()
                continue
            read.append((item, photograph))
            for plane in photograph.planes:
                # A picture of both needs the input as well.
                in_place = comparisons is None and _size(photograph) > _AHEAD_BYTES
                yield pixels.Levels(plane, photograph.white, in_place)

    writing: collections.deque[tuple[Item, concurrent.futures.Future[_Written], int]]
    writing = collections.deque()

    def too_many() -> bool:
        # Room for two batches: one is written while the next is restored.
        held = sum(size for *_, size in writing)
        return len(writing) > 2 * max(batch, writers) or held > _AHEAD_BYTES

    def finish_one() -> None:
        item, future, _ = writing.popleft()
        try:
            written = future.result()
        except (ImageFileError, OSError) as error:
            fail(item, error)
            return
        report(item, written.notes)
        if written.is_copy:
            outcome.copied += 1
            add_row(item, assessment.COPIED)
        else:
            outcome.restored += 1
            if item in assessed and (doubt := assessed[item].doubt(written.change_db)):
                report(item, [doubt])
            add_row(item, assessment.RESTORED, change_db=written.change_db)
        bar.update()

    with (
        table or contextlib.nullcontext(),
        bar,
        concurrent.futures.ThreadPoolExecutor(writers) as threads,
        _ReadAhead(todo, readers, batch + readers, read_one) as reading,
    ):
        done: list[np.ndarray] = []
        bars: list[np.ndarray] = []
        found = restorer.restore_many(arrays(reading), **({"trust": True} if maps else {}))
        for plane in found:
            if maps is not None:
                plane, bar_of_plane = plane
                bars.append(bar_of_plane)
            done.append(plane)
            item, photograph = read[0]
            if len(done) < len(photograph.planes):
                continue
            read.popleft()
            restored, half_widths, done, bars = done, bars, [], []
            future = threads.submit(
                _write, item, restored, photograph, file_format, comparisons, maps, half_widths
            )
            size = sum(array.nbytes for array in (*restored, *half_widths))
            writing.append((item, future, size))
            while writing and (writing[0][1].done() or too_many()):
                finish_one()
        while writing:
            finish_one()
    return outcome


def check_output(output: pathlib.Path) -> None:
    """Creates the output folder and checks that it is writable.

    Raises:
        UsageError: if it is not, before any image has been restored in vain.
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
    """Returns the largest number of pixels of an image, from `--max_megapixels`.

    Raises:
        UsageError: if it is below 1.
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
    """Formats the summary of a run.

    Args:
        outcome: from `restore_files`.
        output: the output folder.
        passed_over: from `plan`.

    Raises:
        RunError: with the summary as its message, if an image failed.
    """
    plural = "" if outcome.restored == 1 else "s"
    parts = [f"{outcome.restored} image{plural} restored into {output}"]
    if outcome.outside:
        left = f", {outcome.copied} of them copied unchanged" if outcome.copied else ""
        parts.append(f"{outcome.outside} outside of what the model knows{left}")
    if outcome.skipped:
        parts.append(f"{outcome.skipped} skipped, as they exist (--overwrite replaces them)")
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


def _hash(relative: pathlib.Path) -> int:
    return int.from_bytes(hashlib.sha256(relative.as_posix().encode()).digest()[:8])


def _threads() -> tuple[int, int]:
    """Returns the number of reading threads and of writing threads.

    Writing has more threads, because it takes five times as long.
    """
    count = cores.count()
    return (
        min(max(_MIN_THREADS, count // 4), _MAX_READERS),
        min(max(_MIN_THREADS, count), _MAX_WRITERS),
    )


class _ReadAhead:
    """Reads images ahead in threads and yields them in order.

    An image is only read if it fits into `_AHEAD_BYTES` along with those already read but not
    taken, assuming that it is as large as the largest of the images read recently. If images
    become larger, the limit is exceeded by at most as many images as there are threads.

    Args:
        items: the images.
        threads: largest number of images read at the same time.
        most: largest number of images being read or waiting to be taken.
        read: reads one image.
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
        # The lock guards the attributes below, which all threads change.
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[Item, concurrent.futures.Future[Photograph]]]
        self._waiting = collections.deque()
        self._reading = self._held = 0
        self._recent_sizes: collections.deque[int] = collections.deque(maxlen=threads)

    def __enter__(self) -> "_ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._remaining = iter(())
        self._threads.shutdown(cancel_futures=True)

    def take(
        self, fail: Callable[[Item, Exception], None]
    ) -> Iterator[tuple[Item, Photograph]]:
        """Yields the images in order; those that cannot be read go to `fail` instead."""
        while True:
            self._start_reading()
            if not self._waiting:
                return
            item, future = self._waiting[0]
            try:
                photograph = future.result()
            except (ImageFileError, OSError, ValueError, MemoryError) as error:
                self._release(0)
                fail(item, error)
            else:
                self._release(_size(photograph))
                yield item, photograph

    def _release(self, size: int) -> None:
        """Removes the first image, whose pixels take `size` bytes, from those waiting."""
        with self._lock:
            self._waiting.popleft()
            self._held -= size

    def _start_reading(self) -> None:
        """Starts reading as many images as there is room for; at least one if none waits."""
        with self._lock:
            while self._has_room() and (item := next(self._remaining, None)) is not None:
                self._reading += 1
                self._waiting.append((item, self._threads.submit(self._read, item)))

    def _has_room(self) -> bool:
        if not self._waiting:
            return True
        if len(self._waiting) >= self._most or self._reading >= self._most_reading:
            return False
        # Until the first image is read, no size is known.
        size = max(self._recent_sizes, default=_AHEAD_BYTES)
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
                    self._recent_sizes.append(size)
            self._start_reading()


def trained_white(restorer: Restorer) -> int:
    """Returns the white level of a model's training; 0 if unknown."""
    return (restorer.config.get("data") or {}).get("white") or 0


def with_white(photograph: Photograph, white: int | None, trained: int = 0) -> Photograph:
    """Sets the white level of a 16-bit photograph, with a note if nothing states it.

    Args:
        photograph: the photograph.
        white: as for `restore_files`.
        trained: the level of the model's training; 0 if unknown.
    """
    stated = photograph.white
    if photograph.pixels.dtype != np.uint16:
        return photograph
    if white is not None:
        return dataclasses.replace(photograph, white=white)
    highest = max(int(plane.max()) for plane in photograph.planes)
    if stated is not None and highest <= stated:
        return photograph
    found = trained if 0 < trained >= highest else estimated_white(highest)
    if found is None:
        return dataclasses.replace(photograph, white=None)
    why = f"no level is above {highest:,}"
    if found == trained:
        why = "the model was trained with it"
    note = (
        f"{found:,} ({found.bit_length()} bits) is taken for white: {why}; --white sets another"
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
    maps: pathlib.Path | None,
    half_widths: Sequence[np.ndarray],
) -> _Written:
    """Writes a restoration."""
    if maps is not None:  # first, since a restoration that exists is skipped
        trust_maps.write(maps, item.relative, half_widths)
    notes = image_files.write(item.target, restored, photograph, file_format)
    if comparisons is not None:
        path = comparisons / item.relative.with_name(f"{item.relative.name}.png")
        both = _side_by_side(photograph.pixels, restored[0], photograph.white)
        beside = Photograph(both)
        image_files.write(path, beside.pixels, beside)
    change = None
    if not any(new is old for new, old in zip(restored, photograph.planes, strict=True)):
        change = assessment.change_in_db(photograph.planes, restored, photograph.white)
    return _Written(notes, change_db=change)


def _copy(item: Item, photograph: Photograph, file_format: str | None) -> _Written:
    """Saves a photograph unchanged: byte for byte, unless it changes its format."""
    if file_format is None or image_paths.format_name(file_format) == photograph.format:
        with files.replacing(item.target) as temporary:
            shutil.copyfile(item.source, temporary)
        return _Written(is_copy=True)
    notes = image_files.write(item.target, photograph.planes, photograph, file_format)
    return _Written(notes, is_copy=True)


def _side_by_side(
    before: np.ndarray, after: np.ndarray, white: int | None = None
) -> np.ndarray:
    """Returns the input and its restoration side by side, uint8 [H, 2·W + 8, 3]."""
    pair = [np.atleast_3d(to_bytes(image, white)) for image in (before, after)]
    gap = np.full((pair[0].shape[0], 8, 3), 255, np.uint8)
    left, right = (np.broadcast_to(image, (*image.shape[:2], 3)) for image in pair)
    return np.concatenate([left, gap, right], axis=1)


def to_bytes(image: np.ndarray, white: int | None) -> np.ndarray:
    """Converts pixels to uint8 for a screen; `white` as in `Photograph`."""
    if image.dtype == np.uint8 and white is None:
        return image
    highest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    return np.round(image.astype(np.float32) * (255.0 / (white or highest))).astype(np.uint8)
