import collections
import dataclasses
import io
import logging
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import encoding, image_files, image_paths
from restore_jax.image_io.image_files import ImageFileError
from tests.support import image_fuzz

WHITE = {"uint8": 255, "uint16": 65535}


def photo(height=9, width=13, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return image_fuzz.scale(rng.uniform(0, 1, shape), np.dtype(dtype))


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def identity(source, target, format=None):
    """Reads a file, writes it as it is and reads that: (before, after, notes)."""
    like = image_files.read(source)
    notes = image_files.write(target, like.pixels, like, format)
    return like, image_files.read(target), notes


def independently(path, case):
    """What other programs find in a file: pixels with alpha as they are stored, upright."""
    if case.format == "TIFF":
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            levels = page.asarray()
            if case.mode == "P":
                levels = (page.colormap[:, levels] // 257).transpose(1, 2, 0).astype(np.uint8)
            assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert 274 not in page.tags
        return levels.astype(np.uint8) * 255 if case.mode == "1" else levels
    if case.format == "JP2":
        return imagecodecs.jpeg2k_decode(path.read_bytes())
    if case.format == "PNM" and case.dtype == np.uint16:
        head, size, _, data = path.read_bytes().split(b"\n", 3)
        width, height = (int(word) for word in size.split())
        return np.frombuffer(data, ">u2").reshape(height, width, 3 if head == b"P6" else 1)
    if case.dtype == np.uint16:
        return tf.io.decode_png(path.read_bytes(), dtype=tf.uint16).numpy()
    with Image.open(path) as image:
        assert image.getexif().get(0x0112, 1) == 1
        own = {"P;A": "P", "L;A": "LA"}.get(f"{case.mode};{case.form[-1]}", image.mode)
        assert image.mode == own == (case.form.replace("PA", "P"))
        if case.mode == "P":
            image = image.convert("RGBA" if case.alpha is not None else "RGB")
        levels = np.asarray(image)
    return levels.astype(np.uint8) * 255 if case.mode == "1" else levels


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_random_files_are_refused_or_come_back_in_their_own_form(seed, tmp_path, capfd):
    good = refused = 0
    for case in image_fuzz.generate(tmp_path, 180, seed):
        where = f"{case.path.name}: {case.format} {case.form} {case.size} {case.damage}"
        try:
            like = image_files.read(case.path)
        except ImageFileError as error:
            assert not case.good, f"{where}: {error}"
            assert str(error).startswith(f"{case.path}: "), where
            assert str(error).isprintable(), where
            refused += 1
            continue
        assert case.good is not False, where
        out = tmp_path / "out" / case.path.name
        image_files.write(out, like.pixels, like)
        again = image_files.read(out)
        assert again.pixels.shape[:2] == like.pixels.shape[:2], where
        if not case.good:
            continue
        good += 1
        for found in (like, again):
            assert found.pixels.shape[:2] == case.size, where
            assert found.pixels.dtype == case.dtype, where
            assert (found.format, found.mode) == (case.format, case.mode), where
            assert found.icc_profile == case.icc_profile, where
            assert (found.alpha is None) == (case.alpha is None), where
            assert (found.dpi is None) == (case.dpi is None), where
            if case.dpi:
                np.testing.assert_allclose(found.dpi, case.dpi, rtol=1e-3, err_msg=where)
            if case.pixels is not None:
                np.testing.assert_array_equal(found.pixels, case.pixels, where)
            if case.alpha is not None:
                limit = 12 if case.format == "AVIF" else 0
                error = np.abs(found.alpha.astype(float) - case.alpha)
                assert error.max() <= limit, where
        if case.format in image_fuzz.LOSSY:
            error = again.pixels.astype(int) - like.pixels
            assert np.abs(error).mean() < 6, where
        else:
            stored = case.stored if case.alpha is None else np.dstack([case.stored, case.alpha])
            levels = independently(out, case).reshape(stored.shape)
            np.testing.assert_array_equal(levels, stored, where)
    assert good > 80 and refused > 25
    assert not list((tmp_path / "out").glob(".*"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", image_fuzz.FORMS)
def test_every_form_can_be_written_in_every_format(name, tmp_path):
    rng = np.random.default_rng(7)
    for form in image_fuzz.FORMS[name]:
        case = image_fuzz.make(tmp_path / "source", name, form, rng)
        while not case.good:
            case = image_fuzz.make(tmp_path / "source", name, form, rng)
        for format in image_fuzz.SUFFIX:
            like, again, notes = identity(case.path, tmp_path / "target", format)
            where = f"{form} as {format}: {notes}"
            assert again.format == format
            grey_kept = like.pixels.ndim == 3 or again.pixels.ndim == 2
            white, new = (WHITE.get(str(p.pixels.dtype), 1) for p in (like, again))
            before, after = like.pixels / white, again.pixels / new
            before = before if grey_kept else np.repeat(before[..., None], 3, -1)
            assert grey_kept or format in ("WEBP", "GIF") or like.alpha is not None, where
            limit = 0.5 / min(white, new) if white != new else 0
            # Of CMYK only the colour is the same in another mode.
            error = np.abs(before - after)
            if format == "GIF":  # whose palette has only so many colours
                error = error if like.alpha is None else error[like.alpha > white / 2]
                assert error.size == 0 or error.mean() < 0.1, where
            elif format in image_fuzz.LOSSY:
                assert error.mean() < 0.06, where
            else:
                assert error.max() <= limit, where
            if format in ("JPEG", "PNM"):
                assert again.alpha is None
                assert ("alpha" in " ".join(notes)) == (like.alpha is not None), where
            elif format == "GIF":
                shades = like.alpha is not None and not np.isin(like.alpha, (0, white)).all()
                assert ("divided at half" in " ".join(notes)) == shades, where
            elif like.alpha is not None and format != "AVIF":
                np.testing.assert_allclose(like.alpha / white, again.alpha / new, atol=limit)
            lost = new < white and white > 1
            assert ("is written with 8 bits" in " ".join(notes)) == (
                lost or (white == 1 and new == 255)
            ), where


def test_the_source_depth_decides_and_not_the_values(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(
        image_fuzz.encode_png(np.full((2, 3, 3), 7, np.uint16), None, b"", None, Image.Exif())
    )
    like, again, _ = identity(path, tmp_path / "b.png")
    assert like.pixels.dtype == again.pixels.dtype == np.uint16
    assert again.pixels.max() == 7


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_orientation_is_applied_as_pillow_applies_it(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "WEBP" else {}
    save(tmp_path / "a", photo(), format=name, exif=exif, dpi=(100, 200), **options)
    with Image.open(tmp_path / "a") as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image))
    like, again, _ = identity(tmp_path / "a", tmp_path / "b")
    np.testing.assert_array_equal(like.pixels, expected)
    assert again.pixels.shape == expected.shape
    with Image.open(tmp_path / "b") as image:
        assert image.size == expected.shape[1::-1]
        assert image.getexif().get(0x0112, 1) == 1
    if name != "WEBP":
        turned = (200, 100) if orientation >= 5 else (100, 200)
        np.testing.assert_allclose(again.dpi, turned, rtol=1e-3)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_is_kept_but_for_what_no_longer_holds(name, tmp_path):
    exif = Image.Exif()
    kept = {0x010E: "Weld 7", 0x010F: "Maker", 0x0110: "Model", 0x0131: "Firmware 2"}
    kept |= {0x0132: "2024:01:02 03:04:05", 0x013B: "Somebody", 0x8298: "(c) Somebody"}
    kept |= {0x4746: 4, 0x9C9B: "Weld".encode("utf-16-le")}
    for tag, value in (kept | {0x0112: 6}).items():
        exif[tag] = value
    exif[0x8769] = {0x829A: 0.01, 0xA002: 999, 0xA003: 888, 0x9286: b"ASCII\0\0\0hello"}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.5), 29: "2024:01:02"}
    save(tmp_path / "a", photo(), format=name, exif=exif.tobytes())
    image_files.write(tmp_path / "b", (like := image_files.read(tmp_path / "a")).pixels, like)
    with Image.open(tmp_path / "b") as image:
        image.load()
        found = image.getexif()
        camera, place = found.get_ifd(0x8769), found.get_ifd(0x8825)
    assert found.get(0x0112, 1) == 1
    assert {tag: found.get(tag) for tag in kept} == kept
    assert (camera[0xA002], camera[0xA003]) == (9, 13)
    assert camera[0x829A] == 0.01 and camera[0x9286] == b"ASCII\0\0\0hello"
    assert place[1] == "N" and place[2] == (48.0, 8.0, 0.5) and place[29] == "2024:01:02"


def test_exif_of_16_bit_colour_is_kept_in_tiff(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Mäker"
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05"}
    path = tmp_path / "a.png"
    path.write_bytes(image_fuzz.encode_png(photo(dtype=np.uint16), None, b"", (300, 300), exif))
    identity(path, tmp_path / "b.tif", "tiff")
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages[0].tags
        assert tags["ExifTag"].value["DateTimeOriginal"] == "2024:01:02 03:04:05"
        assert tags["Make"].value in ("Mäker", "M?ker")
        assert "Software" not in tags
        across = tags["XResolution"].value
        assert across[0] / across[1] == pytest.approx(300, rel=1e-4)


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    save(tmp_path / "a.jpg", photo(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x99" * 30)
    like, again, _ = identity(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert like.pixels.shape == again.pixels.shape == (9, 13, 3)
    assert again.exif == b""


def test_resolution_goes_into_exif_where_the_format_has_no_other_place(tmp_path):
    save(tmp_path / "a.png", photo(), dpi=(300, 300))
    _, again, _ = identity(tmp_path / "a.png", tmp_path / "b.webp", "webp")
    np.testing.assert_allclose(again.dpi, (300, 300), rtol=1e-3)


def test_resolution_in_centimetres_is_the_same_in_inches(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", photo(), resolution=(100, 50), resolutionunit="centimeter"
    )
    _, again, _ = identity(tmp_path / "a.tif", tmp_path / "b.tif")
    np.testing.assert_allclose(again.dpi, (254, 127), rtol=1e-3)


def test_a_png_keeps_how_it_defines_its_colours(tmp_path):
    encoded = io.BytesIO()
    save(encoded, photo(), format="PNG")
    encoded = encoded.getvalue()
    gamma = image_fuzz.chunk(b"gAMA", struct.pack(">I", 100000))
    (tmp_path / "a.png").write_bytes(encoded[:33] + gamma + encoded[33:])
    identity(tmp_path / "a.png", tmp_path / "b.png")
    assert gamma in (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["gamma"] == 1.0


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation='%d'/>%s"


class TestText:
    def png(self, path, chunks, pixels, after=b""):
        file = io.BytesIO()
        save(file, pixels, format="PNG")
        encoded = file.getvalue()
        made = b"".join(image_fuzz.chunk(*chunk) for chunk in chunks)
        end = len(encoded) - 12
        path.write_bytes(encoded[:33] + made + encoded[33:end] + after + encoded[end:])
        return path

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_any_length_of_it_is_no_damage_and_is_kept(self, dtype, channels, tmp_path):
        pixels = photo(channels=channels, dtype=dtype)
        long = zlib.compress(bytes(range(32, 127)) * 22_000)  # of 2 MB
        chunks = [
            (b"zTXt", b"Log\0\0" + long),
            (b"iTXt", b"Notes\0\1\0de\0Notizen\0" + long),
            (b"tEXt", b"Title\0" + b"x" * 1_500_000),
            *[(b"tEXt", b"Many\0" + b"y" * 1000_000)] * 65,
        ]
        encoded = image_fuzz.encode_png(pixels, None, b"", (300, 300), Image.Exif())
        if dtype == np.uint8:
            file = io.BytesIO()
            save(file, pixels, format="PNG", dpi=(300, 300))
            encoded = file.getvalue()
        before, last = chunks[:1], chunks[1:]
        made = [b"".join(image_fuzz.chunk(*chunk) for chunk in part) for part in (before, last)]
        (tmp_path / "a.png").write_bytes(
            encoded[:33] + made[0] + encoded[33:-12] + made[1] + encoded[-12:]
        )
        like, again, notes = identity(tmp_path / "a.png", tmp_path / "b.png")
        for found in (like, again):
            np.testing.assert_array_equal(found.pixels, pixels)
            assert found.png_text == tuple(chunks)
            assert found.dpi == pytest.approx((300, 300), rel=1e-3)
        assert not notes

    def test_a_profile_of_more_than_a_megabyte_is_kept(self, tmp_path):
        made = image_fuzz.profile("RGB") + np.random.default_rng(0).bytes(1_500_000)
        content = b"icc\0\0" + zlib.compress(made)
        self.png(tmp_path / "a.png", [(b"iCCP", content)], photo())
        like, again, _ = identity(tmp_path / "a.png", tmp_path / "b.tif", "tiff")
        assert like.icc_profile == again.icc_profile == made

    def test_text_that_other_programs_read_is_the_same_afterwards(self, tmp_path):
        info = PngImagePlugin.PngInfo()
        info.add_text("Title", "Weld 7")
        info.add_itxt("Author", "Zoë", "de", "Autor", zip=True)
        info.add_text("Log", "ok " * 99, zip=True)
        for mode, name in (("RGB", "a.png"), ("P", "p.png")):
            Image.fromarray(photo()).convert(mode).save(tmp_path / name, pnginfo=info)
            identity(tmp_path / name, tmp_path / "out" / name)
            with Image.open(tmp_path / "out" / name) as image:
                image.load()
                assert image.text == {"Title": "Weld 7", "Author": "Zoë", "Log": "ok " * 99}
        _, _, notes = identity(tmp_path / "a.png", tmp_path / "b.jpg", "jpeg")
        assert notes == ("its text (Author, Log, Title) is left out: JPEG has no place for it",)

    @pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
    def test_xmp_is_kept_but_for_the_orientation(self, name, tmp_path):
        xmp = XMP % (6, b"<dc:title>Weld</dc:title>")
        if name == "PNG":
            text = b"XML:com.adobe.xmp\0\0\0\0\0"
            self.png(tmp_path / "a.png", [(b"iTXt", text + xmp)], photo())
        else:
            options = {"tiffinfo": {700: xmp}} if name == "TIFF" else {"xmp": xmp}
            save(tmp_path / "a.png", photo(), format=name, **options)
        for format in ("png", "jpeg", "tiff", "webp", "avif"):
            like, again, notes = identity(tmp_path / "a.png", tmp_path / "b", format)
            assert like.pixels.shape == again.pixels.shape == (13, 9, 3)
            assert again.xmp == XMP % (1, b"<dc:title>Weld</dc:title>") and not notes
        _, _, notes = identity(tmp_path / "a.png", tmp_path / "b", "bmp")
        assert "its XMP data are left out: BMP has no room for them" in notes

    def test_comments_and_iptc_of_jpeg_are_kept(self, tmp_path):
        iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x78\0\5Weld7"
        segment = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc
        save(tmp_path / "a.jpg", photo(), comment=b"station 4", extra=segment)
        like, again, notes = identity(tmp_path / "a.jpg", tmp_path / "b.jpg")
        assert like.comment == again.comment == b"station 4"
        assert like.iptc == again.iptc == (iptc,) and not notes
        _, _, notes = identity(tmp_path / "a.jpg", tmp_path / "b.png", "png")
        with Image.open(tmp_path / "b.png") as image:
            assert image.text == {"Comment": "station 4"}
        assert notes == ("its IPTC data are left out: PNG has no room for them",)
        _, _, notes = identity(tmp_path / "a.jpg", tmp_path / "b.webp", "webp")
        assert "its comment is left out: WEBP has no room for it" in notes
        save(tmp_path / "a.gif", photo(channels=1), comment=b"station 4")
        identity(tmp_path / "a.gif", tmp_path / "b.gif")
        with Image.open(tmp_path / "b.gif") as image:
            assert image.info["comment"] == b"station 4"

    def test_damaged_text_is_no_reason_to_refuse(self, tmp_path):
        chunks = [(b"zTXt", b"a\0\0nonsense"), (b"iTXt", b"b"), (b"iCCP", b"c\0\0nonsense")]
        self.png(tmp_path / "a.png", chunks, photo())
        like, again, _ = identity(tmp_path / "a.png", tmp_path / "b.png")
        np.testing.assert_array_equal(again.pixels, photo())
        assert "its colour profile is left out: it is damaged" in like.notes


def test_a_profile_is_kept_only_for_colours_of_its_kind(tmp_path):
    save(tmp_path / "a.png", photo(channels=1), icc_profile=image_fuzz.profile("L"))
    _, png, notes = identity(tmp_path / "a.png", tmp_path / "b.tif", "tiff")
    assert png.icc_profile == image_fuzz.profile("L") and not notes
    _, webp, notes = identity(tmp_path / "a.png", tmp_path / "b.webp", "webp")
    assert webp.icc_profile == b"" and "profile" in notes[0]
    save(tmp_path / "a.png", photo(), icc_profile=image_fuzz.profile("RGB"))
    _, webp, notes = identity(tmp_path / "a.png", tmp_path / "b.webp", "webp")
    assert not notes
    with Image.open(tmp_path / "b.webp") as image:  # that it is one
        ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))


@pytest.mark.parametrize(
    "kind, bits, key", [("L", 8, 7), ("L;2", 2, 2), ("RGB", 8, (1, 2, 3)), ("L;16", 16, 500)]
)
def test_a_transparent_colour_becomes_alpha(kind, bits, key, tmp_path):
    colours = np.ravel(key)
    # Two pixels, of which the first has the colour.
    row = [*colours, *(0 for _ in colours)]
    if bits == 2:
        raw = bytes([row[0] << 6 | row[1] << 4])
    else:
        raw = b"".join(int(v).to_bytes(bits // 8, "big") for v in row)
    colour_type = 2 if len(colours) == 3 else 0
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + image_fuzz.chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour_type, 0, 0, 0))
        + image_fuzz.chunk(b"tRNS", b"".join(struct.pack(">H", int(c)) for c in colours))
        + image_fuzz.chunk(b"IDAT", zlib.compress(b"\0" + raw))
        + image_fuzz.chunk(b"IEND", b"")
    )
    like, again, _ = identity(tmp_path / "a.png", tmp_path / "b.png")
    white = 65535 if bits == 16 else 255
    for found in (like, again):
        assert found.alpha.tolist() == [[0, white]]
        scaled = colours * 85 if bits == 2 else colours
        assert np.ravel(found.pixels[0, 0]).tolist() == scaled.tolist()


class TestPalette:
    def write(self, tmp_path, restored, alpha=None):
        like = image_files.Photograph(restored, alpha, "PNG", "P")
        notes = image_files.write(tmp_path / "b.png", restored, like)
        return notes, Image.open(tmp_path / "b.png")

    def test_up_to_256_colours_are_exact(self, tmp_path):
        colours = photo(1, 256, seed=3)[0]
        restored = colours[np.random.default_rng(0).integers(0, 256, (30, 40))]
        notes, image = self.write(tmp_path, restored)
        assert image.mode == "P" and not notes
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), restored)

    def test_more_become_the_nearest_ones_without_dithering(self, tmp_path):
        ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64)
        restored = np.stack([ramp, ramp.T, 255 - ramp], -1).astype(np.uint8)
        notes, image = self.write(tmp_path, restored)
        assert image.mode == "P" and "palette of 256" in notes[0]
        found = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(found - restored).mean() < 8
        # The same colour is the same everywhere.
        flat, pairs = restored.reshape(-1, 3), found.reshape(-1, 3)
        assert len(np.unique(np.c_[flat, pairs], axis=0)) == len(np.unique(flat, axis=0))

    def test_alpha_of_all_or_nothing_stays_exact(self, tmp_path):
        restored, alpha = photo(40, 50), np.where(photo(40, 50, 1) > 99, 255, 0)
        _, image = self.write(tmp_path, restored, alpha.astype(np.uint8))
        assert image.mode == "P"
        found = np.asarray(image.convert("RGBA"))
        np.testing.assert_array_equal(found[..., 3], alpha)
        assert np.abs(found[..., :3].astype(int) - restored)[alpha > 0].mean() < 30

    def test_shades_of_alpha_are_more_than_a_palette_has(self, tmp_path):
        restored, alpha = photo(40, 50), photo(40, 50, 1)
        notes, image = self.write(tmp_path, restored, alpha)
        assert image.mode == "RGBA" and "RGBA" in notes[0]
        np.testing.assert_array_equal(np.asarray(image), np.dstack([restored, alpha]))


def test_black_and_white_is_divided_at_half(tmp_path):
    like = image_files.Photograph(np.zeros((1, 4), np.uint8), None, "TIFF", "1")
    image_files.write(tmp_path / "a.tif", np.array([[0, 127, 128, 255]], np.uint8), like)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "1"
        assert np.asarray(image).tolist() == [[False, False, True, True]]


class TestInks:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_colours_that_stay_keep_all_their_inks(self, dtype):
        inks = photo(20, 30, 4, dtype)
        restored = encoding.inks_to_rgb(inks)
        np.testing.assert_array_equal(encoding.rgb_to_inks(restored, inks), inks)

    @pytest.mark.parametrize(
        "dtype, limit", [(np.uint8, 1.0), (np.uint16, 1), (np.float32, 1e-6)]
    )
    def test_new_colours_are_reached_within_rounding(self, dtype, limit):
        inks, restored = photo(20, 30, 4, dtype), photo(20, 30, 3, dtype, seed=1)
        found = encoding.rgb_to_inks(restored, inks)
        assert (found[..., 3] <= inks[..., 3]).all()
        colours = encoding.inks_to_rgb(found)
        error = np.abs(colours.astype(np.float64) - restored)
        assert error.max() <= limit

    def test_colours_are_pillows_own(self):
        inks = photo(20, 30, 4)
        image = Image.frombuffer("CMYK", (30, 20), inks.tobytes(), "raw", "CMYK", 0, 1)
        error = encoding.inks_to_rgb(inks).astype(int) - np.asarray(image.convert("RGB"))
        assert np.abs(error).max() <= 1


class TestTiff:
    def check(self, tmp_path, expected, mode, like=None, alpha=None):
        like, again, _ = identity(tmp_path / "a.tif", tmp_path / "b.tif")
        for found in (like, again):
            assert found.mode == mode
            np.testing.assert_array_equal(found.pixels, expected)
            if alpha is not None:
                np.testing.assert_array_equal(found.alpha, alpha)
        return like

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize(
        "options",
        [
            {"planarconfig": "separate"},
            {"tile": (16, 16), "compression": "lzw"},
            {"byteorder": ">", "compression": "zstd"},
            {"bigtiff": True, "compression": "lzma"},
            {"rowsperstrip": 3, "compression": "adobe_deflate", "predictor": True},
        ],
    )
    def test_layouts(self, dtype, options, tmp_path):
        pixels = photo(20, 23, dtype=dtype)
        planes = options.get("planarconfig") == "separate"
        stored = np.moveaxis(pixels, -1, 0) if planes else pixels
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options)
        self.check(tmp_path, pixels, "RGB")

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
    def test_white_is_zero(self, dtype, tmp_path):
        stored = photo(5, 11, 1) > 99 if dtype == np.bool_ else photo(5, 11, 1, dtype)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
        white = 65535 if dtype == np.uint16 else 255
        pixels = np.where(stored, 0, 255) if dtype == np.bool_ else white - stored
        self.check(tmp_path, pixels, "1" if dtype == np.bool_ else "L")

    def test_colours_multiplied_by_alpha(self, tmp_path):
        colours, alpha = photo(dtype=np.uint16), photo(channels=1, dtype=np.uint16, seed=2)
        stored = np.rint(colours * (alpha[..., None] / 65535)).astype(np.uint16)
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.dstack([stored, alpha]),
            photometric="rgb",
            extrasamples=["assocalpha"],
        )
        found = image_files.read(tmp_path / "a.tif")
        np.testing.assert_array_equal(found.alpha, alpha)
        seen = np.rint(found.pixels * (alpha[..., None] / 65535))
        np.testing.assert_array_equal(seen, stored)

    def test_compressed_as_jpeg(self, tmp_path):
        smooth = np.stack(
            [*np.meshgrid(np.arange(64), np.arange(64)), np.full((64, 64), 99)], -1
        )
        save(tmp_path / "a.tif", smooth.astype(np.uint8), compression="jpeg", quality=95)
        found = image_files.read(tmp_path / "a.tif")
        assert np.abs(found.pixels - smooth).mean() < 3
        identity(tmp_path / "a.tif", tmp_path / "b.tif")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), found.pixels)

    def test_lab_is_written_as_rgb_and_tells(self, tmp_path):
        Image.new("LAB", (4, 3), (128, 0, 0)).save(tmp_path / "a.tif")
        like, again, _ = identity(tmp_path / "a.tif", tmp_path / "b.tif")
        assert (again.mode, again.pixels.shape) == ("RGB", (3, 4, 3))
        assert "LAB" in like.notes[0]

    def test_pages_beyond_the_first_are_left_out_and_told(self, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.tif", np.stack([photo(channels=1)] * 3), photometric="minisblack"
        )
        like = self.check(tmp_path, photo(channels=1), "L")
        assert "first of its 3" in like.notes[0]

    @pytest.mark.parametrize(
        "pixels, said",
        [
            (np.zeros((4, 5), np.int32), "32 bits"),
            (np.zeros((4, 5), np.int16), "int16"),
            (np.zeros((4, 5), np.uint32), "32 bits"),
            (np.full((4, 5), 1.5, np.float32), "from 1.5 to 1.5; scale them to 0…1"),
            (np.full((4, 5), np.nan, np.float32), "nan"),
            (np.zeros((4, 5), np.complex64), "64 bits"),
        ],
    )
    def test_values_without_a_white_are_refused(self, pixels, said, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", pixels)
        with pytest.raises(ImageFileError, match=said):
            image_files.read(tmp_path / "a.tif")

    def test_the_thumbnail_of_a_raw_file_is_not_taken_for_it(self, tmp_path):
        version = (50706, 1, 4, b"\1\4\0\0", True)
        tifffile.imwrite(tmp_path / "a.tif", photo(), photometric="rgb", extratags=[version])
        with pytest.raises(ImageFileError, match="raw file"):
            image_files.read(tmp_path / "a.tif")

    @pytest.mark.parametrize("bits", [10, 12, 14])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_samples_of_10_to_14_bits_keep_their_range(self, bits, channels, tmp_path):
        levels = photo(9, 16, channels, np.uint16) >> (16 - bits)
        rgb = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(
            tmp_path / "a.tif", levels, photometric=rgb, bitspersample=bits, metadata=None
        )
        like = self.check(tmp_path, levels, "RGB" if channels == 3 else "L")
        assert like.white == image_files.read(tmp_path / "b.tif").white == 2**bits - 1
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), levels)

    def test_the_largest_sample_is_white(self, tmp_path):
        levels = photo(channels=1, dtype=np.uint16) >> 4
        for told, white in ((4095, 4095), (4000, None), (65535, None)):
            tag = (281, 3, 1, told, True)
            tifffile.imwrite(tmp_path / "a.tif", levels | 4090, extratags=[tag], metadata=None)
            like, again, _ = identity(tmp_path / "a.tif", tmp_path / "b.tif")
            assert like.white == again.white == white
        _, again, _ = identity(tmp_path / "a.tif", tmp_path / "b.png", "png")
        np.testing.assert_array_equal(again.pixels, levels | 4090)


