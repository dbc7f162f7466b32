"""What holds for the whole process for as long as any of its threads needs it."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any


class SharedContext:
    """Entered by the first thread that comes, and left by the last that goes.

    Args:
        make: makes the context manager.
    """

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._entered.enter_context(self._make())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._entered.close()
