import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from restore_jax import models  # noqa: E402
from restore_jax.errors import UsageError  # noqa: E402
from restore_jax.inference.deploy import onnx_graph, quantisation  # noqa: E402
from restore_jax.inference.restorer import Restorer  # noqa: E402
from tests.inference.deploy import graphs  # noqa: E402
from tests.support import shipping  # noqa: E402


def pictures(count=3, shape=(64, 96, 3), seed=0):
    """Returns smooth photographs and the same with noise, uint8."""
    rng = np.random.default_rng(seed)
    down, across = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    for number in range(count):
        waves = np.sin(down / (5 + number)) * np.cos(across / (9 - number))
        clean = 128 + 80 * waves[..., None] * rng.uniform(0.5, 1, 3)
        noisy = clean + rng.normal(0, 20, shape)
        yield tuple(np.clip(x, 0, 255).round().astype(np.uint8) for x in (clean, noisy))


def restorer(**data):
    config = ConfigDict(shipping.CONFIG | {"data": data})
    return Restorer(models.from_config(config), shipping.variables(), config)


@pytest.fixture
def folder(tmp_path):
    for number, both in enumerate(pictures()):
        for name, picture in zip(("clean", "degraded"), both, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    return tmp_path


def psnr(image, truth):
    return -10 * np.log10(np.mean((np.clip(image, 0, 1) - truth) ** 2))


def test_8_bits_cost_little_and_are_stated(folder):
    proto = graphs.smoothing()
    onnx.helper.set_model_props(proto, {"licence": "Apache-2.0"})
    calibration = quantisation.read(folder, restorer(), None)
    found, cost = quantisation.quantised(proto, calibration)
    onnx.checker.check_model(found)
    exact, fast = (onnx_graph.session(x.SerializeToString()) for x in (proto, found))
    lost = []
    # On photographs that the calibration has not seen.
    for clean, noisy in pictures(shape=(96, 64, 3), seed=5):
        truth, degraded = (x[None].astype(np.float32) / 255 for x in (clean, noisy))
        before, after = (x.run(None, {"degraded": degraded})[0] for x in (exact, fast))
        assert psnr(before, truth) > psnr(degraded, truth) + 1
        lost.append(psnr(before, truth) - psnr(after, truth))
    assert np.mean(lost) < 0.15
    assert cost.loss == pytest.approx(np.mean(lost), abs=0.1)
    assert cost.photographs == 3
    assert 0 < cost.quantised < cost.convolutions == 14
    assert cost.closeness > 45
    assert cost.speedup > 0
    metadata = {entry.key: entry.value for entry in found.metadata_props}
    assert metadata["licence"] == "Apache-2.0"
    assert json.loads(metadata["int8"])["closeness"] == cost.closeness
    assert "3 photographs that it was calibrated with" in str(cost)
    assert "dB less than" in str(cost)
    # The weights of those with 8 bits take a quarter of the space.
    stored = [x for x in found.graph.initializer if x.data_type == onnx.TensorProto.INT8]
    assert sum(len(x.dims) == 4 for x in stored) == cost.quantised


def test_of_six_photographs_three_are_for_measuring_alone(monkeypatch):
    calibration = [
        quantisation.Example(degraded[None].astype(np.float32) / 255)
        for _, degraded in pictures(count=6)
    ]
    seen = []
    quantise = quantisation._quantised
    monkeypatch.setattr(
        quantisation, "_quantised", lambda *given: seen.append(given[-1]) or quantise(*given)
    )
    proto = graphs.smoothing(blocks=2)
    found, cost = quantisation.quantised(proto, calibration)
    assert seen[-1] == calibration[::2]
    assert cost.photographs == 3
    assert "3 photographs that it was not calibrated with" in str(cost)
    exact, fast = (onnx_graph.session(x.SerializeToString()) for x in (proto, found))
    others = [
        psnr(*(x.run(None, {"degraded": one.degraded})[0] for x in (fast, exact)))
        for one in calibration[1::2]
    ]
    assert cost.closeness == pytest.approx(np.mean(others), abs=0.01)


def test_the_ends_stay_in_float(folder):
    calibration = quantisation.read(folder / "degraded", restorer(), None)
    assert all(example.clean is None for example in calibration)
    found, cost = quantisation.quantised(graphs.smoothing(blocks=2), calibration)
    assert cost.loss is None
    made_by = {name: node for node in found.graph.node for name in node.output}
    in_float = {
        node.name
        for node in found.graph.node
        if node.op_type == "Conv"
        and (node.input[1] not in made_by or "Quantize" not in made_by[node.input[1]].op_type)
    }
    assert {"first_conv", "last_conv"} <= in_float


def test_too_few_convolutions_are_refused(folder):
    proto = graphs.telling_of_tiles(with_context=False)
    with pytest.raises(UsageError, match="too few convolutions for int8"):
        quantisation.quantised(proto, quantisation.read(folder, restorer(), None))


def test_a_large_loss_is_stated():
    cost = quantisation.Cost(3, True, 40.0, 30.0, 0.5, 1.6, 10, 12)
    assert "0.50 dB less than the 30.00 dB" in str(cost)
    assert "more than the 0.1 dB aimed at" in str(cost)
    assert not quantisation.Cost(3, False, 51.0, None, None, 1.6, 10, 12).is_small
    assert "aimed at" not in str(quantisation.Cost(3, False, 53.0, None, None, 1.6, 10, 12))


def test_photographs_are_seen_as_when_they_are_restored(folder):
    for path in (folder / "degraded").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[:50, :70]).save(path)
        Image.fromarray(np.asarray(Image.open(folder / "clean" / path.name))[:50, :70]).save(
            folder / "clean" / path.name
        )
    found = quantisation.read(folder, restorer(), None)
    first = np.asarray(Image.open(folder / "degraded" / "0.png"), np.float32) / 255
    assert found[0].degraded.shape == (1, 64, 96, 3)
    expected = np.pad(first, ((0, 14), (0, 26), (0, 0)), mode="reflect")
    np.testing.assert_allclose(found[0].degraded[0], expected, atol=1e-6)
    one_size = quantisation.read(folder, restorer(), (20, 30))
    np.testing.assert_allclose(one_size[0].degraded[0], first[15:35, 20:50], atol=1e-6)


