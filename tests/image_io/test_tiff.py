import numpy as np
import pytest
import tifffile
from PIL import Image

from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import ImageFileError
from tests.support import image_fuzz
from tests.support.photos import identity, photo, save


class TestTiff:
    def check(self, tmp_path, expected):
        like, again, _ = identity(tmp_path / "a.tif", tmp_path / "b.tif")
        for found in (like, again):
            assert found.pixels.dtype == expected.dtype
            np.testing.assert_array_equal(found.pixels, expected)
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
        self.check(tmp_path, pixels)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
    def test_white_is_zero(self, dtype, tmp_path):
        stored = photo(5, 11, 1) > 99 if dtype == np.bool_ else photo(5, 11, 1, dtype)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
        white = 65535 if dtype == np.uint16 else 255
        pixels = 255 * np.uint8(~stored) if dtype == np.bool_ else white - stored
        self.check(tmp_path, pixels)

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
        assert again.pixels.shape == (3, 4, 3)
        assert "LAB" in like.notes[0]

    def test_pages_beyond_the_first_are_left_out_and_told(self, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.tif", np.stack([photo(channels=1)] * 3), photometric="minisblack"
        )
        like = self.check(tmp_path, photo(channels=1))
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
        like = self.check(tmp_path, levels)
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
        assert ("georeferencing" in " ".join(like.notes)) == (orientation > 1) and not notes

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


def test_12_bits_whose_white_is_zero(tmp_path):
    levels = np.random.default_rng(0).integers(0, 4001, (9, 11)).astype(np.uint16)
    levels[0, 0] = 4000
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="miniswhite")
    found = image_files.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found.pixels, 4095 - levels)
    assert found.white == 4095
    assert found.notes == ("4,095 is taken for black, as no level is above it",)


def test_signed_samples_are_named_as_such(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.int16))
    with pytest.raises(ImageFileError, match=r"signed samples of 16 bits \(int16\); save it"):
        image_files.read(tmp_path / "a.tif")
