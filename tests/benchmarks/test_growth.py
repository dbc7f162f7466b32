import dataclasses
import itertools
import json
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import common, growth, growth_report, pipeline
from restore_jax.errors import UsageError

KEYS = {
    *("op", "axis", "value", "model", "size", "batch", "devices", "images", "dtype", "rounds"),
    *("device", "ms_per_image", "ms_low", "ms_high", "images_per_s", "peak_mb", "base_mb"),
    *("exponent", "memory_exponent", "failed"),
}
POINT = growth.Point("restore", "side", 16, "pexels_cnn", 16, rounds=1)
NO_AXES = ("--sides=", "--batches=", "--devices=", "--images=")


def run(capsys, *flags):
    """Returns the lines, and what else was printed."""
    growth.main([*NO_AXES, "--model=pexels_cnn", "--size=16", "--rounds=1", *flags])
    printed = capsys.readouterr().out.splitlines()
    lines = [json.loads(text) for text in printed if text.startswith("{")]
    return lines, printed[len(lines) :]


def line(op, axis, value, milliseconds=1.0, megabytes=10.0, failed=None):
    """One of a model whose base takes 200 MB."""
    figures = {
        "device": "cpu",
        "ms_per_image": milliseconds,
        "images_per_s": 1e3 / milliseconds,
    }
    figures |= {"peak_mb": 200.0 + megabytes, "base_mb": 200.0}
    empty = dict.fromkeys(KEYS)
    point = dataclasses.asdict(dataclasses.replace(POINT, op=op, axis=axis, value=value))
    return empty | point | {"failed": failed} | ({} if failed else figures)


LINES = [
    line("restore", "side", 128, 10.0, 20.0),
    line("restore", "side", 256, 40.0, 80.0) | {"exponent": 2.0, "memory_exponent": 2.0},
    line("train_step", "side", 128, failed="out of memory"),
    line("train_step", "batch", 1, 1234.5, -3.0),
    line("restorer", "images", 100, 0.5),
]


@pytest.mark.bench
def test_each_point_is_a_line_from_a_process_of_its_own(capsys):
    lines, rest = run(capsys, "--ops=restore", "--sides=32,16")
    assert rest == []
    assert [(point["op"], point["axis"], point["value"]) for point in lines] == [
        *(("restore", "side", 16), ("restore", "side", 32)),
    ]
    for point in lines:
        assert set(point) == KEYS
        assert point["failed"] is None and point["size"] == point["value"]
        assert 0 < point["ms_low"] <= point["ms_per_image"] <= point["ms_high"]
        assert point["peak_mb"] > point["base_mb"] > 0
    assert lines[0]["exponent"] is None and lines[1]["exponent"] is not None


@pytest.mark.parametrize(
    ("op", "changed"),
    [
        ("restore", {"batch": 4, "devices": 2}),
        pytest.param("train_step", {"batch": 4, "devices": 2}, marks=pytest.mark.bench),
        ("restorer", {"images": 3}),
    ],
)
def test_every_kind_of_work_is_measured(op, changed, monkeypatch):
    # This process is to keep its memory.
    monkeypatch.setattr(growth, "_bound_memory", lambda: None)
    point = dataclasses.replace(POINT, op=op, **changed)
    assert growth.measure(point, once=True) == {}
    found = growth.measure(point)
    assert set(found) < KEYS and found["ms_per_image"] > 0 and found["device"] == "cpu"


def test_a_point_over_the_limit_says_so_and_larger_ones_are_not_tried(capsys):
    lines, _ = run(capsys, "--ops=restore", "--sides=16,32", "--limit=0.01")
    assert [point["failed"] for point in lines] == [
        "longer than 0.01 s per call",
        "not tried, as side 16 failed",
    ]
    for point in lines:
        assert set(point) == KEYS and point["ms_per_image"] is None and point["peak_mb"] is None


def test_a_point_without_the_memory_says_so(monkeypatch):
    def too_large(point):
        raise MemoryError

    monkeypatch.setattr(growth, "_bound_memory", lambda: None)
    monkeypatch.setitem(growth.WORK, "restore", too_large)
    assert growth.measure(POINT) == {"failed": "out of memory"}


def test_what_was_killed_or_fails_otherwise_is_a_line_too(monkeypatch):
    for program, reason in (("false", "exit status 1"), ("kill -9 $$", "out of memory")):
        monkeypatch.setattr(growth, "_process", as_shell(program))
        (found,) = growth.measure_all([[POINT]], limit=60.0)
        assert found["failed"] == reason


def as_shell(program):
    def process(*_):
        shell = ["sh", "-c", program]
        return growth.subprocess.run(shell, capture_output=True, text=True, check=False)

    return process


