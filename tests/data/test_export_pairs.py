"""The file of pairs as the host's pipeline makes it: its pixels, kept, renewed, refused."""

import functools
import itertools

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import launch
from configs import sca_unet
from data import export_pairs, pipeline
from data.rendered import sample
from restore_jax.errors import UsageError


@pytest.fixture(scope="module", autouse=True)
def _render_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "render", functools.cache(sample.render))
        yield


def options(folder, **data):
    config = sca_unet.get_config("sample")
    config.data.sample_size = 32
    config.data.sample_count = 2
    config.data.image_size = 16
    config.data.references = 1
    config.train.batch_size = 10
    config.eval.batch_size = 3
    config.data.resident = True
    config.data.cache_dir = str(folder)
    config.data.update(data)
    return config


def rows(found, field="id"):
    """The valid images of batches by their names, in the order they came."""
    by_name = {}
    for batch in found:
        for i in np.flatnonzero(batch["valid"]):
            images = {
                name: batch[name][i] for name in ("degraded", "clean", "mask", "has_mask")
            }
            by_name.setdefault(str(batch[field][i]), []).append(images)
    return by_name


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, images in a.items():
        for one, other in zip(images, b[name], strict=True):
            for field, values in one.items():
                np.testing.assert_array_equal(values, other[field], err_msg=f"{name} {field}")


