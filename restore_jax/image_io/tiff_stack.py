"""Stacks: the pictures of a TIFF file that belong together, with all their tags.

What tifffile recognises as one series (an ImageJ or OME stack, the pages of a scan) is restored
picture by picture and written with the same axes. Descriptions and private tags are copied byte
by byte, in the byte order of the source.
"""

import dataclasses
import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import tifffile

DESCRIPTION = 270
WHITE = 281  # MaxSampleValue
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_UNITS = range(1, 6)  # none, inch, cm, mm and µm
# Tags on how the pixels are stored, and those kept by other means: XMP, profile, EXIF.
_STORAGE = frozenset(
    (
        *range(254, 260), *range(262, 267), 273, 274, *range(277, 285), *range(288, 294), 296,
        301, 317, 320, 321, 322, 323, 324, 325, 330, *range(338, 342), 347, 400, 700,
        *range(512, 522), *range(529, 533), 32997, 32998, 34665, 34675, 34853, 37724, 40965,
    )
)  # fmt: skip
# Microscope tags whose values are file offsets, or shapes that differ from what is written.
_FILE_OFFSETS = frozenset(
    (33628, 33629, 33630, 33631, 34361, 34362, 34386, 34412, 37706)
) | frozenset(range(65420, 65461))
# Georeferencing tags, which are valid only for the stored orientation.
GEOGRAPHIC = frozenset((33550, 33922, 34264))
_DROPPED = _STORAGE | _FILE_OFFSETS
_POINTER_TYPES = (13, 18)
_FRACTION_TYPES = {5: "I", 10: "i"}
_TYPES_64_BIT = (16, 17)
_FILE_NAME = re.compile(r'FileName="([^"]+)"')
_SHAPED = re.compile(r'^\{"shape": \[')

# An extra tag for tifffile: code, type, count, value, whether only for the first picture.
Tag = tuple[int, int, int, Any, bool]


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """The properties of a TIFF file that its restoration keeps.

    Attributes:
        byteorder: "<" or ">".
        bigtiff: whether a tag has a 64-bit type, so that BigTIFF is needed.
        imagej: whether it is an ImageJ file, whose pictures have to be stored contiguously.
        tags: the tags of each picture.
        colormap: the palette of an ImageJ stack, which is only for display.
        resolution: horizontal and vertical resolution per unit, each a fraction, or None.
        unit: TIFF's number of the unit.
        white: the white level that the file states, or None.
        axes: the axes of the stack, without those within a picture; "" for a single picture.
        shape: the length of each of `axes`.
    """

    byteorder: str
    bigtiff: bool
    imagej: bool
    tags: tuple[tuple[Tag, ...], ...]
    colormap: np.ndarray | None
    resolution: tuple[tuple[int, int], tuple[int, int]] | None
    unit: int
    white: int | None
    axes: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """The pictures of a file that are to be read.

    Attributes:
        pages: the TIFF pages, one for each picture, or a single one that holds them all.
        count: number of pictures.
        axes: the axes of the stack, as in `Form`.
        shape: the length of each of `axes`.
        series: the series, to read all pictures from a single page; None if not needed.
        notes: what is left out, one line each.
        complete: whether these are all the pictures of the file.
        available: number of pictures that could be read, of this kind.
    """

    pages: tuple[tifffile.TiffPage, ...]
    count: int
    axes: str
    shape: tuple[int, ...]
    series: tifffile.TiffPageSeries | None
    notes: tuple[str, ...]
    complete: bool
    available: int

    def samples(self) -> Iterator[np.ndarray]:
        """Yields the samples [H, W, S] of each picture, in the order of the file."""
        page = self.pages[0]
        if len(self.pages) == self.count:
            for own in self.pages:
                yield _channels_last(own.asarray(), page)
            return
        assert self.series is not None
        planes = self.series.asarray()
        picture = page.shape[1:] if page.imagedepth > 1 else page.shape
        for plane in planes.reshape(self.count, *picture):
            yield _channels_last(plane, page)