def test_more_devices_than_there_are_is_a_line():
    found = growth.measure(dataclasses.replace(POINT, batch=64, devices=64))
    assert found["failed"].startswith("64 devices asked for, ")


def test_more_devices_are_tried_where_fewer_have_failed(monkeypatch):
    tried = []

    def fail(point, *_):
        tried.append(point.value)
        return {"failed": "out of memory"}

    monkeypatch.setattr(growth, "_in_processes", fail)
    points = [
        [dataclasses.replace(POINT, axis=axis, value=value) for value in (1, 2)]
        for axis in ("devices", "batch")
    ]
    assert len(list(growth.measure_all(points, limit=60.0))) == 4
    assert tried == [1, 2, 1]


def test_exponents_by_hand():
    found = growth_report.exponents(LINES[0], line("restore", "side", 256, 80.0, 40.0))
    assert found == {"exponent": 3.0, "memory_exponent": 1.0}
    # Memory that cannot be told from the idle process's has not grown by any power.
    found = growth_report.exponents(LINES[0], line("restore", "side", 256, 5.0, -1.0))
    assert found == {"exponent": -1.0, "memory_exponent": None}


def test_a_picture_and_a_table_from_lines_of_an_earlier_run(tmp_path, capsys):
    saved = tmp_path / "lines.jsonl"
    saved.write_text("\n".join(map(json.dumps, LINES)) + "\n| a table | below |\n")
    picture = tmp_path / "new" / "growth.png"
    lines, rest = run(capsys, f"--lines={saved}", f"--plot={picture}", "--table")
    assert lines == []
    assert rest[0].startswith("| work | grows with | value | ms per image |")
    assert rest[3:5] == [
        "| restore | side | 256 | 40 | 25 | 280 | 80 | 2.00 | 2.00 |",
        "| train_step | side | 128 | out of memory | – | – | – | – | – |",
    ]
    assert "| 1,230 |" in rest[5]
    assert len(rest) == 2 + len(LINES)
    assert len({row.count("|") for row in rest}) == 1
    with Image.open(picture) as image:
        assert image.width >= 1000 and len(image.convert("RGB").getcolors(2**24)) > 50


def test_a_picture_of_points_that_all_failed(tmp_path):
    growth_report.draw([LINES[2]], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_a_picture_is_of_one_model(tmp_path):
    lines = [*LINES, LINES[0] | {"model": "rcan"}]
    with pytest.raises(UsageError, match="several models"):
        growth_report.draw(lines, tmp_path / "growth.png")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nothing", "there is no configs/nothing.py"),
        ("--ops=export", "--ops=export: 'export' is not one of restore, train_step, restorer"),
        ("--rounds=0", "--rounds=0: must be 1 or more"),
        ("--devices=1,3", "--batch=8: cannot be divided among 3 devices"),
        ("--plot=growth.pdf", "--plot=growth.pdf: the picture is a PNG"),
        ("--lines=nowhere.jsonl", "--lines=nowhere.jsonl: cannot be read: "),
        ("--lines=pyproject.toml", "--lines=pyproject.toml: give a file of what this"),
    ],
)
def test_wrong_flags_are_one_line(flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        growth.main([*NO_AXES, flag])
    assert stop.value.code == UsageError.exit_status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err and printed.err.count("\n") == 1


def test_how_long_a_device_would_wait_for_the_pipeline(monkeypatch):
    made = []

    def stream(task, photograph, *_):
        made.append(photograph)
        batch = {"valid": np.ones(task.batch, bool)}
        return (time.sleep(0.01) or batch for _ in itertools.count())

    monkeypatch.setattr(pipeline, "_batches", stream)
    monkeypatch.setattr(pipeline, "_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "_DRAIN", 0.01)
    task = common.Task(size=16, batch=2, rounds=1)
    # No host makes so many; resident pairs it does not make at all.
    for found in pipeline.measure(task, photograph=48, device_rate=1e12):
        assert (found["photograph"], found["device_rate"]) == (48, 1e12)
        # Two images in each 10 ms, in which it sleeps.
        assert found["ms_per_image"] >= 5 and found["images_per_s"] <= 200
        assert found["cpu_ms_per_image"] < found["ms_per_image"] and found["cores_busy"] < 1
        from_host = found["op"].startswith("pipeline")
        assert found["wait_share"] == (pytest.approx(1.0, abs=0.01) if from_host else None)
    for found in pipeline.measure(task, device_rate=1e-3):
        assert found["photograph"] == 64 and found["wait_share"] in (0.0, None)
    assert made == [48] * 4 + [64] * 4


def test_a_device_that_trains_nothing_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        pipeline.main(["--device_rate=0"])
    assert stop.value.code == UsageError.exit_status
    assert "--device_rate=0: must be above 0" in capsys.readouterr().err
