"""Restores image files with a trained model, while others are read and written."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from restore_jax import files, progress
from restore_jax.degradation import digital_gain
from restore_jax.errors import RunError
from restore_jax.folders import table as tables
from restore_jax.folders import trust_maps, verdict
from restore_jax.folders.plan import Item
from restore_jax.folders.read_ahead import MOST_BYTES, ReadAhead, size_of
from restore_jax.folders.table import Row, Table
from restore_jax.image_io import image_files, image_paths
from restore_jax.image_io.image_files import ImageFileError, Photograph
from restore_jax.inference import assessment, pixels, white_level
from restore_jax.inference.assessment import Assessment
from restore_jax.inference.restorer import Restorer
from restore_jax.parallel import cores
from restore_jax.report.forms import counted

# At least so many threads read and write, for a remote disk; not too many, because each may
# hold a large photograph.
_MIN_THREADS = 4
_MAX_READERS, _MAX_WRITERS = 16, 32

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
        judged: what `verdict.judge` found, if it was asked.
    """

    notes: tuple[str, ...] = ()
    is_copy: bool = False
    change_db: float | None = None
    judged: tuple[verdict.Verdict, verdict.Picture] | None = None


@dataclasses.dataclass(frozen=True)
class _Options:
    """How files are restored; the fields are arguments of `restore_files`."""

    file_format: str | None
    comparisons: pathlib.Path | None
    max_pixels: int
    pages: str
    white: int | None
    skip_outside: bool
    assesses: bool
    maps: pathlib.Path | None


