"""Restores one photograph after the other in a thread, with models that are loaded once."""

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from restore_jax.errors import UsageError
from restore_jax.folders import plan, run, trust_maps
from restore_jax.image_io import image_files
from restore_jax.inference import white_level
from restore_jax.inference.restorer import Restorer
from restore_jax.parallel import host_memory
from restore_jax.serve.requests import Settings


class BusyError(Exception):
    """As many photographs wait as may."""


class AbandonedError(Exception):
    """A photograph is no longer waited for."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A photograph that is to be restored.

    Attributes:
        source: the photograph.
        target: where its restoration is written.
        settings: how it is restored.
        tell: called in the worker's thread, with the share of the picture that is restored.
        abandoned: set by whoever waits when the result is no longer needed.
    """

    source: Path
    target: Path
    settings: Settings
    tell: Callable[[float], None]
    abandoned: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored photograph.

    Attributes:
        source: the photograph as it was received.
        target: its restoration, in the same format.
        format: that format, as in `Photograph.format`.
        notes: what the command prints about it, one line each.
        extras: further pictures of it by title, such as maps, each a PNG file of its size.
        trained_white: the white level of the model's training; 0 if unknown.
    """

    source: Path
    target: Path
    format: str
    notes: tuple[str, ...] = ()
    extras: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    trained_white: int = 0


class Worker:
    """Restores photographs in one thread: JAX uses all cores for one.

    Args:
        names: names of the models; the first is the default.
        load: loads a model by its name.
        max_pixels: largest number of pixels of a photograph.
        max_waiting: largest number of photographs that are received, wait or are restored.

    Attributes:
        names: as given.
        max_pixels: as given.
        max_waiting: as given.
        waiting: number of photographs that are received, wait or are restored.

    Raises:
        UsageError: if the first model cannot be loaded.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Restorer],
        max_pixels: int,
        max_waiting: int,
    ) -> None:
        self.names, self.max_pixels, self.max_waiting = tuple(names), max_pixels, max_waiting
        self.waiting = 0
        self._load = load
        self._loaded = {self.names[0]: load(self.names[0])}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="restore")
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Takes a place in the queue.

        Raises:
            BusyError: if there is none.
        """
        if self.waiting >= self.max_waiting:
            raise BusyError
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @property
    def stopped(self) -> bool:
        """Returns whether it was stopped."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Abandons all photographs; the one being restored, before its next batch of tiles."""
        self._stopped.set()

    def close(self) -> None:
        """Stops and waits for the thread to end."""
        self.stop()
        self._thread.shutdown(cancel_futures=True)

    def submit(self, job: Job) -> concurrent.futures.Future[Restored]:
        """Restores a file as `--mode=restore` does.

        Returns:
            The result, or what it failed with: an `ImageFileError` or `ValueError` for a file
            that cannot be restored, `UsageError` for invalid settings, `RunError`,
            `AbandonedError`.
        """
        return self._thread.submit(self._restore, job)

    def _restore(self, job: Job) -> Restored:
        source, target, settings = job.source, job.target, job.settings

        def check(share: float) -> None:
            if job.abandoned.is_set() or self._stopped.is_set():
                raise AbandonedError
            job.tell(share)

        notes: list[str] = []

        def listen(item: plan.Item, said: str | Exception) -> None:
            if isinstance(said, Exception):
                raise said
            notes.append(said)

        check(0.0)
        extras = {}
        try:
            restorer = self._model(settings.model).with_options(check, **settings.options)
            if settings.trust and restorer.trust_map is None:
                notes.append("this model has no trust map")
            elif settings.trust:
                extras["Trust map"] = trust_maps.paths(target.parent, Path(target.name))[0]
            run.restore_files(
                restorer,
                [plan.Item(source, target, Path(target.name))],
                max_pixels=self.max_pixels,
                pages=settings.pages,
                white=settings.white,
                maps=target.parent if extras else None,
                listener=listen,
            )
        finally:
            host_memory.give_back()
        trained = white_level.trained_white(restorer)
        kind = image_files.format_of(target)
        return Restored(source, target, kind, tuple(notes), extras, trained)

    def _model(self, name: str | None) -> Restorer:
        name = name or self.names[0]
        if name not in self.names:
            raise UsageError(
                f"model={name}: not a model here; there are {', '.join(self.names)}"
            )
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]
