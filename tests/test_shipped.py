import email
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import jax
import numpy as np
import pytest
import tifffile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import restore_jax
from data.rendered import sample
from restore_jax import __main__, shipped
from restore_jax.checkpoints import trust_file, weights_file
from restore_jax.cli import commands
from restore_jax.errors import UsageError
from restore_jax.parallel import cores
from tests.support import shipping, tiny

ROOT = pathlib.Path(__file__).parent.parent
MOST_BYTES = 12_000_000


@pytest.fixture
def ships(monkeypatch, tmp_path):
    return shipping.ship(monkeypatch, tmp_path / "weights")


@pytest.mark.parametrize("model", shipped.MODELS, ids=lambda model: model.name)
def test_a_shipped_model_is_what_its_row_says(model):
    content = model.path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == model.sha256
    notes = weights_file.read_notes(model.path)
    assert notes["licence"] == model.licence
    assert notes["name"] == model.name
    assert (ROOT / model.config).is_file()
    assert (ROOT / model.card).is_file()
    for text in (model.purpose, model.training_data, model.protocol):
        assert text
        assert len(text.splitlines()) == 1
    assert model.figures
    restorer = restore_jax.load(model.name)
    image = np.random.default_rng(0).random((40, 33, 3), np.float32)
    restored = restorer(image)
    assert restored.shape == image.shape
    assert np.isfinite(restored).all()
    assert not np.array_equal(restored, image)


@pytest.mark.parametrize(("name", "least"), [("general", 55), ("general_small", 37)])
@pytest.mark.parametrize("surface", [("leather", "cut"), ("tile", "crack")])
def test_the_general_models_leave_a_good_photograph_with_fine_texture(name, least, surface):
    image, _ = sample.render(*surface, 9100, 512)
    error = restore_jax.load(name)(image).astype(float) - image
    assert 20 * np.log10(255 / np.sqrt(np.mean(error**2) + 1e-9)) > least


def test_the_default_model_removes_the_noise_of_grey_photographs_too():
    rng = np.random.default_rng(0)
    clean = np.broadcast_to(np.linspace(60, 180, 128), (128, 128))
    noisy = np.clip(np.rint(clean + rng.normal(0, 20, clean.shape)), 0, 255).astype(np.uint8)
    restored = restore_jax.load(shipped.default().name)(noisy)
    assert np.std(restored - clean) < 6


def test_shipped_trust_maps_cover_what_they_promise():
    found = {model.name: trust_file.read(model.path) for model in shipped.MODELS}
    assert found["general"] is not None
    for trust in filter(None, found.values()):
        assert 0.88 <= trust.notes["coverage"] <= 0.92


def test_the_table_and_its_folder_hold_the_same_and_little():
    files = {path.name: path.stat().st_size for path in shipped.FOLDER.glob("*.safetensors")}
    assert sorted(files) == sorted(model.file for model in shipped.MODELS)
    assert sum(files.values()) <= MOST_BYTES
    names = shipped.models_available()
    assert len(set(names)) == len(names)


