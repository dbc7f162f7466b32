"""TIFF files as photographs: grey, RGB, palette and CMYK, in all layouts that tifffile knows.

Unlike Pillow it has 16 bits of colour, floats and stacks, and leaves stderr alone. What it
leaves to Pillow are the colour models that need arithmetic of their own, such as LAB.
"""

import dataclasses
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image

from restore_jax.image_io import image_metadata, limits, tiff_stack
from restore_jax.image_io.photograph import (
    BITS_AS_GREY,
    CMYK_AS_RGB,
    PALETTE_AS_RGB,
    UPPER_8_BITS,
    Photograph,
    Refused,
)

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# By the number of a TIFF file's kind of colours, its samples a pixel.
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
_XMP, _ICC, _DNG_VERSION = 700, 34675, 50706


def decode(
    file: BinaryIO, max_pixels: int, whole: bool
) -> tuple[Photograph, Image.Exif | None] | None:
    """Decodes the pictures of a TIFF file.

    Args:
        file: the file.
        max_pixels: how many pixels it may have, see `limits`.
        whole: whether all pictures of the series with the most pixels, or the first.

    Returns:
        The photograph as it lies in the file, and its EXIF data (None if they are damaged);
        None for a kind of colours that is left to Pillow.

    Raises:
        Refused: it has too many pixels, or pixels of a kind that has no defined white.
    """
    with tiff_stack.opened(file) as tiff:
        if _DNG_VERSION in tiff.pages.first.tags:  # a thumbnail
            raise Refused("is a camera's raw file (DNG); develop it to TIFF or PNG first")
        stack = tiff_stack.find(tiff, whole)
        _check_size(stack, max_pixels)
        kind = _kind(tiff, stack.pages[0])
        if kind not in _SAMPLES:
            return None
        _check_type(stack.pages[0], kind)
        return _decode(file, tiff, stack, kind)


