"""Encodes restored photographs as TIFF, with the axes and tags of their source."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import tifffile

from restore_jax.image_io import image_metadata, tiff_stack
from restore_jax.image_io.photograph import Photograph, Refused

_XMP = 700
_SHORT, _BYTE, _TEXT = 3, 1, 2


def write(
    file: BinaryIO,
    pictures: Sequence[np.ndarray],
    has_alpha: bool,
    metadata: dict[str, Any],
    like: Photograph,
    notes: list[str],
) -> None:
    """Writes pictures with the tags of the source, as far as readers find the same pictures.

    Args:
        file: the output, empty, open for reading and writing.
        pictures: samples [H, W] or [H, W, C] of each picture, all of one shape and type.
        has_alpha: whether the last channel is alpha.
        metadata: profile, resolution, EXIF and XMP, as options of Pillow.
        like: the source.
        notes: list to which a line is added for everything left out.

    Raises:
        Refused: readers would not find the same pictures even without any tags of the source.
    """
    if image_metadata.has_ifds(metadata.get("exif", b"")):
        notes.append(
            "its EXIF data on camera settings and location are left out: not supported for TIFF"
        )
    form = like.tiff if len(pictures) == 1 + len(like.further) else None
    axes, shape = (form.axes, form.shape) if form else ("", ())
    axes, shape = axes + "YXS"[: pictures[0].ndim], (*shape, *pictures[0].shape)
    for attempt in _attempts(form, axes, shape):
        _write_once(file, pictures, has_alpha, metadata, attempt)
        if attempt is None or tiff_stack.reads_as(file, axes, shape):
            _note_lost_tags(form, attempt, notes)
            return
        file.seek(0)
        file.truncate()
    raise Refused("its pictures cannot be written with the same axes")


def _attempts(
    form: tiff_stack.Form | None, axes: str, shape: Sequence[int]
) -> Iterator[tiff_stack.Form | None]:
    """Yields forms with ever fewer of the tags that could mislead readers about the stack."""
    if form is None:
        yield None
        return
    first, *others = form.tags
    yield dataclasses.replace(
        form, tags=(tiff_stack.adapt_descriptions(first, axes, shape), *others)
    )
    # Only a stack needs a description.
    description = (tiff_stack.shaped_description(axes, shape),) if form.shape else ()
    plain = [
        tuple(tag for tag in tags if tag[0] != tiff_stack.DESCRIPTION) for tags in form.tags
    ]
    yield dataclasses.replace(form, imagej=False, tags=(description + plain[0], *plain[1:]))
    yield dataclasses.replace(form, imagej=False, tags=(description, *[()] * len(others)))


def _note_lost_tags(
    source: tiff_stack.Form | None, written: tiff_stack.Form | None, notes: list[str]
) -> None:
    """Notes which tags of the source were left out because they would have misled readers."""
    if source is None or written is None:
        return
    before, after = (
        {tag[0] for tags in form.tags for tag in tags} for form in (source, written)
    )
    lost = before - after
    described = any(
        tag[0] == tiff_stack.DESCRIPTION and tag not in tags
        for own, tags in zip(source.tags, written.tags, strict=True)
        for tag in own
        if not tiff_stack.is_shaped_description(tag)
    )
    if described or lost:
        what = "description is" if lost <= {tiff_stack.DESCRIPTION} else "private tags are"
        notes.append(
            f"its {what} left out: with them, readers would not find the same pictures"
        )


def _write_once(
    file: BinaryIO,
    pictures: Sequence[np.ndarray],
    has_alpha: bool,
    metadata: dict[str, Any],
    form: tiff_stack.Form | None,
) -> None:
    options = _options(pictures[0], has_alpha, metadata, form)
    added = _added_tags(pictures[0], metadata, form)
    big = sum(pixels.nbytes for pixels in pictures) > 2**31 or bool(form and form.bigtiff)
    order = form.byteorder if form else "<"
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as tiff:
        if form is not None and form.imagej:
            # ImageJ expects uncompressed pictures, stored contiguously.
            planes = np.stack(pictures)
            options |= {"compression": None, "rowsperstrip": planes.shape[1]}
            tiff.write(planes, extratags=[*added, *form.tags[0]], **options)
            return
        for i, pixels in enumerate(pictures):
            tags = [*(added if i == 0 else ()), *(form.tags[i] if form else ())]
            tiff.write(pixels, extratags=tags, contiguous=False, **options)


def _options(
    picture: np.ndarray, has_alpha: bool, metadata: dict[str, Any], form: tiff_stack.Form | None
) -> dict[str, Any]:
    """Returns the options with which tifffile writes each picture."""
    is_colour = picture.ndim == 3 and picture.shape[-1] > 2
    options: dict[str, Any] = {
        "photometric": "rgb" if is_colour else "minisblack",
        # Neither a predictor nor tiles, so that every reader supports the file.
        "compression": "adobe_deflate",
        "iccprofile": metadata.get("icc_profile"),
        "metadata": None,
        "software": False,
    }
    if picture.ndim == 3:
        options["planarconfig"] = "contig"
    if has_alpha:
        options["extrasamples"] = ["unassalpha"]
    if form is None and "dpi" in metadata:
        options |= {"resolution": metadata["dpi"], "resolutionunit": "inch"}
    if form is not None and form.resolution:
        options |= {"resolution": form.resolution, "resolutionunit": form.unit}
    if form is not None and form.colormap is not None:
        options |= {"photometric": "palette", "colormap": form.colormap}
    return options


def _added_tags(
    picture: np.ndarray, metadata: dict[str, Any], form: tiff_stack.Form | None
) -> list[tiff_stack.Tag]:
    """Returns the tags of the first picture that are not in the form of the source."""
    found: list[tiff_stack.Tag] = []
    if xmp := metadata.get("xmp"):
        found.append((_XMP, _BYTE, len(xmp), xmp, True))
    if form is None:
        exif = image_metadata.parse_exif(metadata.get("exif", b""))
        found += [_tag(tag, exif[tag]) for tag in image_metadata.DESCRIPTIVE if tag in exif]
    elif form.white:
        count = picture[0, 0].size
        found.append((tiff_stack.WHITE, _SHORT, count, (form.white,) * count, False))
    return found


def _tag(tag: int, value: Any) -> tiff_stack.Tag:
    """Returns an extra tag for tifffile, of type text, bytes or short."""
    if isinstance(value, int):
        return tag, _SHORT, 1, value, True
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
        return tag, _TEXT, len(value) + 1, value + b"\0", True
    value = bytes(value)
    return tag, _BYTE, len(value), value, True
