import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from configs import rcan
from restore_jax import checkpoint, export, models, workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.state import create_state, inference_variables, make_system

ROOT = pathlib.Path(__file__).parent.parent
ANY = ("B", "H", "W", 3)
SIZES = [(3, 37, 21), (2, 6, 2), (1, 1, 1)]

# A process that has JAX and none of what this project needs beside it.
ONLY_JAX = """
import sys
for name in ("flax", "tensorflow", "restore_jax", "data", "orbax", "ml_collections"):
    sys.modules[name] = None
"""


def made(name, **options):
    model = models.create(name, **options)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    # Biases start at zero and the outputs of attention near each other: shaken, all counts.
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(2)
    leaves = [leaf + rng.normal(0, 0.02, leaf.shape).astype(np.float32) for leaf in leaves]
    return model, jax.tree.unflatten(tree, leaves)


MODELS = {
    "rcan": ("rcan", {"width": 4, "blocks": 1}),
    "released": ("sca_unet", {"widths": (4, 4, 4), "variant": "released"}),
    "report": ("sca_unet", {"widths": (4, 4, 4)}),
    "pexels_cnn": ("pexels_cnn", {}),
}


def check_shape(exported):
    assert exported.shape == ANY
    assert exported.largest_difference <= 1e-4
    assert "not exported at any size" not in str(exported)


def compare(model, variables, run, exported, tolerance=1e-4):
    """Compares on images that the export itself was not tried on."""
    rng = np.random.default_rng(3)
    size = exported.shape[1]
    shapes = SIZES if exported.shape == ANY else [(1, size, size), (3, size, size)]
    for shape in shapes:
        degraded = rng.random((*shape, 3), np.float32)
        expected = np.asarray(jax.jit(model.apply)(variables, degraded))
        found = np.asarray(run(degraded))
        assert found.shape == expected.shape == degraded.shape
        np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rcan", "released", "report"])
def test_onnx_computes_what_the_model_does(tmp_path, form):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, variables = made(MODELS[form][0], **MODELS[form][1])
    path = tmp_path / "new" / "restorer.onnx"
    exported = export.export_onnx(model, variables, path, rcan.get_config("sample"), size=24)
    check_shape(exported)
    assert [found.name for found in path.parent.iterdir()] == ["restorer.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert tuple(session.get_inputs()[0].shape) == exported.shape
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert metadata["name"] == "rcan"
    compare(model, variables, lambda x: session.run(["restored"], {"degraded": x})[0], exported)


@pytest.mark.parametrize("form", ["rcan", "released", "report", "pexels_cnn"])
def test_stablehlo_computes_what_the_model_does_in_a_process_with_only_jax(tmp_path, form):
    model, variables = made(MODELS[form][0], **MODELS[form][1])
    config = rcan.get_config("sample")
    exported = export.export_stablehlo(model, variables, tmp_path / "out", config, size=24)
    check_shape(exported)
    description = json.loads((tmp_path / "out" / "restorer.json").read_text())
    assert tuple(description["input"]["shape"]) == exported.shape
    assert description["config"]["model"]["name"] == "rcan"
    assert description["jax"] == jax.__version__

    script = ONLY_JAX + (
        "import jax, numpy as np\n"
        "from jax import export\n"
        "content = open('out/restorer.stablehlo', 'rb').read()\n"
        "restore = jax.jit(export.deserialize(bytearray(content)).call)\n"
        "given = np.load('given.npz')\n"
        "np.savez('found.npz', **{name: restore(given[name]) for name in given.files})\n"
    )

    size = exported.shape[1]
    shapes = SIZES if exported.shape == ANY else [(2, size, size)]
    rng = np.random.default_rng(4)
    given = {str(i): rng.random((*s, 3), np.float32) for i, s in enumerate(shapes)}
    np.savez(tmp_path / "given.npz", **given)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert found.files == list(given)
        for name, degraded in given.items():
            expected = jax.jit(model.apply)(variables, degraded)
            np.testing.assert_allclose(found[name], expected, atol=1e-4)


def test_padding_equals_that_of_numpy():
    for size, full in [(1, 8), (2, 8), (3, 8), (5, 16), (21, 24), (8, 8)]:
        x = np.random.default_rng(size).random(size).astype(np.float32)
        expected = np.pad(x, (0, full - size), mode="reflect")
        np.testing.assert_array_equal(export._picked(size, full) @ x, expected)


@pytest.mark.parametrize(
    ("form", "multiple"), [("rcan", 1), ("released", 4), ("pexels_cnn", 1)]
)
def test_the_multiple_of_the_sides_is_found(form, multiple):
    model, variables = made(MODELS[form][0], **MODELS[form][1])
    assert export.side_multiple(model, variables) == multiple


class KnowsItsSize(nn.Module):
    """What cannot be traced at an unknown size."""

    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, degraded, mask=None, train=False):
        scale = self.param("scale", nn.initializers.ones, (3,))
        return degraded * (scale if degraded.shape[1] > 1000 else 2 * scale)


