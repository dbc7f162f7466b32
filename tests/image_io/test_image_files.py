import dataclasses
import logging
import subprocess
import sys
import threading
import warnings

import imagecodecs
import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

from restore_jax.errors import UsageError
from restore_jax.image_io import encoding, image_files
from restore_jax.image_io.image_files import ImageFileError
from tests.support import image_fuzz
from tests.support.photos import identity, photo, save

WHITE = {"uint8": 255, "uint16": 65535}


def independently(path, case):
    """What other programs find in a file: pixels with alpha as they are stored, upright."""
    if case.format == "TIFF":
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert 274 not in page.tags
            return page.asarray()
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
        return np.asarray(image.convert("RGB") if case.format == "GIF" else image)


@pytest.mark.parametrize(
    "count, seed", [(360, 0), pytest.param(1800, 1, marks=pytest.mark.slow)]
)
def test_random_files_are_refused_or_come_back_in_their_own_form(count, seed, tmp_path, capfd):
    good = refused = 0
    for case in image_fuzz.generate(tmp_path, count, seed):
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
        if case.good:
            good += 1
            check_found(like, case, where)
            alpha = None if case.format == "GIF" else case.alpha
            check_found(again, dataclasses.replace(case, alpha=alpha), where)
            check_written(out, like, again, case, where)
    assert good > count / 2 and refused > count / 7
    assert not list((tmp_path / "out").glob(".*"))
    assert capfd.readouterr() == ("", "")


def check_found(found, case, where):
    assert found.pixels.shape[:2] == case.size, where
    assert found.pixels.dtype == case.dtype, where
    assert found.format == case.format, where
    assert found.icc_profile == case.icc_profile, where
    assert (found.alpha is None) == (case.alpha is None), where
    assert (found.dpi is None) == (case.dpi is None), where
    if case.dpi:
        np.testing.assert_allclose(found.dpi, case.dpi, rtol=1e-3, err_msg=where)
    if case.pixels is not None:
        np.testing.assert_array_equal(found.pixels, case.pixels, where)
    if case.alpha is not None:
        limit = 12 if case.format == "AVIF" else 0
        assert np.abs(found.alpha.astype(float) - case.alpha).max() <= limit, where


def check_written(path, like, again, case, where):
    if case.format in image_fuzz.LOSSY:
        assert np.abs(again.pixels.astype(int) - like.pixels).mean() < 6, where
        return
    expected = case.pixels
    if case.alpha is not None and case.format != "GIF":
        expected = np.dstack([expected, case.alpha])
    levels = independently(path, case).reshape(expected.shape)
    np.testing.assert_array_equal(levels, expected, where)


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
            # GIF may show grey by a palette; WebP has colour alone, AVIF with alpha.
            grey_kept = like.pixels.ndim == 3 or again.pixels.ndim == 2
            white, new = (WHITE.get(str(p.pixels.dtype), 1) for p in (like, again))
            before, after = like.pixels / white, again.pixels / new
            before = before if grey_kept else np.repeat(before[..., None], 3, -1)
            assert grey_kept or format in ("WEBP", "GIF", "AVIF"), where
            limit = 0.5 / min(white, new) if white != new else 0
            error = np.abs(before - after)
            if format == "GIF":  # whose palette has only so many colours
                assert error.mean() < 0.1, where
            elif format in image_fuzz.LOSSY:
                assert error.mean() < 0.06, where
            else:
                assert error.max() <= limit, where
            if format in ("JPEG", "PNM", "BMP", "GIF"):
                assert again.alpha is None
                assert ("alpha" in " ".join(notes)) == (like.alpha is not None), where
            elif like.alpha is not None and format != "AVIF":
                np.testing.assert_allclose(like.alpha / white, again.alpha / new, atol=limit)
            lost = new < white and white > 1
            assert ("is written with 8 bits" in " ".join(notes)) == (
                lost or (white == 1 and new == 255)
            ), where


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
        like = image_files.Photograph(np.zeros((1, 70000), np.uint8))
        with pytest.raises(
            ImageFileError, match=f"70,000 × 1 px: {format.upper()} allows at most"
        ):
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
            image_files.Photograph(photo()).format = "TIFF"


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
