import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import ImageFileError
from tests.support import image_fuzz
from tests.support.photos import identity, photo, save_png


def test_a_png_keeps_how_it_defines_its_colours(tmp_path):
    gamma = (b"gAMA", struct.pack(">I", 100000))
    save_png(tmp_path / "a.png", photo(), [gamma])
    identity(tmp_path / "a.png", tmp_path / "b.png")
    assert image_fuzz.chunk(*gamma) in (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["gamma"] == 1.0


class TestText:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_any_length_of_it_is_no_damage_and_is_kept(self, dtype, channels, tmp_path):
        pixels = photo(channels=channels, dtype=dtype)
        long = zlib.compress(bytes(range(32, 127)) * 22_000)  # of 2 MB
        chunks = [
            (b"zTXt", b"Log\0\0" + long),
            (b"iTXt", b"Notes\0\1\0de\0Notizen\0" + long),
            (b"tEXt", b"Title\0" + b"x" * 1_500_000),
        ]
        save_png(tmp_path / "a.png", pixels, chunks[:1], chunks[1:], dpi=(300, 300))
        like, again, notes = identity(tmp_path / "a.png", tmp_path / "b.png")
        for found in (like, again):
            np.testing.assert_array_equal(found.pixels, pixels)
            assert found.png_text == tuple(chunks)
            assert found.dpi == pytest.approx((300, 300), rel=1e-3)
        assert not notes

    def test_more_of_it_altogether_than_pillow_takes_is_kept(self, tmp_path):
        chunks = [(b"tEXt", b"Many\0" + b"y" * 1_000_000)] * 65
        save_png(tmp_path / "a.png", photo(), chunks)
        assert image_files.read(tmp_path / "a.png").png_text == tuple(chunks)

    def test_a_profile_of_more_than_a_megabyte_is_kept(self, tmp_path):
        made = image_fuzz.profile("RGB") + np.random.default_rng(0).bytes(1_500_000)
        content = b"icc\0\0" + zlib.compress(made)
        save_png(tmp_path / "a.png", photo(), [(b"iCCP", content)])
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

    def test_damaged_text_is_no_reason_to_refuse(self, tmp_path):
        chunks = [(b"zTXt", b"a\0\0nonsense"), (b"iTXt", b"b"), (b"iCCP", b"c\0\0nonsense")]
        save_png(tmp_path / "a.png", photo(), chunks)
        like, again, _ = identity(tmp_path / "a.png", tmp_path / "b.png")
        np.testing.assert_array_equal(again.pixels, photo())
        assert "its colour profile is left out: it is damaged" in like.notes


@pytest.mark.parametrize("bits, key", [(8, 7), (8, (1, 2, 3)), (16, 500), (16, (1, 2, 500))])
def test_a_transparent_colour_becomes_alpha(bits, key, tmp_path):
    colours = np.ravel(key)
    # Two pixels, of which the first has the colour.
    row = [*colours, *(0 for _ in colours)]
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
        assert np.ravel(found.pixels[0, 0]).tolist() == colours.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_and_xmp_after_the_pixels_count(dtype, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    late = [
        (b"eXIf", exif.tobytes()[6:]),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<xmp/>"),
    ]
    save_png(tmp_path / "a.png", photo(dtype=dtype), after=late)
    like, again, _ = identity(tmp_path / "a.png", tmp_path / "b.png")
    for found in (like, again):
        np.testing.assert_array_equal(found.pixels, image_fuzz.upright(photo(dtype=dtype), 6))
        assert found.xmp == b"<xmp/>" and not found.png_text
    with Image.open(tmp_path / "b.png") as image:
        assert dict(image.getexif()) == {0x010F: "Maker"}


def test_text_that_is_endless_is_refused_in_one_line(tmp_path):
    text = (b"zTXt", b"Log\0\0" + zlib.compress(bytes(65 << 20)))
    path = save_png(tmp_path / "a.png", photo(), [text])
    with pytest.raises(ImageFileError, match=r"a\.png: is damaged: .*too large"):
        image_files.read(path)
