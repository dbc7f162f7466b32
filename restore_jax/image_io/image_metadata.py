"""Metadata of image files: EXIF, resolution, XMP."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image

from restore_jax.image_io import tiff_stack

ORIENTATION = 274
# The main tags that describe the photograph: title, make, model, software, time, artist, host,
# rating, copyright and those that Windows adds.
DESCRIPTIVE = (
    270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, 40091, 40092, 40093, 40094, 40095,
)  # fmt: skip
RESOLUTION = _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Tags of the Exif IFD on how the file stores its pixels: width, height and others.
_STORAGE = (40962, 40963, 40965)
# XMP has it as an attribute or as an element.
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))\s*([1-8])")


def load_exif(load: Callable[[], Image.Exif]) -> Image.Exif | None:
    """Returns EXIF data, or None if they are damaged, which does not make the file unusable."""
    try:
        exif = load()
        for ifd in _IFDS:
            exif.get_ifd(ifd)
    except Exception:
        return None
    return exif


def parse_exif(content: bytes) -> Image.Exif:
    """Parses the bytes of a file's EXIF field, which may be empty."""
    exif = Image.Exif()
    exif.load(content)
    return exif


def descriptive(exif: Image.Exif) -> bytes:
    """Encodes the EXIF data that hold for any copy of the photograph; empty if there are none.

    This excludes the orientation, the thumbnail and how the file stores its pixels.
    """
    kept = Image.Exif()
    for tag in DESCRIPTIVE:
        if tag == tiff_stack.DESCRIPTION and tiff_stack.is_structured(str(exif.get(tag))):
            continue  # the description of a stack, not of the photograph
        if exif.get(tag) not in (None, "", b""):
            kept[tag] = exif[tag]
    for ifd in _IFDS:
        values = exif.get_ifd(ifd)
        values = {tag: value for tag, value in values.items() if tag not in _STORAGE}
        if values:
            kept[ifd] = values
    return kept.tobytes() if len(kept) else b""


def has_ifds(exif: bytes) -> bool:
    """Returns whether EXIF data include camera settings or a GPS location."""
    found = parse_exif(exif)
    return any(ifd in found for ifd in _IFDS)


def orientation(exif: Mapping[int, Any], xmp: bytes) -> int:
    """Returns the orientation, 1 to 8, from EXIF, else from XMP, else 1 (upright)."""
    in_xmp = _XMP_ORIENTATION.search(xmp)
    found = exif.get(ORIENTATION) or (int(in_xmp[2]) if in_xmp else 1)
    return found if found in range(1, 9) else 1


def upright_xmp(xmp: bytes) -> bytes:
    """Returns an XMP packet with its orientation set to upright."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def exif_dpi(exif: Mapping[int, Any]) -> tuple[float, float] | None:
    """Returns the resolution in EXIF or TIFF tags, in px per inch, or None."""
    return dpi_of(*(exif.get(tag) for tag in RESOLUTION))


def dpi_of(horizontal: Any, vertical: Any, unit: Any) -> tuple[float, float] | None:
    """Converts a resolution to px per inch.

    Args:
        horizontal: a number, or a numerator and a denominator.
        vertical: likewise.
        unit: TIFF's number of the unit; None for inches.

    Returns:
        The horizontal and vertical resolution; None if they or the unit are invalid.
    """
    factor = {None: 1.0, 2: 1.0, 3: 2.54, 4: 25.4, 5: 25400.0}.get(unit)
    try:
        both = valid_dpi(
            value[0] / value[1] if isinstance(value, tuple) else value
            for value in (horizontal, vertical)
        )
    except (TypeError, IndexError, ZeroDivisionError):
        return None
    return (both[0] * factor, both[1] * factor) if both and factor else None


def valid_dpi(dpi: Any) -> tuple[float, float] | None:
    """Returns a resolution as two floats, or None unless both are in (0, 1e6)."""
    try:
        horizontal, vertical = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e6 and 0 < vertical < 1e6 else None


def with_dpi(exif: bytes, dpi: tuple[float, float]) -> bytes:
    """Adds a resolution in px per inch to EXIF data."""
    found = parse_exif(exif)
    found[_X_RESOLUTION], found[_Y_RESOLUTION] = dpi
    found[_RESOLUTION_UNIT] = 2
    return found.tobytes()
