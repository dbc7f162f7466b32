"""Decodes image files to photographs: grey or RGB, upright, with their metadata.

Pillow decodes most formats, but keeps only the upper 8 bits of 16-bit colour. Such PNG and JPEG
2000 files are therefore decoded by imagecodecs, any-maps by `pnm` and TIFF by `tiff_decoding`.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from restore_jax.image_io import image_metadata, limits, png_chunks, pnm, tiff_decoding
from restore_jax.image_io.photograph import (
    BITS_AS_GREY,
    CMYK_AS_RGB,
    PALETTE_AS_RGB,
    UPPER_8_BITS,
    Header,
    Photograph,
    Refused,
)

# Used instead of Image.open, so that a disguised file never reaches the plugins that run other
# programs, and the caller's limit on pixels applies instead of the process-wide one.
_OPENERS: dict[str, Callable[[BinaryIO, str], Any]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JP2": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_SIGNATURES = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JP2": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
}
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")
# Brands of HEIC, and of HEIF in general, which AVIF files may have as well.
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
HEADER_BYTES = 64
"""How much of a file `format_of` looks at."""

# Rows that are converted at once.
_ROWS = 512

# The mode to which each of Pillow's modes is converted.
_COLOUR_MODES = dict.fromkeys(("1", "L", "LA"), "L") | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"), "RGB"
)
_CONVERSIONS = {
    "1": BITS_AS_GREY,
    "P": PALETTE_AS_RGB,
    "PA": PALETTE_AS_RGB,
    "CMYK": CMYK_AS_RGB,
    "YCbCr": "YCbCr: written as RGB",
    "LAB": "LAB: written as RGB",
}
_UNUSABLE_PROFILES = (b"CMYK", b"Lab ")
_IPTC = 0x0404  # number of the Photoshop resource block
_LONG_XMP = b"http://ns.adobe.com/xmp/extension/"
_DAMAGED_EXIF = "its EXIF data are left out: they are damaged"


def decode(file: BinaryIO, max_pixels: int, all_pages: bool = False) -> Photograph:
    """Decodes an image file; only the first of several pages or frames by default.

    Args:
        file: the file, positioned at its start.
        max_pixels: maximum number of pixels, see `limits`; a larger file is not decoded.
        all_pages: whether to decode all pictures of the series with the most pixels in a TIFF
            file.

    Raises:
        Refused: the format is not supported, or the image has too many pixels or pixels without
            a defined white level.
        Exception: anything that Pillow, libpng or tifffile raises for a damaged file.
    """
    header = file.read(HEADER_BYTES)
    file.seek(0)
    match format_of(header):
        case "PNG":
            return _decode_png(file, header[24:25] == b"\x10", max_pixels)
        case "PNM":
            return _decode_pnm(file, max_pixels)
        case "JP2":
            return _decode_jp2(file, max_pixels)
        case "TIFF":
            decoded = tiff_decoding.decode(file, max_pixels, all_pages)
            return _finish(*(decoded or _decode_with_pillow(file, "TIFF", max_pixels)))
        case name:
            _check_before_opening(name, header, max_pixels)
            return _finish(*_decode_with_pillow(file, name, max_pixels))


def read_header(file: BinaryIO, max_pixels: int) -> Header:
    """Reads what a file tells about its pixels, which are not decoded.

    Raises:
        Refused: the format is not supported, or the image has too many pixels or pixels of an
            unsupported type.
        Exception: anything that Pillow or tifffile raises for a damaged file.
    """
    start = file.read(HEADER_BYTES)
    file.seek(0)
    name = format_of(start)
    if name == "TIFF" and (found := tiff_decoding.read_header(file, max_pixels)):
        return found
    if name == "PNM":
        _, width, height, largest = pnm.read_header(file)
        limits.check_size(width, height, max_pixels)
        return Header((height, width), 1, largest > 255, True)
    deep = name == "PNG" and start[24:25] == b"\x10"
    if name == "JP2":
        size = limits.jp2_codestream(file.read())
        limits.check_size(
            size.width, size.height, max_pixels, size.samples, 1 + (size.bits > 8)
        )
        deep = size.bits > 8
    _check_before_opening(name, start, max_pixels)
    with _opened(file, name) as image:
        limits.check_size(*image.size, max_pixels)
        if image.mode not in _COLOUR_MODES and not deep:
            raise _bad_mode(image.mode)
        # The base class's method: that of PNG would decode the whole image.
        exif = image_metadata.load_exif(lambda: Image.Image.getexif(image)) or {}
        xmp = image.info.get("xmp")
        turn = image_metadata.orientation(exif, xmp if isinstance(xmp, bytes) else b"")
        width, height = image.size
        # The further pictures of a JPEG file are smaller copies and maps for displays.
        frames = 1 if name == "JPEG" else _frames(image)
        plain = name in ("PNG", "JPEG") and image.mode in ("L", "RGB") and turn == 1
        return Header(
            (width, height) if turn >= 5 else (height, width),
            frames,
            deep,
            name == "JP2",
            plain and not deep and "transparency" not in image.info,
        )


def _check_before_opening(name: str, header: bytes, max_pixels: int) -> None:
    """Checks the sizes of the formats for which Pillow allocates memory when it opens them."""
    if name == "WEBP" and (size := limits.webp_size(header)):
        limits.check_size(*size, max_pixels, 4)
    if name == "GIF":
        limits.check_size(*limits.gif_size(header), max_pixels)


def _opened(file: BinaryIO, name: str) -> Any:
    """Opens an image with Pillow's plugin of that format."""
    file.seek(0)
    try:
        return _OPENERS[name](file, "")
    except Image.DecompressionBombError as error:  # a GIF frame exceeds the size in the header
        raise Refused(f"is damaged: {error}") from error


