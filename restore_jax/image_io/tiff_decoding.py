"""Decodes TIFF files: grey, RGB, palette and CMYK, in all layouts that tifffile supports.

Unlike Pillow, tifffile supports 16-bit colour, floats and stacks, and does not write to stderr.
Colour models that need a conversion of their own, such as LAB, are left to Pillow.
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
    Header,
    Photograph,
    Refused,
    estimated_white,
)

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# Samples per pixel, by the number of the photometric interpretation.
_SAMPLES_PER_PIXEL = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
_XMP, _ICC, _DNG_VERSION = 700, 34675, 50706


def decode(
    file: BinaryIO, max_pixels: int, all_pages: bool
) -> tuple[Photograph, Image.Exif | None] | None:
    """Decodes the pictures of a TIFF file.

    Args:
        file: the file.
        max_pixels: maximum number of pixels, see `limits`.
        all_pages: whether to decode all pictures of the series with the most pixels, or only
            the first.

    Returns:
        The photograph in its stored orientation, and its EXIF data (None if they are damaged);
        None for a photometric interpretation that is left to Pillow.

    Raises:
        Refused: the file is a raw file of a camera, or has too many pixels or pixels without a
            defined white level.
    """
    with tiff_stack.open_file(file) as tiff:
        stack, photometric = _checked_stack(tiff, max_pixels, all_pages)
        if photometric not in _SAMPLES_PER_PIXEL:
            return None
        return _decode(file, tiff, stack, photometric)


def read_header(file: BinaryIO, max_pixels: int) -> Header | None:
    """Reads what a file tells about its first picture; arguments and errors as for `decode`.

    Returns:
        The header; None for a photometric interpretation that is left to Pillow.
    """
    with tiff_stack.open_file(file) as tiff:
        stack, photometric = _checked_stack(tiff, max_pixels, False)
        if photometric not in _SAMPLES_PER_PIXEL:
            return None
        page = stack.pages[0]
        xmp = page.tags.valueof(_XMP, b"")
        exif = image_metadata.load_exif(lambda: _exif(file, tiff, page)) or {}
        turn = image_metadata.orientation(exif, xmp if isinstance(xmp, bytes) else b"")
        height, width = page.imagelength, page.imagewidth
        return Header(
            (width, height) if turn >= 5 else (height, width),
            stack.available,
            np.dtype(page.dtype) == np.uint16 and photometric not in (_PALETTE, _CMYK),
            tiff_stack.white_of(page) is not None,
        )


def _checked_stack(
    tiff: tifffile.TiffFile, max_pixels: int, all_pages: bool
) -> tuple[tiff_stack.Stack, int]:
    """Returns the pictures to be read and their photometric interpretation."""
    if _DNG_VERSION in tiff.pages.first.tags:  # its first page is only a thumbnail
        raise Refused("is a camera's raw file (DNG); develop it to TIFF or PNG first")
    stack = tiff_stack.find(tiff, all_pages)
    _check_size(stack, max_pixels)
    photometric = _photometric(tiff, stack.pages[0])
    if photometric in _SAMPLES_PER_PIXEL:
        _check_type(stack.pages[0], photometric)
    return stack, photometric


def _check_size(stack: tiff_stack.Stack, max_pixels: int) -> None:
    page = stack.pages[0]
    weight = page.samplesperpixel, -(-page.bitspersample // 8)
    limits.check_size(page.imagewidth, page.imagelength, max_pixels, *weight, stack.count)
    if page.is_tiled:  # a tile is always decoded as a whole
        limits.check_size(page.tilewidth, page.tilelength, max_pixels, *weight)
    if page.samplesperpixel > limits.MAX_CHANNELS:
        raise Refused(f"has {page.samplesperpixel:,} channels; save it as RGB or grey")


def _photometric(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> int:
    """Returns the number of the photometric interpretation of a page's decoded samples."""
    photometric = int(page.photometric)
    if photometric == _YCBCR and page.compression == tifffile.COMPRESSION.JPEG:
        return _RGB  # its decoder converts it
    if photometric == _PALETTE and tiff.is_imagej:
        return _BLACK_IS_ZERO  # its palette is only for display
    return photometric


def _check_type(page: tifffile.TiffPage, photometric: int) -> None:
    if page.dtype is None or not set(page.axes) <= set("ZYXS"):
        raise Refused("is a TIFF of an unsupported kind; save it as RGB or grey")
    dtype, bits = np.dtype(page.dtype), page.bitspersample
    is_known = dtype in (np.bool_, np.uint8, np.uint16) or dtype.kind == "f"
    if photometric == _CMYK:
        is_known = dtype in (np.uint8, np.uint16) and bits == 8 * dtype.itemsize
    if dtype.kind == "i":
        raise Refused(
            f"has signed samples of {bits} bits ({dtype}); save it unsigned, with 8 or 16 bits"
        )
    if bits not in (1, 2, 4, *range(9, 16), 8 * dtype.itemsize) or not is_known:
        raise Refused(f"has {bits} bits a sample ({dtype}); save it with 8 or 16 bits")


