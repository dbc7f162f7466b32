"""Encodes restored photographs, with the metadata of their source as far as a format allows."""

import io
from collections.abc import Sequence
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import Image, PngImagePlugin

from restore_jax.image_io import image_metadata, png_chunks, pnm, tiff_encoding
from restore_jax.image_io.photograph import Photograph, Refused, to_dtype

# JPEG has no widely supported lossless form; at this quality, and with colour at full
# resolution, its artefacts are far below the noise that a restoration leaves.
JPEG_QUALITY = 95

_DTYPES = {
    "PNG": (np.uint8, np.uint16),
    "TIFF": (np.uint8, np.uint16, np.floating),
    "PNM": (np.uint8, np.uint16),
    "JP2": (np.uint8, np.uint16),
}
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535, "AVIF": 65535}
# GIF pixels are either opaque or transparent; only some programs write BMP with alpha.
_WITHOUT_ALPHA = ("JPEG", "PNM", "BMP", "GIF")
_WITHOUT_GREY = ("WEBP",)
_WITHOUT_PROFILE = ("BMP", "GIF", "PNM", "JP2")
_WITHOUT_EXIF = ("BMP", "GIF", "PNM", "JP2")
_WITH_WHITE = ("PNM", "JP2", "TIFF")
_WITH_DPI = ("PNG", "JPEG", "TIFF", "BMP")
_WITH_DPI_IN_EXIF = ("WEBP", "AVIF")
_WITH_XMP = ("PNG", "JPEG", "TIFF", "WEBP", "AVIF")
_JPEG_SEGMENT = 65533
_JPEG_EXIF_LIMIT = _JPEG_SEGMENT - 6
_JPEG_XMP_LIMIT = _JPEG_SEGMENT - 29
_GIF_COLOURS = 256
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": JPEG_QUALITY, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # keeps the colours of transparent pixels
    "BMP": {"dpi": (0, 0)},  # unknown; Pillow would claim 96
    "GIF": {},
    "AVIF": {"quality": JPEG_QUALITY, "subsampling": "4:4:4"},
}


def encode(
    file: BinaryIO, planes: Sequence[np.ndarray], like: Photograph, name: str
) -> tuple[str, ...]:
    """Writes an image file.

    Args:
        file: the output, empty, open for reading and writing.
        planes: pixels of the shape and type of `like.pixels`: of one picture, or of each
            picture of the stack.
        like: the photograph from which they were restored.
        name: the format, as in `Photograph.format`.

    Returns:
        What the format could not keep, one line each.

    Raises:
        Refused: the image is too large for the format.
    """
    height, width = planes[0].shape[:2]
    longest = _MAX_SIDE.get(name)
    if longest and max(height, width) > longest:
        raise Refused(
            f"cannot be {width:,} × {height:,} px: {name} allows at most {longest:,} px a side"
        )
    notes: list[str] = []
    dtype = _stored_dtype(like.pixels.dtype, name)
    has_alpha = like.alpha is not None and name not in _WITHOUT_ALPHA
    _note_pixel_losses(like, name, dtype, len(planes), notes)
    metadata = _metadata(like, name, notes)
    if name == "TIFF":
        pictures = [
            _samples(plane, source, dtype, has_alpha)
            for plane, source in zip(planes, [like, *like.further], strict=False)
        ]
        tiff_encoding.write(file, pictures, has_alpha, metadata, like, notes)
        return tuple(notes)
    samples = _samples(planes[0], like, dtype, has_alpha)
    match name:
        case "PNG":
            _write_png(file, samples, metadata, like)
        case "PNM":
            pnm.write(file, samples, _white_level(like, dtype))
        case "JP2":
            _write_jp2(file, samples, _white_level(like, dtype).bit_length())
        case _:
            _write_with_pillow(file, samples, name, metadata, notes)
    return tuple(notes)


def _note_pixel_losses(
    like: Photograph, name: str, dtype: np.dtype, count: int, notes: list[str]
) -> None:
    """Notes which of alpha, bit depth, white level and further pictures a format loses."""
    if like.alpha is not None and name in _WITHOUT_ALPHA:
        notes.append(f"its alpha is left out: not supported for {name}")
    if dtype.itemsize < like.pixels.dtype.itemsize:
        notes.append(f"{like.pixels.dtype} is written with {8 * dtype.itemsize} bits")
    loses_white = like.format in _WITH_WHITE and name not in _WITH_WHITE
    if like.white is not None and dtype == like.pixels.dtype and loses_white:
        notes.append(f"its white stays at {like.white:,}, which {name} cannot record")
    if like.further and (name != "TIFF" or count == 1):
        notes.append(f"only the first of its {1 + len(like.further)} pictures is written")


def _stored_dtype(dtype: np.dtype, name: str) -> np.dtype:
    """Returns the sample type of a file: the source's or, if unsupported, the largest."""
    kept = _DTYPES.get(name, (np.uint8,))
    if any(np.issubdtype(dtype, kind) for kind in kept):
        return dtype
    return np.dtype(kept[-1])


def _white_level(like: Photograph, dtype: np.dtype) -> int:
    """Returns the white level of samples of the given type in the file."""
    if like.white is not None and dtype == like.pixels.dtype:
        return like.white
    return int(np.iinfo(dtype).max)


