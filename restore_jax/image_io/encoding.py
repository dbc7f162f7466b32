"""Restored photographs as image files: the form of the source wherever the format has it."""

import dataclasses
import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from restore_jax.image_io import image_metadata, png_chunks, pnm, tiff_stack
from restore_jax.image_io.decoding import Photograph, Refused, inks_to_rgb

# JPEG has no lossless form that others read; at this quality, and with colour at full
# resolution, what it adds is far below the noise that a restoration leaves.
JPEG_QUALITY = 95

_DTYPES = {
    "PNG": (np.uint8, np.uint16),
    "TIFF": (np.uint8, np.uint16, np.floating),
    "PNM": (np.uint8, np.uint16),
    "JP2": (np.uint8, np.uint16),
}
_MODES = {
    "PNG": ("1", "L", "P", "RGB"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "P", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB",),
    "GIF": ("L", "P"),
    "PNM": ("1", "L", "RGB"),
    "JP2": ("L", "RGB"),
    "AVIF": ("L", "RGB"),
}
_INSTEAD = {"1": "L", "L": "RGB", "P": "RGB", "CMYK": "RGB", "RGB": "P"}
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535, "AVIF": 65535}
_WITHOUT_ALPHA = ("JPEG", "PNM")
_WITHOUT_PROFILE = ("BMP", "GIF", "PNM", "JP2")
_WITHOUT_EXIF = ("BMP", "GIF", "PNM", "JP2")
_WITH_WHITE = ("PNM", "JP2", "TIFF")
_XMP_TAG = 700
_WITH_DPI = ("PNG", "JPEG", "TIFF", "BMP")
_JPEG_SEGMENT = 65533
_JPEG_EXIF_LIMIT = _JPEG_SEGMENT - 6
_JPEG_XMP_LIMIT = _JPEG_SEGMENT - 29
_WITH_XMP = ("PNG", "JPEG", "TIFF", "WEBP", "AVIF")
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": JPEG_QUALITY, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # with the colours of what is transparent
    "BMP": {"dpi": (0, 0)},  # unknown; Pillow would claim 96
    "GIF": {},
    "AVIF": {"quality": JPEG_QUALITY, "subsampling": "4:4:4"},
}
_MODEL = {"1": "grey", "L": "grey", "P": "RGB", "RGB": "RGB", "CMYK": "CMYK"}


def encode(
    file: BinaryIO, planes: Sequence[np.ndarray], like: Photograph, name: str
) -> tuple[str, ...]:
    """Writes an image file.

    Args:
        file: where to, open for writing and reading, empty.
        planes: pixels of the shape and type of `like.pixels`: one, or for each picture of the
            stack.
        like: the photograph they were restored from.
        name: the format, as in `Photograph.format`.

    Returns:
        What the format could not keep, each a line.

    Raises:
        Refused: the format has no files of that size.
    """
    restored = planes[0]
    height, width = restored.shape[:2]
    longest = _LONGEST_SIDE.get(name)
    if longest and max(height, width) > longest:
        raise Refused(f"cannot be {width:,} × {height:,} px: {name} ends at {longest:,}")
    notes: list[str] = []
    alpha = like.alpha
    if alpha is not None and name in _WITHOUT_ALPHA:
        notes.append(f"its alpha is left out: {name} has none")
        alpha = None
    mode = _mode(like.mode, name, alpha is not None)
    dtype = _dtype(like.pixels.dtype, name)
    if dtype.itemsize < like.pixels.dtype.itemsize:
        notes.append(f"{like.pixels.dtype} is written with {8 * dtype.itemsize} bits")
    pixels = rgb_to_inks(restored, like.inks) if mode == "CMYK" else restored
    is_told = like.format in _WITH_WHITE and name not in _WITH_WHITE
    if like.white is not None and dtype == like.pixels.dtype and is_told:
        notes.append(f"its white stays at {like.white:,}, which {name} cannot tell")
    pixels = _to_dtype(pixels, dtype, like.white)
    alpha = None if alpha is None else _to_dtype(alpha, dtype, None)
    if mode == "P" and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if alpha is not None and name == "GIF":
        pixels, alpha = _with_one_transparent_colour(pixels, alpha, notes)
    image = Image.fromarray(pixels > 127) if mode == "1" else None
    if mode == "P":
        image = _to_palette(pixels, alpha, name, notes)
        mode = "P" if image else "RGB"
    if mode == "RGB" and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if image is None and alpha is not None:
        pixels = np.dstack([pixels, alpha])
    if like.further and (name != "TIFF" or len(planes) == 1):
        notes.append(f"only the first of its {1 + len(like.further)} pictures is written")
    metadata = _metadata(like, name, mode, notes)
    if name == "PNG":
        _write_png(file, image, pixels, metadata, like)
    elif name == "TIFF":
        pictures = [(pixels, image)]
        for plane, source in zip(planes[1:], like.further, strict=True):
            pictures.append(_tiff_picture(plane, source, mode, notes))
        _write_tiff(file, pictures, mode, alpha is not None, metadata, like, notes)
    elif name == "PNM":
        pnm.write(file, pixels if image is None else np.asarray(image), _largest(like, dtype))
    elif name == "JP2":
        bits = _largest(like, dtype).bit_length()
        file.write(
            imagecodecs.jpeg2k_encode(
                np.ascontiguousarray(pixels),
                level=0,
                codecformat="jp2",
                reversible=True,
                bitspersample=bits,
            )
        )
    elif name == "BMP" and alpha is not None:
        _write_bmp_with_alpha(file, pixels, like.dpi)
    else:
        if image is None:
            image = _as_image(pixels, mode)
        options = _OPTIONS[name] | metadata
        if name == "AVIF" and mode == "L":
            options["subsampling"] = "4:0:0"
        image.save(file, name, **options)
    return tuple(notes)


