"""A context manager that the threads of a process share, for process-wide state."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any


class SharedContext:
    """Enters a context manager for the first thread inside and exits it with the last.

    Args:
        make: creates the context manager; called anew each time that a first thread enters.
    """

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._active = 0
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._active:
                self._entered.enter_context(self._make())
            self._active += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._active -= 1
            if not self._active:
                self._entered.close()
