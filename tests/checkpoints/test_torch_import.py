import os
import pickle
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import rcan as rcan_config
from configs import sca_unet
from restore_jax import models
from restore_jax.checkpoints import checkpoint, torch_import
from restore_jax.config import workdir
from restore_jax.errors import UsageError
from restore_jax.evaluation import evaluate
from restore_jax.metrics.cost import parameter_count
from restore_jax.train import loop
from tests.support import tiny

torch = pytest.importorskip("torch")
WIDTHS = (16, 16, 16, 16)


@pytest.fixture(scope="module")
def nets():
    from benchmarks import torch_peer  # noqa: PLC0415

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return {
        "report": torch_peer.SCAUNet(False),
        "released": torch_peer.SCAUNet(True),
        "rcan": torch_peer.RCAN(),
        "small": torch_peer.SCAUNet(True, WIDTHS),
        "small_rcan": torch_peer.RCAN(4, 2),
    }


def arrays(net):
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def small_config(**model):
    config = tiny.config()
    config.model = {"name": "sca_unet", "widths": WIDTHS, "variant": "released", **model}
    return config


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
@pytest.mark.parametrize("form", ["report", "released", "rcan"])
def test_outputs_equal_those_of_pytorch(nets, form, size):
    name = "rcan" if form == "rcan" else "sca_unet"
    options = {} if form == "rcan" else {"variant": form}
    model = models.create(name, **options)
    params = torch_import.to_params(name, arrays(nets[form]), model)
    assert parameter_count(params) == {"rcan": 763243}.get(name, 867842)
    x = np.random.default_rng(1).random((1, *size, 3), np.float32)
    restored = np.asarray(jax.jit(model.apply)({"params": params}, x))
    # The original cannot join odd sizes: padded for it by reflection, and cropped.
    missing = (0, 0) if name == "rcan" else (-size[0] % 8, -size[1] % 8)
    padded = np.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
    with torch.no_grad():
        theirs = nets[form](torch.from_numpy(padded.transpose(0, 3, 1, 2).copy()))
    theirs = theirs.numpy().transpose(0, 2, 3, 1)[:, : size[0], : size[1]]
    assert restored.shape == x.shape
    np.testing.assert_allclose(restored, theirs, atol=1e-4)
    assert np.abs(theirs - x).max() > 1e-2  # not merely the input handed through


@pytest.mark.parametrize("kind", ["pth", "pt", "safetensors", "npz"])
def test_every_kind_of_file_gives_the_same_tensors(nets, tmp_path, kind):
    expected, path = arrays(nets["small"]), tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **expected)
    elif kind == "safetensors":
        safetensors.numpy.save_file(expected, path)
    else:
        torch.save(nets["small"].state_dict(), path)
    found = torch_import.read_tensors(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"params": state}},
        lambda state: {"model_state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {k: v.double() for k, v in state.items()},
    ],
)
def test_wrappers_of_training_scripts_come_off(nets, tmp_path, wrap):
    torch.save(wrap(nets["small_rcan"].state_dict()), tmp_path / "w.pth")
    found, expected = torch_import.read_tensors(tmp_path / "w.pth"), arrays(nets["small_rcan"])
    assert found.keys() == expected.keys()
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["final_conv.bias"], expected["final_conv.bias"])


def test_bfloat16_is_read_as_float32(tmp_path):
    torch.save({"a": torch.tensor([1.5], dtype=torch.bfloat16)}, tmp_path / "w.pt")
    value = torch_import.read_tensors(tmp_path / "w.pt")["a"]
    assert value.dtype == np.float32
    assert value[0] == 1.5


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pth", "pt", "npz"])
@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path, kind, archive):
    path, trap = tmp_path / f"w.{kind}", tmp_path / "trap"
    if kind == "npz":
        np.savez(path, a=np.array([Malicious(trap)], object))
    elif archive:
        torch.save({"a": Malicious(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Malicious(trap)}))
    with pytest.raises(UsageError, match="refuses it") as refused:
        torch_import.read_tensors(path)
    assert "\n" not in str(refused.value)
    assert not trap.exists()
    if kind != "npz" and not archive:
        pickle.loads(path.read_bytes())  # the trap does work
        assert trap.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut off", b"\x80\x02."])
@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_a_damaged_file_is_one_line(tmp_path, kind, content):
    path = tmp_path / f"w.{kind}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="refuses it") as refused:
        torch_import.read_tensors(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds no named tensors"),
        ({}, "holds no named tensors"),
        ({"epoch": 3}, "'epoch' is not a tensor but int"),
    ],
)
def test_a_file_without_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=message):
        torch_import.read_tensors(tmp_path / "w.pth")