def _samples(
    restored: np.ndarray, like: Photograph, dtype: np.dtype, has_alpha: bool
) -> np.ndarray:
    """Converts pixels to the type to be written and appends alpha as the last channel."""
    pixels = to_dtype(restored, dtype, like.white)
    if not has_alpha or like.alpha is None:
        return pixels
    return np.dstack([pixels, to_dtype(like.alpha, dtype, None)])


def _metadata(like: Photograph, name: str, notes: list[str]) -> dict[str, Any]:
    """Returns profile, resolution, EXIF and texts as Pillow's options; notes what is lost."""
    found: dict[str, Any] = {}
    colours = "grey" if like.pixels.ndim == 2 else "RGB"
    if name in _WITHOUT_PROFILE or (colours == "grey" and name in _WITHOUT_GREY):
        if like.icc_profile:
            notes.append(
                f"its colour profile is left out: not supported for {name} in {colours}"
            )
    elif like.icc_profile:
        found["icc_profile"] = like.icc_profile
    if like.dpi and name in _WITH_DPI:
        max_dpi = 65535 if name == "JPEG" else np.inf
        if round(max(like.dpi)) <= max_dpi:
            found["dpi"] = like.dpi
    elif like.dpi and name not in _WITH_DPI_IN_EXIF:
        notes.append(f"its resolution is left out: {name} has no place for it")
    if exif := _exif(like, name, notes):
        found["exif"] = exif
    return found | _texts(like, name, notes)


def _exif(like: Photograph, name: str, notes: list[str]) -> bytes:
    exif = like.exif
    if like.dpi and name in _WITH_DPI_IN_EXIF:
        exif = image_metadata.with_dpi(exif, like.dpi)
    if exif and (name in _WITHOUT_EXIF or (name == "JPEG" and len(exif) > _JPEG_EXIF_LIMIT)):
        notes.append(f"its EXIF data are left out: {name} has no room for them")
        return b""
    return exif


def _texts(like: Photograph, name: str, notes: list[str]) -> dict[str, Any]:
    """Returns XMP and comments as Pillow's options; notes what the format cannot hold."""
    found: dict[str, Any] = {}
    if like.xmp and name in _WITH_XMP and (name != "JPEG" or len(like.xmp) <= _JPEG_XMP_LIMIT):
        found["xmp"] = like.xmp
    elif like.xmp:
        notes.append(f"its XMP data are left out: {name} has no room for them")
    fits = name == "GIF" or (name == "JPEG" and len(like.comment) <= _JPEG_SEGMENT)
    if like.comment and (fits or name == "PNG"):
        found["comment"] = like.comment
    elif like.comment:
        notes.append(f"its comment is left out: {name} has no room for it")
    if like.png_text and name != "PNG":
        keywords = sorted(
            {text.split(b"\0", 1)[0].decode("latin-1") for _, text in like.png_text}
        )
        shown = ", ".join(
            keyword if keyword.isprintable() else ascii(keyword) for keyword in keywords[:3]
        )
        notes.append(f"its text ({shown}) is left out: {name} has no place for it")
    return found


def _write_with_pillow(
    file: BinaryIO,
    samples: np.ndarray,
    name: str,
    metadata: dict[str, Any],
    notes: list[str],
) -> None:
    image = Image.fromarray(samples)
    options = _OPTIONS[name] | metadata
    if name == "AVIF" and samples.ndim == 2:
        options["subsampling"] = "4:0:0"
    if name == "GIF" and image.mode == "RGB" and image.getcolors(_GIF_COLOURS) is None:
        notes.append(f"its colours are reduced to a palette of {_GIF_COLOURS}")
    image.save(file, name, **options)


def _write_jp2(file: BinaryIO, samples: np.ndarray, bits: int) -> None:
    encoded = imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(samples),
        level=0,
        codecformat="jp2",
        reversible=True,
        bitspersample=bits,
    )
    file.write(encoded)


def _write_png(
    file: BinaryIO, samples: np.ndarray, metadata: dict[str, Any], like: Photograph
) -> None:
    """Writes the pixels with libpng, since Pillow has no 16-bit colour.

    The metadata chunks are taken from an image of one pixel that Pillow encodes.
    """
    metadata = dict(metadata)
    chunks = [*(() if "icc_profile" in metadata else like.png_colour), *like.png_text]
    if xmp := metadata.pop("xmp", b""):
        chunks.append(png_chunks.xmp_chunk(xmp))
    if comment := metadata.pop("comment", b""):
        chunks.append((b"tEXt", b"Comment\0" + comment.replace(b"\0", b" ")))
    info = PngImagePlugin.PngInfo()
    for name, content in chunks:
        info.add(name, content)
    donor = io.BytesIO()
    Image.new("L", (1, 1)).save(donor, "PNG", pnginfo=info, **metadata)
    # Reshaped to reset the strides of axes of length 1, which libpng does not ignore.
    samples = np.ascontiguousarray(samples).reshape(-1).reshape(samples.shape)
    encoded = memoryview(imagecodecs.png_encode(samples))
    file.write(encoded[: png_chunks.START])
    file.write(png_chunks.without(donor.getvalue(), (*png_chunks.PIXELS, b"IHDR", b"IEND"))[8:])
    file.write(encoded[png_chunks.START :])
