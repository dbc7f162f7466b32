import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from restore_jax import models  # noqa: E402
from restore_jax.cli import commands  # noqa: E402
from restore_jax.errors import UsageError  # noqa: E402
from restore_jax.inference import export  # noqa: E402
from restore_jax.inference.deploy import onnx_graph, pack, quantisation, tiled  # noqa: E402
from restore_jax.inference.restorer import Restorer  # noqa: E402
from tests.inference.deploy import graphs  # noqa: E402
from tests.inference.test_export import made  # noqa: E402
from tests.support import native, shipping  # noqa: E402

# Beside the files of the pack, a process may have only these.
ONLY_ONNXRUNTIME = """
import sys
for name in ("jax", "flax", "tensorflow", "restore_jax", "data", "scipy", "ml_collections"):
    sys.modules[name] = None
"""


def restorer(name="gain_unet", **data):
    options = {"widths": (4, 6), "blocks": 1} if name == "gain_unet" else {"widths": (2,)}
    model, variables = made(name, **options)
    config = ConfigDict(
        {
            "name": name,
            "dtype": "float32",
            "model": {"name": name} | options,
            "data": {"name": "sample", "image_size": 32} | data,
        }
    )
    return Restorer(model, variables, config)


@pytest.fixture
def converted(monkeypatch):
    """Graphs made by hand in the place of the converter's."""

    def convert(model, variables, path, config=None, size=None, notes=None, with_context=False):
        proto = graphs.telling_of_tiles(with_context and models.takes_context(model))
        onnx.helper.set_model_props(proto, dict(notes or {}))
        return export.Conversion(proto, (1, *size, 3) if size else ("B", "H", "W", 3), 0.0)

    monkeypatch.setattr(export, "convert_onnx", convert)


def test_a_pack_says_what_is_in_it(tmp_path, converted):
    folder = tmp_path / "pack"
    notes = {"licence": "Apache-2.0"}
    text = pack.write_pack(restorer(undo_gain=True), folder, "mine", (8, 9), notes=notes)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [model["file"] for model in manifest["models"]]
    assert files == ["restorer.onnx", "restorer_float16.onnx", "restorer_8x9.onnx"]
    page = (folder / "README.md").read_text(encoding="utf-8")
    for model in manifest["models"]:
        content = (folder / model["file"]).read_bytes()
        assert model["sha256"] == hashlib.sha256(content).hexdigest()
        assert model["bytes"] == len(content)
        assert f"| {model['file']} |" in page
        assert model["file"] in text
    found = {path.name for path in folder.iterdir()}
    assert found == {*files, "manifest.json", "README.md", "restore.py", "restore.cpp"}
    assert (manifest["tile"], manifest["overlap"], manifest["multiple_of"]) == (512, 128, 32)
    assert manifest["licence"] == "Apache-2.0"
    assert [one["name"] for one in manifest["inputs"]] == ["degraded", "context"]
    assert manifest["divide_by_digital_gain"] is True
    assert "divide each channel by its gain first" in " ".join(page.split())
    assert "`context` is the whole photograph" in page
    assert max(map(len, page.split("```")[0].splitlines())) <= 100


def test_a_pack_says_what_it_does_not_need(tmp_path, converted):
    pack.write_pack(restorer("pexels_cnn"), tmp_path / "pack", "mine")
    page = (tmp_path / "pack" / "README.md").read_text(encoding="utf-8")
    assert "No digital gain is to be undone." in page
    assert "`context` is" not in page
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    assert len(manifest["inputs"]) == 1
    assert manifest["divide_by_digital_gain"] is False


