"""Compact files of pairs: what they give back, and what is refused."""

import json
import zipfile

import numpy as np
import pytest

from benchmarks import compact_pairs, make_pairs, resident
from restore_jax.degradation import native_size, working_size
from restore_jax.errors import UsageError
from restore_jax.train.on_device import dataset, pairs_file, whole_images
from tests.support import pairs as plain


@pytest.fixture(scope="module")
def made():
    found = resident.make_pairs(24, images=5, held_out=3, draws=0)
    for number, split in enumerate(found.splits.values()):
        rng = np.random.default_rng(number)
        split.arrays["mask"][:] = rng.integers(0, 2, split.arrays["mask"].shape)
        split.arrays["has_mask"][1] = 0
    return found


@pytest.fixture
def lossless(made, tmp_path):
    path = tmp_path / "pairs.zip"
    compact_pairs.write(made, path)
    return path


def test_a_lossless_file_gives_back_every_pixel_that_it_stores(made, lossless):
    found, exact = compact_pairs.read(lossless)
    assert exact
    assert native_size.from_fields(found.law) == native_size.from_fields(made.law)
    assert (found.symmetries, found.draws) == ("flips", 0)
    for name, split in made.splits.items():
        other = found.splits[name]
        assert other.ids == split.ids and other.categories == split.categories
        for kind in ("clean", "mask", "has_mask", "native"):
            np.testing.assert_array_equal(other.arrays[kind], split.arrays[kind])
    np.testing.assert_array_equal(
        found.splits["val"].arrays["degraded"], made.splits["val"].arrays["degraded"]
    )
    assert "degraded" not in found.splits["train"].arrays


def test_the_blur_is_that_of_the_law_at_the_working_size(made, lossless):
    found, _ = compact_pairs.read(lossless)
    train = found.splits["train"].arrays
    # 10 px along x and 2 px along y of 96 px, of which 24 are left.
    expected = working_size.blur(train["clean"][2].astype(np.float32), 2 / 4, 10 / 4)
    assert np.abs(train["blurred"][2] - np.asarray(expected)).max() <= 0.51
    arrays = whole_images.training_arrays(found, "bilinear")
    np.testing.assert_array_equal(arrays["source"], train["blurred"])


def test_a_lossy_file_is_smaller_and_draws_its_validation(made, lossless, tmp_path):
    path = tmp_path / "lossy.zip"
    compact_pairs.write(made, path, quality=80)
    assert path.stat().st_size < lossless.stat().st_size
    found, exact = compact_pairs.read(path)
    assert not exact
    val, stored = found.splits["val"].arrays, made.splits["val"].arrays
    assert 0 < np.abs(val["clean"].astype(float) - stored["clean"]).mean() < 20
    np.testing.assert_array_equal(val["mask"], stored["mask"])
    again, _ = compact_pairs.read(path)
    np.testing.assert_array_equal(val["degraded"], again.splits["val"].arrays["degraded"])
    # Two photographs are not given the same noise.
    residual = val["degraded"].astype(float) - val["clean"]
    assert np.abs(residual[0] - residual[1]).mean() > 5


def test_what_is_read_can_be_validated_on(lossless):
    found, _ = compact_pairs.read(lossless)
    batch = next(dataset.eval_batches(found.splits["val"], 4))
    assert batch["degraded"].shape == (4, 24, 24, 3) and batch["valid"].sum() == 3


def test_a_file_tells_what_it_holds(lossless):
    assert compact_pairs.check(lossless) == (24, 5, 3)


def test_pairs_of_fixed_draws_do_not_become_compact(tmp_path):
    fixed = resident.make_pairs(16, images=2, held_out=1, draws=2)
    with pytest.raises(UsageError, match="has 2 fixed draws of each photograph"):
        compact_pairs.write(fixed, tmp_path / "pairs.zip")
    assert not (tmp_path / "pairs.zip").exists()


def test_pairs_of_an_earlier_version_are_made_anew(made, tmp_path):
    val = made.splits["val"]
    arrays = {name: array for name, array in val.arrays.items() if name != "native"}
    older = pairs_file.Split(val.ids, val.categories, val.defect_types, arrays)
    path = tmp_path / "plain.safetensors"
    settings = plain.config(path, draws=0)
    pairs_file.write(
        path,
        {"train": made.splits["train"], "val": older},
        settings=pairs_file.settings_of(settings),
        images="",
        law=made.law,
        symmetries="flips",
        draws=0,
    )
    with pytest.raises(UsageError, match="an earlier version made it"):
        compact_pairs.write(pairs_file.read(path), tmp_path / "pairs.zip")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def foreign(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.json", json.dumps({"format": "another", "version": 1}))


def empty(path):
    with zipfile.ZipFile(path, "w"):
        pass


@pytest.mark.parametrize("spoil", [cut, flipped, foreign, empty])
@pytest.mark.parametrize("look", [compact_pairs.read, compact_pairs.check])
def test_a_damaged_file_is_one_line(lossless, spoil, look):
    spoil(lossless)
    with pytest.raises(UsageError, match="no compact file of pairs, or a damaged one") as told:
        look(lossless)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.zip: cannot be read"):
        compact_pairs.check(tmp_path / "nothing.zip")


def test_a_file_is_made_by_the_pipeline(tmp_path, monkeypatch, capsys):
    from tests.data.sources.test_mvtec_ad import write_set  # noqa: PLC0415

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = {"train/good": 2, "test/bent": 4}
    root = write_set(tmp_path / "set", {"grid": (False, (40, 48), kinds)})
    output = tmp_path / "new" / "pairs.zip"
    flags = [f"--root={root}", "--size=16", f"--output={output}"]
    make_pairs.main(flags)
    line = json.loads(capsys.readouterr().out)
    assert (line["train"], line["val"], line["size"]) == (5, 1, 16)
    assert line["bytes"] == output.stat().st_size
    assert list(output.parent.iterdir()) == [output]
    found, exact = compact_pairs.read(output)
    assert exact and found.settings["config.data.split"] == "all"
    np.testing.assert_array_equal(found.splits["val"].arrays["native"], [[40, 48]])
    train = found.splits["train"].arrays
    assert np.std(train["blurred"]) < np.std(train["clean"])

    with pytest.raises(SystemExit) as stop:
        make_pairs.main(flags)
    assert stop.value.code == UsageError.exit_status
    assert "exists; take another name" in capsys.readouterr().err


def test_a_quality_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--quality=101: must lie in 0 to 100"):
        make_pairs.make("DIR", 16, "all", tmp_path / "pairs.zip", 101)
