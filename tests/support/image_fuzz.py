"""Generates random image files, valid and damaged, with the contents expected of a reader.

The files are written by Pillow, tifffile, imagecodecs and the encoders below, independently of
the code under test.
"""

import dataclasses
import io
import itertools
import struct
import zlib

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms

SUFFIX = {
    "PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp",
    "GIF": ".gif", "PNM": ".ppm", "JP2": ".jp2", "AVIF": ".avif",
}  # fmt: skip
LOSSY = ("JPEG", "AVIF")

# Pixel formats per file format: Pillow modes, with ";16" for 16-bit and ";f" for float samples.
FORMS = {
    "PNG": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "L;16", "LA;16", "RGB;16", "RGBA;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": (
        "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "CMYKA", "L;16", "LA;16", "RGB;16",
        "RGBA;16", "CMYK;16", "L;f", "RGB;f", "RGBA;f",
    ),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "PA"),
    "PNM": ("1", "L", "RGB", "L;16", "RGB;16"),
    "JP2": ("L", "LA", "RGB", "RGBA", "L;16", "LA;16", "RGB;16", "RGBA;16"),
    "AVIF": ("L", "RGB", "RGBA"),
}  # fmt: skip
ORIENTED = ("PNG", "JPEG", "TIFF", "WEBP")

# Damage that makes a file unreadable, and damage that may or may not.
FATAL = ("empty", "text", "head", "bomb", "signature")
DAMAGE = ("cut", "flip", "zeros", "insert")


@dataclasses.dataclass(frozen=True)
class Case:
    """One file and its expected contents.

    Attributes:
        good: whether the file can be read; None if that depends on the damage.
        pixels: upright, [H, W] or [H, W, 3]; None for a damaged file or a lossy format.
        alpha: upright, [H, W]; None for a damaged file or one without alpha.
    """

    path: object
    good: bool | None
    format: str
    form: str
    size: tuple
    dtype: np.dtype
    pixels: np.ndarray | None
    alpha: np.ndarray | None
    icc_profile: bytes
    dpi: tuple | None
    orientation: int
    damage: str