def test_with_photographs_there_are_8_bits_too(tmp_path, monkeypatch):
    proto = graphs.smoothing(blocks=2)
    conversion = export.Conversion(proto, ("B", "H", "W", 3), 0.0)
    monkeypatch.setattr(export, "convert_onnx", lambda *_, **__: conversion)
    degraded = np.random.default_rng(1).random((1, 32, 32, 3), np.float32)
    calibration = [quantisation.Example(degraded)]
    folder = tmp_path / "pack"
    text = pack.write_pack(restorer("pexels_cnn"), folder, "mine", calibration=calibration)
    assert "times as fast as float32" in text
    manifest = json.loads((folder / "manifest.json").read_text())
    (cost,) = (model["cost"] for model in manifest["models"] if model["weights"] == "int8")
    assert cost["photographs"] == 1
    assert "dB from float32" in (folder / "README.md").read_text(encoding="utf-8")
    photograph = (degraded[0] * 255).astype(np.uint8)
    exact, fast = (
        tiled.Restorer(name, folder)(photograph).astype(int)
        for name in ("restorer.onnx", "restorer_int8.onnx")
    )
    assert 0 < np.abs(exact - fast).max() < 8


def test_what_exists_is_kept(tmp_path, converted):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists; use another name, or give --overwrite"):
        pack.write_pack(restorer("pexels_cnn"), tmp_path / "pack", "mine")
    pack.write_pack(restorer("pexels_cnn"), tmp_path / "pack", "mine", overwrite=True)
    assert (tmp_path / "pack" / "notes.txt").read_text() == "mine"


