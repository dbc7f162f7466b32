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
from jax import export as jax_export
from PIL import Image

import restore_jax
from configs import rcan
from restore_jax import models, shipped
from restore_jax.checkpoints import checkpoint, weights_file
from restore_jax.cli import commands
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.inference import export
from restore_jax.learner.state import create_state, inference_variables, make_learner
from restore_jax.models import layers, portable

ROOT = pathlib.Path(__file__).parents[2]
ANY = ("B", "H", "W", 3)
SIZES = [(3, 37, 21), (1, 6, 1)]

# A process that has JAX and none of what this project needs beside it.
ONLY_JAX = """
import sys
for name in ("flax", "tensorflow", "restore_jax", "data", "orbax", "ml_collections"):
    sys.modules[name] = None
"""


def made(name, **options):
    """Makes a model with parameters of which all count, without the wait for `init`."""
    model = models.create(name, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(2)

    def drawn(path, leaf):
        values = rng.normal(0, 1, leaf.shape).astype(np.float32)
        if leaf.ndim > 1:
            return values / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        around = 1 if path[-1].key in ("scale", "var") else 0
        return around + 0.05 * values

    return model, jax.tree_util.tree_map_with_path(drawn, shapes)


MODELS = {
    "rcan": ("rcan", {"width": 4, "blocks": 1}),
    "released": ("sca_unet", {"widths": (4, 4, 4), "variant": "released"}),
    "report": ("sca_unet", {"widths": (4, 4, 4)}),
    "pexels_cnn": ("pexels_cnn", {"widths": (4, 4)}),
    "gain": ("gain_unet", {"widths": (4, 6), "blocks": 1}),
}
# Every architecture that restores images, and the forms of those that have several.
AT_ONE_SIZE = {name: MODELS[name] for name in MODELS if name != "gain"} | {
    "gain, stem 2": ("gain_unet", {"widths": (4, 6), "blocks": 1, "stem": 2}),
    "gain, stem 4": ("gain_unet", {"widths": (4, 6), "blocks": 1, "stem": 4}),
    "gain, told": ("gain_unet", {"widths": (4, 6), "blocks": 1, "tell": True}),
    "no gain, stem 2": ("gain_unet", {"widths": (4, 6), "blocks": 1, "gain": False}),
    "no gain, stem 4": (
        "gain_unet",
        {"widths": (4, 6), "blocks": 1, "stem": 4, "gain": False},
    ),
    "unet_small": ("unet_small", {"widths": (4, 6)}),
    "cbam_unet": ("cbam_unet", {"widths": (4, 4, 4), "skips": (True, False)}),
    "pexels_unet": ("pexels_unet", {"bottleneck": 16}),
    "pexels_generator": ("pexels_generator", {"widths": (4, 4)}),
}
# Which the others differ from by a stem of another size, or the gain's branch alone.
QUICK = set(AT_ONE_SIZE) - {"gain, stem 2", "gain, told", "no gain, stem 4"}
ONE_SIZE = (36, 54)  # no multiple of what the architectures pad to


def check_shape(exported):
    assert exported.shape == ANY
    assert exported.largest_difference <= 1e-4
    assert "needs a fixed size" not in str(exported)


def compare(model, variables, run):
    """Compares on images that the export itself was not tried on."""
    rng = np.random.default_rng(3)
    for shape in SIZES:
        degraded = rng.random((*shape, 3), np.float32)
        expected = np.asarray(jax.jit(model.apply)(variables, degraded))
        found = np.asarray(run(degraded))
        assert found.shape == expected.shape == degraded.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rcan", "released", "report", "gain"])
def test_onnx_computes_what_the_model_does(tmp_path, form):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, variables = made(MODELS[form][0], **MODELS[form][1])
    path = tmp_path / "new" / "restorer.onnx"
    exported = export.export_onnx(model, variables, path, rcan.get_config("sample"))
    check_shape(exported)
    assert [found.name for found in path.parent.iterdir()] == ["restorer.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert tuple(session.get_inputs()[0].shape) == exported.shape
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert metadata["name"] == "rcan"
    compare(model, variables, lambda x: session.run(["restored"], {"degraded": x})[0])


@pytest.mark.parametrize(
    "form",
    [
        "rcan",
        "pexels_cnn",
        pytest.param("released", marks=pytest.mark.slow),
        pytest.param("report", marks=pytest.mark.slow),
    ],
)
def test_stablehlo_computes_what_the_model_does(tmp_path, form):
    model, variables = made(MODELS[form][0], **MODELS[form][1])
    check_shape(export.export_stablehlo(model, variables, tmp_path))
    stored = jax_export.deserialize(bytearray((tmp_path / "restorer.stablehlo").read_bytes()))
    compare(model, variables, jax.jit(stored.call))


def test_a_suffix_of_no_format_is_refused(tmp_path):
    for name in ("mine.onx", "mine.txt"):
        given = commands.Flags(workdir=["general"], output=str(tmp_path / name))
        with pytest.raises(UsageError, match=rf"{name}: \.\w+ is no format; name a FILE\.onnx"):
            commands.run_export(given)
    assert not list(tmp_path.iterdir())


def test_stablehlo_takes_a_process_with_only_jax(tmp_path):
    model, variables = made(MODELS["gain"][0], **MODELS["gain"][1])
    config = rcan.get_config("sample")
    exported = export.export_stablehlo(model, variables, tmp_path / "out", config)
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

    rng = np.random.default_rng(4)
    given = {str(i): rng.random((*s, 3), np.float32) for i, s in enumerate(SIZES)}
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
        np.testing.assert_array_equal(export._reflection_matrix(size, full) @ x, expected)


@pytest.mark.parametrize(
    ("form", "multiple"), [("rcan", 1), ("released", 4), ("pexels_cnn", 1), ("gain", 4)]
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
    exported = export.export_stablehlo(KnowsItsSize(), variables, tmp_path / "o")
    assert exported.shape == ("B", 256, 256, 3)
    assert "restored [B, 256, 256, 3]; this model needs a fixed size, which --size=HxW" in str(
        exported
    )


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=() if form in QUICK else pytest.mark.slow)
        for form in sorted(AT_ONE_SIZE)
    ],
)
def test_stablehlo_of_one_size_computes_what_the_model_does(tmp_path, form):
    model, variables = made(AT_ONE_SIZE[form][0], **AT_ONE_SIZE[form][1])
    exported = export.export_stablehlo(model, variables, tmp_path, size=ONE_SIZE)
    assert exported.shape == (1, *ONE_SIZE, 3)
    assert "[1, 36, 54, 3]; differs" in str(exported)
    description = json.loads((tmp_path / "restorer.json").read_text())
    assert description["input"]["shape"] == [1, *ONE_SIZE, 3]
    stored = jax_export.deserialize(bytearray((tmp_path / "restorer.stablehlo").read_bytes()))
    degraded = np.random.default_rng(6).random((1, *ONE_SIZE, 3), np.float32)
    expected = jax.jit(model.apply)(variables, degraded)
    np.testing.assert_allclose(jax.jit(stored.call)(degraded), expected, atol=1e-4)


