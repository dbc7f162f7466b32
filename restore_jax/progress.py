"""Progress of long tasks: a bar in a terminal, now and then a line in a log file."""

import collections
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import tqdm

# Speed is that of the last two minutes: long enough to include the validations of short epochs.
WINDOW = 120.0

# Log files get a line after each 5 % more of the time taken so far, within these limits in
# seconds: about 500 lines for a training of three days.
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 600.0


def bar(
    items: Iterable[Any] | None = None,
    *,
    total: int,
    initial: int = 0,
    title: str | None = None,
    shown: bool = True,
) -> "Bar":
    """Returns a progress bar over images.

    Args:
        items: what to iterate over; None: call `update` on the bar instead.
        total: number of images.
        initial: number of images already done.
        title: text before the bar.
        shown: whether the bar is shown at all.
    """
    in_terminal = sys.stderr.isatty()
    kind = Bar if in_terminal else _Lines
    return kind(
        items,
        total=total,
        initial=initial,
        desc=title,
        unit=" images",
        mininterval=0.2 if in_terminal else SHORTEST_PAUSE,
        # Compares times at every update, so that no line is left to tqdm's own estimate.
        miniters=1,
        dynamic_ncols=in_terminal,
        disable=not shown,
    )


class Speed:
    """The current speed of a task: that of the last minutes.

    The time before the first images is left out, since programs are compiled in it.
    """

    def __init__(self) -> None:
        self._marks: collections.deque[tuple[float, int]] = collections.deque()
        self._began: float | None = None

    def add(self, seconds: float, count: int) -> None:
        """Notes that `count` images were done at a time in seconds, of any clock."""
        marks = self._marks
        if self._began is None:
            self._began = seconds
        # At most two marks per second: the newest is moved on. This also joins the images of a
        # batch, of which the first one alone would say nothing of the speed.
        newest_span = marks[-1][0] - marks[-2][0] if len(marks) > 1 else seconds - self._began
        if marks and newest_span < 0.5:
            marks.pop()
        marks.append((seconds, count))
        while len(marks) > 2 and seconds - marks[1][0] >= WINDOW:
            marks.popleft()

    @property
    def rate(self) -> float:
        """Images per second; 0 where it is not known yet."""
        if len(self._marks) < 2:
            return 0.0
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start)

    @property
    def measured(self) -> float:
        """Seconds since the first images were done."""
        return self._marks[-1][0] - self._began if self._began is not None else 0.0


class Bar(tqdm.tqdm):
    """A bar that shows the current speed, and the time left at that speed.

    Attributes:
        speed: the speed so far.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.speed = Speed()
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        # tqdm's own loop counts in portions, for which it keeps a fixed interval.
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: int = 1) -> bool | None:
        """Counts `n` images more."""
        if not self.disable:
            self.speed.add(time.monotonic(), self.n + n)
        return super().update(n)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar is made of; when all is done, its speed is the mean."""
        fields = super().format_dict
        return fields | {"rate": None if self.n == self.total else self.speed.rate}


class _Lines(Bar):
    """A bar for log files: each update is a separate line, and nothing moves the cursor."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def print_line(text: str) -> None:
            if text:
                file.write(f"{text}\n")
                file.flush()

        return print_line

    def display(self, *args: Any, **kwargs: Any) -> bool:
        """Writes a line, and waits longer for the next one the longer the task takes."""
        elapsed = self.format_dict["elapsed"]
        self.mininterval = min(max(0.05 * elapsed, SHORTEST_PAUSE), LONGEST_PAUSE)
        return super().display(*args, **kwargs)

    def clear(self, nolock: bool = False) -> None:
        """Does nothing: a log file keeps its lines."""

    def close(self) -> None:
        """Writes the final state, unless the last line shows it."""
        if not self.disable:
            if self.last_print_n != self.n:
                self.refresh()
            self.disable = True
            self._decr_instances(self)
