import gzip
import os
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from restore_jax.errors import RunError
from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import ImageFileError
from tests.support import image_fuzz
from tests.support.photos import identity, photo, save


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


class TestForms:
    """Those that are read, but not written again."""

    @pytest.mark.parametrize("name", ["png", "tif", "bmp"])
    @pytest.mark.parametrize(
        "mode, grey, said",
        [("1", True, "1 bit: written as 8-bit grey"), ("P", False, "palette: written as RGB")],
    )
    def test_bits_and_palettes(self, mode, grey, said, name, tmp_path):
        image = Image.fromarray(photo(20, 30)).convert(mode)
        image.save(tmp_path / f"a.{name}")
        like, again, notes = identity(tmp_path / f"a.{name}", tmp_path / f"b.{name}")
        expected = np.asarray(image.convert("L" if grey else "RGB"))
        for found in (like, again):
            np.testing.assert_array_equal(found.pixels, expected)
        assert like.notes == (said,) and not again.notes and not notes
        with Image.open(tmp_path / f"b.{name}") as image:
            assert image.mode == ("L" if grey else "RGB")

    def test_a_palette_with_shades_of_alpha(self, tmp_path):
        image = Image.fromarray(photo(20, 30)).convert("P")
        image.save(tmp_path / "a.png", transparency=bytes(range(256)))
        with Image.open(tmp_path / "a.png") as image:
            expected = np.asarray(image.convert("RGBA"))
        for found in identity(tmp_path / "a.png", tmp_path / "b.png")[:2]:
            np.testing.assert_array_equal(np.dstack([found.pixels, found.alpha]), expected)

    def test_a_high_one_is_converted_in_bands(self, tmp_path):
        image = Image.fromarray(photo(1100, 3)).convert("P")
        image.save(tmp_path / "a.png", transparency=bytes(range(256)))
        with Image.open(tmp_path / "a.png") as image:
            expected = np.asarray(image.convert("RGBA"))
        found = image_files.read(tmp_path / "a.png")
        np.testing.assert_array_equal(np.dstack([found.pixels, found.alpha]), expected)

    @pytest.mark.parametrize("name", ["jpg", "tif"])
    def test_inks_as_pillow_converts_them(self, name, tmp_path):
        inks = Image.merge("CMYK", [Image.fromarray(band) for band in photo(4, 20, 30)])
        inks.save(tmp_path / f"a.{name}", icc_profile=image_fuzz.profile("CMYK"))
        with Image.open(tmp_path / f"a.{name}") as image:
            expected = np.asarray(image.convert("RGB"))
        like, again, notes = identity(tmp_path / f"a.{name}", tmp_path / f"b.{name}")
        np.testing.assert_array_equal(like.pixels, expected)
        assert like.icc_profile == b"" and again.pixels.shape == expected.shape
        assert set(like.notes) == {
            "CMYK: written as RGB",
            "its colour profile is left out: it is for CMYK",
        }
        assert not again.notes and not notes

    def test_inks_of_16_bits_come_out_with_8(self, tmp_path):
        inks = photo(20, 30, 4, np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
        light = 255.0 - (inks >> 8)
        expected = np.rint(light[..., :3] * light[..., 3:] / 255)
        found = image_files.read(tmp_path / "a.tif")
        np.testing.assert_array_equal(found.pixels, expected)
        assert "is read with the upper 8 bits of each sample" in found.notes


def test_only_the_first_frame_is_read_and_told(tmp_path):
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    for name in ("a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        found = image_files.read(tmp_path / name)
        np.testing.assert_array_equal(found.pixels, photo(seed=0))
        assert "first of its 3" in found.notes[0]


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
        with pytest.raises(ImageFileError, match=r"13 × 9 pixels, more than .*=1 allows it"):
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
            "--max_megapixels=8 allows it"
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
        assert "not an image of a supported format" in self.refused(tmp_path / "a.png")
        (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        self.refused(tmp_path / "a.png")

    def test_archives_and_heic_are_told_what_to_do(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.png", b"")
        assert "unpack it first" in self.refused(tmp_path / "a.zip")
        (tmp_path / "a.gz").write_bytes(gzip.compress(b"a"))
        assert "unpack it first" in self.refused(tmp_path / "a.gz")
        box = b"ftypheic" + bytes(4) + b"mif1heic"
        (tmp_path / "a.jpg").write_bytes((len(box) + 4).to_bytes(4) + box + bytes(64))
        assert "save it as JPEG, PNG or TIFF" in self.refused(tmp_path / "a.jpg")

    def test_a_name_with_a_line_break_stays_on_one_line(self, tmp_path):
        (tmp_path / "a\nb.png").write_bytes(b"")
        with pytest.raises(ImageFileError, match=r"a\\nb.png': is empty \(0 bytes\)$"):
            image_files.read(tmp_path / "a\nb.png")
