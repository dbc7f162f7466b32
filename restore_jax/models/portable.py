"""A switch for tracing a model that is exported to other programs.

Some layers choose the fastest implementation by device or size, which other programs may not
be able to express: within `tracing`, the architectures use the plain implementation.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_is_on = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Makes everything traced within it portable.

    JAX reuses functions that were traced before, so trace a new function.
    """
    token = _is_on.set(True)
    try:
        yield
    finally:
        _is_on.reset(token)


def is_on() -> bool:
    """Returns whether the current trace has to be portable."""
    return _is_on.get()
