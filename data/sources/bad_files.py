"""Finding the images that cannot be read before a training begins, to leave them out of it."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from restore_jax import progress

SHOWN = 3  # files that a line names
THREADS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[concurrent.futures.Future[Result]]:
    """Applies a function to items in threads, a few ahead of what is asked for.

    Args:
        function: lets other threads run, as decoders do.
        items: taken from as there is room; a large photograph takes megabytes.

    Yields:
        What became of each item, in their order.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft()
        yield from waiting


def with_progress(items: Iterable[Item], total: int, name: str) -> Iterable[Item]:
    """Shows how many of a data set's files were read."""
    return progress.bar(items, total=total, title=f"{name}: reading every image once")


def report(name: str, problems: Sequence[str], total: int) -> None:
    """Prints how many images are left out, if any are, and the first of them.

    Args:
        name: of the data.
        problems: for each image that is left out, its file and what is wrong with it.
        total: the images there were.
    """
    if problems:
        print(
            f"{name}: {len(problems)} of {total} images left out, they cannot be read: "
            f"{_some(problems)}"
        )


def report_blank(name: str, files: Sequence[str], total: int) -> None:
    """Prints how many masks show nothing of a defect that there is, if any do.

    Args:
        name: of the data.
        files: the masks.
        total: defective photographs there are.
    """
    if files:
        print(
            f"{name}: {len(files)} of {total} defective photographs have a blank mask, which "
            f"counts as not known: {_some(files)}"
        )


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return f"{', '.join(sorted(texts)[:SHOWN])}{more}"