def _bad_mode(mode: str) -> Refused:
    return Refused(f"has pixels of type {mode!r}; save it with 8 or 16 bits")


def format_of(header: bytes) -> str:
    """Returns the format of a file, as in `Photograph.format`.

    Args:
        header: its first `HEADER_BYTES` bytes.

    Raises:
        Refused: it is empty or of no supported format.
    """
    if not header:
        raise Refused("is empty (0 bytes)")
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(header) if header[4:8] == b"ftyp" else set()
    if {b"avif", b"avis"} & brands:
        return "AVIF"
    if header[:1] == b"P" and header[1:2] in b"123456" and header[2:3] in b" \t\n\v\f\r#":
        return "PNM"
    for name, starts in _SIGNATURES.items():
        if header.startswith(starts):
            return name
    if header.startswith(_ARCHIVES):
        raise Refused("is an archive; unpack it first")
    if _HEIF_BRANDS & brands:
        raise Refused("is a HEIC or HEIF image, not supported; save it as JPEG, PNG or TIFF")
    raise Refused(
        "is not an image of a supported format (PNG, JPEG, TIFF, BMP, WebP, GIF, PNM, "
        "JPEG 2000, AVIF)"
    )


def _brands(header: bytes) -> set[bytes]:
    """Returns the brands in the first box (`ftyp`) of an ISO media file."""
    box = header[8 : int.from_bytes(header[:4])]
    return {box[i : i + 4] for i in range(0, len(box), 4)}


def _decode_with_pillow(
    file: BinaryIO, name: str, max_pixels: int
) -> tuple[Photograph, Image.Exif | None]:
    """Returns a photograph in its stored orientation, and its EXIF data (None if damaged)."""
    with _opened(file, name) as image:
        limits.check_size(*image.size, max_pixels)
        image.load()
        samples = _decoded_samples(image)
        photograph, exif = _with_metadata(image, name, samples, image.getexif)
    notes = photograph.notes
    if image.mode in _CONVERSIONS and name != "GIF":  # GIF is written with a palette again
        notes += (_CONVERSIONS[image.mode],)
    if name == "AVIF":
        file.seek(0)
        if _is_deep_avif(file.read(1 << 16)):
            notes += (UPPER_8_BITS,)
    return dataclasses.replace(photograph, notes=notes), exif


