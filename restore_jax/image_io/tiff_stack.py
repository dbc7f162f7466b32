"""The pictures of a TIFF file that belong together, and all that the file tells beside them.

What tifffile finds to be one series (an ImageJ or OME stack, the pages of a scan) is restored
picture by picture and written with the same axes. Descriptions and private tags go along as the
bytes that they are, in the byte order of the source.
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
WHITE = 281  # the largest sample
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_UNITS = range(1, 6)  # none, inch, cm, mm and µm
# Of how the pixels are stored, or kept by other means: XMP, profile, EXIF.
_STORAGE = frozenset(
    (
        *range(254, 260), *range(262, 267), 273, 274, *range(277, 285), *range(288, 294), 296,
        301, 317, 320, 321, 322, 323, 324, 325, 330, *range(338, 342), 347, 400, 700,
        *range(512, 522), *range(529, 533), 32997, 32998, 34665, 34675, 34853, 37724, 40965,
    )
)  # fmt: skip
# Those of microscopes whose values are places in the file, or shapes beyond what is written.
_PLACES = frozenset(
    (33628, 33629, 33630, 33631, 34361, 34362, 34386, 34412, 37706)
) | frozenset(range(65420, 65461))
# Where the picture's pixels are on Earth: true of it as stored alone.
GEOGRAPHIC = frozenset((33550, 33922, 34264))
_DROPPED = _STORAGE | _PLACES
_POINTERS = (13, 18)
_FRACTIONS = {5: "I", 10: "i"}
_OF_64_BITS = (16, 17)
_FILE_NAME = re.compile(r'FileName="([^"]+)"')
_SHAPED = re.compile(r'^\{"shape": \[')

# Code, type, count, value, whether for the first picture alone: as tifffile takes it.
Tag = tuple[int, int, int, Any, bool]


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """What is written again, in the same form.

    Attributes:
        byteorder: "<" or ">".
        bigtiff: whether a tag has 64 bits.
        imagej: whether the file is ImageJ's, which finds pictures one behind the other.
        tags: of each picture.
        colormap: of an ImageJ stack, whose palette only shows its levels in colour.
        resolution: across and down, each a fraction, per unit; None where there is none.
        unit: by TIFF's number.
        white: the level that the file tells is white; None where it tells none.
        axes: of the pictures, without those of each: "" for one alone.
        shape: the length of each of these.
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
    """The pictures of a file that are read.

    Attributes:
        pages: their entries; one where it holds all of them.
        count: how many pictures there are.
        axes, shape: as of `Form`.
        series: to read them together.
        notes: what is left out, each a line.
    """

    pages: tuple[tifffile.TiffPage, ...]
    count: int
    axes: str
    shape: tuple[int, ...]
    series: tifffile.TiffPageSeries | None
    notes: tuple[str, ...]
    complete: bool

    def levels(self) -> Iterator[np.ndarray]:
        """Yields the samples of each picture, [H, W, S], in the order of the file."""
        page = self.pages[0]
        if len(self.pages) == self.count:
            for own in self.pages:
                yield _last_axis(own.asarray(), page)
            return
        assert self.series is not None
        planes = self.series.asarray()
        picture = page.shape[1:] if page.imagedepth > 1 else page.shape
        for plane in planes.reshape(self.count, *picture):
            yield _last_axis(plane, page)


