"""Filters for the tracebacks that Orbax prints of failures that it raises as well."""

import logging
import sys
from typing import Any


def _is_worth_logging(entry: logging.LogRecord) -> bool:
    """Returns False for tracebacks of Orbax's failed saves, which are raised as well."""
    from_orbax = "orbax" in entry.pathname or "OCDBT" in entry.getMessage()
    return not from_orbax or not entry.exc_info


def _is_worth_showing(unraisable: Any) -> bool:
    """Returns False for what Orbax's other reads and writes raise once one has failed."""
    name = getattr(unraisable.object, "__qualname__", "")
    return "Event loop is closed" not in str(unraisable.exc_value) and "serialize" not in name


def quieten_orbax() -> None:
    """Keeps Orbax's tracebacks of failures that are raised as well off the terminal."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_worth_logging)
    shown = sys.unraisablehook
    if getattr(shown, "quietened", False):
        return

    def show(unraisable: Any) -> None:
        if _is_worth_showing(unraisable):
            shown(unraisable)

    show.quietened = True
    sys.unraisablehook = show