def check_graph(path):
    """Checks that nothing is left to compute with sizes, and that all sizes are known."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.functions
    assert {opset.domain for opset in proto.opset_import} == {""}
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert node.domain == ""
        assert node.op_type not in {"Shape", "Size", "Range", "NonZero", "Loop", "Scan", "If"}
        # What the first input is to be made of the others say.
        if node.op_type in {"Reshape", "Slice", "Expand", "Tile", "Pad", "Squeeze"}:
            assert stored.issuperset(name for name in node.input[1:] if name)
    values = [*graph.input, *graph.value_info, *graph.output]
    known = {value.name: value.type.tensor_type.shape.dim for value in values}
    for name in ["degraded", *(name for node in graph.node for name in node.output if name)]:
        assert all(side.HasField("dim_value") for side in known[name]), name


def check_at_one_size(path, model, variables, sides):
    """Checks a graph, and what onnxruntime and OpenCV compute with it."""
    check_graph(path)
    onnxruntime = pytest.importorskip("onnxruntime")
    cv2 = pytest.importorskip("cv2")
    degraded = np.random.default_rng(7).random((1, *sides, 3), np.float32)
    expected = jax.jit(model.apply)(variables, degraded)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["restored"], {"degraded": degraded})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(degraded)
    found = net.forward()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted(AT_ONE_SIZE))
def test_onnx_of_one_size_computes_what_the_model_does_in_opencv_too(tmp_path, form):
    pytest.importorskip("jax2onnx")
    model, variables = made(AT_ONE_SIZE[form][0], **AT_ONE_SIZE[form][1])
    path = tmp_path / "restorer.onnx"
    notes = {"licence": "Apache-2.0"}
    exported = export.export_onnx(
        model, variables, path, rcan.get_config("sample"), ONE_SIZE, notes=notes
    )
    assert exported.shape == (1, *ONE_SIZE, 3)
    assert exported.largest_difference <= 1e-4
    check_at_one_size(path, model, variables, ONE_SIZE)
    onnx = pytest.importorskip("onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["licence"] == "Apache-2.0"
    assert json.loads(metadata["config"])["name"] == "rcan"


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped.models_available())
def test_every_shipped_model_is_exported_for_one_size(tmp_path, name):
    pytest.importorskip("jax2onnx")
    restorer = restore_jax.load(shipped.verified(name).path)
    path = tmp_path / "restorer.onnx"
    export.export_onnx(restorer.model, restorer.variables, path, size=(60, 92))
    check_at_one_size(path, restorer.model, restorer.variables, (60, 92))


@pytest.mark.slow
def test_attention_in_blocks_and_wide_convolutions_are_exported_for_opencv_too(
    tmp_path, monkeypatch
):
    pytest.importorskip("jax2onnx")
    # 32 channels and more take Winograd's convolution here, if nothing forbids it.
    model, variables = made("sca_unet", widths=(32, 32))
    monkeypatch.setattr(layers, "_MAX_QUERIES", 50)
    path = tmp_path / "restorer.onnx"
    export.export_onnx(model, variables, path, size=(24, 20))
    check_at_one_size(path, model, variables, (24, 20))


def test_only_what_is_exported_is_traced_for_other_programs():
    model, variables = made("sca_unet", widths=(32, 32))

    def traced():
        # So large that CPUs have a convolution of their own for it.
        image = jnp.zeros((1, 256, 256, 3))
        return str(jax.make_jaxpr(lambda x: model.apply(variables, x))(image))

    assert "platform_index" in traced()
    with portable.tracing():
        assert "platform_index" not in traced()
    assert "platform_index" in traced()
    with pytest.raises(ValueError, match="stops"), portable.tracing():
        raise ValueError("stops")
    assert not portable.is_on()


def saved(folder):
    """Writes the weights of a model that is quickly exported."""
    config = rcan.get_config("sample")
    config.model.width, config.model.blocks = 2, 1
    model = models.from_config(config)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    weights_file.save_weights(folder / "w.safetensors", variables, config)
    return folder / "w.safetensors"


def test_the_size_is_a_flag_of_export(tmp_path, capsys):
    output = tmp_path / "out"
    flags = commands.Flags(workdir=[str(saved(tmp_path))], output=str(output), size="9x12")
    commands.run_export(flags, lambda config: None)
    assert "degraded [1, 9, 12, 3]" in capsys.readouterr().out
    assert (output / "restorer.stablehlo").exists()


@pytest.mark.parametrize(
    ("size", "output", "message"),
    [
        ("512", "o", "--size=512: give HEIGHTxWIDTH in pixels, for example --size=512x768"),
        ("0x8", "o.onnx", "--size=0x8: give HEIGHTxWIDTH"),
        ("8x-8", "o", "--size=8x-8: give"),
        ("", "o", "--size=: give"),
        ("8×8", "o", "--size=8×8: give"),
        ("8x8", "o.safetensors", "--size=8x8: only for --output=FILE.onnx or a folder"),
    ],
)
def test_a_wrong_size_is_refused_before_anything_is_read(tmp_path, size, output, message):
    flags = commands.Flags(
        workdir=[str(tmp_path / "none")], output=str(tmp_path / output), size=size
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        commands.run_export(flags, lambda config: None)


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
    pytest.importorskip("cv2")
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    make, run_opencv, run_onnx, run_jax = re.findall(
        r"```python\n(.*?)```", page, flags=re.DOTALL
    )
    config = rcan.get_config("sample")
    config.model.width, config.model.blocks = 2, 1
    learner = make_learner(config)
    state = create_state(learner, 0)
    folder = tmp_path / "runs" / "mine"
    workdir.claim(folder, config)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state.replace(step=state.step + 1), {"epoch": 1, "ssim": 0.5})
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (256, 384, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    monkeypatch.chdir(tmp_path)
    for block in (make, run_opencv, run_onnx):
        exec(block, {})
    done = subprocess.run(
        [sys.executable, "-c", ONLY_JAX + run_jax], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = learner.model.apply(
        inference_variables(state), pixels[None].astype(np.float32) / 255
    )
    expected = np.clip(np.asarray(expected[0]), 0, 1) * 255
    assert expected.std() > 1
    for name in ("restored_opencv.png", "restored_onnx.png", "restored_jax.png"):
        found = np.asarray(Image.open(tmp_path / name), np.float64)
        assert np.abs(found - expected).max() < 0.6