def restored_stack(source, target):
    """Reads all pictures of a file, writes them as they are, and checks who reads them."""
    like = image_files.read(source, pages="all")
    notes = image_files.write(target, like.planes, like)
    tags = []
    for path in (source, target):
        with tifffile.TiffFile(path) as tiff:
            tags.append({tag.code: tag.value for tag in tiff.pages[0].tags})
            imagej, order = tiff.is_imagej, tiff.byteorder
            place = tiff.pages[0].dataoffsets[0]
    with tifffile.TiffFile(source) as before, tifffile.TiffFile(target) as after:
        wanted, found = before.series[0], after.series[0]
        assert (found.axes, found.shape, found.dtype) == (
            wanted.axes, wanted.shape, wanted.dtype
        )  # fmt: skip
        expected = wanted.asarray()
        np.testing.assert_array_equal(found.asarray(), expected)
    if imagej:  # which reads pictures one behind the other, uncompressed
        dtype = expected.dtype.newbyteorder(order)
        raw = np.frombuffer(target.read_bytes(), dtype, expected.size, place)
        np.testing.assert_array_equal(raw, expected.ravel())
    with Image.open(target) as image:
        image.seek(len(like.planes) - 1)
        if expected.dtype.kind == "u" and image.mode not in "1P" and like.pixels.ndim == 2:
            np.testing.assert_array_equal(np.asarray(image), like.planes[-1])
    return like, notes, *tags