def restore_files(
    restorer: Restorer,
    items: Sequence[Item],
    *,
    file_format: str | None = None,
    overwrite: bool = False,
    comparisons: pathlib.Path | None = None,
    max_pixels: int = image_files.MAX_PIXELS,
    pages: str = "all",
    white: int | None = None,
    table: Table | None = None,
    skip_outside: bool = False,
    assesses: bool = True,
    maps: pathlib.Path | None = None,
    pictures: verdict.Pictures | None = None,
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
        pictures: gets those of the restorations, which are then judged, see `verdict`; only of
            images that are assessed.
        listener: called with each note on an image, and with the error of an image that fails.
            None: they are printed, and so is the progress.

    Returns:
        The numbers of images restored and skipped, and the errors.

    Raises:
        RunError: if the model gives values that are not finite, or memory runs out.
    """
    todo = [item for item in items if overwrite or not item.target.exists()]
    options = _Options(
        file_format=file_format,
        comparisons=comparisons,
        max_pixels=max_pixels,
        pages=pages,
        white=white,
        skip_outside=skip_outside,
        assesses=assesses,
        maps=maps,
    )
    run = _Run(restorer, todo, options, table, pictures, listener)
    run.outcome.skipped = len(items) - len(todo)
    run.restore()
    return run.outcome


class _Run:
    """The restoration of some files.

    The model is fed in the caller's thread; other threads read ahead of it, assess, and write
    behind it. Everything but reading, assessing and writing itself happens in the caller's.

    Args:
        restorer: the model.
        todo: the files.
        options: how they are restored.
        table: as for `restore_files`, as are the others.
    """

    def __init__(
        self,
        restorer: Restorer,
        todo: Sequence[Item],
        options: _Options,
        table: Table | None,
        pictures: verdict.Pictures | None,
        listener: Listener | None,
    ) -> None:
        self.outcome = Outcome()
        self._restorer, self._todo, self._options = restorer, todo, options
        self._table, self._pictures, self._listener = table, pictures, listener
        self._bar = progress.bar(total=len(todo), shown=listener is None)
        self._trained_white = white_level.trained_white(restorer)
        self._assessed: dict[Item, Assessment] = {}
        self._gains: dict[Item, list[np.ndarray]] = {}
        # An assessment takes memory of its own.
        self._assessing = threading.BoundedSemaphore(cores.count())
        self._read: collections.deque[tuple[Item, Photograph]] = collections.deque()
        self._writing: collections.deque[
            tuple[Item, concurrent.futures.Future[_Written], int]
        ] = collections.deque()
        self._batch = restorer.options.cut[2]
        self._readers, self._writers = _threads()

    def restore(self) -> None:
        """Restores the files; `outcome` has what became of them."""
        with (
            self._table or contextlib.nullcontext(),
            self._bar,
            concurrent.futures.ThreadPoolExecutor(self._writers) as threads,
            ReadAhead(
                self._todo, self._readers, self._batch + self._readers, self._read_one
            ) as reading,
        ):
            try:
                for restored in self._restored(reading, threads):
                    self._start_writing(threads, *restored)
                    while self._writing and (self._writing[0][1].done() or self._too_many()):
                        self._finish_one()
            finally:
                # Also after Ctrl-C: what is written now, a further run skips.
                while self._writing:
                    self._finish_one()

    def _start_writing(
        self,
        threads: concurrent.futures.Executor,
        item: Item,
        photograph: Photograph,
        restored: list[np.ndarray],
        half_widths: list[np.ndarray],
    ) -> None:
        found = self._assessed.get(item) if self._pictures is not None else None
        future = threads.submit(self._write, item, photograph, restored, half_widths, found)
        size = sum(array.nbytes for array in (*restored, *half_widths))
        self._writing.append((item, future, size))

    def _restored(
        self, reading: ReadAhead, threads: concurrent.futures.Executor
    ) -> Iterator[tuple[Item, Photograph, list[np.ndarray], list[np.ndarray]]]:
        """Yields each file with its restored pages, and their trust maps if there are any."""
        trust = {} if self._options.maps is None else {"trust": True}
        pages: list[np.ndarray] = []
        half_widths: list[np.ndarray] = []
        for page in self._restorer.restore_many(self._pages(reading, threads), **trust):
            if trust:
                page, half_width = page
                half_widths.append(half_width)
            pages.append(page)
            item, photograph = self._read[0]
            if len(pages) == len(photograph.planes):
                self._read.popleft()
                yield item, photograph, pages, half_widths
                pages, half_widths = [], []

    def _pages(
        self, reading: ReadAhead, threads: concurrent.futures.Executor
    ) -> Iterator[pixels.Levels]:
        """Yields the pages of the files to restore; those to leave alone are copied."""
        for item, photograph in reading.take(self._fail):
            self._report(item, photograph.notes)
            if self._is_left_alone(item):
                self._gains.pop(item, None)
                future = threads.submit(_copy, item, photograph, self._options.file_format)
                self._writing.append((item, future, size_of(photograph)))
                while self._too_many():
                    self._finish_one()
                continue
            self._read.append((item, photograph))
            # A picture of both needs the input as well.
            is_needed = self._options.comparisons is not None or self._pictures is not None
            in_place = not is_needed and size_of(photograph) > MOST_BYTES
            gains = self._gains.pop(item, [])
            self._report(item, _notes_of_gains(gains))
            for plane, gain in itertools.zip_longest(photograph.planes, gains):
                yield pixels.Levels(plane, photograph.white, in_place, gain)

    def _read_one(self, item: Item) -> Photograph:
        """Reads, checks and assesses a file, in a reading thread."""
        options = self._options
        # Only TIFF can store several pages.
        name = image_paths.format_name(options.file_format) if options.file_format else "TIFF"
        which = options.pages if name == "TIFF" else "first"
        photograph = image_files.read(item.source, options.max_pixels, which)
        # Checked here, so that an image that cannot be restored does not stop the others.
        photograph = white_level.with_white(photograph, options.white, self._trained_white)
        for plane in photograph.planes:
            pixels.checked(plane, str(item.source), white=photograph.white)
        if options.assesses:
            with self._assessing:
                self._assessed[item] = self._restorer.assess(
                    photograph.pixels, photograph.white
                )
        if self._restorer.options.undo_gain:
            self._gains[item] = [digital_gain.of_photograph(page) for page in photograph.planes]
        return photograph

    def _is_left_alone(self, item: Item) -> bool:
        """Reports a file that the model does not know; returns whether to copy it."""
        found = self._assessed.get(item)
        if found is None or found.inside is not False:
            return False
        self.outcome.outside += 1
        skip = self._options.skip_outside
        done = "copied unchanged" if skip else "restored all the same"
        reasons = "; ".join(found.reasons)
        self._report(item, [f"outside of what the model knows: {reasons}; {done}"])
        return skip

    def _write(
        self,
        item: Item,
        photograph: Photograph,
        restored: Sequence[np.ndarray],
        half_widths: Sequence[np.ndarray],
        found: Assessment | None,
    ) -> _Written:
        """Writes a restoration, in a writing thread, and judges it if `found` is given."""
        options, white = self._options, photograph.white
        if options.maps is not None:  # first, since a restoration that exists is skipped
            trust_maps.write(options.maps, item.relative, half_widths)
        notes = image_files.write(item.target, restored, photograph, options.file_format)
        if options.comparisons is not None:
            beside = Photograph(_side_by_side(photograph.pixels, restored[0], white))
            path = _comparison_path(options.comparisons, item)
            image_files.write(path, beside.pixels, beside)
        if any(new is old for new, old in zip(restored, photograph.planes, strict=True)):
            return _Written(notes)  # the input was overwritten
        change = assessment.change_in_db(photograph.planes, restored, white)
        judged = None
        if found is not None:
            half_width = half_widths[0] if half_widths else None
            judged = verdict.judge(photograph.pixels, restored[0], white, found, half_width)
        return _Written(notes, change_db=change, judged=judged)

    def _too_many(self) -> bool:
        """Returns whether a file must be written before another one is restored."""
        # Room for two batches: one is written while the next is restored.
        held = sum(size for *_, size in self._writing)
        most = 2 * max(self._batch, self._writers)
        return len(self._writing) > most or held > MOST_BYTES

    def _finish_one(self) -> None:
        """Waits for the first file that is being written, and records what became of it."""
        item, future, _ = self._writing.popleft()
        try:
            written = future.result()
        except (ImageFileError, OSError) as error:
            self._fail(item, error)
            return
        self._report(item, written.notes)
        if written.is_copy:
            self.outcome.copied += 1
            self._add_row(item, tables.COPIED)
        else:
            self.outcome.restored += 1
            found = self._assessed.get(item)
            if found is not None and (doubt := found.doubt(written.change_db)):
                self._report(item, [doubt])
            seen, picture = written.judged or (None, None)
            if self._pictures is not None and seen is not None and picture is not None:
                self._pictures.add(item.relative.as_posix(), seen.expected_psnr, picture)
            change = written.change_db
            self._add_row(item, tables.RESTORED, change_db=change, verdict=seen)
        self._bar.update()

    def _fail(self, item: Item, error: Exception) -> None:
        line = " ".join(str(error).split())
        self._add_row(item, tables.FAILED, error=line)
        line = line if str(item.source) in line else f"{item.source}: {line}"
        self.outcome.failed.append(line)
        if self._listener is None:
            self._bar.write(f"error: {line}", file=sys.stderr)
        else:
            self._listener(item, error)
        self._bar.update()

    def _report(self, item: Item, notes: Sequence[str]) -> None:
        for note in notes:
            if self._listener is None:
                self._bar.write(f"{item.source}: {note}", file=sys.stderr)
            else:
                self._listener(item, note)

    def _add_row(self, item: Item, action: str, **values: Any) -> None:
        found = self._assessed.pop(item, None)
        if self._table is not None:
            place = item.relative.as_posix()
            self._table.add(Row(place, str(item.source), action, found, **values))


def files_beside(
    items: Sequence[Item], comparisons: pathlib.Path | None, maps: pathlib.Path | None
) -> Iterator[tuple[pathlib.Path, Item]]:
    """Yields the files that `restore_files` writes beside the restoration of each image."""
    for item in items:
        if comparisons is not None:
            yield _comparison_path(comparisons, item), item
        if maps is not None:
            for path in trust_maps.paths(maps, item.relative):
                yield path, item


def _comparison_path(folder: pathlib.Path, item: Item) -> pathlib.Path:
    return folder / item.relative.with_name(f"{item.relative.name}.png")


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
    parts = [f"{counted(outcome.restored, 'image')} restored into {output}"]
    if outcome.outside:
        left = f", {outcome.copied} of them copied unchanged" if outcome.copied else ""
        parts.append(f"{outcome.outside} outside of what the model knows{left}")
    if outcome.skipped:
        parts.append(f"{outcome.skipped} skipped, as they exist (--overwrite replaces them)")
    if passed_over:
        parts.append(f"passed over: {image_paths.format_passed_over(passed_over)}")
    if outcome.failed:
        raise RunError("; ".join([f"{len(outcome.failed)} failed, named above", *parts]))
    return "; ".join(parts)


def _threads() -> tuple[int, int]:
    """Returns the number of reading threads and of writing threads.

    Writing has more threads, because it takes five times as long.
    """
    count = cores.count()
    return (
        min(max(_MIN_THREADS, count // 4), _MAX_READERS),
        min(max(_MIN_THREADS, count), _MAX_WRITERS),
    )


def _notes_of_gains(gains: Sequence[np.ndarray]) -> list[str]:
    """Returns a note for each page of which a digital gain will be undone."""
    notes = []
    for number, found in enumerate(gains, start=1):
        if (found != 1).any():
            page = f"page {number}: " if len(gains) > 1 else ""
            values = ", ".join(f"{gain:.3f}" for gain in found)
            notes.append(f"{page}digital gain of {values} undone; --undo_gain=false keeps it")
    return notes


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
    pair = [np.atleast_3d(white_level.to_bytes(image, white)) for image in (before, after)]
    gap = np.full((pair[0].shape[0], 8, 3), 255, np.uint8)
    left, right = (np.broadcast_to(image, (*image.shape[:2], 3)) for image in pair)
    return np.concatenate([left, gap, right], axis=1)
