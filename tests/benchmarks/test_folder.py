import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import folder, start_up
from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import image_files

SHARED = {"op", "model", "size", "batch", "dtype", "device", "rounds"}
# Takes a file's bytes, the folder and the number; writes that many, each in one step.
WRITES = """
import pathlib, sys, time
content = pathlib.Path(sys.argv[1]).read_bytes()
held = b"x" * int(sys.argv[4])
for number in range(int(sys.argv[3])):
    time.sleep(0.03)
    part = pathlib.Path(sys.argv[2], "part")
    part.write_bytes(content)
    part.rename(part.with_name(f"{number}.png"))
sys.exit(int(sys.argv[5]))
"""


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.bench
def test_lines_of_a_folder(capsys):
    folder.main(["--model=pexels_cnn", "--size=32", "--images=96", "--rounds=1"])
    found = lines(capsys)
    assert [line["op"] for line in found] == [
        "restore_model",
        "restore_arrays",
        "restore_folder",
    ]
    for line in found:
        assert set(line) >= SHARED
        # What the restorer chooses for tiles of 128 px.
        assert (line["model"], line["size"], line["batch"]) == ("pexels_cnn", 32, 32)
        assert line["cores"] > 0 and line["processor_ms_per_image"] > 0
        assert line["device_share"] > 0
    assert found[0]["device_share"] == 1.0
    whole = found[-1]
    assert (whole["images"], whole["distinct"], whole["rounds"]) == (96, 16, 1)
    assert 0 < whole["first_image_s"] < whole["seconds"]
    assert whole["read_mb"] > 0 and whole["written_mb"] > 0
    assert list(whole["resident_mb"]) == ["10%", "25%", "50%", "75%", "100%"]
    assert whole["peak_resident_mb"] >= max(whole["resident_mb"].values()) > 50


@pytest.mark.bench
def test_lines_of_a_start(monkeypatch, capsys):
    imports = {"restore_jax": "import restore_jax", "json": "import json"}
    monkeypatch.setattr(start_up, "_IMPORTS", imports)
    start_up.main(["--model=pexels_cnn", "--size=32", "--rounds=1"])
    found = lines(capsys)
    assert [line["module"] for line in found if line["op"] == "import"] == list(imports)
    assert all(line["seconds"] >= 0 and line["rounds"] == 1 for line in found)
    starts = found[len(imports) :]
    assert [(line["op"], line["cache"]) for line in starts] == [
        *(("train_first_step", "cold"), ("train_first_step", "warm")),
        *(("restore_first_image", "cold"), ("restore_first_image", "warm")),
    ]
    for line in starts:
        assert set(line) >= SHARED
        assert line["batch"] == (16 if "train" in line["op"] else 1)
    for line in starts[:2]:
        assert list(line["parts"]) == ["data", "first_batch", "state", "step"]
        assert sum(line["parts"].values()) == pytest.approx(line["seconds"], abs=0.01)


def test_a_folder_is_of_a_few_photographs_under_many_names(tmp_path):
    read = folder.make_folder(tmp_path / "made", 40, 48)
    paths = sorted((tmp_path / "made").iterdir())
    assert [path.name for path in paths] == [folder.image_name(i) for i in range(40)]
    assert len({path.stat().st_ino for path in paths}) == 16
    assert read == sum(path.stat().st_size for path in paths)
    images = [image_files.read(path).pixels for path in paths[:16]]
    assert {(image.shape, image.dtype.name) for image in images} == {((48, 48, 3), "uint8")}
    assert len({image.tobytes() for image in images}) == 16
    # As hard to pack as a photograph with noise, and not clipped.
    assert 0.6 < paths[0].stat().st_size / images[0].nbytes < 1
    assert np.isin(images[0], (0, 255)).mean() < 0.05


def watched(tmp_path, count, settled, held=0, status=0):
    source, output = tmp_path / "source.png", tmp_path / "output"
    output.mkdir()
    Image.fromarray(folder.make_photograph(16, 0)).save(source)
    (tmp_path / "errors").write_text("error: first\nerror: last\n")
    targets = [output / f"{number}.png" for number in range(count)]
    arguments = map(str, (source, output, count if not status else 2, held, status))
    with subprocess.Popen([sys.executable, "-c", WRITES, *arguments]) as process:
        return folder._watch(process, targets, settled, tmp_path), source, output


def test_what_a_run_holds_is_noted_and_its_images_are_removed(tmp_path):
    run, source, output = watched(tmp_path, 12, 2, held=100_000_000)
    assert len(run.resident) == len(folder.DONE)
    assert min(run.resident) > 0 and run.peak >= max(run.resident) > 100_000_000
    assert run.written == 12 * source.stat().st_size
    assert [path.name for path in output.iterdir()] == ["0.png"]
    assert 0 < run.first_image_s < run.seconds
    assert run.spent.ms > 0 and run.spent.processor_ms >= 0


def test_a_run_that_fails_is_an_error_with_its_last_line(tmp_path):
    with pytest.raises(RunError, match=r"launch.py ended with status 3: error: last"):
        watched(tmp_path, 5, 1, status=3)


def test_images_that_were_not_restored_are_told(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("source", "other", "small")]
    for path, size, seed in zip(paths, (16, 16, 8), (0, 1, 0), strict=True):
        Image.fromarray(folder.make_photograph(size, seed)).save(path)
    source, other, small = paths
    folder.check_restored(other, source)
    with pytest.raises(RunError, match="is what it was before"):
        folder.check_restored(source, source)
    with pytest.raises(RunError, match=r"\(8, 8\) px; its source has \(16, 16\)"):
        folder.check_restored(small, source)


def test_a_folder_of_one_batch_has_nothing_to_time(tmp_path):
    folder.make_folder(tmp_path / "made", 4, 16)
    with pytest.raises(UsageError, match="--images=4: a batch has 4; take more"):
        folder.run_folder(tmp_path, tmp_path / "none", tmp_path / "made", 4)


def test_a_command_that_ends_before_its_event_is_told(tmp_path):
    with pytest.raises(RunError, match=r"status 2: error: --output: missing"):
        start_up._look(
            ["--mode=restore", "--workdir=none", "--input=none"],
            {"never": lambda: False},
            tmp_path,
            str(tmp_path),
        )


def test_each_event_is_counted_from_the_one_before(tmp_path):
    # Said at once, and the others are there with it.
    events = {"help": lambda: (tmp_path / "said").stat().st_size > 0, "same": lambda: True}
    found = start_up._look(["--help"], events, tmp_path, str(tmp_path))
    assert list(found) == ["help", "same"]
    assert found["help"] > found["same"]


@pytest.mark.parametrize("benchmark", [folder, start_up])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nothing", "there is no configs/nothing.py"),
        ("--rounds=0", "must be 1 or more"),
    ],
)
def test_wrong_flags_are_told(benchmark, flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main([flag])
    assert stop.value.code == UsageError.exit_status
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