def _mode(mode: str, name: str, has_alpha: bool) -> str:
    """The mode a format keeps colours in: the source's own or the next it has."""
    while mode not in _MODES[name]:
        mode = _INSTEAD[mode]
    if not has_alpha:
        return mode
    if mode == "1":
        mode = "L"
    # Palettes have alpha in PNG alone; BMP has it with full colours alone.
    if name == "GIF":
        return "P"
    return "RGB" if (mode == "P" and name != "PNG") or name == "BMP" else mode


def _largest(like: Photograph, dtype: np.dtype) -> int:
    """The level of white in the file, of samples of a type."""
    if like.white is not None and dtype == like.pixels.dtype:
        return like.white
    return int(np.iinfo(dtype).max)


def _with_one_transparent_colour(
    pixels: np.ndarray, alpha: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Makes alpha all or nothing, with black where there is none."""
    if not np.isin(alpha, (0, 255)).all():
        notes.append("its alpha is divided at half: GIF has no shades of it")
    opaque = alpha > 127
    return pixels * opaque[..., None], np.where(opaque, 255, 0).astype(np.uint8)


def rgb_to_inks(restored: np.ndarray, inks: np.ndarray) -> np.ndarray:
    """Returns inks for restored colours, near those of the source.

    Black stays as far as the colour lets it, the other inks make up the rest. Where the colour
    is the source's own, so are all inks.

    Args:
        restored: RGB [H, W, 3], uint8, uint16 or float in [0, 1].
        inks: the source's [H, W, 4], of the same dtype.
    """
    white = 1.0 if restored.dtype.kind == "f" else float(np.iinfo(restored.dtype).max)
    black = np.minimum(inks[..., 3], (white - restored.max(-1)).astype(restored.dtype))
    light = (white - black)[..., None].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        others = np.clip(white - white * restored / light, 0, white)
    others = np.where(light > 0, others, inks[..., :3])
    if restored.dtype.kind != "f":
        others = np.rint(others)
    found = np.dstack([others.astype(restored.dtype), black])
    same = (restored == inks_to_rgb(inks)).all(-1, keepdims=True)
    return np.where(same, inks, found)


def _dtype(dtype: np.dtype, name: str) -> np.dtype:
    """The type a format keeps samples in: the source's own or the next it has."""
    kept = _DTYPES.get(name, (np.uint8,))
    if any(np.issubdtype(dtype, kind) for kind in kept):
        return dtype
    return np.dtype(kept[-1])


def _to_dtype(levels: np.ndarray, dtype: np.dtype, white: int | None) -> np.ndarray:
    """Scales to the nearest level of another type; `white` as in `Photograph`."""
    if levels.dtype == dtype:
        return levels
    if white is not None:
        scaled = levels.astype(np.uint32) * np.iinfo(dtype).max + white // 2
        return np.minimum(scaled // white, np.iinfo(dtype).max).astype(dtype)
    if levels.dtype.kind == "f":
        white = np.iinfo(dtype).max
        return np.rint(np.clip(levels, 0, 1) * np.float32(white)).astype(dtype)
    return ((levels.astype(np.uint32) + 128) // 257).astype(dtype)


def _to_palette(
    pixels: np.ndarray, alpha: np.ndarray | None, name: str, notes: list[str]
) -> Image.Image | None:
    """Returns a palette image: exact up to 256 colours, else of the 256 that are nearest.

    Nothing is dithered: that would be new noise. None is returned where the palette would have
    to change the alpha.
    """
    image = Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
    colours = image.getcolors(256)
    if colours is not None:
        palette = np.array(sorted(colour for _, colour in colours), np.uint8)
        codes = _codes(np.asarray(image))
        index = np.searchsorted(_codes(palette), codes).astype(np.uint8)
        found = Image.fromarray(index).convert("L")
    else:
        if alpha is not None and not np.isin(alpha, (0, 255)).all():
            notes.append("is written as RGBA: it has more than 256 colours and shades of alpha")
            return None
        count = 256 if alpha is None else 255
        notes.append(f"its colours are reduced to a palette of {count}")
        found = Image.fromarray(pixels).quantize(count, Image.Quantize.MEDIANCUT, kmeans=1)
        palette = np.array(found.getpalette(), np.uint8).reshape(-1, 3)
        index = np.asarray(found)
        if alpha is not None:
            palette = np.c_[palette[:255], np.full(len(palette[:255]), 255, np.uint8)]
            index = np.where(alpha > 0, index, len(palette)).astype(np.uint8)
            palette = np.r_[palette, np.zeros((1, 4), np.uint8)]
    found = Image.fromarray(index)
    found.putpalette(np.ascontiguousarray(palette[:, :3]).tobytes())  # makes it a "P"
    if alpha is not None and name == "GIF":
        clear = np.flatnonzero(palette[:, 3] == 0)
        if clear.size:
            found.info["transparency"] = int(clear[0])
    elif alpha is not None:
        found.info["transparency"] = palette[:, 3].tobytes()
    return found


def _codes(colours: np.ndarray) -> np.ndarray:
    """One number for each colour [..., C], in the order of the colours."""
    codes = np.zeros(colours.shape[:-1], np.uint32)
    for channel in range(colours.shape[-1]):
        codes = codes << 8 | colours[..., channel]
    return codes


def _metadata(like: Photograph, name: str, mode: str, notes: list[str]) -> dict[str, Any]:
    """Returns what Pillow takes as keywords: profile, resolution and EXIF."""
    found: dict[str, Any] = {}
    if like.icc_profile:
        if name in _WITHOUT_PROFILE or _MODEL[mode] != _MODEL[like.mode]:
            notes.append(f"its colour profile is left out: not for {name} in {_MODEL[mode]}")
        else:
            found["icc_profile"] = like.icc_profile
    if like.dpi and name in _WITH_DPI:
        most = 65535 if name == "JPEG" else np.inf
        if round(max(like.dpi)) <= most:
            found["dpi"] = like.dpi
    exif = like.exif
    if like.dpi and name in ("WEBP", "AVIF"):
        exif = image_metadata.with_dpi(exif, like.dpi)  # its only place for a resolution
    elif like.dpi and name not in _WITH_DPI:
        notes.append(f"its resolution is left out: {name} has no place for it")
    if exif and (name in _WITHOUT_EXIF or (name == "JPEG" and len(exif) > _JPEG_EXIF_LIMIT)):
        notes.append(f"its EXIF data are left out: {name} has no room for them")
    elif exif:
        found["exif"] = exif
    return found | _texts(like, name, notes)


def _texts(like: Photograph, name: str, notes: list[str]) -> dict[str, Any]:
    """Returns XMP, comments and IPTC as Pillow takes them; notes what the format has not."""
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
    if like.iptc and name == "JPEG":
        found["extra"] = b"".join(
            b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment for segment in like.iptc
        )
    elif like.iptc:
        notes.append(f"its IPTC data are left out: {name} has no room for them")
    if like.png_text and name != "PNG":
        words = sorted({text.split(b"\0", 1)[0].decode("latin-1") for _, text in like.png_text})
        shown = ", ".join(word if word.isprintable() else ascii(word) for word in words[:3])
        notes.append(f"its text ({shown}) is left out: {name} has no place for it")
    return found


def _as_image(pixels: np.ndarray, mode: str) -> Image.Image:
    if mode == "CMYK":
        height, width = pixels.shape[:2]
        return Image.frombuffer("CMYK", (width, height), pixels.tobytes(), "raw", "CMYK", 0, 1)
    return Image.fromarray(pixels)


def _write_png(
    file: BinaryIO,
    image: Image.Image | None,
    pixels: np.ndarray,
    metadata: dict[str, Any],
    like: Photograph,
) -> None:
    chunks = [*(() if "icc_profile" in metadata else like.png_colour), *like.png_text]
    metadata = dict(metadata)
    if xmp := metadata.pop("xmp", b""):
        chunks.append(png_chunks.xmp_chunk(xmp))
    if comment := metadata.pop("comment", b""):
        chunks.append((b"tEXt", b"Comment\0" + comment.replace(b"\0", b" ")))
    info = PngImagePlugin.PngInfo()
    for name, content in chunks:
        info.add(name, content)
    if image is not None:
        image.save(file, "PNG", pnginfo=info, **metadata)
        return
    # libpng writes the pixels, as Pillow has none of 16 bits in colour; the rest is taken from
    # an image of one pixel that Pillow writes.
    donor = io.BytesIO()
    Image.new("L", (1, 1)).save(donor, "PNG", pnginfo=info, **metadata)
    pixels = np.ascontiguousarray(pixels)
    # Reshaped, since libpng minds the strides of axes of length 1.
    encoded = memoryview(imagecodecs.png_encode(pixels.reshape(-1).reshape(pixels.shape)))
    names = {name for name, _ in chunks} | {b"iCCP", b"pHYs", b"eXIf"}
    start = 8 + 12 + 13  # signature and header
    file.write(encoded[:start])
    for name, content in png_chunks.read(donor, tuple(names)):
        file.write(png_chunks.chunk(name, content))
    file.write(encoded[start:])


def _tiff_picture(
    restored: np.ndarray, like: Photograph, mode: str, notes: list[str]
) -> tuple[np.ndarray, Image.Image | None]:
    """Makes one more picture of a stack as `encode` makes the first, of the same type."""
    pixels = (
        rgb_to_inks(restored, like.inks)
        if mode == "CMYK" and like.inks is not None
        else (restored)
    )
    if mode == "1":
        return pixels, Image.fromarray(pixels > 127)
    if mode == "P":
        return pixels, _to_palette(pixels, None, "TIFF", notes)
    return (pixels if like.alpha is None else np.dstack([pixels, like.alpha])), None


def _write_tiff(
    file: BinaryIO,
    pictures: Sequence[tuple[np.ndarray, Image.Image | None]],
    mode: str,
    has_alpha: bool,
    metadata: dict[str, Any],
    like: Photograph,
    notes: list[str],
) -> None:
    """Writes pictures with what the source tells, if readers then find the same pictures."""
    form = like.tiff if len(pictures) == 1 + len(like.further) else None
    axes, shape = (form.axes, form.shape) if form else ("", ())
    first = pictures[0][0] if pictures[0][1] is None else np.asarray(pictures[0][1])
    axes, shape = axes + "YXS"[: first.ndim], (*shape, *first.shape)
    for attempt in _attempts(form, axes, shape):
        _write_tiff_once(file, pictures, mode, has_alpha, metadata, attempt)
        if attempt is None or tiff_stack.reads_as(file, axes, shape):
            _note_lost_tags(form, attempt, notes)
            return
        file.seek(0)
        file.truncate()
    raise Refused("its pictures cannot be written with the same axes")


def _attempts(
    form: tiff_stack.Form | None, axes: str, shape: Sequence[int]
) -> Iterator[tiff_stack.Form | None]:
    """Yields forms with ever less of what could mislead readers about the pictures."""
    if form is None:
        yield None
        return
    first, *others = form.tags
    yield dataclasses.replace(form, tags=(tiff_stack.adapted(first, axes, shape), *others))
    # Only a stack needs a description.
    told = (tiff_stack.shaped(axes, shape),) if form.shape else ()
    plain = [
        tuple(tag for tag in tags if tag[0] != tiff_stack.DESCRIPTION) for tags in form.tags
    ]
    yield dataclasses.replace(form, imagej=False, tags=(told + plain[0], *plain[1:]))
    yield dataclasses.replace(form, imagej=False, tags=(told, *[()] * len(others)))


def _note_lost_tags(
    source: tiff_stack.Form | None, written: tiff_stack.Form | None, notes: list[str]
) -> None:
    """Notes what of the source's tags would have misled readers."""
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
        if not tiff_stack.is_shaped(tag)
    )
    if described or lost:
        what = "description is" if lost <= {tiff_stack.DESCRIPTION} else "private tags are"
        notes.append(f"its {what} left out: readers would not find the same pictures by them")


def _write_tiff_once(
    file: BinaryIO,
    pictures: Sequence[tuple[np.ndarray, Image.Image | None]],
    mode: str,
    has_alpha: bool,
    metadata: dict[str, Any],
    form: tiff_stack.Form | None,
) -> None:
    exif = image_metadata.parse_exif(metadata.get("exif", b""))
    folders = {tag: exif.get_ifd(tag) for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
    folders = {int(tag): values for tag, values in folders.items() if values}
    # Of these tifffile writes none: it is given a tag one below, to be changed afterwards.
    added = [(tag - 1, 4, 1, 0, True) for tag in folders]
    if "xmp" in metadata:
        added.append((_XMP_TAG, 1, len(metadata["xmp"]), metadata["xmp"], True))
    if form is None:
        added += [
            _tiff_tag(tag, exif[tag]) for tag in image_metadata.DESCRIPTIVE if tag in exif
        ]
    options: dict[str, Any] = {
        "photometric": {"CMYK": "separated", "RGB": "rgb"}.get(mode, "minisblack"),
        # Neither a predictor nor tiles, and for ImageJ one picture behind the other: what every
        # reader takes.
        "compression": "adobe_deflate",
        "iccprofile": metadata.get("icc_profile"),
        "metadata": None,
        "software": False,
    }
    if form is not None and form.white:
        samples = 1 if mode == "L" else 3
        value = (form.white,) * (samples + has_alpha)
        added.append((tiff_stack.WHITE, 3, len(value), value, False))
    if has_alpha:
        options["extrasamples"] = ["unassalpha"]
    size = sum(pixels.nbytes for pixels, _ in pictures)
    big = size > 2**31 or bool(form and form.bigtiff)
    order = form.byteorder if form else "<"
    if form is not None and form.resolution:
        options |= {"resolution": form.resolution, "resolutionunit": form.unit}
    elif form is None and "dpi" in metadata:
        options |= {"resolution": metadata["dpi"], "resolutionunit": "inch"}
    if form is not None and form.colormap is not None:
        options |= {"photometric": "palette", "colormap": form.colormap}
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as tiff:
        if form is not None and form.imagej:
            planes = np.stack([pixels for pixels, _ in pictures])
            options |= {"compression": None, "rowsperstrip": planes.shape[1]}
            if planes.ndim == 4:
                options["planarconfig"] = "contig"
            tiff.write(planes, extratags=[*added, *form.tags[0]], **options)
        else:
            for i, (pixels, image) in enumerate(pictures):
                chosen = dict(options)
                if image is not None and mode == "P":
                    palette = np.array(image.getpalette(), np.uint16).reshape(-1, 3)
                    colormap = np.zeros((3, 256), np.uint16)
                    colormap[:, : len(palette)] = 257 * palette.T
                    chosen |= {"photometric": "palette", "colormap": colormap}
                levels = pixels if image is None else np.asarray(image)
                if levels.ndim == 3:
                    chosen["planarconfig"] = "contig"
                tags = [*(added if i == 0 else ()), *(form.tags[i] if form else ())]
                tiff.write(levels, extratags=tags, contiguous=False, **chosen)
    for tag, values in folders.items():
        _append_folder(file, tag, values)


def _tiff_tag(tag: int, value: Any) -> tiff_stack.Tag:
    """Returns a tag as tifffile takes it: text, bytes or a short."""
    if isinstance(value, int):
        return tag, 3, 1, value, True
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
        return tag, 2, len(value) + 1, value + b"\0", True
    value = bytes(value)
    return tag, 1, len(value), value, True


def _append_folder(file: BinaryIO, tag: int, values: dict[int, Any]) -> None:
    """Appends a folder of EXIF tags to a TIFF file and makes a tag that points there."""
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        place, big, order = tiff.pages.first.tags[tag - 1], tiff.is_bigtiff, tiff.byteorder
    end = file.seek(0, io.SEEK_END)
    end += file.write(b"\0" * (end % 2))
    head = b"II" if order == "<" else b"MM"
    if big:
        head += struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
    else:
        head += struct.pack(f"{order}HI", 42, 8)
    folder = TiffImagePlugin.ImageFileDirectory_v2(ifh=head, group=tag)
    for name, value in values.items():
        folder[name] = value
    file.write(folder.tobytes(end))
    file.seek(place.offset)
    file.write(struct.pack(f"{order}H", tag))
    file.seek(place.valueoffset)
    file.write(struct.pack(f"{order}I", end))


def _write_bmp_with_alpha(
    file: BinaryIO, pixels: np.ndarray, dpi: tuple[float, float] | None
) -> None:
    """Writes RGBA with the header, the fourth, that has a mask for alpha."""
    height, width = pixels.shape[:2]
    per_metre = [round(value / 0.0254) for value in dpi or (0, 0)]
    start, size = 14 + 108, 4 * height * width
    file.write(b"BM" + struct.pack("<IHHI", start + size, 0, 0, start))
    file.write(
        struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, size, *per_metre, 0, 0)
    )
    file.write(struct.pack("<4I4s", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs") + b"\0" * 48)
    file.write(np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes())