def test_python_on_the_page_needs_nothing_of_this_project(tmp_path, converted):
    folder = tmp_path / "pack"
    one = restorer()
    pack.write_pack(one, folder, "mine")
    (code,) = blocks(folder, "python")
    photograph = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(photograph).save(folder / "part.png")
    done = subprocess.run(
        [sys.executable, "-c", ONLY_ONNXRUNTIME + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = np.asarray(Image.open(folder / "restored.png"))
    np.testing.assert_array_equal(found, tiled.Restorer(folder=folder)(photograph))


def blocks(folder, language):
    page = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def run(program, folder, photograph):
    """Restores a photograph with a compiled `restore.cpp`."""
    Image.fromarray(photograph).save(folder / "part.ppm")
    subprocess.run([program, "part.ppm", "restored.ppm"], cwd=folder, check=True)
    return np.asarray(Image.open(folder / "restored.ppm")).astype(int)


def test_cpp_restores_in_tiles_as_python_does(tmp_path, converted):
    for name in ("pexels_cnn", "gain_unet"):
        pack.write_pack(restorer(name).with_options(tile=64), tmp_path / name, "mine")
    sources = [tmp_path / name / "restore.cpp" for name in ("pexels_cnn", "gain_unet")]
    # The same program serves the second model, which takes a context: here its mean, which
    # Python takes of a thumbnail.
    assert sources[0].read_text() == sources[1].read_text()
    program = tmp_path / "restore"
    native.cpp(sources[0], program)
    rng = np.random.default_rng(3)
    for sides in ((150, 70), (64, 201), (7, 5), (1, 40)):
        photograph = rng.integers(0, 256, (*sides, 3), np.uint8)
        for source, limit in zip(sources, (0, 1), strict=True):
            expected = tiled.Restorer(folder=source.parent)(photograph)
            found = run(program, source.parent, photograph)
            assert np.abs(found - expected).max() <= limit, (source, sides)
    (tmp_path / "none.ppm").write_bytes(b"P6\n9 9\n255\n")
    for file, said in ((sources[0], "not an 8-bit binary PPM"), ("none.ppm", "ends too early")):
        done = subprocess.run(
            [program, file, "x.ppm"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == f"error: {file}: {said}\n"


@pytest.mark.parametrize("name", ["pexels_cnn", "gain_unet"])
def test_csharp_on_the_page_restores_as_the_model_does(tmp_path, converted, name):
    folder = tmp_path / "pack"
    pack.write_pack(restorer(name), folder, "mine")
    (code,) = blocks(folder, "csharp")
    (tmp_path / "Restorer.cs").write_text(code)
    main = pathlib.Path(__file__).parent / "RestoreFile.cs"
    command = native.csharp([tmp_path / "Restorer.cs", main], tmp_path / "restore.dll")
    degraded = np.random.default_rng(3).random((1, 40, 50, 3), np.float32)
    degraded.tofile(folder / "in")
    subprocess.run([*command, "in", "out", "40", "50"], cwd=folder, check=True)
    session = onnx_graph.session((folder / "restorer.onnx").read_bytes())
    inputs = {given.name: degraded for given in session.get_inputs()}
    (expected,) = session.run(["restored"], inputs)
    found = np.fromfile(folder / "out", np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected.clip(0, 1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": "o.onnx", "dtype": "int8"}, "--dtype=int8: needs --calibration=FOLDER"),
        (
            {"output": "o.safetensors", "dtype": "int8"},
            "of .safetensors, give float32 or float",
        ),
        (
            {"output": "o.onnx", "dtype": "int4"},
            "--dtype=int4: of .onnx, give float32 or float",
        ),
        ({"output": "o", "dtype": "float16"}, "--dtype: only for --output=FILE.onnx or"),
        ({"output": "o.onnx", "calibration": "c"}, "--calibration: only for --dtype=int8 or"),
        ({"output": "o.onnx", "pack": True}, "--pack: writes a folder"),
        ({"output": "o", "pack": True, "dtype": "int8"}, "--dtype: not with --pack"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, flags, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        commands.run_export(commands.Flags(workdir=[str(tmp_path / "none")], **flags))


def test_a_missing_folder_of_photographs_is_named(tmp_path, monkeypatch):
    shipping.ship(monkeypatch, tmp_path / "shipped")
    flags = commands.Flags(
        workdir=[shipping.NAME],
        output=str(tmp_path / "o"),
        pack=True,
        calibration=str(tmp_path / "none"),
    )
    with pytest.raises(UsageError, match=r"--calibration=.*none: no such folder"):
        commands.run_export(flags)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A pack as the command writes it, with the model that it is from."""
    pytest.importorskip("jax2onnx")
    folder = tmp_path_factory.mktemp("real")
    one = restorer()
    rng = np.random.default_rng(4)
    for number in range(2):
        (folder / "photographs").mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photographs" / f"{number}.png")
    calibration = quantisation.read(folder / "photographs", one, None)
    pack.write_pack(one, folder / "pack", "mine", (24, 40), calibration=calibration)
    return one, folder / "pack"


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(1024, 1024), (700, 40)])
def test_a_pack_restores_as_the_library_does(real, sides):
    one, folder = real
    spec = importlib.util.spec_from_file_location("restore", folder / "restore.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    photograph = np.random.default_rng(5).integers(0, 256, (*sides, 3), np.uint8)
    expected = one(photograph).astype(int)
    found = code.Restorer()(photograph)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01
    half = code.Restorer("restorer_float16.onnx")(photograph)
    assert np.abs(half - expected).mean() < 0.5


@pytest.mark.slow
def test_the_cpp_of_a_pack_restores_as_the_library_does(real, tmp_path):
    one, folder = real
    native.cpp(folder / "restore.cpp", tmp_path / "restore")
    photograph = np.random.default_rng(5).integers(0, 256, (1024, 1024, 3), np.uint8)
    expected = one(photograph).astype(int)
    found = run(tmp_path / "restore", folder, photograph)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01


@pytest.mark.slow
def test_all_files_of_a_pack_compute_the_same_model(real):
    one, folder = real
    degraded = np.random.default_rng(6).random((1, 24, 40, 3), np.float32)
    expected = np.asarray(jax.jit(one.model.apply)(one.variables, degraded))
    for path in sorted(folder.glob("*.onnx")):
        session = onnx_graph.session(path.read_bytes())
        named = {"degraded": degraded, "context": degraded}
        inputs = {given.name: named[given.name] for given in session.get_inputs()}
        (found,) = session.run(["restored"], inputs)
        difference = np.abs(found - expected).max()
        kind = path.stem.removeprefix("restorer")
        limit = {"_float16": 0.01, "_int8": 0.2}.get(kind, 1e-4)
        assert difference <= limit, path.name