def _decode(
    file: BinaryIO, tiff: tifffile.TiffFile, stack: tiff_stack.Stack, photometric: int
) -> tuple[Photograph, Image.Exif | None]:
    page = stack.pages[0]
    first, *others = (_picture(page, samples, photometric) for samples in stack.samples())
    profile, xmp = (page.tags.valueof(tag, b"") for tag in (_ICC, _XMP))
    xmp = xmp if isinstance(xmp, bytes) else b""
    exif = image_metadata.load_exif(lambda: _exif(file, tiff, page))
    turn = image_metadata.orientation(exif or {}, xmp)
    notes = stack.notes + first.notes
    if turn != 1 and any(tag.code in tiff_stack.GEOGRAPHIC for tag in page.tags):
        notes += ("its georeferencing is left out: the picture was turned upright",)
    photograph = dataclasses.replace(
        first,
        icc_profile=profile if isinstance(profile, bytes) else b"",
        dpi=image_metadata.dpi_of(*map(page.tags.valueof, image_metadata.RESOLUTION)),
        xmp=xmp,
        further=tuple(others),
        tiff=tiff_stack.form(file, tiff, stack, turn),
        notes=notes,
    )
    return photograph, exif


def _exif(file: BinaryIO, tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Image.Exif:
    exif = Image.Exif()
    if tiff.is_bigtiff and tiff.byteorder == ">":  # Pillow mistakes it for another variant
        for tag in (image_metadata.ORIENTATION, *image_metadata.DESCRIPTIVE):
            if tag in page.tags:
                exif[tag] = page.tags.valueof(tag)
        return exif
    exif.endian, exif.bigtiff = tiff.byteorder, tiff.is_bigtiff
    exif.load_from_fp(file, page.offset)
    return exif


def _picture(page: tifffile.TiffPage, samples: np.ndarray, photometric: int) -> Photograph:
    """Converts the samples [H, W, S] of a page to a photograph."""
    count = _SAMPLES_PER_PIXEL[photometric]
    samples = _in_range(samples, np.dtype(page.dtype))
    if samples.shape[-1] < count:
        raise Refused(f"is damaged: {samples.shape[-1]} samples a pixel instead of {count}")
    colours, alpha = _split_alpha(samples, count, tuple(page.extrasamples)[:1])
    notes: tuple[str, ...] = ()
    if samples.shape[-1] > count + (alpha is not None):
        notes += ("its further channels are left out",)
    if photometric in (_PALETTE, _CMYK):
        is_palette = photometric == _PALETTE
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
        white = None  # the stated white level is wrong
    if photometric == _WHITE_IS_ZERO:
        if white is None and colours.dtype == np.uint16:
            white = estimated_white(int(colours.max()))
            if white is not None:
                notes += (f"{white:,} is taken for black, as no level is above it",)
        colours = _inverted(colours, white)
    pixels = colours[..., 0] if count == 1 else colours
    return Photograph(pixels, alpha, "TIFF", white=white, notes=notes)


def _in_range(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts samples to the machine's byte order; refuses floats outside [0, 1]."""
    samples = samples.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "f":
        low, high = samples.min(), samples.max()
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise Refused(f"has float values from {low:g} to {high:g}; scale them to 0…1")
    return samples


def _split_alpha(
    samples: np.ndarray, count: int, extra: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Splits samples into colours [H, W, count] and alpha [H, W], if `extra` declares it."""
    colours = samples[..., :count]
    if extra not in ((1,), (2,)) or samples.shape[-1] == count:
        return colours, None
    alpha = samples[..., count]
    return (_divide_by_alpha(colours, alpha) if extra == (1,) else colours), alpha


def _divide_by_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undoes the premultiplication of colours [H, W, C] by alpha [H, W]."""
    if pixels.dtype.kind == "f":
        opacity = np.maximum(alpha, np.finfo(alpha.dtype).tiny)
        return np.minimum(pixels / opacity[..., None], 1).astype(pixels.dtype)
    share = pixels / np.maximum(alpha, 1)[..., None].astype(np.float64)
    return np.rint(np.minimum(share, 1) * np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def _inverted(samples: np.ndarray, white: int | None) -> np.ndarray:
    if samples.dtype.kind == "f":
        return 1 - samples
    largest = samples.dtype.type(white or np.iinfo(samples.dtype).max)
    return largest - samples


def _upper_8_bits(samples: np.ndarray) -> np.ndarray:
    return (samples >> 8).astype(np.uint8) if samples.dtype == np.uint16 else samples


def _from_palette(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Looks up indices [H, W, 1] in a colour map uint16 [3, N]; returns uint8 [H, W, 3]."""
    return _upper_8_bits(colormap)[:, indices[..., 0]].transpose(1, 2, 0)


def _from_cmyk(inks: np.ndarray) -> np.ndarray:
    """Converts inks [H, W, 4] to RGB, uint8 [H, W, 3], ignoring their profile."""
    bands = [Image.fromarray(band) for band in np.moveaxis(_upper_8_bits(inks), -1, 0)]
    return np.asarray(Image.merge("CMYK", bands).convert("RGB"))
