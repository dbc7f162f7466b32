"""SIGTERM and Ctrl-C as requests: a training finishes its step and saves before it obeys."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from restore_jax.errors import RunError


class Interrupted(RunError):
    """A training was asked to stop, and did so with everything saved.

    Args:
        message: how far it came and how to go on.
        received: the signal that asked.
    """

    def __init__(self, message: str, received: signal.Signals) -> None:
        super().__init__(message)
        # What a shell reports of a program that a signal ended: 143 for SIGTERM, 130 for
        # SIGINT.
        self.exit_status = 128 + received


@dataclasses.dataclass
class Request:
    """Whether somebody asked to stop.

    Attributes:
        received: the first signal that came; None before.
    """

    received: signal.Signals | None = None


@contextlib.contextmanager
def noted() -> Iterator[Request]:
    """Takes SIGTERM and SIGINT for requests while it lasts; a second Ctrl-C stops at once.

    Outside the main thread, where signals cannot be received, no request ever comes.

    Raises:
        KeyboardInterrupt: for the second Ctrl-C, wherever the program then is.
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if request.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        request.received = signal.Signals(number)
        again = " (Ctrl-C once more stops at once)" if number == signal.SIGINT else ""
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{request.received.name}: finishing the step, saving{again}\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {
        number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            # None: it was not set by Python, and cannot be from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
