"""Reads images ahead of the model, in threads and within a limit of memory."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterator, Sequence

from restore_jax.folders.plan import Item
from restore_jax.image_io.image_files import ImageFileError, Photograph

MOST_BYTES = 256 << 20
"""Images are read ahead of the model and written behind it, so that it does not wait for the
disk; each way up to this size, so that large photographs do not fill the memory."""


class ReadAhead:
    """Reads images ahead in threads and yields them in order.

    An image is only read if it fits into `MOST_BYTES` along with those already read but not
    taken, assuming that it is as large as the largest of the images read recently. If images
    become larger, the limit is exceeded by at most as many images as there are threads.

    Args:
        items: the images.
        threads: largest number of images read at the same time.
        most: largest number of images being read or waiting to be taken.
        read: reads one image.
    """

    def __init__(
        self,
        items: Sequence[Item],
        threads: int,
        most: int,
        read: Callable[[Item], Photograph],
    ) -> None:
        self._read_one = read
        self._remaining = iter(items)
        self._most, self._most_reading = most, threads
        self._threads = concurrent.futures.ThreadPoolExecutor(threads)
        # The lock guards the attributes below, which all threads change.
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[Item, concurrent.futures.Future[Photograph]]]
        self._waiting = collections.deque()
        self._reading = self._held = 0
        self._recent_sizes: collections.deque[int] = collections.deque(maxlen=threads)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._remaining = iter(())
        self._threads.shutdown(cancel_futures=True)

    def take(
        self, fail: Callable[[Item, Exception], None]
    ) -> Iterator[tuple[Item, Photograph]]:
        """Yields the images in order; those that cannot be read go to `fail` instead."""
        while True:
            self._start_reading()
            if not self._waiting:
                return
            item, future = self._waiting[0]
            try:
                photograph = future.result()
            except (ImageFileError, OSError, ValueError, MemoryError) as error:
                self._release(0)
                fail(item, error)
            else:
                self._release(size_of(photograph))
                yield item, photograph

    def _release(self, size: int) -> None:
        """Removes the first image, whose pixels take `size` bytes, from those waiting."""
        with self._lock:
            self._waiting.popleft()
            self._held -= size

    def _start_reading(self) -> None:
        """Starts reading as many images as there is room for; at least one if none waits."""
        with self._lock:
            while self._has_room() and (item := next(self._remaining, None)) is not None:
                self._reading += 1
                self._waiting.append((item, self._threads.submit(self._read, item)))

    def _has_room(self) -> bool:
        if not self._waiting:
            return True
        if len(self._waiting) >= self._most or self._reading >= self._most_reading:
            return False
        # Until the first image is read, no size is known.
        size = max(self._recent_sizes, default=MOST_BYTES)
        return self._held + (self._reading + 1) * size <= MOST_BYTES

    def _read(self, item: Item) -> Photograph:
        size = 0
        try:
            photograph = self._read_one(item)
            size = size_of(photograph)
            return photograph
        finally:
            with self._lock:
                self._reading -= 1
                self._held += size
                if size:
                    self._recent_sizes.append(size)
            self._start_reading()


def size_of(photograph: Photograph) -> int:
    """Returns the bytes of a photograph's pixels."""
    return sum(plane.nbytes for plane in photograph.planes)
