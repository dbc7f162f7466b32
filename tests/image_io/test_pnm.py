import pytest

from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import ImageFileError
from tests.support.photos import identity


class TestAnyMaps:
    @pytest.mark.parametrize(
        "encoded, expected, white",
        [
            (b"P1\n# made by hand\n3 2\n101\n0 1 0\n", [[0, 255, 0], [255, 0, 255]], None),
            (b"P2 2 1 100\n7 #x\n100", [[7, 100]], 100),
            (b"P2 2 1 4095\n7 4095", [[7, 4095]], 4095),
            (b"P3 1 1\n255\n1 2 3", [[[1, 2, 3]]], None),
            (b"P5#c\n2 1#d\n65535\n\0\1\xff\xff", [[1, 65535]], None),
            (b"P5 1 1 1023\n\3\xff", [[1023]], 1023),
            (b"P6 1 1 15\n\n\x0b\x0c", [[[10, 11, 12]]], 15),
        ],
    )
    def test_samples_and_their_white_are_kept(self, encoded, expected, white, tmp_path):
        (tmp_path / "a.ppm").write_bytes(encoded)
        for found in identity(tmp_path / "a.ppm", tmp_path / "b.ppm")[:2]:
            assert found.pixels.tolist() == expected
            assert (found.format, found.white) == ("PNM", white)

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
