"""Portable any-maps (PBM, PGM, PPM): their samples as they are, whatever the largest may be.

Pillow scales samples to the whole range of their type and keeps 8 bits of colour.
"""

import re
from typing import BinaryIO

import numpy as np

# A number of the header, after white space and comments.
_NUMBER = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*?\s?(\d+)")
_LONGEST_HEADER = 1 << 16


class BadMapError(ValueError):
    """The file is no any-map, or damaged."""


def read_header(file: BinaryIO) -> tuple[int, int, int, int]:
    """Reads as far as the samples.

    Returns:
        The digit of the format, 1 to 6; width, height; and the largest sample.
    """
    start = file.read(_LONGEST_HEADER)
    kind, place, numbers = int(start[1:2]), 2, []
    for _ in range(2 if kind in (1, 4) else 3):
        found = _NUMBER.match(start, place)
        if not found:
            raise BadMapError("its header ends early")
        numbers.append(int(found[1]))
        place = found.end()
    # One white space ends the header.
    file.seek(place + (kind > 3))
    width, height, largest = numbers if len(numbers) == 3 else (*numbers, 1)
    if not 0 < largest < 65536:
        raise BadMapError(f"its largest sample is {largest}; there may be 1 to 65,535")
    return kind, width, height, largest


def read_samples(
    file: BinaryIO, kind: int, width: int, height: int, largest: int
) -> np.ndarray:
    """Reads samples after the header.

    Returns:
        [H, W] or [H, W, 3], uint8 or uint16; of bitmaps 0 (black) and 255.
    """
    channels = 3 if kind in (3, 6) else 1
    count = height * width * channels
    if kind == 4:
        rows = np.frombuffer(_read(file, height * ((width + 7) // 8)), np.uint8)
        bits = np.unpackbits(rows.reshape(height, -1), axis=1)[:, :width]
        return np.where(bits, 0, 255).astype(np.uint8)
    if kind > 3:
        dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
        samples = np.frombuffer(_read(file, count * dtype.itemsize), dtype)
    else:
        text = re.sub(rb"#[^\n\r]*", b"", file.read())
        if kind == 1:  # whose digits need no space between them
            text = b" ".join(re.findall(rb"[01]", text))
        words = text.split(maxsplit=count)[:count]
        if len(words) < count:
            raise BadMapError(f"has {len(words):,} of {count:,} samples")
        samples = np.array([int(word) for word in words])
    if samples.max() > largest:
        raise BadMapError(f"has samples above {largest}")
    if kind == 1:
        samples = np.where(samples, 0, 255)
    samples = samples.astype(np.uint8 if largest < 256 else np.uint16)
    return samples.reshape((height, width, 3) if channels == 3 else (height, width))


def _read(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise BadMapError(f"has {len(found):,} of {size:,} bytes")
    return found


def write(file: BinaryIO, samples: np.ndarray, largest: int) -> None:
    """Writes uint8 or uint16 [H, W] or [H, W, 3]."""
    height, width = samples.shape[:2]
    kind = b"P6" if samples.ndim == 3 else b"P5"
    file.write(b"%b\n%d %d\n%d\n" % (kind, width, height, largest))
    file.write(samples.astype(np.uint8 if largest < 256 else ">u2").tobytes())
