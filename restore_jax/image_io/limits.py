"""How large an image may be: what it takes in memory is known before anything is decoded."""

import threading

from PIL import Image

MAX_MEGAPIXELS = 200
"""The limit where none is given, in millions of pixels of up to `BYTES` bytes."""

# RGB with alpha in 16 bits. A pixel of more bytes counts as several.
BYTES = 8


def problem(
    width: int,
    height: int,
    max_pixels: int,
    setting: str,
    samples: int = 1,
    sample_bytes: int = 1,
    planes: int = 1,
) -> str | None:
    """Tells whether an image has too many pixels.

    Args:
        width: in px.
        height: in px.
        max_pixels: the limit.
        setting: what raises it, such as `--max_megapixels`.
        samples: of a pixel.
        sample_bytes: what each of them takes.
        planes: how many pictures of that size there are.

    Returns:
        What is wrong and what to do; None if nothing is.
    """
    count = width * height * planes
    weighed = max(count, -(-count * samples * sample_bytes // BYTES))
    if weighed <= max_pixels:
        return None
    size = f"{width:,} × {height:,} pixels"
    if planes > 1:
        size = f"{planes:,} pictures of {size}"
    if weighed > count:
        size += f" with {samples} samples of {8 * sample_bytes} bits"
    needed = -(-weighed // 1_000_000)
    limit = f"{max_pixels / 1e6:g} megapixels"
    return f"has {size}, more than {limit}; {setting}={needed} takes it"


class _PillowsLifted:
    """Lifts Pillow's own limit for as long as any thread is inside.

    It is the whole process's, and set back by whoever is the last to leave.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._before


PILLOWS_LIFTED = _PillowsLifted()
"""Entered around what opens files with Pillow, whose size is then checked with `problem`."""