def _is_deep_avif(start: bytes) -> bool:
    """Returns whether the first `av1C` box of an AVIF file states more than 8 bits a sample."""
    position = start.find(b"av1C")
    return 0 < position < len(start) - 6 and bool(start[position + 6] & 0x40)


def _decoded_samples(image: Image.Image) -> np.ndarray:
    """Returns the samples of a decoded image, grey or RGB, with alpha if any is transparent."""
    if image.mode not in _COLOUR_MODES:
        raise _bad_mode(image.mode)
    mode = _COLOUR_MODES[image.mode] + ("A" if image.has_transparency_data else "")
    shape = (image.height, image.width, len(mode))
    samples = np.empty(shape[:2] if mode == "L" else shape, np.uint8)
    # In bands, since Pillow's copies of a large image take four bytes per pixel each.
    for top in range(0, image.height, _ROWS):
        box = (0, top, image.width, min(top + _ROWS, image.height))
        samples[top : top + _ROWS] = np.asarray(image.crop(box).convert(mode))
    return samples


def _with_metadata(
    image: Any, name: str, samples: np.ndarray, load_exif: Callable[[], Image.Exif]
) -> tuple[Photograph, Image.Exif | None]:
    """Combines samples with the metadata that Pillow read.

    Args:
        image: the image, opened by Pillow.
        name: its format, as in `Photograph.format`.
        samples: [H, W] or [H, W, C], with alpha as the last of 2 or 4 channels.
        load_exif: returns the EXIF data.

    Returns:
        The photograph in its stored orientation, and its EXIF data (None if damaged).
    """
    pixels, alpha = _split(samples)
    info, frames = image.info, _frames(image)
    notes = (f"only the first of its {frames} pictures is read",) if frames > 1 else ()
    # For a JPEG file that states no resolution, Pillow fills in a guess.
    guessed = name == "JPEG" and not info.get("jfif_unit")
    comment = info.get("comment") or b"" if name == "GIF" else b""
    if name == "JPEG":
        comment = b"\n".join(content for kind, content in image.applist if kind == "COM")
        if any(content.startswith(_LONG_XMP) for _, content in image.applist):
            notes += ("its extended XMP data are left out",)
        if _IPTC in info.get("photoshop", ()):
            notes += ("its IPTC data are left out",)
    if info.get("icc_profile", b"") is None:
        notes += ("its colour profile is left out: it is damaged",)
    xmp = info.get("xmp")
    photograph = Photograph(
        pixels,
        alpha,
        name,
        icc_profile=info.get("icc_profile") or b"",
        dpi=None if guessed else info.get("dpi"),
        xmp=xmp if isinstance(xmp, bytes) else b"",
        comment=comment,
        notes=notes,
    )
    return photograph, image_metadata.load_exif(load_exif)


