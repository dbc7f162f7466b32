"""Finds and reports images that cannot be read, so that training can leave them out."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from restore_jax import progress

_SHOWN = 3  # number of files that a message names
THREADS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[concurrent.futures.Future[Result]]:
    """Applies a function to items in threads, a few items ahead of the consumer.

    Args:
        function: should release the GIL, as image decoders do.
        items: consumed lazily, since a large photograph takes megabytes.

    Yields:
        The completed or pending future of each item, in order.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft()
        yield from waiting


def with_progress(items: Iterable[Item], total: int, name: str) -> Iterable[Item]:
    """Iterates over items with a progress bar for reading a data set's images."""
    return progress.bar(items, total=total, title=f"{name}: reading every image once")


def report(name: str, problems: Sequence[str], total: int) -> None:
    """Prints how many images are left out, if any, and names the first few.

    Args:
        name: name of the data set.
        problems: for each image that is left out, its file and what is wrong with it.
        total: number of images, including those left out.
    """
    if problems:
        print(
            f"{name}: {len(problems)} of {total} images left out, unreadable: "
            f"{first_few(problems)}"
        )


def report_blank(name: str, files: Sequence[str], total: int) -> None:
    """Prints how many defective photographs have a blank mask, if any.

    Args:
        name: name of the data set.
        files: the blank masks.
        total: number of defective photographs.
    """
    if files:
        print(
            f"{name}: {len(files)} of {total} defective photographs with a blank mask, which "
            f"counts as unknown: {first_few(files)}"
        )


def report_stacks(name: str, files: Sequence[str]) -> None:
    """Prints of how many files only the first picture is read, if any.

    Args:
        name: name of the data set.
        files: each such file and its number of pictures.
    """
    if files:
        print(
            f"{name}: only the first picture of a stack is read ({first_few(files)}); save the "
            "others as files of their own to use them"
        )


def first_few(texts: Sequence[str]) -> str:
    """Returns the first few of some names for a message, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{', '.join(sorted(texts)[:_SHOWN])}{more}"