def test_a_model_that_must_know_its_size_is_exported_at_one(tmp_path):
    variables = {"params": {"scale": jnp.array([1.0, 2.0, 3.0])}}
    exported = export.export_stablehlo(KnowsItsSize(), variables, tmp_path / "o", size=8)
    assert exported.shape == ("B", 8, 8, 3)
    assert "degraded [B, 8, 8, 3] → restored [B, 8, 8, 3]; this model is not" in str(exported)


def test_nothing_is_written_where_the_results_differ(tmp_path, monkeypatch):
    model, variables = made("rcan", width=2, blocks=1)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="StableHLO: RCAN cannot be exported"):
        export.export_stablehlo(model, variables, tmp_path / "out")
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
    monkeypatch.setattr(export, "TOLERANCE", 1e-4)
    with pytest.raises(RunError, match="differ by inf"):
        export.export_stablehlo(model, broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_exists_is_kept_unless_told_otherwise(tmp_path):
    model, variables = made("rcan", width=2, blocks=1)
    (tmp_path / "restorer.json").write_text("mine")
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(UsageError, match=r"restorer\.json: exists"):
        export.export_stablehlo(model, variables, tmp_path)
    with pytest.raises(UsageError, match=r"m\.onnx: exists"):
        export.export_onnx(model, variables, tmp_path / "m.onnx")
    assert (tmp_path / "restorer.json").read_text() == "mine"
    export.export_stablehlo(model, variables, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "restorer.json").read_text())["input"]["name"] == "degraded"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        export.export_stablehlo(model, variables, tmp_path / "file" / "out")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    model, variables = made("rcan", width=2, blocks=1)
    with pytest.raises(UsageError, match=r'pip install "restore_jax\[export\]"'):
        export.export_onnx(model, variables, tmp_path / "m.onnx")


@pytest.mark.slow
def test_the_page_is_true(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    make, run_onnx, run_jax = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    config = rcan.get_config("sample")
    config.model.width, config.model.blocks = 2, 1
    system = make_system(config)
    state = create_state(system, 0)
    folder = tmp_path / "runs" / "mine"
    workdir.claim(folder, config)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state.replace(step=state.step + 1), {"epoch": 1, "ssim": 0.5})
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (13, 19, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    monkeypatch.chdir(tmp_path)
    for block in (make, run_onnx):
        exec(block, {})
    done = subprocess.run(
        [sys.executable, "-c", ONLY_JAX + run_jax], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = system.model.apply(
        inference_variables(state), pixels[None].astype(np.float32) / 255
    )
    expected = np.clip(np.asarray(expected[0]), 0, 1) * 255
    assert expected.std() > 1
    for name in ("restored_onnx.png", "restored_jax.png"):
        found = np.asarray(Image.open(tmp_path / name), np.float64)
        assert np.abs(found - expected).max() < 0.6
