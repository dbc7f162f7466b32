"""Formats figures and names as text."""

import math
import numbers
from collections.abc import Mapping
from typing import Any


def defined(value: object) -> bool:
    """Returns whether a figure has a value: a number other than NaN and ±infinity."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Formats a figure with a fixed number of decimals, or as "n/a" if it has no value."""
    if not defined(value):
        return "n/a"
    plain = f"{abs(value):.{digits}f}"
    # No sign on a value that rounds to zero.
    is_zero = not plain.strip("0.")
    return ("" if is_zero else "−" if value < 0 else "+" if sign else "") + plain


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun, in the plural unless it is 1: "1 image", "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def percent(value: float | None, sign: bool = False) -> str:
    """Formats a share in [0, 1] as a percentage with one decimal; "n/a" if it has no value."""
    return number(value * 100, 1, sign) + " %" if defined(value) else "n/a"


def difference(after: float | None, before: float | None) -> float | None:
    """Returns `after - before`, or None if either has no value."""
    return after - before if defined(after) and defined(before) else None


def change(row: Mapping[str, Any], key: str, digits: int) -> str:
    """Formats a figure as "input → restored"; "n/a" if neither has a value."""
    before, after = row.get(f"input_{key}"), row.get(key)
    if not defined(before) and not defined(after):
        return number(None)
    return f"{number(before, digits)} → {number(after, digits)}"


def printable(text: str) -> str:
    """Replaces what UTF-8 cannot encode: file names need not be valid Unicode."""
    return text.encode("utf-8", "replace").decode("utf-8")