def _last_axis(levels: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    if page.axes.replace("Z", "").startswith("S"):
        levels = np.moveaxis(levels, 0, -1)
    return levels.reshape(page.imagelength, page.imagewidth, -1)


def opened(file: BinaryIO) -> tifffile.TiffFile:
    """Opens a TIFF file; of a set of several files, this one by itself."""
    tiff = tifffile.TiffFile(file)
    description = str(tiff.pages.first.description) if tiff.is_ome else ""
    if len(set(_FILE_NAME.findall(description))) > 1:
        file.seek(0)
        return tifffile.TiffFile(file, is_ome=False)
    return tiff


def find(tiff: tifffile.TiffFile, whole: bool) -> Stack:
    """Finds the pictures that are to be read.

    Args:
        tiff: the file.
        whole: whether all of the series with the most pixels, or else the first picture.
    """
    first = tiff.pages.first
    try:
        found = [series for series in tiff.series if not _is_aside(series)]
        series = max(found, key=lambda series: series.size) if found else None
        total = len(tiff.pages)
    except Exception:  # pages beyond the first may be damaged
        series, total = None, 1
    if series is None or not set(series.keyframe.axes) <= set("ZYXS"):
        note = (f"only the first of its {total} pictures is read",) if total > 1 else ()
        return Stack((first,), 1, "", (), None, note, total == 1)
    page = series.keyframe
    own = page.shape[1:] if page.imagedepth > 1 else page.shape
    count = series.size // max(1, math.prod(own))
    axes = "".join(axis for axis in series.axes if axis not in "YXS")
    shape = tuple(
        length for axis, length in zip(series.axes, series.shape, strict=True)
        if axis not in "YXS"
    )  # fmt: skip
    if count > 1 and not whole:
        note = f"only the first of its {count} pictures is read"
        return Stack((page,), 1, "", (), None, (note,), False)
    indices = sorted(page.index for page in series.pages if page is not None)
    if len(indices) < count and indices:
        behind = range(indices[0], min(indices[0] + count, total))
        indices = list(behind) if len(behind) == count else indices[:1]
    pages = tuple(tiff.pages[index] for index in indices[:count] or [page.index])
    notes: tuple[str, ...] = ()
    if len(pages) not in (1, count) or math.prod(shape) != count:
        raise ValueError("its pictures are not as many as its description says")
    if len(series.levels) > 1:
        notes += ("its smaller copies are left out",)
    if total > len(pages):
        notes += (f"{total - len(pages)} further pictures of other kinds are left out",)
    return Stack(pages, count, axes, shape, series, notes, total == len(pages))


def _is_aside(series: tifffile.TiffPageSeries) -> bool:
    """Whether it is a thumbnail, a smaller copy or a mask of another."""
    return bool(series.keyframe.is_reduced or series.keyframe.is_mask)


def form(file: BinaryIO, tiff: tifffile.TiffFile, stack: Stack, turn: int) -> Form:
    """Returns the form of a file.

    Args:
        file: to read values from.
        tiff: the same.
        stack: the pictures.
        turn: the orientation, 1 to 8, by which they are turned upright.
    """
    tags = [tuple(_tags(file, page, stack, turn)) for page in stack.pages]
    tags += [()] * (stack.count - len(tags))
    # Only where it is needed: not all readers take BigTIFF.
    is_big = any(tag[1] in _OF_64_BITS for own in tags for tag in own)
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
    across, down = (page.tags.valueof(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    for value in (across, down):
        if not (isinstance(value, tuple) and len(value) == 2 and min(value) > 0):
            return None
    return (down, across) if turn >= 5 else (across, down)


def white_of(page: Any) -> int | None:
    """Returns the level of 16-bit samples that a page tells is white: by its bits or a tag."""
    if 8 < page.bitspersample < 16:
        return int(2**page.bitspersample - 1)
    value = page.tags.valueof(WHITE)
    value = min(value) if isinstance(value, tuple) and value else value
    is_white = page.bitspersample == 16 and isinstance(value, int) and 255 < value < 65535
    return value if is_white else None


def _tags(file: BinaryIO, page: Any, stack: Stack, turn: int) -> Iterator[Tag]:
    seen = set()
    for tag in page.aspage().tags:
        if tag.code in seen or tag.code in _DROPPED or int(tag.dtype) in _POINTERS:
            continue
        if tag.code in GEOGRAPHIC and turn != 1:
            continue
        seen.add(tag.code)
        file.seek(tag.valueoffset)
        value = file.read(tag.valuebytecount)
        if int(tag.dtype) in _FRACTIONS:  # which tifffile takes as numbers alone
            kind = _FRACTIONS[int(tag.dtype)]
            value = struct.unpack(f"{page.parent.byteorder}{2 * tag.count}{kind}", value)
        if tag.code == DESCRIPTION:
            text = value.rstrip(b"\0").decode("latin-1")
            changed = not stack.complete or turn >= 5
            if is_structured(text) and not _SHAPED.match(text) and changed:
                continue
        yield tag.code, int(tag.dtype), tag.count, value, len(stack.pages) != stack.count


def is_structured(description: str) -> bool:
    """Whether a description tells a program how the pictures of its file belong together."""
    start = description.lstrip()[:400]
    return start.startswith(("ImageJ=", '{"shape"', "shape=(", "SCANIMAGE")) or (
        start.startswith("<") and "OME" in start
    )


def shaped(axes: str, shape: Sequence[int], **fields: Any) -> Tag:
    """Returns a description that tells axes and shape, as tifffile writes it."""
    made = {"shape": list(shape), "axes": axes} | fields
    value = json.dumps(made).encode("ascii") + b"\0"
    return DESCRIPTION, 2, len(value), value, True


def is_shaped(tag: Tag) -> bool:
    """Whether it is the description that tifffile writes."""
    return tag[0] == DESCRIPTION and bool(_SHAPED.match(tag[3].decode("latin-1")))


def adapted(tags: Sequence[Tag], axes: str, shape: Sequence[int]) -> tuple[Tag, ...]:
    """Makes a description that tifffile wrote fit the axes and shape that are written."""
    return tuple(_adapted(tag, axes, shape) for tag in tags)


def _adapted(tag: Tag, axes: str, shape: Sequence[int]) -> Tag:
    if not is_shaped(tag):
        return tag
    fields = json.loads(tag[3].rstrip(b"\0"))
    for name in ("shape", "truncated"):
        fields.pop(name, None)
    # What the axes are called stays where they are the same.
    if sorted(fields.get("axes", "")) == sorted(axes):
        axes = fields.pop("axes") if fields["axes"][-2:] == axes[-2:] else axes
    fields.pop("axes", None)
    return shaped(axes, shape, **fields)


def reads_as(file: BinaryIO, axes: str, shape: Sequence[int]) -> bool:
    """Whether tifffile finds pictures of these axes, and of this shape, in a file."""
    try:
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            found = tiff.series[0]
            whole = len(tiff.series) == 1
            pairs = [p for p in zip(found.axes, found.shape, strict=True) if p[1] > 1]
    except Exception:  # whatever it stumbles over
        return False
    wanted = [pair for pair in zip(axes, shape, strict=True) if pair[1] > 1]
    return whole and pairs == wanted
