"""Portable any-maps (PBM, PGM, PPM), whose samples are kept unscaled for any maximum value.

Pillow would scale samples to the whole range of their type and reduce colour to 8 bits.
"""

import re
from typing import BinaryIO

import numpy as np

# A number in the header, after white space and comments.
_NUMBER = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*?\s?(\d+)")
_LONGEST_HEADER = 1 << 16


class BadMapError(ValueError):
    """The file is not an any-map, or is damaged."""


def read_header(file: BinaryIO) -> tuple[int, int, int, int]:
    """Reads the header and moves to the first sample.

    Returns:
        The digit of the format, 1 to 6; width and height in px; and the maximum sample value,
        1 to 65,535.

    Raises:
        BadMapError: the header is truncated, or its maximum is out of range.
    """
    start = file.read(_LONGEST_HEADER)
    kind, position, numbers = int(start[1:2]), 2, []
    for _ in range(2 if kind in (1, 4) else 3):
        found = _NUMBER.match(start, position)
        if not found:
            raise BadMapError("its header ends early")
        numbers.append(int(found[1]))
        position = found.end()
    # A single white space ends the header of the binary formats.
    file.seek(position + (kind > 3))
    width, height, largest = numbers if len(numbers) == 3 else (*numbers, 1)
    if not 0 < largest < 65536:
        raise BadMapError(f"its maximum sample value is {largest}, not 1 to 65,535")
    return kind, width, height, largest


def read_samples(
    file: BinaryIO, kind: int, width: int, height: int, largest: int
) -> np.ndarray:
    """Reads the samples after the header; the arguments are what `read_header` returns.

    Returns:
        [H, W] or [H, W, 3], uint8 or uint16; bitmaps are 0 (black) and 255 (white).

    Raises:
        BadMapError: samples are missing or exceed the maximum.
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
        if kind == 1:  # its digits need no space between them
            text = b" ".join(re.findall(rb"[01]", text))
        words = text.split(maxsplit=count)[:count]
        if len(words) < count:
            raise BadMapError(f"has only {len(words):,} of {count:,} samples")
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
        raise BadMapError(f"has only {len(found):,} of {size:,} bytes")
    return found


def write(file: BinaryIO, samples: np.ndarray, largest: int) -> None:
    """Writes samples [H, W] or [H, W, 3], uint8 or uint16, as binary PGM or PPM."""
    height, width = samples.shape[:2]
    kind = b"P6" if samples.ndim == 3 else b"P5"
    file.write(b"%b\n%d %d\n%d\n" % (kind, width, height, largest))
    file.write(samples.astype(np.uint8 if largest < 256 else ">u2").tobytes())