def _check_size(stack: tiff_stack.Stack, max_pixels: int) -> None:
    page = stack.pages[0]
    weight = page.samplesperpixel, -(-page.bitspersample // 8)
    limits.check_size(page.imagewidth, page.imagelength, max_pixels, *weight, stack.count)
    if page.is_tiled:  # each of which is decoded whole
        limits.check_size(page.tilewidth, page.tilelength, max_pixels, *weight)
    if page.samplesperpixel > limits.MAX_CHANNELS:
        raise Refused(f"has {page.samplesperpixel:,} channels; save it as RGB or grey")


def _kind(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> int:
    """The number of the kind of colours that a page's samples are once they are decoded."""
    kind = int(page.photometric)
    if kind == _YCBCR and page.compression == tifffile.COMPRESSION.JPEG:
        return _RGB  # its decoder converts it
    if kind == _PALETTE and tiff.is_imagej:
        return _BLACK_IS_ZERO  # its palette only shows levels in colour
    return kind


def _check_type(page: tifffile.TiffPage, kind: int) -> None:
    if page.dtype is None or not set(page.axes) <= set("ZYXS"):
        raise Refused("is a TIFF of a kind that is not read; save it as RGB or grey")
    dtype, bits = np.dtype(page.dtype), page.bitspersample
    is_known = dtype in (np.bool_, np.uint8, np.uint16) or dtype.kind == "f"
    if kind == _CMYK:
        is_known = dtype in (np.uint8, np.uint16) and bits == 8 * dtype.itemsize
    if bits not in (1, 2, 4, *range(9, 16), 8 * dtype.itemsize) or not is_known:
        raise Refused(f"has {bits} bits a sample ({dtype}); save it with 8 or 16 bits")


def _decode(
    file: BinaryIO, tiff: tifffile.TiffFile, stack: tiff_stack.Stack, kind: int
) -> tuple[Photograph, Image.Exif | None]:
    page = stack.pages[0]
    first, *others = (_picture(page, levels, kind) for levels in stack.levels())
    profile, xmp = (page.tags.valueof(tag, b"") for tag in (_ICC, _XMP))
    xmp = xmp if isinstance(xmp, bytes) else b""
    exif = image_metadata.load_exif(lambda: _exif(file, tiff, page))
    turn = image_metadata.orientation(exif or {}, xmp)
    notes = stack.notes + first.notes
    if turn != 1 and any(tag.code in tiff_stack.GEOGRAPHIC for tag in page.tags):
        notes += ("its place on Earth is left out: the picture was turned upright",)
    found = dataclasses.replace(
        first,
        icc_profile=profile if isinstance(profile, bytes) else b"",
        dpi=image_metadata.dpi_of(*map(page.tags.valueof, image_metadata.RESOLUTION)),
        xmp=xmp,
        further=tuple(others),
        tiff=tiff_stack.form(file, tiff, stack, turn),
        notes=notes,
    )
    return found, exif


def _exif(file: BinaryIO, tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Image.Exif:
    exif = Image.Exif()
    if tiff.is_bigtiff and tiff.byteorder == ">":  # which Pillow takes for another kind
        for tag in (image_metadata.ORIENTATION, *image_metadata.DESCRIPTIVE):
            if tag in page.tags:
                exif[tag] = page.tags.valueof(tag)
        return exif
    exif.endian, exif.bigtiff = tiff.byteorder, tiff.is_bigtiff
    exif.load_from_fp(file, page.offset)
    return exif


def _picture(page: tifffile.TiffPage, levels: np.ndarray, kind: int) -> Photograph:
    """Makes a photograph of the samples [H, W, S] of a page."""
    count = _SAMPLES[kind]
    levels = _in_range(levels, np.dtype(page.dtype))
    if levels.shape[-1] < count:
        raise Refused(f"is damaged: {levels.shape[-1]} samples a pixel of {count}")
    colours, alpha = _without_extra(levels, count, tuple(page.extrasamples)[:1])
    notes: tuple[str, ...] = ()
    if levels.shape[-1] > count + (alpha is not None):
        notes += ("its further channels are left out",)
    if kind in (_PALETTE, _CMYK):
        is_palette = kind == _PALETTE
        pixels = _from_palette(colours, page.colormap) if is_palette else _from_cmyk(colours)
        alpha = None if alpha is None else _upper_8_bits(alpha)
        notes += (PALETTE_AS_RGB if is_palette else CMYK_AS_RGB,)
        if colours.dtype == np.uint16 and not is_palette:
            notes += (UPPER_8_BITS,)
        return Photograph(pixels, alpha, "TIFF", notes=notes)
    if page.bitspersample < 8:
        colours = colours.astype(np.uint8) * (255 // (2**page.bitspersample - 1))
    if page.bitspersample == 1:
        notes += (BITS_AS_GREY,)
    white = tiff_stack.white_of(page)
    if white is not None and colours.max() > white:
        white = None  # the file is mistaken
    if kind == _WHITE_IS_ZERO:
        colours = _inverted(colours, white)
    pixels = colours[..., 0] if count == 1 else colours
    return Photograph(pixels, alpha, "TIFF", white=white, notes=notes)


def _in_range(levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Gives levels the machine's byte order; refuses floats outside [0, 1]."""
    levels = levels.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "f":
        low, high = levels.min(), levels.max()
        if not (low >= 0 and high <= 1):  # NaN neither
            raise Refused(f"has float values from {low:g} to {high:g}; scale them to 0…1")
    return levels


def _without_extra(
    levels: np.ndarray, count: int, extra: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Divides samples into colours [H, W, count] and alpha [H, W], if `extra` says it is."""
    colours = levels[..., :count]
    if extra not in ((1,), (2,)) or levels.shape[-1] == count:
        return colours, None
    alpha = levels[..., count]
    return (_divide_by_alpha(colours, alpha) if extra == (1,) else colours), alpha


def _divide_by_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undoes the multiplication of colours [H, W, C] by alpha [H, W]."""
    if pixels.dtype.kind == "f":
        opacity = np.maximum(alpha, np.finfo(alpha.dtype).tiny)
        return np.minimum(pixels / opacity[..., None], 1).astype(pixels.dtype)
    share = pixels / np.maximum(alpha, 1)[..., None].astype(np.float64)
    return np.rint(np.minimum(share, 1) * np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def _inverted(levels: np.ndarray, white: int | None) -> np.ndarray:
    if levels.dtype.kind == "f":
        return 1 - levels
    largest = levels.dtype.type(white or np.iinfo(levels.dtype).max)
    return largest - levels


def _upper_8_bits(levels: np.ndarray) -> np.ndarray:
    return (levels >> 8).astype(np.uint8) if levels.dtype == np.uint16 else levels


def _from_palette(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Returns the colours, uint8 [H, W, 3], of indices [H, W, 1] into a map [3, N], uint16."""
    return _upper_8_bits(colormap)[:, indices[..., 0]].transpose(1, 2, 0)


def _from_cmyk(inks: np.ndarray) -> np.ndarray:
    """Returns the colours, uint8 [H, W, 3], of inks [H, W, 4], whatever their profile."""
    bands = [Image.fromarray(band) for band in np.moveaxis(_upper_8_bits(inks), -1, 0)]
    return np.asarray(Image.merge("CMYK", bands).convert("RGB"))