def test_what_cannot_be_used_is_said_in_a_line(folder, tmp_path):
    with pytest.raises(UsageError, match=r"--calibration=.*nowhere: no such"):
        quantisation.read(tmp_path / "nowhere", restorer(), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there are no photographs in it"):
        quantisation.read(tmp_path / "empty", restorer(), None)
    Image.new("RGB", (8, 8)).save(folder / "clean" / "1.png")
    with pytest.raises(UsageError, match=r"1\.png has two sizes"):
        quantisation.read(folder, restorer(), None)
    (folder / "degraded" / "0.png").write_text("no image")
    with pytest.raises(UsageError, match=r"--calibration: .*0\.png"):
        quantisation.read(folder, restorer(), None)


def test_weights_in_float16_compute_in_float32():
    proto = graphs.smoothing()
    degraded = np.random.default_rng(1).random((1, 40, 24, 3), np.float32)
    expected = onnx_graph.session(proto.SerializeToString()).run(None, {"degraded": degraded})
    size = len(proto.SerializeToString())
    onnx_graph.halve_weights(proto)
    onnx.checker.check_model(proto)
    (found,) = onnx_graph.session(proto.SerializeToString()).run(None, {"degraded": degraded})
    assert found.dtype == np.float32
    difference = np.abs(found - expected[0]).max()
    assert 0 < difference < 1e-3
    assert len(proto.SerializeToString()) < 0.6 * size


def test_a_maximum_with_zero_becomes_relu():
    proto = graphs.smoothing()
    degraded = np.random.default_rng(1).random((1, 40, 24, 3), np.float32)
    expected = onnx_graph.session(proto.SerializeToString()).run(None, {"degraded": degraded})
    onnx_graph.use_relu(proto)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Relu") == 6
    assert "Max" not in kinds
    used = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used
    found = onnx_graph.session(proto.SerializeToString()).run(None, {"degraded": degraded})
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