def epoch(data, batch_size):
    return itertools.islice(data.train_batches(0), -(-data.train_images // batch_size))


def in_order(by_name):
    """Draws of an image come in any order."""
    return {
        name: sorted(images, key=lambda image: image["degraded"].tobytes())
        for name, images in by_name.items()
    }


@pytest.mark.parametrize("draws", [1, 2])
def test_pairs_are_those_of_the_host_to_the_bit(tmp_path, draws):
    config = options(tmp_path, realisations=draws)
    host, device = pipeline.make_data(config), launch.make_data(config)
    assert device.pairs is not None and host.pairs is None
    for field in ("name", "counts", "train_images"):
        assert getattr(device, field) == getattr(host, field)
    assert_same(in_order(rows(epoch(host, 10))), in_order(rows(epoch(device, 10))))
    assert set(host.counts) == {"train", "val", "good", "reference"}
    for split in host.counts:
        found = list(device.eval_batches(split))
        assert_same(rows(host.eval_batches(split)), rows(found))
        expected = list(host.eval_batches(split))
        for a, b in zip(found, expected, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
                assert a[name].dtype.kind == b[name].dtype.kind


def test_fresh_draws_have_the_statistics_of_the_host(tmp_path):
    config = options(tmp_path, realisations=0, sample_size=64, image_size=32)
    host, device = pipeline.make_data(config), launch.make_data(config)
    for split in host.counts:  # evaluation stays as it is
        assert_same(rows(host.eval_batches(split)), rows(device.eval_batches(split)))
    steps = 4 * -(-host.train_images // 10)  # four epochs
    found = []
    for data in (host, device):
        noise = [
            255 * (image["degraded"] - image["clean"])
            for images in rows(itertools.islice(data.train_batches(0), steps)).values()
            for image in images
        ]
        assert len(noise) == 4 * host.train_images
        noise = np.stack(noise).astype(np.float64)
        inner = noise - noise.mean(axis=(1, 2), keepdims=True)
        found.append(
            {
                "mean": noise.mean(axis=(0, 1, 2)),
                "deviation": noise.std(axis=(0, 1, 2)),
                "correlation along y": correlated(inner[:, 1:], inner[:, :-1]),
                "correlation along x": correlated(inner[:, :, 1:], inner[:, :, :-1]),
                "deviations": np.quantile(inner.std(axis=(1, 2)), [0.1, 0.5, 0.9]),
            }
        )
    theirs, ours = found
    # 176 draws of a gain that moves the mean by some 8 levels: a standard error of 0.9.
    np.testing.assert_allclose(ours["mean"], theirs["mean"], atol=3.5)
    np.testing.assert_allclose(ours["deviation"], theirs["deviation"], rtol=0.03)
    np.testing.assert_allclose(ours["deviations"], theirs["deviations"], rtol=0.05)
    for axis in "xy":
        name = f"correlation along {axis}"
        np.testing.assert_allclose(ours[name], theirs[name], atol=0.02)


def correlated(a, b):
    return np.mean(a * b) / np.mean(a**2)


def only_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_a_file_is_made_once(tmp_path, monkeypatch, capfd):
    config = options(tmp_path)
    launch.make_data(config)
    assert "pairs written" in capfd.readouterr().out
    path = only_file(tmp_path)
    before = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(export_pairs, "_split", None)
        launch.make_data(config)
        # As a copy, without the photographs.
        copy = path.rename(tmp_path / "copied")
        patch.setattr(pipeline, "load", None)
        launch.make_data(options(tmp_path, resident_file=str(copy)))
    assert capfd.readouterr().out == ""
    assert copy.stat().st_mtime_ns == before


def test_a_damaged_file_of_the_cache_is_made_anew_and_a_named_one_refused(tmp_path, capfd):
    config = options(tmp_path)
    launch.make_data(config)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    copy = tmp_path / "copied"
    copy.write_bytes(whole[:-1])
    capfd.readouterr()
    launch.make_data(config)
    told = capfd.readouterr().out.splitlines()
    assert len(told) == 2 and "or damaged (" in told[0]
    # Not the bytes: safetensors writes its metadata in any order.
    remade = safetensors.numpy.load_file(path)
    for name, values in safetensors.numpy.load(whole).items():
        np.testing.assert_array_equal(remade.pop(name), values)
    assert not remade
    with pytest.raises(UsageError, match=r"copied: not a pairs file, or damaged"):
        launch.make_data(options(tmp_path, resident_file=str(copy)))
    assert copy.read_bytes() == whole[:-1]


def folder_of_pairs(root):
    rng = np.random.default_rng(0)
    for section in ("degraded", "clean"):
        for split, count in (("train", 4), ("val", 2)):
            for number in range(count):
                path = root / split / section / "a" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return root


def test_photographs_that_have_changed_are_noticed(tmp_path, capfd):
    root = folder_of_pairs(tmp_path / "root")
    config = options(tmp_path / "cache", name="pairs", root=str(root), realisations=0)
    first = launch.make_data(config)
    # They come with one degraded photograph each, whatever the field says.
    assert first.pairs.draws == 1 and first.train_images == 4
    assert_same(rows(epoch(first, 10)), rows(epoch(pipeline.make_data(config), 10)))
    capfd.readouterr()
    path = root / "train" / "clean" / "a" / "0.png"
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(path)
    again = launch.make_data(config)
    assert "made from other photographs" in capfd.readouterr().out
    assert again.pairs.images != first.pairs.images
    assert (again.pairs.splits["train"].arrays["clean"][0] == 0).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_size": 0}, r"^config\.data\.resident: crops of native .*realisations=0"),
        ({"augment": "all8"}, r"^config\.data\.augment: 'all8' .* use flips"),
        ({"image_size": 8}, r"^config\.data\.image_size: 8 is too small"),
        ({"resident_file": "{}/file/x"}, r"file/x: cannot be written \("),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_one_line(tmp_path, data, message):
    (tmp_path / "file").write_text("")
    data = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in data.items()}
    with pytest.raises(UsageError, match=message):
        launch.make_data(options(tmp_path, **data))
    assert not list(tmp_path.glob("*.safetensors"))


def test_other_settings_have_another_file(tmp_path):
    # A seed changes fixed draws, and not the pixels that fresh ones start from.
    for draws, seed, count in ((1, 0, 1), (1, 1, 2), (0, 0, 3), (0, 1, 3)):
        config = options(tmp_path, realisations=draws)
        config.seed = seed
        launch.make_data(config)
        assert len(list(tmp_path.glob("*.safetensors"))) == count


def test_a_blur_that_no_step_can_draw_is_refused_at_once(tmp_path):
    config = options(tmp_path, realisations=0)
    config.data.degradation.preset = "blind"
    with pytest.raises(UsageError, match=r"^config\.data\.degradation\.blur: "):
        launch.make_data(config)
    assert not list(tmp_path.glob("*.safetensors"))
