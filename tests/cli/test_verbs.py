"""The short commands of `restore-jax`, read and done in this process."""

import ast
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import launch
from restore_jax import __main__, shipped
from restore_jax.checkpoints import weights_file
from restore_jax.cli import commands, flags, verbs
from restore_jax.errors import UsageError
from restore_jax.parallel import cores
from tests.support import command_line, shipping

ROOT = pathlib.Path(__file__).parents[2]


def restore_jax(monkeypatch, *arguments):
    """Runs `restore-jax`; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["restore-jax", *arguments])
    monkeypatch.setattr(cores, "prepare", lambda: None)  # JAX runs already
    try:
        __main__.main()
    except SystemExit as ended:
        return ended.code
    return 0


def launched(*arguments):
    """Does what launch.py does with flags."""
    with command_line.parsed(*arguments):
        commands.run(flags.MODE.value, commands.Flags(**flags.given()), launch.make_data)


def refusal(monkeypatch, capsys, *arguments):
    """Returns the one line of a command that is refused."""
    assert restore_jax(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    return line


def photograph(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("verb", ["", *verbs.VERBS])
def test_help_fits_a_screen(monkeypatch, capsys, verb):
    monkeypatch.setenv("COLUMNS", "80")
    assert restore_jax(monkeypatch, *verb.split(), "--help") == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 28
    assert max(map(len, shown)) <= 80
    if not verb:
        for name in verbs.VERBS:
            assert any(line.startswith(f"  {name} ") for line in shown)


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert restore_jax(monkeypatch, "--version") == 0
    version = importlib.metadata.version("restore_jax")
    assert capsys.readouterr().out == f"restore_jax {version}\n"


@pytest.mark.parametrize("mode", flags.MODES)
def test_every_flag_of_a_mode_is_an_option_of_its_verb(monkeypatch, capsys, mode):
    assert restore_jax(monkeypatch, mode, "--help") == 0
    shown = capsys.readouterr().out
    for flag, _ in flags.of_mode(mode):
        named = {"input": "INPUT", "weights": "WEIGHTS", "workdir": "run's folder"}
        assert f"--{flag.name} " in shown or named[flag.name] in shown


def test_arguments_become_flags_of_launch():
    call = verbs.parse(
        ["restore", "a.png", "-o", "out", "b/", "--dry-run", "--self_ensemble=flips",
         "--tile", "64", "scans [1]/*.tif", "-m", "general_small", "--strength=0"]
    )  # fmt: skip
    assert call.values == {
        "input": ["a.png", "b/", "scans [1]/*.tif"],
        "output": "out",
        "dry_run": True,
        "self_ensemble": "flips",
        "tile": 64,
        "workdir": ["general_small"],
        "strength": 0.0,
    }
    call = verbs.parse(["restore", "a.png", "-o", "out", "--undo-gain=false", "--trust=true"])
    assert call.values["undo_gain"] is False
    assert call.values["trust"] is True
    call = verbs.parse(["restore", "a.png", "-o", "out", "--", "-b.png", "--c-d"])
    assert call.values["input"] == ["a.png", "./-b.png", "./--c-d"]
    metadata = ["--metadata=licence=Apache-2.0", "--metadata", "purpose=scans of film"]
    call = verbs.parse(["export", "runs/mine", *metadata, "-o", "mine.safetensors"])
    assert call.values["metadata"] == ["licence=Apache-2.0", "purpose=scans of film"]
    assert call.values["workdir"] == ["runs/mine"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "train configs/sca_unet.py:sample -o runs/a --config.train.epochs=1",
            {"mode": "train", "workdir": ["runs/a"]},
        ),
        (
            "evaluate runs/a --config configs/sca_unet.py:sample --watch "
            "--config.train.epochs=1",
            {"mode": "evaluate", "workdir": ["runs/a"], "watch": True},
        ),
        (
            "evaluate runs/a --watch=false --config=configs/sca_unet.py:sample "
            "--config.train.epochs=1",
            {"mode": "evaluate", "workdir": ["runs/a"], "watch": False},
        ),
        (
            "compare runs/a general --checkpoint=latest --config.train.epochs=1 "
            "--config=configs/sca_unet.py:sample -o page",
            {"mode": "compare", "workdir": ["runs/a", "general"], "output": "page"},
        ),
        (
            "import configs/sca_unet.py:sample a.pth --workdir=runs/b --config.train.epochs=1",
            {"mode": "import", "workdir": ["runs/b"], "weights": "a.pth"},
        ),
    ],
)
def test_what_needs_a_checkout_is_done_by_its_launch(monkeypatch, arguments, expected):
    monkeypatch.chdir(ROOT)
    started = []

    def execute(program, argv):
        started.append((program, argv))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execute)
    assert restore_jax(monkeypatch, *arguments.split()) == 0
    ((program, (python, script, *given)),) = started
    assert program == python == sys.executable
    assert script == str(ROOT / "launch.py")
    with command_line.parsed(*given):
        for name, value in expected.items():
            assert flags.flags.FLAGS[name].value == value
        assert flags.CONFIG.value.data.name == "sample"
        assert flags.CONFIG.value.train.epochs == 1


def test_a_checkout_s_refusal_is_the_command_s():
    done = subprocess.run(
        [sys.executable, "-m", "restore_jax", "train", "configs/none.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "configs/none.py" in line


@pytest.mark.parametrize(
    "arguments",
    ["train configs/sca_unet.py", "evaluate w", "compare v w", "import configs/rcan.py a.pth"],
)
def test_without_a_checkout_one_is_asked_for(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    line = refusal(monkeypatch, capsys, *arguments.split())
    assert line.startswith(f"error: {arguments.split()[0]}: needs a checkout")
    assert "TensorFlow" in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "no command given; restore-jax --help"),
        (
            ("restor", "a.png"),
            "restor: no such command (did you mean restore?); the commands are restore,",
        ),
        (("photographs",), "photographs: no such command; the commands are"),
        (("restore", "-o", "out"), "required: INPUT; see restore-jax restore --help"),
        (("restore", "a.png"), "required: -o/--output; see restore-jax restore --help"),
        (
            ("restore", "a.png", "-o", "out", "--over"),
            "unrecognized arguments: --over (did you mean --overwrite?); see",
        ),
        (
            ("restore", "a.png", "-o", "out", "--reprot=yes"),
            "--reprot=yes (did you mean --report?); see restore-jax restore --help",
        ),
        (("restore", "a.png", "-o", "out", "--tile=big"), "--tile: invalid int value: 'big'"),
        (("restore", "a.png", "-o", "out", "--pages=some"), "--pages: invalid choice: 'some'"),
        (("restore", "a.png", "-o", "out", "--watch"), "unrecognized arguments: --watch"),
        (("restore", "nothing/here.png", "-o", "out"), "nothing/here.png"),
        (("restore", "a.png", "-o", "out", "-m", "none"), "a.png"),
        (
            ("restore", "a.png", "-o", "out", "--report", "--skip_assessment"),
            "--report: not with --skip_assessment, which leaves the noise unknown",
        ),
        (("restore", "a.png", "-o", ""), "restore: -o/--output is empty"),
        (("restore", "a.png", "-o", "out", "-m", ""), "restore: -m/--model is empty"),
        (("restore", "", "-o", "out"), "restore: INPUT is empty"),
        (("models", "general"), "unrecognized arguments: general"),
        (("export", "general"), "required: -o/--output"),
        (("train",), "required: CONFIG"),
        (
            ("train", "configs/a.py", "--config.seed"),
            "--config.seed: give --config.FIELD=VALUE",
        ),
        (("import", "configs/a.py"), "required: WEIGHTS"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    told = refusal(monkeypatch, capsys, *arguments)
    assert told.startswith("error: ")
    assert line in told


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train configs/none.py", "configs/none.py: no such file"),
        ("train configs/sca_unet.py:cats", "configs/….py:cats: unknown data set"),
        ("train configs/sca_unet.py:sample -o {}/photos", "{}/photos: exists and is not a run"),
        (
            "train configs/sca_unet.py:sample --config.data.degradation.file={}/a.txt",
            "config.data.degradation.file={}/a.txt: is no JSON",
        ),
        ("evaluate general", "general: weights only, without data to evaluate on"),
        ("evaluate {}/photos", "{}/photos: no run in it"),
        ("evaluate {}/photos --watch", "{}/photos: no run in it"),
        ("compare general", "a comparison takes two or more models, got 1; name each"),
        ("compare general general", "a model is given twice in general, general"),
        ("compare general general_small", "general: weights only, without data"),
        ("compare general {}/photos", "{}/photos: no run in it"),
        ("calibrate configs/none.py -o law.json", "configs/none.py: no such file"),
        (
            "calibrate configs/general.py:sample -o law.json",
            "configs/….py:sample: calibrating takes pairs, or clean",
        ),
        ("trust general -o a.safetensors", "general: weights only, without data"),
        ("trust {}/photos", "{}/photos: no run in it"),
        ("import configs/rcan.py:sample none.pth", "none.pth: no such file"),
        ("import configs/rcan.py:sample {}/a.txt", "{}/a.txt: unsupported file type"),
        ("import configs/rcan.py:sample {}/b.npz", "{}/b.npz: numpy.load(allow_pickle=False)"),
        ("restore {}/photos -o {}/out -m none", "none: does not exist"),
        ("restore {}/photos -o {}/out -m {}/photos", "{}/photos: no config.json in it"),
        ("serve -m {}/photos", "{}/photos: no config.json in it"),
        ("export {}/photos -o {}/a.onnx", "{}/photos: no config.json in it"),
    ],
)
def test_a_refusal_begins_with_what_was_typed(monkeypatch, capsys, tmp_path, arguments, line):
    photograph(tmp_path / "photos" / "a.png")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.npz").write_bytes(b"damaged")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "execv", lambda _, argv: launched(*argv[2:]))
    told = refusal(monkeypatch, capsys, *arguments.replace("{}", str(tmp_path)).split())
    assert told.startswith("error: " + line.replace("{}", str(tmp_path)))
    assert "--workdir" not in told
    assert "--mode" not in told


def test_only_the_command_line_names_flags_that_commands_call_otherwise():
    renamed = re.compile(r"--(mode|workdir|input|weights)\b")
    for path in sorted((ROOT / "restore_jax").glob("*/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.parent.name != "cli":
                is_refusal = ast.unparse(node.func) in ("UsageError", "RunError")
                assert not (is_refusal and renamed.search(ast.unparse(node))), path


def test_a_wrong_option_is_told_and_models_are_listed_without_jax(tmp_path):
    script = (
        "import sys\n"
        "from restore_jax import __main__\n"
        "sys.argv[1:] = ['restore', 'a.png', '-o', 'out', '--nonsense']\n"
        "try: __main__.main()\n"
        "except SystemExit as ended: assert ended.code == 2\n"
        "sys.argv[1:] = ['models']\n"
        "__main__.main()\n"
        "assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listed = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in listed[::2]] == shipped.models_available()
    assert max(map(len, listed)) <= 100


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "restore_jax", "models"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_restoring_is_that_of_launch_whatever_the_names(monkeypatch, capsys, tmp_path):
    shipping.ship(monkeypatch, tmp_path / "weights", "one", "two")
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "scans [2024]/a 1.png")
    photograph(tmp_path / "scans [2024]/b.jpg", seed=1)
    photograph(tmp_path / "more of them/c[1].png", seed=2)
    inputs = ["scans [2024]/*.png", "more of them"]
    options = ["--tile=32", "--strength=0.8"]
    assert restore_jax(
        monkeypatch, "restore", *inputs, "-o", "short", "--model=two", *options
    ) == 0  # fmt: skip
    assert capsys.readouterr().out == "2 images restored into short\n"
    given = [f"--input={name}" for name in inputs]
    launched("--mode=restore", *given, "--output=long", "--workdir=two", *options)
    # And the command without a verb.
    assert restore_jax(monkeypatch, *given, "--output=flags", "--workdir=two", *options) == 0
    restored = content(tmp_path / "short")
    assert sorted(restored) == ["a 1.png", "c[1].png", "restore.csv"]
    assert restored == content(tmp_path / "long") == content(tmp_path / "flags")
    for name, folder in (("a 1.png", "scans [2024]"), ("c[1].png", "more of them")):
        assert restored[name] != (tmp_path / folder / name).read_bytes()


def test_a_report_of_a_single_file_is_that_of_launch(monkeypatch, capsys, tmp_path):
    shipping.ship(monkeypatch, tmp_path / "weights", "one")
    monkeypatch.chdir(tmp_path)
    photograph(tmp_path / "a.png")
    options = ["--model=one", "--tile=32", "--report"]
    assert restore_jax(monkeypatch, "restore", "a.png", "-o", "short", *options) == 0
    assert "the page of the folder: short/restore.html" in capsys.readouterr().out
    launched("--mode=restore", "--input=a.png", "--output=long", "--workdir=one", *options[1:])
    pages = content(tmp_path / "short")
    assert sorted(pages) == ["a.png", "restore.csv", "restore.html"]
    assert pages == content(tmp_path / "long")


def test_an_export_is_that_of_launch(monkeypatch, capsys, tmp_path):
    shipping.ship(monkeypatch, tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    options = ["--dtype=float16", "--metadata=purpose=scans of film"]
    given = ("export", shipping.NAME, "-o", "a.safetensors", *options)
    assert restore_jax(monkeypatch, *given) == 0
    assert "a.safetensors" in capsys.readouterr().out
    launched("--mode=export", f"--workdir={shipping.NAME}", "--output=b.safetensors", *options)
    # Not their bytes: the order of the metadata within a file is drawn.
    assert weights_file.read_notes("a.safetensors") == weights_file.read_notes("b.safetensors")
    short, long = (safetensors.numpy.load_file(f"{name}.safetensors") for name in "ab")
    assert sorted(short) == sorted(long)
    for name in short:
        np.testing.assert_array_equal(short[name], long[name])


def test_a_package_that_is_not_installed_is_told_in_a_line(monkeypatch):
    def needing(name):
        def command(*_):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return command

    monkeypatch.setitem(commands.COMMANDS, "train", needing("tensorflow.io"))
    with pytest.raises(UsageError, match=r"^tensorflow: not installed.*'\.\[train\]'$"):
        commands.run("train", commands.Flags(), launch.make_data)
    monkeypatch.setitem(commands.COMMANDS, "train", needing("restore_jax.losses.none"))
    with pytest.raises(ModuleNotFoundError):
        commands.run("train", commands.Flags(), launch.make_data)


def test_the_home_folder_of_a_workdir_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = []
    monkeypatch.setattr(
        "restore_jax.evaluation.compare_runs.compare_runs", lambda runs, *_: [runs]
    )
    monkeypatch.setattr("restore_jax.evaluation.compare_runs.format_comparison", given.extend)
    runs = ["~/runs/a", "general"]
    commands.run("compare", commands.Flags(workdir=runs), launch.make_data)
    assert given == [tmp_path / "runs" / "a", pathlib.Path("general")]
