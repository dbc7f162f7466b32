"""Whether what is traced goes into a file for other programs.

Where a device or a size decides how something is computed fastest here, other programs may have
no word for the choice: within `tracing` the architectures take the plain way.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_is_on = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Has what is traced within it be portable.

    What was traced before, or is compiled within it, stays as it is: trace a new function.
    """
    token = _is_on.set(True)
    try:
        yield
    finally:
        _is_on.reset(token)


def is_on() -> bool:
    """Tells whether what is being traced has to be portable."""
    return _is_on.get()