def test_other_files_and_missing_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"w\.h5: unsupported file type; .*\.safetensors"):
        torch_import.read_tensors(tmp_path / "w.h5")
    with pytest.raises(UsageError, match="no such file"):
        torch_import.read_tensors(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="needs the package torch; pip install torch"):
        torch_import.read_tensors(tmp_path / "w.pth")


def test_tensors_that_do_not_fit_are_named(nets):
    model = models.create("sca_unet", widths=WIDTHS)
    good = arrays(nets["small"])

    def refusal(tensors, name="sca_unet", model=model):
        with pytest.raises(UsageError) as refused:
            torch_import.to_params(name, tensors, model)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "1 missing (att1.spatial_attention.bias)" in refusal(
        {k: v for k, v in good.items() if k != "att1.spatial_attention.bias"}
    )
    assert "1 unexpected (extra)" in refusal(good | {"extra": np.zeros(3)})
    # A count of values that would fit is not enough.
    flipped = {"dconv_down1.conv_block.0.weight": np.zeros((3, 16, 3, 3), np.float32)}
    assert "1 of the wrong shape (dconv_down1.conv_block.0.weight [3, 16, 3, 3])" in refusal(
        good | flipped
    )
    message = refusal(arrays(nets["small_rcan"]))
    assert "missing (" in message
    assert (
        "look like those of rcan, with --config.model.width=4 --config.model.blocks=2"
        in message
    )
    message = refusal(good, "rcan", models.create("rcan"))
    assert (
        'look like those of sca_unet, with --config.model.widths="(16, 16, 16, 16)"' in message
    )
    assert "look like those of no known model" in refusal({"a": np.zeros(3)})
    assert "conv_last.bias holds values that are not finite" in refusal(
        good | {"conv_last.bias": np.full(3, np.nan, np.float32)}
    )
    assert "for sca_unet and rcan, not for unet_small" in refusal(good, "unet_small", None)


def test_an_imported_workdir_evaluates_as_any_other(nets, tmp_path):
    config, folder, path = small_config(), tmp_path / "run", tmp_path / "best_model.pth"
    torch.save(nets["small"].state_dict(), path)
    line = torch_import.import_weights(config, path, folder)
    assert "best_model.pth imported as sca_unet, variant released" in line
    one = jax.devices()[:1]
    summary, _ = evaluate.evaluate_checkpoint(folder, "best", tiny.data, devices=one)
    assert summary["checkpoint"] == {"step": 1, "epoch": 0, "which": "best"}
    images = tiny.images(6, seed=1)
    degraded = torch.from_numpy(images["degraded"].transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs = nets["small"](degraded)
    theirs = np.clip(theirs.numpy().transpose(0, 2, 3, 1), 0, 1)
    errors = np.mean((theirs - images["clean"]) ** 2, axis=(1, 2, 3), dtype=np.float64)
    psnr = float(np.mean(-10 * np.log10(errors)))
    assert summary["micro"]["psnr"] == pytest.approx(psnr, abs=1e-3)

    with pytest.raises(UsageError, match="has a checkpoint already"):
        torch_import.import_weights(config, path, folder)


@pytest.mark.slow
def test_a_training_in_an_imported_workdir_starts_from_its_weights(nets, tmp_path):
    config, folder, path = small_config(), tmp_path / "run", tmp_path / "w.npz"
    config.optimizer.learning_rate = 1e-7
    expected = arrays(nets["small"])
    np.savez(path, **expected)
    torch_import.import_weights(config, path, folder)
    state = loop.train(config, folder, tiny.data, jax.devices()[:1])
    assert int(state.step) == 6  # the import stands for the first
    kernel = np.asarray(state.params["down1"]["conv1"]["kernel"]).transpose(3, 2, 0, 1)
    moved = np.abs(kernel - expected["dconv_down1.conv_block.0.weight"]).max()
    assert 0 < moved < 1e-5


def test_the_published_form_is_pointed_out(nets, tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **arrays(nets["small"]))
    config = small_config(variant="report")
    config.optimizer.ema_decay = 0.9
    line = torch_import.import_weights(config, path, tmp_path / "run")
    assert line.endswith(
        "variant report; the published file needs --config.model.variant=released"
    )
    assert checkpoint.latest_step(tmp_path / "run") == 1


def test_refused_weights_leave_no_workdir(nets, tmp_path):
    path, folder = tmp_path / "w.npz", tmp_path / "run"
    np.savez(path, **arrays(nets["small"]))
    with pytest.raises(UsageError, match=r"^\S*w\.npz: not the weights of this rcan"):
        torch_import.import_weights(rcan_config.get_config("sample"), path, folder)
    assert not folder.exists()
    workdir.claim(folder, sca_unet.get_config("sample"))
    with pytest.raises(UsageError, match="another configuration"):
        torch_import.import_weights(small_config(), path, folder)
