import numpy as np
import pytest
import tifffile
from PIL import Image

from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import ImageFileError
from tests.support import image_fuzz
from tests.support.photos import photo


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
        expected = wanted.asarray()
        if expected.dtype == np.bool_:  # written as grey
            expected = 255 * expected.astype(np.uint8)
        assert (found.axes, found.shape, found.dtype) == (
            wanted.axes, wanted.shape, expected.dtype
        )  # fmt: skip
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
        assert like.notes == ("its pictures of other kinds are left out (1)",)
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

    def test_one_picture_can_be_written_by_itself(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", photo(9, 13, 3).transpose(2, 0, 1), imagej=True)
        like = image_files.read(tmp_path / "a.tif", pages="all")
        notes = image_files.write(tmp_path / "b.tif", like.pixels, like)
        assert "only the first of its 3 pictures is written" in notes
        found = tifffile.imread(tmp_path / "b.tif")
        np.testing.assert_array_equal(found, photo(9, 13, 3)[..., 0])

    def test_the_limit_counts_all_pictures(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", photo(9, 13).transpose(2, 0, 1), imagej=True)
        image_files.read(tmp_path / "a.tif", 9 * 13 * 2)
        with pytest.raises(ImageFileError, match="3 pictures of 13 × 9 pixels"):
            image_files.read(tmp_path / "a.tif", 9 * 13 * 2, pages="all")
