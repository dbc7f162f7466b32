"""Image files as photographs: grey or RGB, upright, with what the file tells beside them.

Pillow decodes most. Of 16-bit colour it keeps only the upper 8 bits, so that such PNG and JPEG
2000 files go through imagecodecs, any-maps through `pnm`, and TIFF through `tiff_decoding`.
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
    Photograph,
    Refused,
)

# Opened by its own class, a file in disguise never reaches the formats that run other programs,
# and the limit to the number of pixels is the caller's, not that of the whole process.
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
_HEADER_BYTES = 64
# By Pillow's modes, what becomes of them.
_MODELS = dict.fromkeys(("1", "L", "LA"), "L") | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"), "RGB"
)
_CHANGES = {
    "1": BITS_AS_GREY,
    "P": PALETTE_AS_RGB,
    "PA": PALETTE_AS_RGB,
    "CMYK": CMYK_AS_RGB,
    "YCbCr": "YCbCr: written as RGB",
    "LAB": "LAB: written as RGB",
}
_FOREIGN_PROFILES = (b"CMYK", b"Lab ")
_IPTC = 0x0404  # of the blocks that Photoshop writes
_LONG_XMP = b"http://ns.adobe.com/xmp/extension/"
_DAMAGED_EXIF = "its EXIF data are damaged and left out"


def decode(file: BinaryIO, max_pixels: int, whole: bool = False) -> Photograph:
    """Decodes an image file; of several pages or frames, the first.

    Args:
        file: the file, open at its start.
        max_pixels: how many pixels it may have, see `limits`; nothing is decoded of one
            that has more.
        whole: of a TIFF file, whether all pictures of the series with the most pixels.

    Raises:
        Refused: it is none of the formats, has too many pixels or pixels of a kind that has no
            defined white.
        Exception: whatever Pillow, libpng and tifffile raise about a damaged file.
    """
    header = file.read(_HEADER_BYTES)
    file.seek(0)
    match _format_of(header):
        case "PNG":
            return _decode_png(file, header[24:25] == b"\x10", max_pixels)
        case "PNM":
            return _decode_pnm(file, max_pixels)
        case "JP2":
            return _decode_jp2(file, max_pixels)
        case "TIFF":
            found = tiff_decoding.decode(file, max_pixels, whole)
            return _finish(*(found or _decode_with_pillow(file, "TIFF", max_pixels)))
        case name:
            # Pillow makes room for these two as it opens them.
            if name == "WEBP" and (size := limits.webp_size(header)):
                limits.check_size(*size, max_pixels, 4)
            if name == "GIF":
                limits.check_size(*limits.gif_size(header), max_pixels)
            return _finish(*_decode_with_pillow(file, name, max_pixels))


def _format_of(header: bytes) -> str:
    if not header:
        raise Refused("is empty (0 bytes)")
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        return "WEBP"
    if header[4:8] == b"ftyp" and {b"avif", b"avis"} & _brands(header):
        return "AVIF"
    if header[:1] == b"P" and header[1:2] in b"123456" and header[2:3] in b" \t\n\v\f\r#":
        return "PNM"
    for name, starts in _SIGNATURES.items():
        if header.startswith(starts):
            return name
    raise Refused(
        "is not an image of a format that is read (PNG, JPEG, TIFF, BMP, WebP, GIF, PNM, "
        "JPEG 2000, AVIF)"
    )


def _brands(header: bytes) -> set[bytes]:
    """The kinds of content that the first box of an ISO media file names."""
    box = header[8 : int.from_bytes(header[:4])]
    return {box[i : i + 4] for i in range(0, len(box), 4)}


def _decode_with_pillow(
    file: BinaryIO, name: str, max_pixels: int
) -> tuple[Photograph, Image.Exif | None]:
    """Returns a photograph as it lies in the file, and its EXIF data; None if damaged."""
    file.seek(0)
    try:
        opened = _OPENERS[name](file, "")
    except Image.DecompressionBombError as error:  # a frame of a GIF is larger than it says
        raise Refused(f"is damaged: {error}") from error
    with opened as image:
        limits.check_size(*image.size, max_pixels)
        image.load()
        levels = _levels(image)
        found, exif = _told(image, name, levels, image.getexif)
    notes = found.notes
    if image.mode in _CHANGES and name != "GIF":  # whose own form is a palette
        notes += (_CHANGES[image.mode],)
    if name == "AVIF":
        file.seek(0)
        if _is_deep_avif(file.read(1 << 16)):
            notes += (UPPER_8_BITS,)
    return dataclasses.replace(found, notes=notes), exif


def _is_deep_avif(start: bytes) -> bool:
    """Whether an AVIF file has more than 8 bits a sample, by its images' first properties."""
    place = start.find(b"av1C")
    return 0 < place < len(start) - 6 and bool(start[place + 6] & 0x40)


def _levels(image: Image.Image) -> np.ndarray:
    """The samples of what Pillow decoded, grey or RGB, with alpha if there is transparency."""
    if image.mode not in _MODELS:
        raise Refused(f"has pixels of type {image.mode!r}; save it with 8 or 16 bits")
    mode = _MODELS[image.mode] + ("A" if image.has_transparency_data else "")
    return np.asarray(image.convert(mode))


