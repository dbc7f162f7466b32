"""Image files as arrays to be restored, with what it takes to write them in their own form.

Pillow decodes most. Of 16-bit colour it keeps only the upper 8 bits, so that such PNG files go
through libpng (imagecodecs); and all common kinds of TIFF through tifffile, which knows more of
them and leaves stderr alone.
"""

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
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

from restore_jax.image_io import image_metadata, limits, png_chunks, pnm, tiff_stack

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

_WHITE_IS_ZERO, _RGB, _PALETTE, _YCBCR, _XMP, _ICC = 0, 2, 3, 6, 700, 34675
_DNG_VERSION = 50706
_MOST_CHANNELS = 64
# By the number of a TIFF file's kind of colours, the mode and its samples a pixel.
_TIFF_MODES = {0: ("L", 1), 1: ("L", 1), 2: ("RGB", 3), 3: ("P", 1), 5: ("CMYK", 4)}
_LONG_XMP = b"http://ns.adobe.com/xmp/extension/"
_DAMAGED_EXIF = "its EXIF data are damaged and left out"


class Refused(Exception):
    """A file cannot be read or written; the message says why, without its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """An image file's pixels, upright, and the form that they had in the file.

    Attributes:
        pixels: [H, W] for grey, [H, W, 3] for RGB: uint8 or uint16 over their whole range, or
            the file's own float16, float32 or float64 in [0, 1].
        alpha: opacity [H, W] of the same dtype; None where the file has none.
        format: a name of `image_paths.SUFFIXES`, by the file's content.
        mode: how the file keeps its colours: "1" (black and white), "L" (grey), "P" (by a
            palette), "RGB" or "CMYK". Those of "1" are 0 and 255 in `pixels`; those of "P" and
            "CMYK" are RGB there.
        icc_profile: the file's colour profile; empty where it has none.
        dpi: horizontal and vertical resolution in px per inch, or None.
        exif: what EXIF tells of the photograph, its time, place and camera, as Pillow takes it;
            without orientation and thumbnail. Empty where there is none.
        white: the level of whole numbers that is white; None for the largest of their type.
        inks: [H, W, 4] of a CMYK file: cyan, magenta, yellow and black, 0 where there is none.
        xmp: the XMP packet, as it holds for the upright photograph; empty where there is none.
        comment: of JPEG and GIF.
        iptc: the contents of a JPEG file's segments with IPTC data.
        png_colour: names and contents of the chunks by which a PNG file defines its colours.
        png_text: and those of its text.
        further: the other pictures of a TIFF stack, of the same form.
        tiff: what else a TIFF file tells, to be written again.
        notes: what a person should know of the reading, each a line.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    mode: str = "RGB"
    icc_profile: bytes = b""
    dpi: tuple[float, float] | None = None
    exif: bytes = b""
    white: int | None = None
    inks: np.ndarray | None = None
    xmp: bytes = b""
    comment: bytes = b""
    iptc: tuple[bytes, ...] = ()
    png_colour: tuple[tuple[bytes, bytes], ...] = ()
    png_text: tuple[tuple[bytes, bytes], ...] = ()
    further: "tuple[Photograph, ...]" = ()
    tiff: tiff_stack.Form | None = None
    notes: tuple[str, ...] = ()

    @property
    def planes(self) -> list[np.ndarray]:
        """The pixels of all pictures."""
        return [self.pixels, *(picture.pixels for picture in self.further)]


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
    name = _format_of(header)
    if name == "PNG":
        picture, aside = png_chunks.set_aside(file)
        deep = header[24:25] == b"\x10" and header[25:26] != b"\0"
        found = (
            _decode_deep_png(picture, max_pixels)
            if deep
            else _decode_with_pillow(picture, name, max_pixels)
        )
        return dataclasses.replace(
            found,
            icc_profile=aside.icc_profile,
            xmp=image_metadata.upright_xmp(aside.xmp),
            png_colour=aside.colour,
            png_text=aside.text,
            notes=found.notes + aside.notes,
        )
    if name == "PNM":
        return _decode_pnm(file, max_pixels)
    if name == "WEBP" and (size := _webp_size(header)):
        _check_size(*size, max_pixels, 4)  # before Pillow makes room for it
    if name == "GIF":
        _check_size(*struct.unpack("<HH", header[6:10]), max_pixels)
    if name == "JP2" and (bits := _check_jp2(file.read(), max_pixels)) != 8:
        return _decode_deep_jp2(file, bits)
    file.seek(0)
    if name == "TIFF":
        with tiff_stack.opened(file) as tiff:
            if _DNG_VERSION in tiff.pages.first.tags:  # a thumbnail
                raise Refused("is a camera's raw file (DNG); develop it to TIFF or PNG first")
            stack = tiff_stack.find(tiff, whole)
            page = stack.pages[0]
            weight = page.samplesperpixel, -(-page.bitspersample // 8)
            _check_size(page.imagewidth, page.imagelength, max_pixels, *weight, stack.count)
            if page.is_tiled:  # each of which is decoded whole
                _check_size(page.tilewidth, page.tilelength, max_pixels, *weight)
            if page.samplesperpixel > _MOST_CHANNELS:
                raise Refused(f"has {page.samplesperpixel:,} channels; save it as RGB or grey")
            kind = int(page.photometric)
            if kind == _YCBCR and page.compression == tifffile.COMPRESSION.JPEG:
                kind = _RGB  # its decoder converts it
            if kind in _TIFF_MODES:
                return _decode_tiff(file, tiff, stack, kind)
        file.seek(0)
    return _decode_with_pillow(file, name, max_pixels)


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


def _check_size(
    width: int,
    height: int,
    max_pixels: int,
    samples: int = 1,
    sample_bytes: int = 1,
    planes: int = 1,
) -> None:
    if width < 1 or height < 1:
        raise Refused("has no pixels")
    setting = "--max_megapixels"
    if problem := limits.problem(
        width, height, max_pixels, setting, samples, sample_bytes, planes
    ):
        raise Refused(problem)


def _webp_size(header: bytes) -> tuple[int, int] | None:
    """The (width, height) that a WebP file's first chunk tells."""
    kind, data = header[12:16], header[20:]
    if len(data) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _decode_with_pillow(file: BinaryIO, name: str, max_pixels: int) -> Photograph:
    try:
        opened = _OPENERS[name](file, "")
    except Image.DecompressionBombError as error:  # a frame of a GIF is larger than it says
        raise Refused(f"is damaged: {error}") from error
    with opened as image:
        _check_size(*image.size, max_pixels)
        # Pillow itself turns those of TIFF when it loads them, and takes the tag away.
        turned = image.tag_v2.get(image_metadata.ORIENTATION, 1) if name == "TIFF" else 1
        image.load()
        pixels, alpha, mode, inks = _split(image, file, name)
        notes = _frame_notes(_frames(image))
        profile = image.info.get("icc_profile") or b""
        dpi = image.info.get("dpi")
        if name == "JPEG" and not image.info.get("jfif_unit"):
            dpi = None  # Pillow's guess where the file itself has none
        exif = image_metadata.load_exif(image.getexif)
        xmp = image.info.get("xmp") or b""
        comment = image.info.get("comment") or b"" if name == "GIF" else b""
        segments = getattr(image, "applist", ()) if name == "JPEG" else ()
    if segments:
        comment = b"\n".join(content for marker, content in segments if marker == "COM")
        if any(content.startswith(_LONG_XMP) for _, content in segments):
            notes += ("its extended XMP data are left out",)
    if mode == "RGB" and image.mode in ("YCbCr", "LAB"):
        notes += (f"its {image.mode} colours are written as RGB",)
    if name == "AVIF" and _has_more_than_8_bits(file):
        notes += ("is read with the upper 8 bits of each sample",)
    found = Photograph(
        pixels,
        alpha,
        name,
        mode,
        profile,
        dpi,
        inks=inks,
        xmp=xmp if isinstance(xmp, bytes) else b"",
        comment=comment,
        iptc=tuple(content for marker, content in segments if marker == "APP13"),
        notes=notes,
    )
    return _finish(found, exif, turned)


def _has_more_than_8_bits(file: BinaryIO) -> bool:
    """Whether an AVIF file says so in the properties of its images, which come first."""
    file.seek(0)
    start = file.read(1 << 16)
    place = start.find(b"av1C")
    return 0 < place < len(start) - 6 and bool(start[place + 6] & 0x40)


def _split(
    image: Image.Image, file: BinaryIO, name: str
) -> tuple[np.ndarray, np.ndarray | None, str, np.ndarray | None]:
    """Divides what Pillow decoded into pixels, alpha, mode and inks."""
    key = image.info.get("transparency")
    if image.mode == "CMYK":
        inks = np.asarray(image)
        return inks_to_rgb(inks), None, "CMYK", inks
    if image.mode in ("P", "PA"):
        opaque = key is None and image.mode == "P" and image.palette.mode == "RGB"
        levels = np.asarray(image.convert("RGB" if opaque else "RGBA"))
        return levels[..., :3], None if opaque else levels[..., 3], "P", None
    if image.mode in ("RGBX", "YCbCr", "LAB"):
        return np.asarray(image.convert("RGB")), None, "RGB", None
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I;16"):
        raise Refused(f"has pixels of type {image.mode!r}; save it with 8 or 16 bits")
    levels = np.asarray(image)
    if image.mode == "LA":
        return levels[..., 0], levels[..., 1], "L", None
    if image.mode == "RGBA":
        return levels[..., :3], levels[..., 3], "RGB", None
    mode = "L" if image.mode == "I;16" else image.mode
    if mode == "1":
        levels = levels.astype(np.uint8) * 255
    bits = 8
    if name == "PNG" and levels.ndim == 2 and levels.dtype == np.uint8:
        file.seek(24)  # the bits a sample; what has under 8 was scaled to 8
        bits = file.read(1)[0]
    return levels, _alpha_of_key(levels, key, bits), mode, None


def _alpha_of_key(levels: np.ndarray, key: Any, bits: int) -> np.ndarray | None:
    """Makes alpha of the one colour of a PNG or GIF file that stands for transparency.

    It could not stay that: a restoration changes colours.
    """
    if key is None:
        return None
    if levels.ndim == 2 and levels.dtype == np.uint8:
        key = int(key) * 255 // (2**bits - 1)
    same = levels == np.asarray(key)
    transparent = same.all(-1) if levels.ndim == 3 else same
    return np.where(transparent, 0, np.iinfo(levels.dtype).max).astype(levels.dtype)


def _decode_deep_png(file: BinaryIO, max_pixels: int) -> Photograph:
    """Decodes a PNG file with 16 bits of colour or alpha."""
    with PngImagePlugin.PngImageFile(file, "") as image:
        _check_size(*image.size, max_pixels)
        dpi = image.info.get("dpi")
        notes = _frame_notes(_frames(image))
        # That of the class, since its own would decode the pixels.
        early = image_metadata.load_exif(lambda: Image.Image.getexif(image))
    content = dict(png_chunks.read(file, (b"eXIf",))).get(b"eXIf", b"")
    exif = early
    if content:
        exif = image_metadata.load_exif(lambda: image_metadata.parse_exif(content))
    file.seek(0)
    levels = imagecodecs.png_decode(file.read())
    colours = 3 if levels.shape[-1] > 2 else 1
    alpha = levels[..., colours] if levels.shape[-1] > colours else None
    found = Photograph(
        levels[..., :3] if colours == 3 else levels[..., 0],
        alpha,
        "PNG",
        "RGB" if colours == 3 else "L",
        dpi=dpi,
        notes=notes,
    )
    return _finish(found, exif)


def _decode_pnm(file: BinaryIO, max_pixels: int) -> Photograph:
    kind, width, height, largest = pnm.read_header(file)
    _check_size(width, height, max_pixels)
    pixels = pnm.read_samples(file, kind, width, height, largest)
    further = kind > 3 and file.read(2)[:1] == b"P"
    return Photograph(
        pixels,
        format="PNM",
        mode="1" if kind in (1, 4) else "RGB" if pixels.ndim == 3 else "L",
        white=_white(pixels.dtype, largest if kind not in (1, 4) else 255),
        notes=("only the first of its pictures is read",) if further else (),
    )


def _white(dtype: np.dtype, level: int) -> int | None:
    return None if level == np.iinfo(dtype).max else level


def _check_jp2(encoded: bytes, max_pixels: int) -> int:
    """Returns the bits a sample of a JPEG 2000 file, if it is not too large."""
    start = encoded.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(encoded[start + 40 : start + 42])
    if start < 0 or not 1 <= count <= _MOST_CHANNELS:
        raise Refused("is damaged: it has no JPEG 2000 codestream")
    depths = set(encoded[start + 42 : start + 42 + 3 * count : 3])
    bits = (max(depths, default=0) & 127) + 1
    if len(depths) != 1 or max(depths) > 127 or bits > 16:
        raise Refused("has samples with signs, of several kinds or of more than 16 bits")
    right, bottom, left, top = struct.unpack(">4I", encoded[start + 8 : start + 24])
    _check_size(right - left, bottom - top, max_pixels, count, 1 + (bits > 8))
    return bits


def _decode_deep_jp2(file: BinaryIO, bits: int) -> Photograph:
    """Decodes a JPEG 2000 file of other than 8 bits, of which Pillow keeps 8 of each colour."""
    file.seek(0)
    with Jpeg2KImagePlugin.Jpeg2KImageFile(file, "") as image:
        dpi, palette = image.info.get("dpi"), image.mode == "P"
    file.seek(0)
    encoded = file.read()
    place = encoded.find(b"colr\x01")
    if palette or encoded[place + 10 : place + 11] == b"\x12":
        raise Refused(
            f"has {bits} bits a sample by a palette or in YCC; save it as RGB or grey"
        )
    levels = np.atleast_3d(imagecodecs.jpeg2k_decode(encoded))
    colours = 3 if levels.shape[-1] > 2 else 1
    alpha = levels[..., colours] if levels.shape[-1] > colours else None
    found = Photograph(
        levels[..., :3] if colours == 3 else levels[..., 0],
        alpha,
        "JP2",
        "RGB" if colours == 3 else "L",
        dpi=dpi,
        white=_white(levels.dtype, 2**bits - 1),
    )
    return _finish(found, Image.Exif())


def _decode_tiff(
    file: BinaryIO, tiff: tifffile.TiffFile, stack: tiff_stack.Stack, kind: int
) -> Photograph:
    """Decodes pictures of a TIFF file that are of one of `_TIFF_MODES`."""
    page = stack.pages[0]
    _check_tiff_kind(page)
    if tiff.is_imagej and kind == _PALETTE:
        kind = 1  # its palette only shows levels in colour
    planes = [_decode_plane(page, levels, kind) for levels in stack.levels()]
    profile, xmp = page.tags.valueof(_ICC, b""), page.tags.valueof(_XMP, b"")
    found = dataclasses.replace(
        planes[0],
        icc_profile=profile if isinstance(profile, bytes) else b"",
        xmp=xmp if isinstance(xmp, bytes) else b"",
        notes=stack.notes + planes[0].notes,
    )

    def load() -> Image.Exif:
        exif = Image.Exif()
        if tiff.is_bigtiff and tiff.byteorder == ">":  # which Pillow takes for another kind
            for tag in (image_metadata.ORIENTATION, *image_metadata.DESCRIPTIVE):
                if tag in page.tags:
                    exif[tag] = page.tags.valueof(tag)
            return exif
        exif.endian, exif.bigtiff = tiff.byteorder, tiff.is_bigtiff
        exif.load_from_fp(file, page.offset)
        return exif

    exif = image_metadata.load_exif(load)
    turn = _orientation(found, exif or {})
    resolution = [page.tags.valueof(tag) for tag in image_metadata.RESOLUTION]
    found = dataclasses.replace(found, dpi=image_metadata.dpi_of(*resolution))
    # Before they are turned, to read no more from the file afterwards.
    form = tiff_stack.form(file, tiff, stack, turn)
    found = dataclasses.replace(_finish(found, exif), tiff=form)
    if turn != 1 and any(tag.code in tiff_stack.GEOGRAPHIC for tag in page.tags):
        note = "its place on Earth is left out: the picture was turned upright"
        found = dataclasses.replace(found, notes=(*found.notes, note))
    return dataclasses.replace(
        found, further=tuple(_turned(plane, turn) for plane in planes[1:])
    )


def _decode_plane(page: tifffile.TiffPage, levels: np.ndarray, kind: int) -> Photograph:
    """Makes a photograph of the samples [H, W, S] of a page."""
    mode, colours = _TIFF_MODES[kind]
    levels = _checked_levels(levels, np.dtype(page.dtype))
    notes: tuple[str, ...] = ()
    white = tiff_stack.white_of(page) if mode in ("L", "RGB") else None
    if white is not None and levels[..., :colours].max() > white:
        white = None  # the file is mistaken
    if levels.shape[-1] < colours:
        raise Refused(f"is damaged: {levels.shape[-1]} samples a pixel where {mode} has more")
    pixels, alpha = levels[..., :colours], None
    extra = tuple(page.extrasamples)[:1]
    if extra in ((1,), (2,)) and levels.shape[-1] > colours:
        alpha = levels[..., colours]
        if extra == (1,):
            pixels = _divide_by_alpha(pixels, alpha)
    if levels.shape[-1] > colours + (alpha is not None):
        notes += ("its further channels are left out",)
    if mode == "P":
        # 16 bits a colour, of which readers take the upper 8.
        table = (np.asarray(page.colormap) >> 8).astype(np.uint8)
        pixels = table[:, pixels[..., 0]].transpose(1, 2, 0)
        alpha = None if alpha is None else alpha.astype(np.uint8)
    elif page.bitspersample < 8:
        pixels = pixels.astype(np.uint8) * (255 // (2**page.bitspersample - 1))
        if page.bitspersample == 1 and mode == "L":
            mode = "1"
    pixels = pixels[..., 0] if colours == 1 and mode != "P" else pixels
    if kind == _WHITE_IS_ZERO:
        largest = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        pixels = np.minimum(pixels, white or largest)
        pixels = (white or largest) - pixels
    pixels = pixels.astype(levels.dtype, copy=False) if white else pixels
    inks = pixels if mode == "CMYK" else None
    return Photograph(
        pixels if inks is None else inks_to_rgb(inks),
        alpha,
        "TIFF",
        mode,
        white=white,
        inks=inks,
        notes=notes,
    )


def _check_tiff_kind(page: tifffile.TiffPage) -> None:
    if page.dtype is None or not set(page.axes) <= set("ZYXS"):
        raise Refused("is a TIFF of a kind that is not read; save it as RGB or grey")
    dtype, bits = np.dtype(page.dtype), page.bitspersample
    if bits not in (1, 2, 4, *range(9, 16), 8 * dtype.itemsize) or not (
        dtype in (np.bool_, np.uint8, np.uint16) or dtype.kind == "f"
    ):
        raise Refused(f"has {bits} bits a sample ({dtype}); save it with 8 or 16 bits")


def _checked_levels(levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    levels = levels.astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "f":
        low, high = levels.min(), levels.max()
        if not (low >= 0 and high <= 1):  # NaN neither
            raise Refused(f"has float values from {low:g} to {high:g}; scale them to 0…1")
    return levels


def _divide_by_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undoes the multiplication of colours [H, W, C] by alpha [H, W]."""
    if pixels.dtype.kind == "f":
        opacity = np.maximum(alpha, np.finfo(alpha.dtype).tiny)
        return np.minimum(pixels / opacity[..., None], 1).astype(pixels.dtype)
    share = pixels / np.maximum(alpha, 1)[..., None].astype(np.float64)
    return np.rint(np.minimum(share, 1) * np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def _finish(found: Photograph, exif: Image.Exif | None, turned: int = 1) -> Photograph:
    """Turns the arrays upright and brings resolution and EXIF into order.

    Args:
        found: as decoded.
        exif: the file's; None if it is damaged.
        turned: the orientation that was accounted for already.
    """
    notes = found.notes
    if exif is None:
        notes, exif = (*notes, _DAMAGED_EXIF), Image.Exif()
    orientation = _orientation(found, exif)
    found = _turned(found, orientation)
    dpi = image_metadata.valid_dpi(found.dpi) or image_metadata.exif_dpi(exif)
    if dpi and max(orientation, _valid(turned)) >= 5:
        dpi = dpi[::-1]
    height, width = found.pixels.shape[:2]
    try:
        kept = image_metadata.descriptive(exif, width, height)
    except Exception:  # whatever Pillow stumbles over in values of the wrong type
        notes, kept = (*notes, _DAMAGED_EXIF), b""
    xmp = image_metadata.upright_xmp(found.xmp)
    return dataclasses.replace(found, dpi=dpi, exif=kept, xmp=xmp, notes=notes)


def _orientation(found: Photograph, exif: Mapping[int, Any]) -> int:
    return _valid(
        exif.get(image_metadata.ORIENTATION) or image_metadata.xmp_orientation(found.xmp)
    )


def _turned(found: Photograph, orientation: int) -> Photograph:
    arrays = {
        name: None if array is None else _upright(array, orientation)
        for name in ("pixels", "alpha", "inks")
        for array in [getattr(found, name)]
    }
    return dataclasses.replace(found, **arrays)


def _valid(orientation: Any) -> int:
    return orientation if orientation in range(1, 9) else 1


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


def _frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # pages beyond the first may be damaged
        return 1


def _frame_notes(frames: int) -> tuple[str, ...]:
    return (f"only the first of its {frames} pictures is read",) if frames > 1 else ()


def inks_to_rgb(inks: np.ndarray) -> np.ndarray:
    """Returns the colours of inks on white, each filtering the light by its amount.

    Args:
        inks: cyan, magenta, yellow and black [H, W, 4], uint8, uint16 or float in [0, 1].

    Returns:
        RGB [H, W, 3] of the same dtype.
    """
    if inks.dtype.kind == "f":
        return (1 - inks[..., :3]) * (1 - inks[..., 3:])
    white = np.iinfo(inks.dtype).max
    light = white - inks.astype(np.uint32)
    product = light[..., :3] * light[..., 3:]
    product += white // 2
    return (product // white).astype(inks.dtype)
