"""16-bit images of cameras with fewer bits: one white level for a whole data set."""

import errno
import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from configs import sca_unet
from data import pipeline
from data.sources import folders, images, mvtec_ad
from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import image_files
from tests.data.sources import test_mvtec_ad
from tests.data.sources.test_folders import decoded, pixels, save, write_pair
from tests.data.sources.test_mvtec_ad import temporary_folder  # noqa: F401 - applies itself

SHAPE = (12, 16)


def levels(highest, seed=0):
    """Levels of a photograph up to exactly `highest`, uint16."""
    found = np.random.default_rng(seed).integers(0, highest, SHAPE).astype(np.uint16)
    found[0, 0] = highest
    return found


def write_clean(root, *highest, **tags):
    root.mkdir(exist_ok=True)
    for number, top in enumerate(highest):
        tifffile.imwrite(root / f"{number}.tif", levels(top, number), **tags)


def read(parts):
    """The decoded photographs of both splits, uint8, by id."""
    return {
        record["id"].decode(): images.decode(record["image"], 3).numpy()[..., 0]
        for part in ("train", "val")
        for record in parts[part][0].as_numpy_iterator()
    }


def white_tag(level):
    return {"extratags": [(281, "H", 1, level, True)]}


def test_the_level_is_found_from_all_images_and_used_for_each(tmp_path, capsys):
    write_clean(tmp_path / "set", 300, 3100, 900)
    parts = folders.load_clean(str(tmp_path / "set"))
    assert {part[4] for part in parts.values()} == {4095}
    line = capsys.readouterr().out
    assert line == (
        "clean: its 16-bit images stay below 3,101: 4,095 (12 bits) is taken for white\n"
    )
    for number, top in enumerate((300, 3100, 900)):
        expected = np.rint(levels(top, number) * (255 / 4095))
        np.testing.assert_array_equal(read(parts)[str(number)], expected)


def test_the_field_is_binding(tmp_path, capsys):
    write_clean(tmp_path / "set", 300, 3100)
    parts = folders.load_clean(str(tmp_path / "set"), white=65535)
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(read(parts)["1"], np.rint(levels(3100, 1) / 257))
    parts = folders.load_clean(str(tmp_path / "set"), white=1023)
    with pytest.raises(
        Exception, match=r"1\.tif: its levels reach 3,100, above the white 1,023"
    ):
        read(parts)
    assert folders.load_clean(str(tmp_path / "set"), white=4000)["train"][4] == 4000
    with pytest.raises(UsageError, match=r"config\.data\.white: -1 must lie between"):
        folders.load_clean(str(tmp_path / "set"), white=-1)


def test_what_the_files_state_comes_first(tmp_path, capsys):
    write_clean(tmp_path / "set", 300, 700, **white_tag(4095))
    assert folders.load_clean(str(tmp_path / "set"))["train"][4] == 4095
    assert "state that 4,095 is white" in capsys.readouterr().out
    # Written by some programs for each image: its own highest level.
    for number, top in enumerate((3000, 2500)):
        path = tmp_path / "set" / f"{number}.tif"
        tifffile.imwrite(path, levels(top, number), **white_tag(top))
    assert folders.load_clean(str(tmp_path / "set"))["train"][4] == 4095


def test_files_that_contradict_each_other_are_named(tmp_path):
    write_clean(tmp_path / "set", 300, 900, **white_tag(1023))
    tifffile.imwrite(tmp_path / "set/2.tif", levels(3000), **white_tag(4095))
    with pytest.raises(UsageError, match=r"0\.tif states 1,023, 2\.tif 4,095\); set it"):
        folders.load_clean(str(tmp_path / "set"))
    assert folders.load_clean(str(tmp_path / "set"), white=4095)["train"][4] == 4095


def test_images_of_the_whole_range_and_of_8_bits(tmp_path, capsys):
    write_clean(tmp_path / "set", 300, 60_000)
    assert folders.load_clean(str(tmp_path / "set"))["val"][4] == 65535
    capsys.readouterr()
    for number in range(3):
        save(tmp_path / f"plain/{number}.png", pixels(SHAPE, number))
    assert folders.load_clean(str(tmp_path / "plain"))["val"][4] == 0
    assert capsys.readouterr().out == ""


def test_both_images_of_a_pair_have_the_same_level(tmp_path):
    for number in range(3):
        write_pair(tmp_path, "", f"a/{number}", size=SHAPE)
        (tmp_path / f"degraded/a/{number}.jpg").unlink()
        tifffile.imwrite(tmp_path / f"degraded/a/{number}.tif", levels(1000, number))
        (tmp_path / f"clean/a/{number}.png").unlink()
        tifffile.imwrite(tmp_path / f"clean/a/{number}.tif", levels(2000, number))
    parts = folders.load_pairs(str(tmp_path))
    assert parts["train"][4] == 2047
    for record in parts["train"][0].as_numpy_iterator():
        number = int(record["id"].decode().split("/")[1])
        found = images.decode(record["degraded"], 3).numpy()[..., 0]
        np.testing.assert_array_equal(found, np.rint(levels(1000, number) * (255 / 2047)))