def test_the_names_are_known_without_jax():
    script = (
        "import sys, restore_jax\n"
        "print(restore_jax.models_available())\n"
        "assert not {'jax', 'numpy', 'absl'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{shipped.models_available()}\n"


def test_a_name_stands_for_its_file(ships, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert restore_jax.models_available() == [shipping.NAME]
    found = weights_file.read_model(shipping.NAME)
    expected = weights_file.read_weights(ships[0].path)
    assert found[0] == expected[0]
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    # A path that exists is what the user has at hand.
    (tmp_path / shipping.NAME).mkdir()
    with pytest.raises(UsageError, match=r"no config\.json in it"):
        restore_jax.load(shipping.NAME)


def test_an_unknown_name_is_refused_with_those_there_are(monkeypatch, tmp_path):
    shipping.ship(monkeypatch, tmp_path / "weights", "one", "two")
    assert shipped.default().name == "one"
    with pytest.raises(UsageError, match=r"^three: does not exist; .*: one, two$"):
        restore_jax.load("three")
    with pytest.raises(UsageError, match=r"^three: no model .*; there are one, two$"):
        shipped.verified("three")


def test_without_shipped_models_a_path_is_asked_for(monkeypatch):
    monkeypatch.setattr(shipped, "MODELS", ())
    with pytest.raises(UsageError, match=r"^--workdir: missing, and no model"):
        shipped.default()
    with pytest.raises(UsageError, match=r"a \.safetensors file$"):
        restore_jax.load("general")


def test_a_changed_or_missing_file_is_refused_in_one_line(ships):
    path = ships[0].path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for match in ("not the file of the shipped model 'tiny'", "cannot be read"):
        with pytest.raises(UsageError, match=match) as refused:
            restore_jax.load(shipping.NAME)
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)
        path.unlink(missing_ok=True)


def photograph(folder, name="a.png"):
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return str(folder)


def test_restoring_without_a_workdir_takes_the_default_and_says_so(
    monkeypatch, tmp_path, capsys
):
    shipping.ship(monkeypatch, tmp_path / "weights", "one", "two")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()  # what is here by chance is not what was meant
    given = {"input": [photograph(tmp_path / "in")], "tile": 32}
    commands.run_restore(commands.Flags(output="out", **given))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"one: for tests (licence: {shipping.LICENCE})"
    assert lines[1:] == ["1 image restored into out"]
    commands.run_restore(commands.Flags(output="other", workdir=["two"], **given))
    assert capsys.readouterr().out == "1 image restored into other\n"
    assert (tmp_path / "out/a.png").read_bytes() != (tmp_path / "other/a.png").read_bytes()


def evaluated(**flags):
    override = tiny.config()
    commands.run_evaluate(
        commands.Flags(config=override, **flags),
        lambda settings: tiny.data(settings, image_size=32),
    )


def test_a_shipped_model_is_evaluated_on_given_data(ships, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    evaluated(workdir=[shipping.NAME])
    where = pathlib.Path("runs/tiny/evaluation/sample-shipped")
    summary = json.loads((where / "metrics.json").read_text())
    assert summary["checkpoint"] == {
        "step": None,
        "epoch": None,
        "which": "shipped",
        "file": "tiny.safetensors",
        "sha256": ships[0].sha256,
    }
    assert summary["trained_on"] == {"name": "sample", "split": "defects"}
    assert summary["micro"]["count"] == 6
    assert "weights     tiny.safetensors" in capsys.readouterr().out
    assert "shipped file tiny.safetensors" in (where / "report.html").read_text()
    # Another file of that name does not take the place of the first one's figures.
    file = shipping.write(tmp_path / "tiny.safetensors", seed=4)
    evaluated(workdir=[str(file)], output="there")
    weights = pathlib.Path("there/evaluation/sample-weights")
    first = (weights / "metrics.json").read_bytes()
    file.unlink()
    shipping.write(file, seed=5)
    evaluated(workdir=[str(file)], output="there")
    (kept,) = weights.parent.glob("sample-weights-????????")
    assert (kept / "metrics.json").read_bytes() == first
    assert "was evaluated with other weights; it is kept as" in capsys.readouterr().out


def test_weights_are_evaluated_only_with_data_and_in_a_place_of_their_own(ships, tmp_path):
    flags = commands.Flags(workdir=[shipping.NAME])
    with pytest.raises(UsageError, match=r"^tiny: weights only.*--config=configs/"):
        commands.run_evaluate(flags, tiny.data)
    with pytest.raises(UsageError, match=r"^--checkpoint: tiny holds a single state"):
        evaluated(workdir=[shipping.NAME], checkpoint="latest")
    with pytest.raises(UsageError, match=r"^tinny: does not exist; .*: tiny$"):
        evaluated(workdir=["tinny"])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^--output=.*/file: is a file; name a folder"):
        evaluated(workdir=[shipping.NAME], output=str(tmp_path / "file"))
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    with pytest.raises(
        UsageError, match=r"^--output=x: evaluations of a run are saved in its workdir"
    ):
        evaluated(workdir=[str(tmp_path)], output="x")


def test_weights_are_exported_with_what_the_file_says(ships, tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    given = {"workdir": [shipping.NAME], "output": str(path)}
    commands.run_export(
        commands.Flags(dtype="float16", metadata=["purpose=scans = mine"], **given), tiny.data
    )
    told = capsys.readouterr().out
    assert f"licence  {shipping.LICENCE}\nsha256   " in told
    assert hashlib.sha256(path.read_bytes()).hexdigest() in told
    assert weights_file.read_notes(path) == {
        "name": shipping.NAME,
        "licence": shipping.LICENCE,
        "purpose": "scans = mine",
    }
    # Its weights are those of the source, which was of half precision already.
    assert "differs from the model by at most 0.0e+00" in told
    with pytest.raises(UsageError, match=r"mine\.safetensors: exists; .* --overwrite"):
        commands.run_export(commands.Flags(**given), tiny.data)
    commands.run_export(commands.Flags(overwrite=True, **given), tiny.data)
    with pytest.raises(UsageError, match=r"^--metadata=licence: give KEY=TEXT"):
        commands.run_export(commands.Flags(metadata=["licence"], **given), tiny.data)
    given["output"] = str(tmp_path / "folder")
    with pytest.raises(UsageError, match=r"^--dtype: only for --output=FILE\.onnx or"):
        commands.run_export(commands.Flags(dtype="float16", **given), tiny.data)
    commands.run_export(commands.Flags(**given), tiny.data)
    description = json.loads((tmp_path / "folder/restorer.json").read_text())
    assert description["licence"] == shipping.LICENCE


def in_package(monkeypatch, *arguments):
    """Runs `python -m restore_jax`; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["restore-jax", *arguments])
    try:
        __main__.main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_package_lists_its_models_and_tells_of_flags_alone(ships, monkeypatch, capsys):
    assert in_package(monkeypatch, "--models") == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny: 0.0 MB, licence Apache-2.0, the default",
        "    for tests",
    ]
    assert in_package(monkeypatch, "--tile=32", "--help") == 0
    shown = capsys.readouterr().out
    assert in_package(monkeypatch, "help") == 0
    assert capsys.readouterr().out == shown
    assert "--input=photographs --output=restored" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--output=o",), "--input: missing"),
        (("--input=i",), "--output: missing"),
        (("--tile=32", "photographs"), "photographs: not a flag; see restore-jax --help"),
        (("--tile=big",), "flag --tile=big"),
        (("--pages=some",), "flag --pages=some: value should be one of <all|first>"),
        (("--input=i", "--output=o", "--white=0"), "--white=0: must lie between"),
        (("--input=i", "--output=o", "--max_megapixels=0"), "--max_megapixels=0: must be"),
        (("--mode=train",), "Unknown command line flag 'mode'"),
        (("--config=x",), "Unknown command line flag 'config'"),
        (("--input=nothing/here", "--output=o"), "nothing/here"),
    ],
)
def test_wrong_usage_of_the_package_is_one_line(ships, monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(cores, "prepare", lambda: None)  # JAX runs already
    assert in_package(monkeypatch, *arguments) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ")
    assert line in told


@pytest.mark.slow
@pytest.mark.parametrize(("pages", "count"), [("all", 2), ("first", 1)])
def test_the_package_restores_a_stack_of_a_camera_with_few_bits(
    ships, monkeypatch, tmp_path, pages, count
):
    monkeypatch.setattr(cores, "prepare", lambda: None)  # JAX runs already
    levels = np.random.default_rng(0).integers(0, 1024, (2, 40, 50)).astype(np.uint16)
    source, target = tmp_path / "a.tif", tmp_path / "out/a.tif"
    tifffile.imwrite(source, levels, photometric="minisblack")
    given = (f"--input={source}", f"--output={target.parent}", "--tile=32", "--white=1023")
    assert in_package(monkeypatch, *given, f"--pages={pages}", "--max_megapixels=1") == 0
    found = tifffile.imread(target).reshape(-1, 40, 50)
    assert found.shape[0] == count
    assert found.dtype == np.uint16
    assert 255 < found.max() <= 1023


def test_an_installed_wheel_restores_anywhere_without_tensorflow(tmp_path):
    source, site, away = (tmp_path / name for name in ("source", "site", "away"))
    away.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "restore_jax", source / "restore_jax", ignore=ignored)
    shutil.copytree(ROOT / "requirements", source / "requirements")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # One model more, the first: there may be none yet.
    file = shipping.write(source / "restore_jax/weights/tiny.safetensors", name="tiny")
    with (source / "restore_jax/shipped.py").open("a") as table:
        table.write(f"\n\nMODELS = ({shipping.row(file)!r}, *MODELS)\n")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = run(source, "-c", build)
    assert built.returncode == 0, built.stderr
    wheel = next(source.glob("*.whl"))
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        content.extractall(site)
    # Everything that stands in the package's folder, and nothing beside it.
    assert {name for name in names if "dist-info" not in name} == {
        path.relative_to(source).as_posix()
        for path in (source / "restore_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "restore-jax = restore_jax.__main__:main" in (site / entry_points).read_text()

    photograph(away / "in")
    # The modules that a user who only restores does not have.
    (metadata_file,) = site.glob("*.dist-info/METADATA")
    needed = email.message_from_string(metadata_file.read_text()).get_all("Requires-Dist")
    blocked = {"data", "configs", *modules_beside(needed)}
    assert {"tensorflow", "tensorflow_datasets", "tensorboard", "matplotlib"} <= blocked
    lines = "import sys", f"sys.modules.update(dict.fromkeys({sorted(blocked)}))", ""
    (site / "sitecustomize.py").write_text("\n".join(lines))
    where = run(away, "-c", "import restore_jax; print(restore_jax.__file__)", path=site)
    assert where.stdout.strip() == str(site / "restore_jax/__init__.py")
    done = run(away, "-m", "restore_jax", "restore", "in", "-o", "out", "--tile=32", path=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"tiny: for tests (licence: {shipping.LICENCE})",
        "1 image restored into out",
    ]
    with Image.open(away / "out/a.png") as restored:
        assert restored.size == (50, 40)
    assert sorted(entry.name for entry in away.iterdir()) == ["in", "out"]
    refused = run(away, "-m", "restore_jax", "train", "configs/sca_unet.py", path=site)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: train: needs a checkout of restore_jax")


def modules_beside(requirements):
    """Returns what can be imported here though no requirement without an extra asks for it."""
    asked, todo = set(), [Requirement(line) for line in requirements]
    todo = [one for one in todo if one.marker is None or one.marker.evaluate({"extra": ""})]
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            if (found := (canonicalize_name(requirement.name), extra)) in asked:
                continue
            asked.add(found)
            below = map(Requirement, metadata.requires(requirement.name) or ())
            todo.extend(
                one
                for one in below
                if one.marker is None or one.marker.evaluate({"extra": extra})
            )
    names = {name for name, _ in asked}
    return [
        module
        for module, owners in metadata.packages_distributions().items()
        if module.isidentifier()
        and not module.startswith("_")
        and names.isdisjoint(map(canonicalize_name, owners))
        and "restore_jax" not in owners
    ]


def run(folder, *arguments, path=None):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | ({"PYTHONPATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        check=False,
    )