def profile(space):
    """Returns an ICC profile: sRGB, for grey and CMYK with only its colour space renamed."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[16:20] = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}[space]
    made[24:36] = b"\0" * 12  # creation time
    return bytes(made)


def generate(folder, count, seed=0, largest=24):
    """Yields files in a folder, cycling through `FORMS`; two of three are undamaged."""
    rng = np.random.default_rng(seed)
    forms = itertools.cycle([(name, form) for name in FORMS for form in FORMS[name]])
    for number in range(count):
        name, form = next(forms)
        yield make(folder / f"{number:04d}{SUFFIX[name]}", name, form, rng, largest)


def make(path, name, form, rng, largest=24):
    colours = form.split(";")[0]
    has_alpha = colours.endswith("A")
    mode = colours.removesuffix("A")
    height, width = (int(v) for v in rng.integers(1, largest + 1, 2))
    if rng.random() < 0.1:
        height, width = (1, width) if rng.random() < 0.5 else (height, 1)
    dtype = np.dtype(
        {"": np.uint8, "16": np.uint16, "f": rng.choice([np.float16, np.float32, np.float64])}[
            form.partition(";")[2]
        ]
    )
    stored, alpha = draw(rng, mode, has_alpha, height, width, dtype)
    if name == "GIF" and has_alpha:  # GIF has one transparent colour
        stored = stored * (alpha > 0)[..., None]
    icc = profile({"P": "RGB", "1": "L"}.get(mode, mode)) if rng.random() < 0.4 else b""
    icc = b"" if name in ("BMP", "GIF", "PNM", "JP2", "AVIF") else icc
    has_dpi = rng.random() < 0.4 and name in ("PNG", "JPEG", "TIFF", "BMP")
    dpi = (300.0, 150.0) if has_dpi else None
    orientation = int(rng.integers(1, 9)) if name in ORIENTED and rng.random() < 0.5 else 1
    encoded = encode(name, mode, stored, alpha, icc, dpi, orientation)
    damage = str(rng.choice([*FATAL, *DAMAGE])) if rng.random() < 1 / 3 else ""
    path.write_bytes(spoil(encoded, damage, name, rng) if damage else encoded)
    pixels = to_rgb(stored, mode) if name not in LOSSY else None
    if name == "GIF" and has_alpha and alpha.all():  # then no colour is transparent
        alpha = None
    if mode == "CMYK" and dtype == np.uint16 and alpha is not None:
        alpha = alpha >> 8
    if name == "BMP" and dpi is None:
        dpi = (96.0, 96.0)  # what Pillow writes
    if dpi and orientation >= 5:
        dpi = dpi[::-1]
    return Case(
        path=path,
        good=True if not damage else False if damage in FATAL else None,
        format=name,
        form=form,
        size=(height, width) if orientation < 5 else (width, height),
        dtype=np.dtype(np.uint8) if mode == "CMYK" else dtype,
        pixels=None if pixels is None or damage else upright(pixels, orientation),
        alpha=None if alpha is None or damage else upright(alpha, orientation),
        icc_profile=b"" if mode == "CMYK" else icc,
        dpi=dpi,
        orientation=orientation,
        damage=damage,
    )


def draw(rng, mode, has_alpha, height, width, dtype):
    """Draws smooth samples as a file stores them (for "P", RGB of few colours), and alpha."""
    channels = {"1": 1, "L": 1, "P": 3, "RGB": 3, "CMYK": 4}[mode]
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    ramp = np.stack([(x * a + y * b) / 2 for a, b in rng.uniform(0, 1, (channels, 2))], -1)
    values = np.clip(ramp + rng.uniform(0, 0.1, ramp.shape), 0, 1)
    if mode == "P":
        palette = rng.uniform(0, 1, (int(rng.integers(1, 40)), 3))
        values = palette[rng.integers(0, len(palette), (height, width))]
    if mode == "1":
        values = np.round(values + rng.uniform(-0.4, 0.4, values.shape))
    stored = scale(np.clip(values, 0, 1), dtype)
    alpha = None
    if has_alpha:
        levels = rng.choice([0.0, 1.0] if mode == "P" else [0.0, 0.3, 1.0], (height, width))
        alpha = scale(levels, dtype)
    return (stored[..., 0] if channels == 1 else stored), alpha


def scale(values, dtype):
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def to_rgb(stored, mode):
    if mode != "CMYK":
        return stored
    light = 255.0 - (stored >> 8 if stored.dtype == np.uint16 else stored)
    return np.rint(light[..., :3] * light[..., 3:] / 255).astype(np.uint8)


def upright(array, orientation):
    """Rotates and flips an array by its EXIF orientation."""
    turns = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: np.rot90(np.fliplr(a), 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.fliplr(a), -1), 8: lambda a: np.rot90(a, 1),
    }  # fmt: skip
    return turns[orientation](array)


def encode(name, mode, stored, alpha, icc, dpi, orientation):
    if name == "TIFF":
        return encode_tiff(mode, stored, alpha, icc, dpi, orientation)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
        exif[0x010F] = "Maker"
        exif[0x8769] = {0x9003: "2024:01:02 03:04:05", 0xA002: 7, 0xA003: 9}
    if name == "PNG" and stored.dtype == np.uint16:
        return encode_png(stored, alpha, icc, dpi, exif)
    levels = stored if alpha is None else np.dstack([stored, alpha])
    options = {"icc_profile": icc} if icc else {}
    if dpi:
        options["dpi"] = dpi
    if orientation != 1:
        options["exif"] = exif
    if name == "PNM":
        return encode_pnm(mode, stored)
    if name == "JP2":
        return bytes(
            imagecodecs.jpeg2k_encode(levels, level=0, codecformat="jp2", reversible=True)
        )
    if name == "WEBP":
        options |= {"lossless": True, "exact": True}
    if mode == "CMYK":
        image = Image.merge("CMYK", [Image.fromarray(levels[..., i]) for i in range(4)])
    elif mode == "P":
        colours, index = np.unique(
            levels.reshape(-1, levels.shape[-1]), axis=0, return_inverse=True
        )
        image = Image.fromarray(index.reshape(levels.shape[:2]).astype(np.uint8))
        image.putpalette(np.ascontiguousarray(colours[:, :3]).tobytes())
        if alpha is not None and name == "GIF":
            image.info.pop("transparency", None)
            clear = np.flatnonzero(colours[:, 3] == 0)
            options |= {"transparency": int(clear[0])} if clear.size else {}
        elif alpha is not None:
            options["transparency"] = colours[:, 3].tobytes()
    else:
        image = Image.fromarray(levels > 127 if mode == "1" else levels)
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def encode_tiff(mode, stored, alpha, icc, dpi, orientation):
    levels = stored if alpha is None else np.dstack([stored, alpha])
    options = {"photometric": {"RGB": "rgb", "CMYK": "separated"}.get(mode, "minisblack")}
    if mode == "1":
        levels = levels > 127
    if mode == "P":
        colours, index = np.unique(levels.reshape(-1, 3), axis=0, return_inverse=True)
        levels = index.reshape(levels.shape[:2]).astype(np.uint8)
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(colours)] = 257 * colours.T.astype(np.uint16)
        options = {"photometric": "palette", "colormap": table}
    if levels.ndim == 3:
        options["planarconfig"] = "contig"
    if alpha is not None:
        options["extrasamples"] = ["unassalpha"]
    tags = [] if orientation == 1 else [(0x0112, 3, 1, orientation, True)]
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        levels,
        compression="lzw" if orientation > 4 and mode != "1" else None,
        resolution=dpi,
        resolutionunit="inch" if dpi else None,
        iccprofile=icc or None,
        metadata=None,
        extratags=tags,
        **options,
    )
    return file.getvalue()


def encode_pnm(mode, stored):
    height, width = stored.shape[:2]
    if mode == "1":
        return b"P4 %d %d\n" % (width, height) + np.packbits(stored < 128, axis=1).tobytes()
    kind = b"P6" if mode == "RGB" else b"P5"
    head = b"%b\n# a comment\n%d %d %d\n" % (kind, width, height, np.iinfo(stored.dtype).max)
    return head + stored.astype(stored.dtype.newbyteorder(">")).tobytes()


def chunk(name, content):
    return struct.pack(">I4s", len(content), name) + content + struct.pack(
        ">I", zlib.crc32(name + content)
    )  # fmt: skip


def encode_png(stored, alpha, icc, dpi, exif):
    """Encodes a PNG with 16 bits per sample."""
    levels = stored if alpha is None else np.dstack([stored, alpha])
    height, width = levels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[levels[0, 0].size]
    rows = levels.reshape(height, -1).astype(">u2")
    made = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    )
    if icc:
        made += chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc))
    if dpi:
        made += chunk(b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1))
    made += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    if len(exif):
        made += chunk(b"eXIf", exif.tobytes()[6:])  # after the pixels, as some programs do
    return made + chunk(b"IEND", b"")


def spoil(encoded, damage, name, rng):
    """Returns the damaged bytes of a file, or other bytes in their place."""
    size = len(encoded)
    where = int(rng.integers(0, size))
    match damage:
        case "empty":
            return b""
        case "text":
            return b"<html>404 not found</html>\n"
        case "head":
            return encoded[: 20 if name != "PNM" else 9]
        case "signature":
            return rng.bytes(2) + b"\x01\x02" + encoded[4:]
        case "bomb":
            return bomb(name)
        case "cut":
            return encoded[:where]
        case "flip":
            spots = rng.integers(0, size, 1 + size // 50)
            made = bytearray(encoded)
            for spot in spots:
                made[spot] ^= int(rng.integers(1, 256))
            return bytes(made)
        case "zeros":
            return encoded[:where] + b"\0" * (size - where)
        case "insert":
            return encoded[:where] + rng.bytes(9) + encoded[where:]
    raise ValueError(damage)


def bomb(name):
    """Returns a small file whose header claims enormous dimensions."""
    side = 15000 if name == "AVIF" else 60000
    if name == "PNG":
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b"\0" * 999))
            + chunk(b"IEND", b"")
        )
    if name == "BMP":
        head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + head + b"\0" * 45
    if name == "PNM":
        return b"P6 %d %d 255\n" % (side, side) + bytes(99)
    if name == "GIF":
        head = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
        frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2\1\x44\0"
        return b"GIF89a" + head + frame + b";"
    file = io.BytesIO()
    if name == "JP2":
        made = bytearray(
            imagecodecs.jpeg2k_encode(np.zeros((8, 8), np.uint8), codecformat="jp2")
        )
        place = made.index(b"ihdr") + 4
        made[place : place + 8] = struct.pack(">II", side, side)
        place = made.index(b"\xff\x4f\xff\x51") + 8
        made[place : place + 8] = struct.pack(">II", side, side)
        return bytes(made)
    if name == "TIFF":
        tifffile.imwrite(file, np.zeros((8, 8), np.uint16), photometric="minisblack")
        made = bytearray(file.getvalue())
        with tifffile.TiffFile(io.BytesIO(bytes(made))) as tiff:
            for tag in (256, 257):
                place = tiff.pages[0].tags[tag].valueoffset
                made[place : place + 4] = struct.pack("<I", side)
        return bytes(made)
    if name == "AVIF":
        Image.new("RGB", (8, 8)).save(file, name)
        made = bytearray(file.getvalue())
        place = made.index(b"ispe") + 8
        made[place : place + 8] = struct.pack(">II", side, side)
        return bytes(made)
    Image.new("RGB", (8, 8)).save(file, name, lossless=True)
    made = bytearray(file.getvalue())
    if name == "JPEG":
        place = made.index(b"\xff\xc0") + 5
        made[place : place + 4] = struct.pack(">HH", side, side)
    else:  # the largest size that WebP can declare
        place = made.index(b"VP8L") + 9
        made[place : place + 4] = b"\xff\xff\xff\x0f"
    return bytes(made)