def test_16_bit_photographs_of_a_mvtec_tree(tmp_path, capsys):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    path = tree / "grid/train/good/000.png"
    with Image.open(path) as image:
        size = image.size[::-1]
    deep = np.random.default_rng(0).integers(0, 1000, size).astype(np.uint16)
    Image.fromarray(deep).save(path)
    cache = str(tmp_path / "cache")
    for given, white in ((0, 1023), (4095, 4095), (0, 1023)):
        parts = mvtec_ad.load(str(tree), "good", cache, white=given)
        assert parts["train"][4] == white
        np.testing.assert_array_equal(
            read(parts)["grid/train/good/000"], np.rint(deep * (255 / white))
        )
    assert "mvtec_ad: its 16-bit images stay below 998: 1,023" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"config\.data\.white: 500 is below the levels"):
        mvtec_ad.load(str(tree), "good", cache, white=500)


def test_palettes_and_alpha_in_a_mvtec_tree_are_read_as_elsewhere(tmp_path):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    path = tree / "grid/train/good/000.png"
    with Image.open(path) as image:
        index = np.random.default_rng(0).integers(0, 3, image.size[::-1], dtype=np.uint8)
    colours = np.array([[250, 3, 7], [0, 90, 255], [17, 18, 19]], np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    palette.save(path, transparency=bytes([0, 128, 255]))
    parts = mvtec_ad.load(str(tree), "good", str(tmp_path / "cache"))
    np.testing.assert_array_equal(read(parts)["grid/train/good/000"], colours[index][..., 0])


def test_a_lower_limit_applies_to_what_was_prepared(tmp_path):
    tree = test_mvtec_ad.write_set(tmp_path / "set")
    Image.new("L", (1200, 1000)).save(tree / "grid/train/good/000.png")
    cache = str(tmp_path / "cache")
    whole = mvtec_ad.load(str(tree), "good", cache)
    with pytest.raises(
        UsageError, match=r"grid/train/good/000\.png: has 1,200,000 pixels, more"
    ):
        mvtec_ad.load(str(tree), "good", cache, max_pixels=1_000_000)
    fewer = mvtec_ad.load(str(tree), "good", cache, skip_bad=True, max_pixels=1_000_000)
    assert read(whole).keys() - read(fewer).keys() == {"grid/train/good/000"}


def test_a_stack_is_said_to_be_read_in_part(tmp_path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    for number in range(4):
        frames = np.stack([pixels(SHAPE, number)[..., 0]] * (1 if number else 5))
        tifffile.imwrite(root / f"{number}.tif", frames)
    folders.load_clean(str(root))
    assert capsys.readouterr().out == (
        "clean: only the first picture of a stack is read (0.tif has 5); save the "
        "others as files of their own to use them\n"
    )


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_failure_of_the_disk_is_no_bad_file(tmp_path, monkeypatch, skip_bad):
    for number in range(4):
        save(tmp_path / f"{number}.png", pixels(SHAPE, number))
    monkeypatch.setattr("restore_jax.files._RETRY_PAUSES", (0, 0))
    reads, failures = image_files.decoding.read_header, [errno.EIO] * 2

    def failing(file, max_pixels):
        if not isinstance(file, io.BytesIO) and file.name.endswith("2.png") and failures:
            number = failures.pop()
            raise OSError(number, "Input/output error")
        return reads(file, max_pixels)

    monkeypatch.setattr(image_files.decoding, "read_header", failing)
    found = read(folders.load_clean(str(tmp_path), skip_bad=skip_bad))
    assert len(found) == 4
    assert not failures
    failures += [errno.EIO] * 99
    with pytest.raises(RunError, match=r"2\.png: cannot be read: Input/output error"):
        folders.load_clean(str(tmp_path), skip_bad=skip_bad)


def test_masks_of_every_type(tmp_path):
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 3:9] = True
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([0, 0, 0, 9, 0, 0])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(mask).save(tmp_path / "bits.png")
    for dtype in (np.uint8, np.uint16, np.int32, np.uint32, np.float32, bool):
        path = tmp_path / f"{np.dtype(dtype).name}.tif"
        tifffile.imwrite(path, mask.astype(dtype), photometric="minisblack")
    # As declared, this one is white where nothing is; the other one was scanned like that.
    tifffile.imwrite(tmp_path / "default.tif", mask)
    inverted = {"photometric": "miniswhite", "software": "scanner"}
    tifffile.imwrite(tmp_path / "scanned.tif", ~mask, **inverted)
    tifffile.imwrite(tmp_path / "float255.tif", mask.astype(np.float32) * 255)
    for path in sorted(tmp_path.iterdir()):
        found = images.encode_mask(path)
        assert images.mask_header(path).size == found.size == SHAPE, path
        np.testing.assert_array_equal(decoded(found)[..., 0] > 0, mask, err_msg=path.name)
        assert not found.blank


def test_the_level_reaches_the_training(tmp_path):
    write_clean(tmp_path / "set", *[300] * 8, 3100)
    config = sca_unet.get_config("clean")
    config.data.update(root=str(tmp_path / "set"), image_size=16)
    assert pipeline.make_data(config).white == 4095