def _channels_last(samples: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """Returns the samples of a picture as [H, W, S]; separate planes have their axis first."""
    if page.axes.replace("Z", "").startswith("S"):
        samples = np.moveaxis(samples, 0, -1)
    return samples.reshape(page.imagelength, page.imagewidth, -1)


def open_file(file: BinaryIO) -> tifffile.TiffFile:
    """Opens a TIFF file; a file of an OME set of several files is opened on its own."""
    tiff = tifffile.TiffFile(file)
    description = str(tiff.pages.first.description) if tiff.is_ome else ""
    if len(set(_FILE_NAME.findall(description))) > 1:
        file.seek(0)
        return tifffile.TiffFile(file, is_ome=False)
    return tiff


def find(tiff: tifffile.TiffFile, all_pages: bool) -> Stack:
    """Finds the pictures to be read.

    Args:
        tiff: the file.
        all_pages: whether to read the whole series with the most pixels, not just a picture.

    Raises:
        ValueError: the number of pictures contradicts the description of the file.
    """
    first = tiff.pages.first
    try:
        found = [series for series in tiff.series if not _is_auxiliary(series)]
        series = max(found, key=lambda series: series.size) if found else None
        total = len(tiff.pages)
    except Exception:  # pages beyond the first may be damaged
        series, total = None, 1
    if series is None or not set(series.keyframe.axes) <= set("ZYXS"):
        note = (f"only the first of its {total} pictures is read",) if total > 1 else ()
        return Stack((first,), 1, "", (), None, note, total == 1, total)
    page = series.keyframe
    own = page.shape[1:] if page.imagedepth > 1 else page.shape
    count = series.size // max(1, math.prod(own))
    axes = "".join(axis for axis in series.axes if axis not in "YXS")
    shape = tuple(
        length for axis, length in zip(series.axes, series.shape, strict=True)
        if axis not in "YXS"
    )  # fmt: skip
    if count > 1 and not all_pages:
        note = f"only the first of its {count} pictures is read"
        return Stack((page,), 1, "", (), None, (note,), False, count)
    pages = _pages(tiff, series, count)
    notes: tuple[str, ...] = ()
    if len(pages) not in (1, count) or math.prod(shape) != count:
        raise ValueError("its number of pictures differs from that in its description")
    if len(series.levels) > 1:
        notes += ("its smaller copies are left out",)
    if total > len(pages):
        notes += (f"its pictures of other kinds are left out ({total - len(pages)})",)
    return Stack(pages, count, axes, shape, series, notes, total == len(pages), count)


def _pages(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, count: int
) -> tuple[tifffile.TiffPage, ...]:
    """Returns the pages of a series of `count` pictures, or the one that holds them all."""
    indices = sorted(page.index for page in series.pages if page is not None)
    if len(indices) < count and indices:
        # The series lists fewer pages than pictures: those that follow in the file, if enough.
        following = range(indices[0], min(indices[0] + count, len(tiff.pages)))
        indices = list(following) if len(following) == count else indices[:1]
    return tuple(tiff.pages[index] for index in indices[:count] or [series.keyframe.index])


def _is_auxiliary(series: tifffile.TiffPageSeries) -> bool:
    """Returns whether a series is a thumbnail, a smaller copy or a mask of another."""
    return bool(series.keyframe.is_reduced or series.keyframe.is_mask)


def form(file: BinaryIO, tiff: tifffile.TiffFile, stack: Stack, turn: int) -> Form:
    """Returns the properties of a file that its restoration keeps.

    Args:
        file: the file, from which the values of tags are read.
        tiff: the same file, as parsed by tifffile.
        stack: the pictures to be read.
        turn: the stored orientation, 1 to 8, from which they are turned upright.
    """
    tags = [tuple(_tags(file, page, stack, turn)) for page in stack.pages]
    tags += [()] * (stack.count - len(tags))
    # Only if it is needed, since not all readers support BigTIFF.
    is_big = any(tag[1] in _TYPES_64_BIT for own in tags for tag in own)
    page = stack.pages[0]
    is_imagej = bool(tiff.is_imagej) and stack.complete
    return Form(
        tiff.byteorder,
        is_big,
        is_imagej,
        tuple(tags),
        np.asarray(page.colormap) if tiff.is_imagej and page.colormap is not None else None,
        _resolution(page, turn),
        unit if (unit := page.tags.valueof(_UNIT, 2)) in _UNITS else 1,
        white_of(page),
        stack.axes,
        stack.shape,
    )


def _resolution(page: Any, turn: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    horizontal, vertical = (page.tags.valueof(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    for value in (horizontal, vertical):
        if not (isinstance(value, tuple) and len(value) == 2 and min(value) > 0):
            return None
    return (vertical, horizontal) if turn >= 5 else (horizontal, vertical)


def white_of(page: Any) -> int | None:
    """Returns the white level of 16-bit samples, by bit depth or tag; None if not stated."""
    if 8 < page.bitspersample < 16:
        return int(2**page.bitspersample - 1)
    value = page.tags.valueof(WHITE)
    value = min(value) if isinstance(value, tuple) and value else value
    is_white = page.bitspersample == 16 and isinstance(value, int) and 255 < value < 65535
    return value if is_white else None


def _tags(file: BinaryIO, page: Any, stack: Stack, turn: int) -> Iterator[Tag]:
    """Yields the tags of a page that are still valid for its restoration, turned upright."""
    seen = set()
    for tag in page.aspage().tags:
        if tag.code in seen or tag.code in _DROPPED or int(tag.dtype) in _POINTER_TYPES:
            continue
        if tag.code in GEOGRAPHIC and turn != 1:
            continue
        seen.add(tag.code)
        file.seek(tag.valueoffset)
        value = file.read(tag.valuebytecount)
        if int(tag.dtype) in _FRACTION_TYPES:  # tifffile accepts these only as numbers
            kind = _FRACTION_TYPES[int(tag.dtype)]
            value = struct.unpack(f"{page.parent.byteorder}{2 * tag.count}{kind}", value)
        if tag.code == DESCRIPTION:
            text = value.rstrip(b"\0").decode("latin-1")
            changed = not stack.complete or turn >= 5
            if is_structured(text) and not _SHAPED.match(text) and changed:
                continue
        yield tag.code, int(tag.dtype), tag.count, value, len(stack.pages) != stack.count


def is_structured(description: str) -> bool:
    """Returns whether a description tells programs how the pictures of a file form a stack."""
    start = description.lstrip()[:400]
    return start.startswith(("ImageJ=", '{"shape"', "shape=(", "SCANIMAGE")) or (
        start.startswith("<") and "OME" in start
    )


def shaped_description(axes: str, shape: Sequence[int], **fields: Any) -> Tag:
    """Returns a description tag with axes and shape, in the form that tifffile writes."""
    made = {"shape": list(shape), "axes": axes} | fields
    value = json.dumps(made).encode("ascii") + b"\0"
    return DESCRIPTION, 2, len(value), value, True


def is_shaped_description(tag: Tag) -> bool:
    """Returns whether a tag is a description in the form that tifffile writes."""
    return tag[0] == DESCRIPTION and bool(_SHAPED.match(tag[3].decode("latin-1")))


def adapt_descriptions(tags: Sequence[Tag], axes: str, shape: Sequence[int]) -> tuple[Tag, ...]:
    """Updates descriptions in tifffile's form to the axes and shape that are written."""
    return tuple(_adapt_description(tag, axes, shape) for tag in tags)


def _adapt_description(tag: Tag, axes: str, shape: Sequence[int]) -> Tag:
    if not is_shaped_description(tag):
        return tag
    fields = json.loads(tag[3].rstrip(b"\0"))
    for name in ("shape", "truncated"):
        fields.pop(name, None)
    # Axes that are only listed in another order keep the names and order of the source.
    if sorted(fields.get("axes", "")) == sorted(axes):
        axes = fields.pop("axes") if fields["axes"][-2:] == axes[-2:] else axes
    fields.pop("axes", None)
    return shaped_description(axes, shape, **fields)


def reads_as(file: BinaryIO, axes: str, shape: Sequence[int]) -> bool:
    """Returns whether tifffile finds one series of these axes and shape (lengths > 1 only)."""
    try:
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            found = tiff.series[0]
            is_only = len(tiff.series) == 1
            pairs = [p for p in zip(found.axes, found.shape, strict=True) if p[1] > 1]
    except Exception:  # tifffile raises many kinds of errors on inconsistent tags
        return False
    wanted = [pair for pair in zip(axes, shape, strict=True) if pair[1] > 1]
    return is_only and pairs == wanted
