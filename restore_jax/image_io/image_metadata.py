"""What image files tell beside their pixels: EXIF, resolution, XMP."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image

from restore_jax.image_io import tiff_stack

ORIENTATION = 274
# Of a file's own tags, those that describe the photograph: title, make, model, software, time,
# artist, host, rating, copyright and what Windows adds.
DESCRIPTIVE = (
    270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, 40091, 40092, 40093, 40094, 40095,
)  # fmt: skip
RESOLUTION = _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Of the camera's tags, those of how the file stores its pixels: width, height and further.
_STORAGE = (40962, 40963, 40965)
# In XMP as an attribute or as an element.
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))\s*([1-8])")


def load_exif(load: Callable[[], Image.Exif]) -> Image.Exif | None:
    """Returns EXIF data, or None if they are damaged: no reason to refuse the photograph."""
    try:
        exif = load()
        for folder in _FOLDERS:
            exif.get_ifd(folder)
    except Exception:
        return None
    return exif


def parse_exif(content: bytes) -> Image.Exif:
    """Parses what a file has in its EXIF field; that may be nothing."""
    exif = Image.Exif()
    exif.load(content)
    return exif


def descriptive(exif: Image.Exif) -> bytes:
    """Keeps of EXIF data what holds for any copy of the photograph.

    That leaves out the orientation, the thumbnail and how the file stores its pixels.
    """
    kept = Image.Exif()
    for tag in DESCRIPTIVE:
        if tag == tiff_stack.DESCRIPTION and tiff_stack.is_structured(str(exif.get(tag))):
            continue  # which tells of a stack
        if exif.get(tag) not in (None, "", b""):
            kept[tag] = exif[tag]
    for folder in _FOLDERS:
        values = exif.get_ifd(folder)
        values = {tag: value for tag, value in values.items() if tag not in _STORAGE}
        if values:
            kept[folder] = values
    return kept.tobytes() if len(kept) else b""


def has_folders(exif: bytes) -> bool:
    """Whether EXIF data tell of the camera's settings or of the place."""
    found = parse_exif(exif)
    return any(folder in found for folder in _FOLDERS)


def orientation(exif: Mapping[int, Any], xmp: bytes) -> int:
    """Returns the orientation, 1 to 8, that EXIF or else XMP tells; 1, upright, if neither."""
    told = _XMP_ORIENTATION.search(xmp)
    found = exif.get(ORIENTATION) or (int(told[2]) if told else 1)
    return found if found in range(1, 9) else 1


def upright_xmp(xmp: bytes) -> bytes:
    """Returns an XMP packet for the same photograph turned upright."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def exif_dpi(exif: Mapping[int, Any]) -> tuple[float, float] | None:
    """Returns the resolution that EXIF or TIFF tags tell, in px per inch."""
    return dpi_of(*(exif.get(tag) for tag in RESOLUTION))


def dpi_of(horizontal: Any, vertical: Any, unit: Any) -> tuple[float, float] | None:
    """Returns a resolution in px per inch.

    Args:
        horizontal: as a number or as numerator and denominator.
        vertical: likewise.
        unit: by TIFF's number; None for inches.
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
    """Returns a resolution as two floats, or None if it is none that means anything."""
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