class TestStacks:
    @pytest.mark.parametrize(
        "shape, dtype, options",
        [
            ((3, 2, 9, 13), np.uint16, {"axes": "ZCYX", "spacing": 0.5, "unit": "um"}),
            ((4, 9, 13, 3), np.uint8, {"axes": "TYXS"}),
            ((5, 9, 13), np.float32, {"axes": "ZYX", "Labels": list("abcde"), "Info": "x=1"}),
            ((9, 13), np.uint16, {"unit": "micron"}),
        ],
    )
    @pytest.mark.parametrize("truncated", [False, True])
    def test_of_imagej(self, shape, dtype, options, truncated, tmp_path):
        values = np.random.default_rng(0).uniform(0, 1, shape)
        with tifffile.TiffWriter(tmp_path / "a.tif", imagej=True) as tiff:
            tiff.write(
                image_fuzz.scale(values, np.dtype(dtype)),
                resolution=(1 / 0.32, 1 / 0.16),
                metadata=options,
                truncate=truncated,
            )
        like, notes, before, after = restored_stack(tmp_path / "a.tif", tmp_path / "b.tif")
        assert len(like.planes) == np.prod(shape) / np.prod(like.pixels.shape)
        assert not notes and not like.notes
        for tag in (270, 282, 283, 296, 50838, 50839):
            assert before.get(tag) == after.get(tag), tag

    def test_the_colours_in_which_imagej_shows_levels_are_not_taken_for_theirs(self, tmp_path):
        levels = np.random.default_rng(0).integers(0, 256, (3, 9, 13), np.uint8)
        table = np.random.default_rng(1).integers(0, 65536, (3, 256), np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", levels, imagej=True, colormap=table)
        like, notes, before, after = restored_stack(tmp_path / "a.tif", tmp_path / "b.tif")
        np.testing.assert_array_equal(np.stack(like.planes), levels)
        np.testing.assert_array_equal(before[320], after[320])
        assert not notes

    @pytest.mark.parametrize("compression", [None, "zlib"])
    @pytest.mark.parametrize("axes, shape", [("CZYX", (2, 3, 9, 13)), ("TYXS", (4, 9, 13, 3))])
    def test_of_ome(self, axes, shape, compression, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.ome.tif",
            np.random.default_rng(0).integers(0, 256, shape, np.uint8),
            ome=True,
            photometric="rgb" if axes[-1] == "S" else "minisblack",
            compression=compression,
            metadata={"axes": axes, "PhysicalSizeX": 0.3, "PhysicalSizeXUnit": "µm"},
        )
        _, notes, before, after = restored_stack(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
        assert before[270] == after[270] and not notes

    @pytest.mark.parametrize(
        "options",
        [
            {"metadata": {"axes": "TZYX", "station": 4}},
            {"metadata": {"axes": "TZYX"}, "truncate": True},
            {"metadata": None, "compression": "lzw", "predictor": True},
            {"metadata": {"axes": "TZYX"}, "byteorder": ">", "bigtiff": True},
            {
                "metadata": {"axes": "TZYX"},
                "extratags": [(65000, 16, 1, 2**40, True)],
                "bigtiff": True,
            },
            {"metadata": {"axes": "TZYX"}, "extratags": [(274, 3, 1, 3, True)]},
        ],
    )
    def test_of_tifffile_and_of_pages(self, options, tmp_path):
        stored = photo(3, 9, 13 * 2).transpose(2, 0, 1).reshape(3, 2, 13, 9 * 3 // 3, order="F")
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.ascontiguousarray(stored),
            photometric="minisblack",
            **options,
        )
        if 3 not in (tag[3] for tag in options.get("extratags", ())):
            _, notes, *_ = restored_stack(tmp_path / "a.tif", tmp_path / "b.tif")
            assert not notes
            return
        like = image_files.read(tmp_path / "a.tif", pages="all")
        image_files.write(tmp_path / "b.tif", like.planes, like)
        found = tifffile.imread(tmp_path / "b.tif")
        np.testing.assert_array_equal(found, stored[:, :, ::-1, ::-1])

    def test_in_one_entry_with_depth(self, tmp_path):
        volume = np.random.default_rng(0).integers(0, 256, (5, 32, 48), np.uint8)
        tifffile.imwrite(
            tmp_path / "a.tif", volume, photometric="minisblack", volumetric=True,
            tile=(16, 16, 16), metadata=None,
        )  # fmt: skip
        like, *_ = restored_stack(tmp_path / "a.tif", tmp_path / "b.tif")
        np.testing.assert_array_equal(np.stack(like.planes), volume)

    @pytest.mark.parametrize("alpha", [False, True])
    def test_with_alpha_and_with_bits(self, alpha, tmp_path):
        stored = photo(9, 13, 4)[None].repeat(2, 0) if alpha else photo(9, 13, 3)[..., 0] > 99
        stored = stored if alpha else stored[None].repeat(3, 0)
        options = {"extrasamples": ["unassalpha"]} if alpha else {}
        tifffile.imwrite(
            tmp_path / "a.tif",
            stored,
            photometric="rgb" if alpha else "minisblack",
            metadata=None,
            **options,
        )
        restored_stack(tmp_path / "a.tif", tmp_path / "b.tif")

    def test_the_series_with_the_most_pixels_is_taken(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            tiff.write(photo(8, 8), photometric="rgb", metadata=None)
            for i in range(3):
                tiff.write(
                    photo(20, 30, 1, seed=i),
                    photometric="minisblack",
                    metadata=None,
                    description=f"page {i}",
                )
        like = image_files.read(tmp_path / "a.tif", pages="all")
        assert [plane.shape for plane in like.planes] == [(20, 30)] * 3
        assert like.notes == ("1 further pictures of other kinds are left out",)
        image_files.write(tmp_path / "b.tif", like.planes, like)
        with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
            assert [page.description for page in tiff.pages] == ["page 0", "page 1", "page 2"]

    def test_a_pyramid_keeps_its_largest(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as tiff:
            tiff.write(photo(64, 64), photometric="rgb", subifds=1, metadata=None)
            tiff.write(photo(32, 32), photometric="rgb", subfiletype=1, metadata=None)
        like, _, _, after = restored_stack(tmp_path / "a.tif", tmp_path / "b.tif")
        assert like.notes == ("its smaller copies are left out",) and 330 not in after

    def test_another_format_has_room_for_the_first_alone(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", photo(9, 13, 3).transpose(2, 0, 1), imagej=True)
        like = image_files.read(tmp_path / "a.tif", pages="all")
        notes = image_files.write(tmp_path / "b.png", like.planes, like, "png")
        assert notes == ("only the first of its 3 pictures is written",)
        again = image_files.read(tmp_path / "b.png")
        np.testing.assert_array_equal(again.pixels, photo(9, 13, 3)[..., 0])
        image_files.write(tmp_path / "c.tif", again.pixels, again, "tiff")
        assert tifffile.imread(tmp_path / "c.tif").shape == (9, 13)

    def test_the_limit_counts_all_pictures(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", photo(9, 13).transpose(2, 0, 1), imagej=True)
        image_files.read(tmp_path / "a.tif", 9 * 13 * 2)
        with pytest.raises(ImageFileError, match="3 pictures of 13 × 9 pixels"):
            image_files.read(tmp_path / "a.tif", 9 * 13 * 2, pages="all")


class TestTiffTags:
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    @pytest.mark.parametrize("bigtiff", [False, True])
    @pytest.mark.parametrize("orientation", [1, 3, 6])
    def test_are_kept_in_every_form(self, orientation, bigtiff, byteorder, tmp_path):
        geo = (33550, 12, 3, (1.5, 2.5, 0.0), True)
        private = [
            (34735, 3, 4, (1, 1, 0, 0), True),
            (42113, 2, 0, "99", True),
            (65000, 7, 5, b"\1\2\3\4\5", True),
            (65001, 5, 1, (22, 7), True),
        ]
        turn = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(
            tmp_path / "a.tif",
            photo(dtype=np.uint16),
            photometric="rgb",
            byteorder=byteorder,
            bigtiff=bigtiff,
            resolution=((3001, 10), (150, 1)),
            resolutionunit="inch",
            description="Schweißnaht 7".encode(),
            metadata=None,
            extratags=[geo, *private, *turn],
        )
        like, again, notes = identity(tmp_path / "a.tif", tmp_path / "b.tif")
        expected = image_fuzz.upright(photo(dtype=np.uint16), orientation)
        across, down = (300.1, 150) if orientation < 5 else (150, 300.1)
        for found in (like, again):
            np.testing.assert_array_equal(found.pixels, expected)
            assert found.dpi == pytest.approx((across, down))
        with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
            page = tiff.pages[0]
            assert (tiff.byteorder, tiff.is_bigtiff) == (byteorder, False)
            assert [page.tags.valueof(tag[0]) for tag in private] == [
                (1, 1, 0, 0), "99", b"\1\2\3\4\5", (22, 7),
            ]  # fmt: skip
            assert page.tags.valueof(33550) == (None if orientation > 1 else geo[3])
            assert 274 not in page.tags and "Schwei" in page.description
            assert page.tags.valueof(282) == ((3001, 10) if orientation < 5 else (150, 1))
        assert ("Earth" in " ".join(like.notes)) == (orientation > 1) and not notes

    def test_a_calibration_without_a_unit_is_kept(self, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.tif", photo(), resolution=((31, 10), (62, 10)), resolutionunit="none"
        )
        identity(tmp_path / "a.tif", tmp_path / "b.tif")
        with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
            found = [tiff.pages[0].tags.valueof(tag) for tag in (282, 283, 296)]
        assert found == [(31, 10), (31, 5), 1]

    def test_a_description_of_another_stack_does_not_mislead(self, tmp_path):
        for text in ("ImageJ=1.53\nimages=7\nslices=7", '{"shape": [7, 9, 13]}', "shape=(7,9)"):
            tifffile.imwrite(tmp_path / "a.tif", photo(), description=text, metadata=None)
            identity(tmp_path / "a.tif", tmp_path / "b.tif")
            np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), photo())
            identity(tmp_path / "a.tif", tmp_path / "b.png", "png")
            with Image.open(tmp_path / "b.png") as image:
                assert 270 not in image.getexif()


def test_only_the_first_frame_is_read_and_told(tmp_path):
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    for name in ("a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        found = image_files.read(tmp_path / name)
        np.testing.assert_array_equal(found.pixels, photo(seed=0))
        assert "first of its 3" in found.notes[0]


def test_jpeg_is_written_with_colour_at_full_resolution(tmp_path):
    save(tmp_path / "a.jpg", photo(32, 32), quality=30)
    like, again, _ = identity(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
    assert np.abs(again.pixels.astype(int) - like.pixels).mean() < 2


class TestAnyMaps:
    @pytest.mark.parametrize(
        "encoded, expected, mode, white",
        [
            (b"P1\n# made by hand\n3 2\n101\n0 1 0\n", [[0, 255, 0], [255, 0, 255]], "1", None),
            (b"P2 2 1 100\n7 #x\n100", [[7, 100]], "L", 100),
            (b"P2 2 1 4095\n7 4095", [[7, 4095]], "L", 4095),
            (b"P3 1 1\n255\n1 2 3", [[[1, 2, 3]]], "RGB", None),
            (b"P5#c\n2 1#d\n65535\n\0\1\xff\xff", [[1, 65535]], "L", None),
            (b"P5 1 1 1023\n\3\xff", [[1023]], "L", 1023),
            (b"P6 1 1 15\n\n\x0b\x0c", [[[10, 11, 12]]], "RGB", 15),
        ],
    )
    def test_samples_and_their_white_are_kept(self, encoded, expected, mode, white, tmp_path):
        (tmp_path / "a.ppm").write_bytes(encoded)
        for found in identity(tmp_path / "a.ppm", tmp_path / "b.ppm")[:2]:
            assert found.pixels.tolist() == expected
            assert (found.format, found.mode, found.white) == ("PNM", mode, white)

    @pytest.mark.parametrize(
        "encoded",
        [
            b"P5 ", b"P5 x", b"P5 2 1", b"P5 2 1 0\n\0\0", b"P5 2 1 70000\n\0\0\0\0",
            b"P5 2 1 255\n\0", b"P5 2 1 7\n\0\x08", b"P2 2 1 255\n1", b"P2 2 1 255\n1 x",
            b"P4 9 1\n\0", b"P1 2 2 101", b"P5 0 1 255\n",
        ],
    )  # fmt: skip
    def test_damage_is_told(self, encoded, tmp_path):
        (tmp_path / "a.pgm").write_bytes(encoded)
        with pytest.raises(ImageFileError, match=r"a\.pgm: (is damaged|has no pixels)"):
            image_files.read(tmp_path / "a.pgm")

    def test_another_format_keeps_the_levels_and_says_so(self, tmp_path):
        (tmp_path / "a.pgm").write_bytes(b"P5 1 1 4095\n\x0f\xff")
        _, again, notes = identity(tmp_path / "a.pgm", tmp_path / "b.png", "png")
        assert again.pixels.tolist() == [[4095]] and "white stays at 4,095" in notes[0]
        _, again, notes = identity(tmp_path / "a.pgm", tmp_path / "b.bmp", "bmp")
        assert again.pixels.tolist() == [[255]] and "8 bits" in notes[0]


def test_jpeg_2000_keeps_its_bits(tmp_path):
    levels = photo(channels=1, dtype=np.uint16) >> 4
    (tmp_path / "a.jp2").write_bytes(
        imagecodecs.jpeg2k_encode(
            levels, level=0, codecformat="jp2", reversible=True, bitspersample=12
        )
    )
    for found in identity(tmp_path / "a.jp2", tmp_path / "b.jp2")[:2]:
        np.testing.assert_array_equal(found.pixels, levels)
        assert found.white == 4095


def test_avif_with_more_than_8_bits_is_told(tmp_path):
    levels = np.full((16, 16, 3), 700, np.uint16)
    (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(levels, bitspersample=10))
    found = image_files.read(tmp_path / "a.avif")
    assert found.pixels.dtype == np.uint8 and "upper 8 bits" in found.notes[0]
    assert np.abs(found.pixels.astype(int) - 700 / 1023 * 255).max() < 4


class TestRefusals:
    def refused(self, path):
        with pytest.raises(ImageFileError) as caught:
            image_files.read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.isprintable()
        assert isinstance(caught.value, RunError)
        return message

    def test_what_is_no_file(self, tmp_path):
        assert "No such file" in self.refused(tmp_path / "none.png")
        assert "is a folder" in self.refused(tmp_path)
        os.mkfifo(tmp_path / "pipe.png")
        assert "not a regular file" in self.refused(tmp_path / "pipe.png")
        (tmp_path / "loop.png").symlink_to("loop.png")
        self.refused(tmp_path / "loop.png")

    def test_what_may_not_be_read(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.png", photo())

        def deny(*_args, **_options):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(type(path), "open", deny)  # the super-user may read everything
        assert self.refused(path).endswith("cannot be read: Permission denied")

    @pytest.mark.parametrize("name", image_fuzz.SUFFIX)
    def test_what_claims_to_be_enormous(self, name, tmp_path):
        (tmp_path / "a").write_bytes(image_fuzz.bomb(name))
        message = self.refused(tmp_path / "a")
        assert "more than 200 megapixels; --max_megapixels=" in message

    def test_the_limit_is_the_callers(self, tmp_path):
        save(tmp_path / "a.png", photo(9, 13))
        image_files.read(tmp_path / "a.png", max_pixels=9 * 13)
        with pytest.raises(ImageFileError, match=r"13 × 9 pixels, more than .*=1 takes it"):
            image_files.read(tmp_path / "a.png", max_pixels=9 * 13 - 1)

    def test_large_ones_below_the_limit_do_not_warn(self, tmp_path, monkeypatch):
        save(tmp_path / "a.png", photo(9, 13))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
        for name in ("png", "webp", "gif", "jpg", "jp2"):  # beyond Pillow's limit, too
            save(tmp_path / f"a.{name}", photo(9, 13))
            assert image_files.read(tmp_path / f"a.{name}").pixels.shape == (9, 13, 3)
        assert Image.MAX_IMAGE_PIXELS == 20

    @pytest.mark.parametrize("layout", ["contig", "separate", "tiles"])
    def test_what_is_small_but_decodes_to_much(self, layout, tmp_path):
        shape = (64, 300, 400) if layout == "separate" else (300, 400, 64)
        options = {"tile": (16, 16)} if layout == "tiles" else {}
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.zeros(shape, np.float64),
            photometric="minisblack",
            planarconfig="separate" if layout == "separate" else "contig",
            compression="adobe_deflate",
            **options,
        )
        assert (tmp_path / "a.tif").stat().st_size < 500_000
        image_files.read(tmp_path / "a.tif", max_pixels=300 * 400 * 64)
        with pytest.raises(ImageFileError) as caught:
            image_files.read(tmp_path / "a.tif", max_pixels=300 * 400 * 64 - 1)
        assert str(caught.value).endswith(
            "has 400 × 300 pixels with 64 samples of 64 bits, more than 7.68 megapixels; "
            "--max_megapixels=8 takes it"
        )

    @pytest.mark.parametrize(
        "name, channels", [("deep.jp2", 3), ("flat.jp2", 1), ("many.jp2", 20)]
    )
    def test_the_size_of_the_codestream_counts(self, name, channels, tmp_path):
        levels = np.zeros((40, 50, channels), np.uint16 if name[0] == "d" else np.uint8)
        encoded = imagecodecs.jpeg2k_encode(levels, codecformat="jp2")
        (tmp_path / name).write_bytes(encoded)
        needed = 40 * 50 * max(1, levels[0, 0].nbytes / 8)
        with pytest.raises(ImageFileError, match="50 × 40 pixels"):
            image_files.read(tmp_path / name, max_pixels=int(needed) - 1)

    @pytest.mark.parametrize("name", image_fuzz.SUFFIX)
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_what_is_truncated(self, name, share, tmp_path):
        for form in image_fuzz.FORMS[name]:
            deep = np.dtype(np.uint16 if form.endswith("16") else np.uint8)
            mode = form.split(";")[0].removesuffix("A")
            if form.endswith(";f"):
                deep = np.dtype(np.float32)
            stored, alpha = image_fuzz.draw(
                np.random.default_rng(0), mode, form.split(";")[0].endswith("A"), 40, 40, deep
            )
            encoded = image_fuzz.encode(name, mode, stored, alpha, b"", None, 1)
            (tmp_path / "a").write_bytes(encoded[: int(share * len(encoded))])
            self.refused(tmp_path / "a")

    def test_what_is_another_format_in_disguise(self, tmp_path):
        save(tmp_path / "a.png", photo(), format="TGA")
        assert "not an image of a format that is read" in self.refused(tmp_path / "a.png")
        (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        self.refused(tmp_path / "a.png")

    def test_a_name_with_a_line_break_stays_on_one_line(self, tmp_path):
        (tmp_path / "a\nb.png").write_bytes(b"")
        with pytest.raises(ImageFileError, match=r"a\\nb.png': is empty \(0 bytes\)$"):
            image_files.read(tmp_path / "a\nb.png")


class TestWriting:
    def test_nothing_is_left_of_a_failure_and_what_was_there_stays(self, tmp_path, monkeypatch):
        like = image_files.read(save(tmp_path / "a.png", photo()))
        (tmp_path / "b.png").write_bytes(b"before")

        def fail(file, *_args):
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(encoding, "_write_png", fail)
        with pytest.raises(ImageFileError, match=r"b\.png: cannot be written: No space left"):
            image_files.write(tmp_path / "b.png", like.pixels, like)
        assert (tmp_path / "b.png").read_bytes() == b"before"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]

    def test_an_existing_file_is_replaced_and_folders_are_made(self, tmp_path):
        like = image_files.read(save(tmp_path / "a.png", photo()))
        for restored in (like.pixels, 255 - like.pixels):
            image_files.write(tmp_path / "new" / "deep" / "a.png", restored, like)
        found = np.asarray(Image.open(tmp_path / "new" / "deep" / "a.png"))
        np.testing.assert_array_equal(found, 255 - like.pixels)

    def test_the_longest_name_can_be_written(self, tmp_path):
        like = image_files.read(save(tmp_path / "a.png", photo()))
        path = tmp_path / ("a" * 251 + ".png")
        image_files.write(path, like.pixels, like)
        assert path.is_file()

    def test_a_file_is_as_accessible_as_any_other(self, tmp_path):
        like = image_files.read(save(tmp_path / "a.png", photo()))
        image_files.write(tmp_path / "b.png", like.pixels, like)
        assert (tmp_path / "b.png").stat().st_mode == (tmp_path / "a.png").stat().st_mode

    def test_a_place_that_is_none(self, tmp_path):
        like = image_files.read(save(tmp_path / "a.png", photo()))
        with pytest.raises(ImageFileError, match="cannot be written"):
            image_files.write(tmp_path / "a.png" / "b.png", like.pixels, like)

    @pytest.mark.parametrize("format", ["jpeg", "webp"])
    def test_what_a_format_is_too_small_for(self, format, tmp_path):
        like = image_files.Photograph(np.zeros((1, 70000), np.uint8), mode="L")
        with pytest.raises(ImageFileError, match=f"70,000 × 1 px: {format.upper()} ends at"):
            image_files.write(tmp_path / "a", like.pixels, like, format)
        assert not list(tmp_path.iterdir())

    def test_pixels_of_another_photograph(self, tmp_path):
        like = image_files.Photograph(photo())
        for wrong in (photo(9, 12), photo(dtype=np.uint16), photo(channels=1)):
            with pytest.raises(ValueError, match="the photograph uint8"):
                image_files.write(tmp_path / "a.png", wrong, like)

    def test_an_unknown_format(self, tmp_path):
        like = image_files.Photograph(photo())
        with pytest.raises(UsageError, match="--format=heic: not one of png, jpeg"):
            image_files.write(tmp_path / "a.heic", like.pixels, like, "heic")

    def test_a_photograph_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            image_files.Photograph(photo()).mode = "L"


def test_threads_can_read_and_write_at_once(tmp_path):
    paths = [save(tmp_path / f"{i}.png", photo(seed=i)) for i in range(8)]
    equal = []

    def work(path, seed):
        _, again, _ = identity(path, tmp_path / "out" / path.name)
        equal.append(np.array_equal(again.pixels, photo(seed=seed)))

    filters, log = list(warnings.filters), logging.getLogger("tifffile")
    threads = [threading.Thread(target=work, args=(p, i)) for i, p in enumerate(paths)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 8
    assert warnings.filters == filters
    assert not log.disabled


def test_neither_jax_nor_tensorflow_is_needed():
    script = (
        "import sys\n"
        "sys.modules.update(tensorflow=None, flax=None)\n"
        "import restore_jax.image_io.image_files, restore_jax.image_io.image_paths\n"
        "print('imported')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "imported\n", done.stderr


class TestFind:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in (
            "a.png", "b.JPG", "sub/a.png", "sub/deep/c.tif", "sub/note.txt", ".hidden.png",
            ".cache/d.png", "__MACOSX/e.png", "odd.dat",
        ):  # fmt: skip
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(b"")
        return tmp_path / "in"

    def names(self, *args, **options):
        return [relative.as_posix() for _, relative in image_paths.find(*args, **options)]

    def test_a_folder_with_all_below_it(self, folder):
        found = image_paths.find([folder])
        names = ["a.png", "b.JPG", "sub/a.png", "sub/deep/c.tif"]
        assert [relative.as_posix() for _, relative in found] == names
        assert [path for path, _ in found] == [folder / name for name in names]

    def test_files_are_taken_whatever_their_name(self, folder):
        assert self.names([folder / "odd.dat", folder / ".hidden.png"]) == [
            ".hidden.png",
            "odd.dat",
        ]

    def test_patterns(self, folder):
        assert self.names([f"{folder}/*.png"]) == ["a.png"]
        assert self.names([f"{folder}/**/*.png"]) == ["a.png", "sub/a.png"]
        assert self.names([f"{folder}/s?b/*"]) == ["sub/a.png", "sub/deep/c.tif"]
        assert self.names([f"{folder}/**"]) == self.names([folder])

    def test_a_relative_pattern(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        assert self.names(["*.png"]) == ["a.png"]
        assert self.names(["."]) == self.names([folder])

    def test_a_name_with_the_signs_of_a_pattern(self, folder):
        (folder / "x[1].png").write_bytes(b"")
        assert self.names([f"{folder}/x[1].png"]) == ["x[1].png"]

    @pytest.mark.parametrize("name", ["scans [2024]", "[a]", "no [b", "x]", "a?", "a*b"])
    def test_a_folder_with_the_signs_of_a_pattern_stands_for_itself(self, name, folder):
        (folder / name / "sub [1]").mkdir(parents=True)
        for path in ("1.png", "sub [1]/2.png", "sub [1]/3[x].png"):
            (folder / name / path).write_bytes(b"")
        assert self.names([f"{folder}/{name}/*.png"]) == ["1.png"]
        assert self.names([f"{folder}/{name}/sub [1]/*"]) == ["2.png", "3[x].png"]
        assert self.names([f"{folder}/{name}/*/3[x].png"]) == ["sub [1]/3[x].png"]
        everything = ["1.png", "sub [1]/2.png", "sub [1]/3[x].png"]
        assert self.names([f"{folder}/{name}/**/*.png"]) == everything
        assert self.names([f"{folder}/{name}/**"]) == everything
        assert self.names([f"{folder}/*/sub [1]/2.png"]) == [f"{name}/sub [1]/2.png"]

    def test_brackets_are_a_pattern_where_nothing_is_called_so(self, folder):
        assert self.names([f"{folder}/[as]*/*.png"]) == ["sub/a.png"]
        assert self.names([f"{folder}/s[u]b/[a].png"]) == ["sub/a.png"]
        with pytest.raises(UsageError, match="no such file or folder, nor a match"):
            self.names([f"{folder}/s[x]b/*.png"])

    def test_each_path_once(self, folder):
        assert self.names([folder, folder / "a.png", f"{folder}/../in", f"{folder}/*.JPG"]) == (
            self.names([folder])
        )

    def test_the_order_does_not_depend_on_that_of_the_inputs(self, folder):
        inputs = [folder / "b.JPG", folder / "a.png", folder / "odd.dat"]
        assert self.names(inputs) == self.names(inputs[::-1]) == ["a.png", "b.JPG", "odd.dat"]

    def test_a_format_changes_suffixes(self, folder):
        assert self.names([folder, folder / "odd.dat"], "png") == [
            "a.png", "b.png", "odd.dat.png", "sub/a.png", "sub/deep/c.png",
        ]  # fmt: skip
        assert self.names([folder / "b.JPG"], "jpeg") == ["b.JPG"]

    def test_one_name_for_two_of_a_folder_keeps_their_suffix(self, folder):
        for name in ("a.jpg", "a.tif"):
            (folder / name).write_bytes(b"")
        assert self.names([f"{folder}/a.*"], "png") == ["a.jpg.png", "a.png", "a.tif.png"]
        assert self.names([f"{folder}/a.*"]) == ["a.jpg", "a.png", "a.tif"]

    def test_one_name_for_two_folders_is_refused(self, folder):
        with pytest.raises(UsageError, match=r"sub/a\.png .*would both become a\.png"):
            image_paths.find([folder / "a.png", folder / "sub" / "a.png"])
        (folder / "a.jpg.png").write_bytes(b"")
        (folder / "a.jpg").write_bytes(b"")
        with pytest.raises(UsageError, match=r"would both become a\.jpg\.png"):
            image_paths.find([folder], "png")

    def test_the_outputs_are_not_read_again(self, folder):
        everything = self.names([folder])
        (folder / "out").mkdir()
        (folder / "out" / "a.png").write_bytes(b"")
        for given in (folder, f"{folder}/**", f"{folder}/**/*", f"{folder}/*"):
            assert self.names([given], exclude=folder / "out") == everything
        assert "out/a.png" in self.names([folder])
        # Above the inputs it is no hindrance.
        assert self.names([folder / "sub"], exclude=folder.parent) == ["a.png", "deep/c.tif"]
        assert self.names([f"{folder}/s*/*"], exclude=folder.parent) == [
            "sub/a.png", "sub/deep/c.tif",
        ]  # fmt: skip

    def test_no_output_takes_the_place_of_an_input(self, folder):
        for inputs in ([folder], [f"{folder}/*.png"]):
            with pytest.raises(UsageError, match="--output: is the folder of --input"):
                image_paths.find(inputs, exclude=folder)
        with pytest.raises(UsageError, match="is an input"):
            image_paths.find([folder / "a.png"], exclude=folder)
        assert self.names([folder / "b.JPG"], "png", folder) == ["b.png"]

    def test_links(self, folder):
        (folder / "link.png").symlink_to(folder / "a.png")
        (folder / "sub" / "up").symlink_to(folder)
        (folder / "gone.png").symlink_to(folder / "nothing")
        assert self.names([folder]) == [
            "a.png", "b.JPG", "gone.png", "link.png", "sub/a.png", "sub/deep/c.tif",
        ]  # fmt: skip
        assert self.names([folder / "gone.png"]) == ["gone.png"]

    def test_an_input_is_known_through_links(self, folder, tmp_path):
        output = tmp_path / "out"
        output.mkdir()
        (output / "sub").symlink_to(folder / "sub")
        with pytest.raises(UsageError, match=r"sub/a\.png in it is an input"):
            image_paths.find([folder], exclude=output)
        (output / "sub").unlink()
        (output / "b.JPG").symlink_to(folder / "b.JPG")
        with pytest.raises(UsageError, match=r"b\.JPG in it is an input"):
            image_paths.find([folder], exclude=output)
        (output / "b.JPG").unlink()
        # Nor may it be where a link of the inputs leads, even if there is nothing yet.
        (folder / "gone.png").symlink_to(output / "a.png")
        with pytest.raises(UsageError, match=r"a\.png in it is an input"):
            image_paths.find([folder], exclude=output)

    def test_paths_are_resolved_as_by_the_system(self, folder, monkeypatch):
        (folder / "link.png").symlink_to("sub/a.png")
        (folder / "up").symlink_to("sub/..")
        (folder / "gone").symlink_to("nowhere/x.png")
        (folder / "loop").symlink_to("loop")
        monkeypatch.chdir(folder)
        resolve = image_paths._resolver()
        for path in (
            "a.png", "link.png", "up/link.png", "up/sub/deep/c.tif", "gone", "loop",
            "loop/a.png", "none/x/y.png", "sub/../a.png", "sub/..", ".", "..", "", "/",
            "/a.png", "up/", "a//b",
        ):  # fmt: skip
            for given in (path, f"{folder}/{path}"):
                assert resolve(given) == os.path.realpath(given), given

    def test_folders_are_resolved_once(self, folder, tmp_path, monkeypatch):
        for i in range(50):
            (folder / "sub" / f"{i}.png").write_bytes(b"")
        given, realpath = [], os.path.realpath

        def counted(path):
            given.append(path)
            return realpath(path)

        monkeypatch.setattr(os.path, "realpath", counted)
        for inputs in ([folder], [f"{folder}/**/*.*"]):
            given.clear()
            assert len(image_paths.find(inputs, exclude=tmp_path / "out")) == 54
            assert len(given) < 20

    def test_a_folder_that_cannot_be_listed_is_left_to_the_reader(self, folder, monkeypatch):
        listed = type(folder).iterdir

        def deny(path):
            if path.name == "deep":
                raise PermissionError(13, "Permission denied")
            return listed(path)

        monkeypatch.setattr(type(folder), "iterdir", deny)
        assert self.names([folder]) == ["a.png", "b.JPG", "sub/a.png", "sub/deep"]
        with pytest.raises(ImageFileError, match="deep: is a folder"):
            image_files.read(folder / "sub" / "deep")

    @pytest.mark.parametrize(
        "given", ["", "none.png", "no/such/*", "\0", "~nobody-of-that-name/a"]
    )
    def test_what_is_not_there_is_refused(self, given):
        with pytest.raises(UsageError, match="--input=") as caught:
            image_paths.find([given])
        assert str(caught.value).isprintable()

    def test_folders_of_systems_are_none_of_the_users(self, folder):
        everything = self.names([folder])
        for name in ("@eaDir", "sub/@eaDir/a.png", ".thumbnails", "#recycle", "$RECYCLE.BIN"):
            (folder / name).mkdir(parents=True)
            (folder / name / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"")
        for given in (folder, f"{folder}/**", f"{folder}/**/*"):
            assert self.names([given]) == everything
        (folder / "sub" / "eaDir").mkdir()
        (folder / "sub" / "eaDir" / "x.jpg").write_bytes(b"")
        assert self.names([folder]) == sorted([*everything, "sub/eaDir/x.jpg"])

    def test_what_is_passed_over_is_counted_by_suffix(self, folder):
        for name in ("x.heic", "sub/y.HEIC", "none", ".hidden.heic", "@eaDir/z.heic"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"")
        for given in (folder, f"{folder}/**/*"):
            others = collections.Counter()
            self.names([given], passed_over=others)
            assert others == {".heic": 2, ".txt": 1, ".dat": 1, "": 1}
        said = "2 .heic, 1 without suffix, 1 .dat, 1 .txt"
        assert image_paths.format_passed_over(others) == said
        with pytest.raises(UsageError, match=r"no images in it, but 1 \.heic$"):
            self.names([f"{folder}/*.heic"])

    def test_a_folder_without_images_is_refused(self, folder):
        (folder / "none").mkdir()
        with pytest.raises(UsageError, match="no images in it"):
            image_paths.find([folder, folder / "none"])


@pytest.mark.parametrize(
    "text, name",
    [
        ("gif", "GIF"),
        ("ppm", "PNM"),
        ("jp2", "JP2"),
        ("png", "PNG"),
        ("JPG", "JPEG"),
        ("jpeg", "JPEG"),
        (".tif", "TIFF"),
        ("webp", "WEBP"),
    ],
)
def test_names_of_formats(text, name):
    assert image_paths.format_name(text) == name
