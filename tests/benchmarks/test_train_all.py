"""Training everything in one call: its time, its processes, and a rehearsal of it."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile

import pytest
from absl import flags
from ml_collections import config_flags

import restore_jax
from benchmarks import ROOT, experiments, train_all, train_one
from benchmarks.train_parts import Store
from restore_jax.errors import RunError, UsageError

# A process that does as its first argument says and writes weights to its second.
FAKE = """
import json, os, pathlib, sys, time
kind, weights = sys.argv[1:]
def say(**record):
    print(json.dumps(record), flush=True)
if kind == "breaks":
    sys.exit("error: no such thing")
say(event="ready")
given = json.loads(sys.stdin.readline())
if kind == "crashes":
    os.abort()
say(event="training", shares=True)
if kind == "hangs":
    time.sleep(60)
pathlib.Path(weights).write_bytes(b"w" * (100 if kind == "large" else 10))
say(op="trained", weights={"dtype": "float32"}, seconds=given["seconds"])
"""


def tasks(tmp_path, kinds, **fields):
    return [
        experiments.Task(
            experiments.Experiment(kind, kind, number, **fields),
            pairs="",
            dtype="",
            weights=str(tmp_path / f"{kind}_{number}.safetensors"),
        )
        for number, kind in enumerate(kinds)
    ]


def trained(tmp_path, planned, seconds=30.0, largest=50):
    store = Store(tmp_path / "output", largest)
    names = train_all.run(
        planned,
        time.monotonic() + seconds,
        store,
        lambda task: [sys.executable, "-c", FAKE, task.experiment.config, task.weights],
    )
    lines = (tmp_path / "output" / "results.jsonl").read_text().splitlines()
    return names, [json.loads(line) for line in lines]


def test_what_fails_does_not_stop_what_follows(tmp_path):
    planned = tasks(tmp_path, ["breaks", "works", "crashes", "works"])
    names, lines = trained(tmp_path, planned)
    assert names == ["works_1", "works_3"]
    assert [line["op"] for line in lines] == ["failed", "trained", "failed", "trained"]
    assert lines[0]["reason"] == "no such thing (exit status 1)"
    assert "exit status -6" in lines[2]["reason"]
    assert lines[1]["weights"] == {"dtype": "float32", "file": "works_1.safetensors"}
    assert (tmp_path / "output" / "works_3.safetensors").read_bytes() == b"w" * 10
    assert "no such thing" in (tmp_path / "output" / "log.txt").read_text()


def test_what_hangs_is_ended_and_the_rest_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(train_all, "_GRACE", 0.5)
    monkeypatch.setattr(train_all, "_LEAST", 0.5)
    began = time.monotonic()
    names, lines = trained(tmp_path, tasks(tmp_path, ["hangs", "works", "works"]), 6.0)
    assert time.monotonic() - began < 12
    assert names == ["works_1", "works_2"]
    assert lines[0]["op"] == "failed" and lines[0]["reason"].startswith("nothing came of it in")
    (tmp_path / "second").mkdir()
    names, lines = trained(tmp_path / "second", tasks(tmp_path, ["works"]), 0.1)
    assert names == [] and lines == [{"op": "left_out", "name": "works"}]


def test_the_time_is_shared_and_what_is_left_goes_on(tmp_path):
    planned = tasks(tmp_path, ["works", "works"], share=1.0)
    first = dataclasses.replace(planned[0].experiment, share=3.0)
    planned[0] = dataclasses.replace(planned[0], experiment=first)
    _, lines = trained(tmp_path, planned, 40.0)
    assert 20 < lines[0]["seconds"] <= 30  # three of four parts
    assert 30 < lines[1]["seconds"] <= 40  # all that the first one did not take


def test_large_weights_are_left_out_and_small_ones_bundled(tmp_path):
    planned = tasks(tmp_path, ["large", "works", "works"], bundled=True)
    names, lines = trained(tmp_path, planned)
    assert len(names) == 3
    assert lines[0]["weights"]["file"] is None
    assert lines[0]["weights"]["reason"] == "100 bytes are more than 4.76837e-05 MiB"
    assert lines[1]["weights"]["file"] == "others.zip/works_1.safetensors"
    files = {path.name for path in (tmp_path / "output").iterdir()}
    assert files == {"results.jsonl", "log.txt", "others.zip"}
    with zipfile.ZipFile(tmp_path / "output" / "others.zip") as archive:
        assert archive.namelist() == ["works_1.safetensors", "works_2.safetensors"]
        assert archive.testzip() is None


def test_no_more_files_than_can_be_brought_back():
    kept = [e for e in experiments.everything() if not e.bundled]
    assert len(kept) + len(["results.jsonl", "log.txt", "others.zip"]) <= 8
    assert len({e.name for e in experiments.everything()}) == len(experiments.everything())


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections' own
@pytest.mark.parametrize(
    "experiment", experiments.everything(), ids=lambda experiment: experiment.name
)
def test_the_command_of_a_record_is_that_training(experiment, monkeypatch):
    config = experiments.make_config(experiment, 20, "bfloat16")
    assert config.train.epochs == 20 and config.data.image_size == experiment.size
    program, script, *given = shlex.split(experiments.command(experiment, config))
    assert (program, script) == ("python", "launch.py")
    # ml_collections looks there for the fields.
    monkeypatch.setattr(sys, "argv", ["launch.py", *given])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(sys.argv)
    parsed = values.config.to_dict()
    assert parsed["data"].pop("root") == ("" if experiment.rendered else "DIR")
    expected = config.to_dict()
    expected["data"].pop("root")
    assert parsed == expected


def test_every_experiment_passes_the_check_but_for_its_pairs():
    # Their models, each built with its optimizer; that takes seconds, no more.
    for experiment in experiments.tiny():
        task = experiments.Task(experiment, "", "", "")
        expected = None if experiment.rendered else "--pairs: none of 32 px was given"
        assert train_one.check(task)["problem"] == expected


def test_the_check_names_what_is_wrong(tmp_path):
    path = train_all._tiny_pairs(tmp_path / "pairs.zip")

    def problem(**fields):
        experiment = dataclasses.replace(experiments.tiny()[0], **fields)
        return train_one.check(experiments.Task(experiment, str(path), "", ""))["problem"]

    assert problem() is None
    assert "there is no configs/nothing.py" in problem(config="nothing")
    assert "a field does not fit" in problem(fields={"train.nothing": 1})
    assert "a field does not fit" in problem(fields={"train.epochs": "many"})
    assert "config.model.variant" in problem(fields={"model.variant": "nothing"})


def costs(**seconds):
    return train_one.Costs(
        **{"epoch": 1.0, "compiling": 10.0, "validation": 0.5, "last": 2.0} | seconds
    )


def test_as_many_epochs_as_there_is_time_for():
    # 4 s to start, 2 s at the end, 5 s of validations: 89 s, of which 93 % are for steps.
    assert train_one.fitting_epochs(100.0, 50, costs()) == 50
    # Another schedule is another program, which takes 10 s to compile: 79 s.
    assert train_one.fitting_epochs(100.0, 1000, costs()) == int(0.93 * 79 / 1.015)
    assert train_one.fitting_epochs(100.0, 90, costs()) == 72
    # Few epochs are validated after each: 4 s for 2 of them.
    assert train_one.fitting_epochs(19.5, 1000, costs()) == 2
    with pytest.raises(RunError, match=r"no time: an epoch takes 1\.0 s and 17 s are left"):
        train_one.fitting_epochs(17.0, 1000, costs())


@pytest.mark.bench
def test_a_training_beyond_its_time_is_stopped_and_its_state_taken(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from benchmarks import compact_pairs, experiments, train_all, train_one\n"
        "from restore_jax.parallel import device_mesh\n"
        "from restore_jax.train.on_device import dataset\n"
        "import jax\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "path = train_all._tiny_pairs(folder / 'pairs.zip')\n"
        "config = experiments.make_config(experiments.tiny()[0], 100_000, 'float32')\n"
        "config.eval.every_epochs = 5\n"
        "data = dataset.as_data(compact_pairs.read(path)[0], config)\n"
        "mesh = device_mesh.make_mesh(jax.devices()[:1])\n"
        "found, epochs, finished = train_one.train_until(\n"
        "    5.0, config, data, folder / 'run', mesh)\n"
        "print(int(found.step), epochs, finished)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    step, epochs, finished = done.stdout.split("\n")[-2].split()
    assert finished == "False" and 0 < int(step) < 300_000
    assert int(epochs) == int(step) // 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--pairs: missing; give files of python -m benchmarks.make_pairs, or --tiny"),
        (["--tiny", "--only", "nothing"], "--only: no experiment 'nothing'; there are sca_"),
        (["--pairs", "nothing.zip"], "nothing.zip: cannot be read (No such file"),
    ],
)
def test_wrong_flags_are_one_line(given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(train_all.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        train_all.main([*given, f"--output={tmp_path / 'output'}"])
    assert stop.value.code == UsageError.exit_status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1


def test_results_are_not_overwritten(tmp_path):
    Store(tmp_path, 1.0).emit({"op": "kept"})
    with pytest.raises(UsageError, match="holds results already; take another folder"):
        Store(tmp_path, 1.0)
    assert json.loads((tmp_path / "results.jsonl").read_text()) == {"op": "kept"}


@pytest.mark.bench
def test_a_rehearsal_trains_and_measures_without_tensorflow(tmp_path):
    # Read by every process: those that train, too.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "names = ('tensorflow', 'tensorflow_datasets', 'imagecodecs')\n"
        "sys.modules.update(dict.fromkeys(names))\n"
    )
    output = tmp_path / "output"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_all", "--tiny", f"--output={output}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert done.stdout.splitlines() == (output / "results.jsonl").read_text().splitlines()
    assert [line["op"] for line in lines] == [*["trained"] * 3, "train_all"]
    assert lines[-1]["trained"] == ["sca_unet_32", "pexels_gan_32", "general"]
    rendered = lines.pop(2)
    assert rendered["micro"]["count"] == 34 and (output / "general.safetensors").exists()
    for line in lines[:-1]:
        assert line["finished"] and line["epochs"] == 5 and line["steps"] == 15
        assert line["images_per_s"] > 0 and line["micro"]["count"] == 3
        assert line["macro"]["input_psnr"] > 10 and set(line["categories"]) == {"a"}
        assert [epoch for epoch, _, _ in line["history"]] == [1, 2, 3, 4, 5]
    # Of the float16 file, by another way: its figures are those of the record.
    with zipfile.ZipFile(output / "others.zip") as archive:
        archive.extractall(output)
    for line in lines[:-1]:
        restorer = restore_jax.load(output / line["weights"]["file"].split("/")[-1])
        assert restorer.config.dtype == "float32"
        assert restorer.config.train.epochs == 5
