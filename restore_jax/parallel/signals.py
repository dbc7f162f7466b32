"""SIGTERM and Ctrl-C as requests: a training finishes its step and saves before it stops."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from restore_jax.errors import RunError


class Interrupted(RunError):
    """A training was stopped by a signal, after saving everything.

    Args:
        message: how far it got and how to resume it.
        received: the signal.
    """

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        # The status that a shell reports for a program ended by a signal: 143 for SIGTERM, 130
        # for SIGINT.
        self.exit_status = 128 + received


@dataclasses.dataclass
class Request:
    """A request to stop.

    Attributes:
        received: the first signal received; None if there was none.
    """

    received: signal.Signals | None = None


@contextlib.contextmanager
def as_requests() -> Iterator[Request]:
    """Turns SIGTERM and SIGINT into requests to stop; a second Ctrl-C stops at once.

    Outside the main thread, where no signal can be received, no request is ever made.

    Raises:
        KeyboardInterrupt: for the second Ctrl-C, wherever the program is at that time.
    """
    request = Request()

    def record(number: int, frame: FrameType | None) -> None:
        del frame
        if request.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        request.received = signal.Signals(number)
        again = " (press Ctrl-C again to stop at once)" if number == signal.SIGINT else ""
        # Not print, which is not reentrant: the signal may have interrupted one.
        os.write(2, f"\n{request.received.name}: finishing the step, saving{again}\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {
        number: signal.signal(number, record) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            # None: the handler was not installed from Python and cannot be restored from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
