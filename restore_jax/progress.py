"""Progress of long tasks: a bar in a terminal, a line every 10 s in a log file."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import tqdm


def bar(
    items: Iterable[Any] | None = None,
    *,
    total: int,
    initial: int = 0,
    title: str | None = None,
    shown: bool = True,
) -> tqdm.tqdm:
    """Returns a progress bar over images.

    Args:
        items: what to iterate over; None: call `update` on the bar instead.
        total: number of images.
        initial: number of images already done.
        title: text before the bar.
        shown: whether the bar is shown at all.
    """
    in_terminal = sys.stderr.isatty()
    kind = tqdm.tqdm if in_terminal else _Lines
    return kind(
        items,
        total=total,
        initial=initial,
        desc=title,
        unit=" images",
        mininterval=0.2 if in_terminal else 10.0,
        dynamic_ncols=in_terminal,
        disable=not shown,
    )


class _Lines(tqdm.tqdm):
    """A bar for log files: each update is a separate line, and nothing moves the cursor."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def print_line(text: str) -> None:
            if text:
                file.write(f"{text}\n")
                file.flush()

        return print_line

    def clear(self, nolock: bool = False) -> None:
        """Does nothing: a log file keeps its lines."""

    def close(self) -> None:
        """Writes the final state."""
        if not self.disable:
            self.refresh()
            self.disable = True
            self._decr_instances(self)
