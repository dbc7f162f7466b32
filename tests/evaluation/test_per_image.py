import jax
import numpy as np
import pytest

from restore_jax import models
from restore_jax.evaluation import per_image
from restore_jax.parallel import device_mesh
from tests.support import networks, tiny


@pytest.fixture(scope="module")
def model():
    return models.from_config(tiny.config())


@pytest.fixture(scope="module")
def variables(model):
    return networks.init(model, tiny.images(1)["clean"])


def one_device():
    return device_mesh.make_mesh(jax.devices()[:1])


def test_rows_that_are_not_valid_are_left_out(model, variables):
    pairs = tiny.images(3)
    batch = tiny.batch_rows(pairs, [0, 1], 3)
    seen = []
    rows = per_image.evaluate(model, variables, [batch], one_device(), observe=seen.append)
    assert [row["id"] for row in rows] == list(pairs["id"][:2])
    assert [image.row["id"] for image in seen] == list(pairs["id"][:2])


def test_an_observer_sees_each_image_and_may_add_figures(model, variables):
    pairs = tiny.images(4)
    pairs["defect_type"][1] = "good"
    pairs["has_mask"][2] = False
    pairs["degraded"] = pairs["degraded"] * 5 - 1
    seen = {}

    def observe(image):
        image.row["mean"] = float(image.restored.mean())
        seen[image.row["id"]] = image

    rows = per_image.evaluate(model, variables, [pairs], one_device(), observe=observe)
    restored = np.clip(networks.apply(model, variables, pairs["degraded"]), 0, 1)
    for i, name in enumerate(pairs["id"]):
        image = seen[name]
        np.testing.assert_allclose(image.restored, restored[i], atol=1e-5)
        np.testing.assert_array_equal(image.clean, pairs["clean"][i])
        np.testing.assert_array_equal(image.degraded, pairs["degraded"][i])
        np.testing.assert_array_equal(image.mask, pairs["mask"][i])
        assert image.row["mean"] == pytest.approx(float(restored[i].mean()), abs=1e-5)
    assert [row["mean"] for row in rows] == [seen[row["id"]].row["mean"] for row in rows]
    assert [seen[name].is_good for name in pairs["id"]] == [False, True, False, False]
    assert [seen[name].has_mask for name in pairs["id"]] == [True, True, False, True]


def test_an_observer_sees_what_the_network_saw(model, variables):
    pairs = tiny.images(2) | {"gain": np.float32([[0.9, 1.0, 1.1], [1.0, 0.8, 1.0]])}
    seen = []
    per_image.evaluate(model, variables, [pairs], one_device(), observe=seen.append)
    for image, degraded, gain in zip(seen, pairs["degraded"], pairs["gain"], strict=True):
        np.testing.assert_array_equal(image.degraded, degraded)
        np.testing.assert_allclose(image.seen, degraded / gain, rtol=1e-6)


def test_the_model_is_given_no_mask(model, variables):
    pairs = tiny.images(2)
    rows = per_image.evaluate(model, variables, [pairs], one_device())
    pairs["mask"] = 1 - pairs["mask"]
    again = per_image.evaluate(model, variables, [pairs], one_device())
    for row, other in zip(rows, again, strict=True):
        assert row["psnr"] == other["psnr"]
        assert row["defect_psnr"] != other["defect_psnr"]


def test_losses_are_means_and_their_weighted_sum():
    rows = [
        {"loss_charbonnier": 1.0, "loss_ssim": 0.5},
        {"loss_charbonnier": 3.0, "loss_ssim": 0.1},
    ]
    weights = {"charbonnier": 1.0, "ssim": 0.5, "edge": 0.0}
    assert per_image.mean_losses(rows, weights) == pytest.approx(
        {"loss": 2.15, "loss_charbonnier": 2.0, "loss_ssim": 0.3}
    )