def _split(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Splits samples into pixels and alpha, which is the last of two or four channels."""
    samples = np.atleast_3d(samples)
    colours = 3 if samples.shape[-1] > 2 else 1
    alpha = samples[..., colours] if samples.shape[-1] > colours else None
    return (samples[..., :3] if colours == 3 else samples[..., 0]), alpha


def _frames(image: Any) -> int:
    """Returns the number of pages or frames; 1 if they cannot be counted."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # pages beyond the first may be damaged
        return 1


def _decode_png(file: BinaryIO, deep: bool, max_pixels: int) -> Photograph:
    decode_pixels = _decode_deep_png if deep else _decode_with_pillow
    photograph, exif = decode_pixels(file, "PNG", max_pixels)
    photograph = dataclasses.replace(
        photograph,
        png_colour=tuple(png_chunks.read(file, png_chunks.COLOUR)),
        png_text=tuple(
            (kind, content)
            for kind, content in png_chunks.read(file, png_chunks.TEXT)
            if not png_chunks.is_metadata(content)
        ),
    )
    return _finish(photograph, exif)


def _decode_deep_png(
    file: BinaryIO, name: str, max_pixels: int
) -> tuple[Photograph, Image.Exif | None]:
    """Decodes a PNG file of 16 bits a sample: its pixels with libpng, the rest with Pillow."""
    encoded = file.read()
    rest = png_chunks.without(encoded, png_chunks.PIXELS)
    with PngImagePlugin.PngImageFile(io.BytesIO(rest), "") as image:
        limits.check_size(*image.size, max_pixels)
        samples = imagecodecs.png_decode(png_chunks.without(encoded, png_chunks.LONG))
        # The base class's method, since that of PngImageFile would decode the pixels.
        return _with_metadata(image, name, samples, lambda: Image.Image.getexif(image))


def _decode_pnm(file: BinaryIO, max_pixels: int) -> Photograph:
    kind, width, height, largest = pnm.read_header(file)
    limits.check_size(width, height, max_pixels)
    pixels = pnm.read_samples(file, kind, width, height, largest)
    is_bitmap = kind in (1, 4)
    notes = (BITS_AS_GREY,) if is_bitmap else ()
    if kind > 3 and file.read(2)[:1] == b"P":
        notes += ("only the first of its pictures is read",)
    white = None if is_bitmap else _white(pixels.dtype, largest)
    return Photograph(pixels, format="PNM", white=white, notes=notes)


def _white(dtype: np.dtype, level: int) -> int | None:
    """Returns a white level as in `Photograph`: None if it is the maximum of the type."""
    return None if level == np.iinfo(dtype).max else level


def _decode_jp2(file: BinaryIO, max_pixels: int) -> Photograph:
    encoded = file.read()
    size = limits.jp2_codestream(encoded)
    limits.check_size(size.width, size.height, max_pixels, size.samples, 1 + (size.bits > 8))
    if size.bits == 8:
        return _finish(*_decode_with_pillow(file, "JP2", max_pixels))
    with Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(encoded), "") as image:
        dpi, palette = image.info.get("dpi"), image.mode == "P"
    position = encoded.find(b"colr\x01")
    if palette or encoded[position + 10 : position + 11] == b"\x12":
        raise Refused(
            f"has {size.bits}-bit samples with a palette or in YCC; save it as RGB or grey"
        )
    pixels, alpha = _split(imagecodecs.jpeg2k_decode(encoded))
    white = _white(pixels.dtype, 2**size.bits - 1)
    return _finish(Photograph(pixels, alpha, "JP2", dpi=dpi, white=white), Image.Exif())


def _finish(photograph: Photograph, exif: Image.Exif | None) -> Photograph:
    """Turns a photograph upright and adjusts its metadata to that.

    Args:
        photograph: the photograph in its stored orientation.
        exif: EXIF data of the file; None if they are damaged.
    """
    notes = photograph.notes
    if exif is None:
        notes, exif = (*notes, _DAMAGED_EXIF), Image.Exif()
    turn = image_metadata.orientation(exif, photograph.xmp)
    dpi = image_metadata.valid_dpi(photograph.dpi) or image_metadata.exif_dpi(exif)
    try:
        kept = image_metadata.descriptive(exif)
    except Exception:  # Pillow raises many kinds of errors on values of the wrong type
        notes, kept = (*notes, _DAMAGED_EXIF), b""
    profile = photograph.icc_profile
    if (space := profile[16:20]) in _UNUSABLE_PROFILES:
        notes += (f"its colour profile is left out: it is for {space.decode().strip()}",)
        profile = b""
    return dataclasses.replace(
        _upright_photograph(photograph, turn),
        dpi=dpi[::-1] if dpi and turn >= 5 else dpi,
        exif=kept,
        xmp=image_metadata.upright_xmp(photograph.xmp),
        icc_profile=profile,
        further=tuple(_upright_photograph(picture, turn) for picture in photograph.further),
        notes=notes,
    )


def _upright_photograph(photograph: Photograph, orientation: int) -> Photograph:
    return dataclasses.replace(
        photograph,
        pixels=_oriented(photograph.pixels, orientation),
        alpha=None if photograph.alpha is None else _oriented(photograph.alpha, orientation),
    )


def _oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation to [H, W, ...]: 5 to 8 swap height and width."""
    if orientation in (2, 3):
        array = array[:, ::-1]
    if orientation in (3, 4):
        array = array[::-1]
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (6, 7):
        array = array[:, ::-1]
    if orientation in (7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)