def _told(
    image: Any, name: str, levels: np.ndarray, load_exif: Callable[[], Image.Exif]
) -> tuple[Photograph, Image.Exif | None]:
    """Joins samples [H, W] or [H, W, C] and what Pillow found beside them in the file."""
    pixels, alpha = _split(levels)
    info, frames = image.info, _frames(image)
    notes = (f"only the first of its {frames} pictures is read",) if frames > 1 else ()
    # Where a JPEG file itself has no resolution, there is a guess of Pillow's.
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
    found = Photograph(
        pixels,
        alpha,
        name,
        icc_profile=info.get("icc_profile") or b"",
        dpi=None if guessed else info.get("dpi"),
        xmp=xmp if isinstance(xmp, bytes) else b"",
        comment=comment,
        notes=notes,
    )
    return found, image_metadata.load_exif(load_exif)


def _split(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Divides samples into pixels and alpha, which is the last of two or four channels."""
    levels = np.atleast_3d(levels)
    colours = 3 if levels.shape[-1] > 2 else 1
    alpha = levels[..., colours] if levels.shape[-1] > colours else None
    return (levels[..., :3] if colours == 3 else levels[..., 0]), alpha


def _frames(image: Any) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # pages beyond the first may be damaged
        return 1


def _decode_png(file: BinaryIO, deep: bool, max_pixels: int) -> Photograph:
    decode_pixels = _decode_deep_png if deep else _decode_with_pillow
    found, exif = decode_pixels(file, "PNG", max_pixels)
    found = dataclasses.replace(
        found,
        png_colour=tuple(png_chunks.read(file, png_chunks.COLOUR)),
        png_text=tuple(
            (kind, content)
            for kind, content in png_chunks.read(file, png_chunks.TEXT)
            if not png_chunks.is_metadata(content)
        ),
    )
    return _finish(found, exif)


def _decode_deep_png(
    file: BinaryIO, name: str, max_pixels: int
) -> tuple[Photograph, Image.Exif | None]:
    """Decodes a PNG file with 16 bits a sample: libpng the pixels, Pillow the rest."""
    encoded = file.read()
    rest = png_chunks.without(encoded, png_chunks.PIXELS)
    with PngImagePlugin.PngImageFile(io.BytesIO(rest), "") as image:
        limits.check_size(*image.size, max_pixels)
        levels = imagecodecs.png_decode(png_chunks.without(encoded, png_chunks.LONG))
        # That of the class, since its own would decode the pixels.
        return _told(image, name, levels, lambda: Image.Image.getexif(image))


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
    return None if level == np.iinfo(dtype).max else level


def _decode_jp2(file: BinaryIO, max_pixels: int) -> Photograph:
    encoded = file.read()
    size = limits.jp2_codestream(encoded)
    limits.check_size(size.width, size.height, max_pixels, size.samples, 1 + (size.bits > 8))
    if size.bits == 8:
        return _finish(*_decode_with_pillow(file, "JP2", max_pixels))
    with Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(encoded), "") as image:
        dpi, palette = image.info.get("dpi"), image.mode == "P"
    place = encoded.find(b"colr\x01")
    if palette or encoded[place + 10 : place + 11] == b"\x12":
        raise Refused(
            f"has {size.bits} bits a sample by a palette or in YCC; save it as RGB or grey"
        )
    pixels, alpha = _split(imagecodecs.jpeg2k_decode(encoded))
    white = _white(pixels.dtype, 2**size.bits - 1)
    return _finish(Photograph(pixels, alpha, "JP2", dpi=dpi, white=white), Image.Exif())


def _finish(found: Photograph, exif: Image.Exif | None) -> Photograph:
    """Turns a photograph upright and brings what is told of it into order.

    Args:
        found: as it lies in the file.
        exif: the file's; None if it is damaged.
    """
    notes = found.notes
    if exif is None:
        notes, exif = (*notes, _DAMAGED_EXIF), Image.Exif()
    turn = image_metadata.orientation(exif, found.xmp)
    dpi = image_metadata.valid_dpi(found.dpi) or image_metadata.exif_dpi(exif)
    try:
        kept = image_metadata.descriptive(exif)
    except Exception:  # whatever Pillow stumbles over in values of the wrong type
        notes, kept = (*notes, _DAMAGED_EXIF), b""
    profile = found.icc_profile
    if (space := profile[16:20]) in _FOREIGN_PROFILES:
        notes += (f"its colour profile is left out: it is for {space.decode().strip()}",)
        profile = b""
    return dataclasses.replace(
        _turned(found, turn),
        dpi=dpi[::-1] if dpi and turn >= 5 else dpi,
        exif=kept,
        xmp=image_metadata.upright_xmp(found.xmp),
        icc_profile=profile,
        further=tuple(_turned(picture, turn) for picture in found.further),
        notes=notes,
    )


def _turned(found: Photograph, orientation: int) -> Photograph:
    return dataclasses.replace(
        found,
        pixels=_upright(found.pixels, orientation),
        alpha=None if found.alpha is None else _upright(found.alpha, orientation),
    )


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
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
