import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from restore_jax.image_io import image_files, photograph
from tests.support import image_fuzz
from tests.support.photos import identity, photo, save, save_png


def test_the_source_depth_decides_and_not_the_values(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(
        image_fuzz.encode_png(np.full((2, 3, 3), 7, np.uint16), None, b"", None, Image.Exif())
    )
    like, again, _ = identity(path, tmp_path / "b.png")
    assert like.pixels.dtype == again.pixels.dtype == np.uint16
    assert again.pixels.max() == 7


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
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
    assert 0xA002 not in camera and 0xA003 not in camera
    assert camera[0x829A] == 0.01 and camera[0x9286] == b"ASCII\0\0\0hello"
    assert place[1] == "N" and place[2] == (48.0, 8.0, 0.5) and place[29] == "2024:01:02"


def test_of_exif_a_tiff_keeps_what_it_has_tags_for_and_tells(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0132] = "Mäker", "2024:01:02 03:04:05"
    path = tmp_path / "a.png"
    path.write_bytes(image_fuzz.encode_png(photo(dtype=np.uint16), None, b"", (300, 300), exif))
    _, _, notes = identity(path, tmp_path / "b.tif", "tiff")
    assert not notes
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages[0].tags
        assert tags["Make"].value in ("Mäker", "M?ker")
        assert tags["DateTime"].value == "2024:01:02 03:04:05"
        assert "Software" not in tags
        across = tags["XResolution"].value
        assert across[0] / across[1] == pytest.approx(300, rel=1e-4)
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.5)}
    for name in ("PNG", "TIFF"):
        save(tmp_path / "c", photo(), format=name, exif=exif.tobytes())
        like, again, notes = identity(tmp_path / "c", tmp_path / "d", "tiff")
        told = (
            "its EXIF data on camera settings and location are left out: not supported for TIFF"
        )
        assert notes == (told,)
        assert len(again.exif) < len(like.exif)


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


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation='%d'/>%s"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_xmp_is_kept_but_for_the_orientation(name, tmp_path):
    xmp = XMP % (6, b"<dc:title>Weld</dc:title>")
    if name == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0"
        save_png(tmp_path / "a.png", photo(), [(b"iTXt", text + xmp)])
    else:
        options = {"tiffinfo": {700: xmp}} if name == "TIFF" else {"xmp": xmp}
        save(tmp_path / "a.png", photo(), format=name, **options)
    for format in ("png", "jpeg", "tiff", "webp", "avif"):
        like, again, notes = identity(tmp_path / "a.png", tmp_path / "b", format)
        assert like.pixels.shape == again.pixels.shape == (13, 9, 3)
        assert again.xmp == XMP % (1, b"<dc:title>Weld</dc:title>") and not notes
    _, _, notes = identity(tmp_path / "a.png", tmp_path / "b", "bmp")
    assert "its XMP data are left out: BMP has no room for them" in notes


def test_comments_of_jpeg_and_gif_are_kept(tmp_path):
    save(tmp_path / "a.jpg", photo(), comment=b"station 4")
    like, again, notes = identity(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert like.comment == again.comment == b"station 4" and not notes
    _, _, notes = identity(tmp_path / "a.jpg", tmp_path / "b.png", "png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.text == {"Comment": "station 4"}
    assert not notes
    _, _, notes = identity(tmp_path / "a.jpg", tmp_path / "b.webp", "webp")
    assert "its comment is left out: WEBP has no room for it" in notes
    save(tmp_path / "a.gif", photo(channels=1), comment=b"station 4")
    identity(tmp_path / "a.gif", tmp_path / "b.gif")
    with Image.open(tmp_path / "b.gif") as image:
        assert image.info["comment"] == b"station 4"


def test_iptc_is_left_out_and_told(tmp_path):
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x78\0\5Weld7"
    segment = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc
    save(tmp_path / "a.jpg", photo(), extra=segment)
    assert image_files.read(tmp_path / "a.jpg").notes == ("its IPTC data are left out",)


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


def test_levels_are_rescaled_between_types():
    for levels, dtype, white, expected in (
        (np.array([0.0, 0.5, 2.0], np.float32), np.uint16, None, [0, 32768, 65535]),
        (np.array([0, 128, 129, 65535], np.uint16), np.uint8, None, [0, 0, 1, 255]),
        (np.array([0, 2048, 5000], np.uint16), np.uint8, 4095, [0, 128, 255]),
        (np.array([0, 51, 255], np.uint8), np.uint16, 255, [0, 13107, 65535]),
    ):
        found = photograph.to_dtype(levels, np.dtype(dtype), white)
        assert found.dtype == dtype and found.tolist() == expected
    with pytest.raises(ValueError, match="uint8 cannot be rescaled to uint16"):
        photograph.to_dtype(np.zeros(2, np.uint8), np.dtype(np.uint16), None)


def test_jpeg_is_written_with_colour_at_full_resolution(tmp_path):
    save(tmp_path / "a.jpg", photo(32, 32), quality=30)
    like, again, _ = identity(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
    assert np.abs(again.pixels.astype(int) - like.pixels).mean() < 2


@pytest.mark.parametrize("format", ["bmp", "gif", "jpeg", "pnm"])
def test_alpha_is_left_out_and_told(format, tmp_path):
    save(tmp_path / "a.png", photo(channels=4))
    _, again, notes = identity(tmp_path / "a.png", tmp_path / "b", format)
    assert again.alpha is None and again.pixels.shape == (9, 13, 3)
    assert f"its alpha is left out: not supported for {again.format}" in notes


class TestGif:
    def test_up_to_256_colours_are_exact(self, tmp_path):
        colours = photo(1, 256, seed=3)[0]
        restored = colours[np.random.default_rng(0).integers(0, 256, (30, 40))]
        notes = image_files.write(
            tmp_path / "a.gif", restored, image_files.Photograph(restored), "gif"
        )
        np.testing.assert_array_equal(image_files.read(tmp_path / "a.gif").pixels, restored)
        assert not notes

    def test_more_become_the_nearest_ones_without_dithering(self, tmp_path):
        ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64)
        restored = np.stack([ramp, ramp.T, 255 - ramp], -1).astype(np.uint8)
        notes = image_files.write(
            tmp_path / "a.gif", restored, image_files.Photograph(restored), "gif"
        )
        assert notes == ("its colours are reduced to a palette of 256",)
        found = image_files.read(tmp_path / "a.gif").pixels.astype(int)
        assert np.abs(found - restored).mean() < 8
        # The same colour is the same everywhere.
        flat, pairs = restored.reshape(-1, 3), found.reshape(-1, 3)
        assert len(np.unique(np.c_[flat, pairs], axis=0)) == len(np.unique(flat, axis=0))
