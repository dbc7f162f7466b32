"""A training watched for long, and one divided among processes."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import ROOT, long_run
from restore_jax.errors import UsageError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")


def held(step, resident, files):
    return {"step": step, "resident_mb": resident, "open_files": files}


def test_what_came_after_the_first_steps_is_compared_with_them():
    records = [held(step, *found) for step, found in (
        (150, (10.0, 90)), (200, (100.0, 20)), (250, (125.0, 22)), (300, (110.0, 20)),
    )]  # fmt: skip
    assert long_run.compare(records) == {
        "op": "long_run",
        "steps": 300,
        "resident_mb": 100.0,
        "resident_growth_percent": 25.0,
        "resident_drift_percent": 10.0,
        "open_files": 20,
        "open_files_growth_percent": 10.0,
    }
    assert long_run.compare(records[:1]) == {"op": "long_run", "steps": 0}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nothing", "--model=nothing: there is no configs/nothing.py"),
        ("--option=widths", "--option=widths: write NAME=VALUE"),
        ("--option=mask_attention=identity", "config.model.mask_attention: "),
        ("--option=depth=3", "config.model.depth: sca_unet has no such option"),
    ],
)
def test_wrong_flags_are_one_line(flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        long_run.main([flag])
    assert stop.value.code == UsageError.exit_status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1


@linux
@pytest.mark.bench
def test_lines_of_a_long_training(capsys):
    long_run.main(
        ["--option=widths=(2, 4)", "--size=16", "--batch=16", "--steps=8", "--every=4"]
    )
    printed = capsys.readouterr().out.splitlines()
    *lines, last = (json.loads(line) for line in printed if line.startswith("{"))
    assert [line["step"] for line in lines][:2] == [4, 8]
    for line in lines:
        assert (line["op"], line["model"], line["size"]) == ("train", "sca_unet", 16)
        assert line["resident_mb"] > 50 and line["open_files"] > 0 and line["ms_per_image"] > 0
    assert last == {"op": "long_run", "steps": 0}  # too few to compare


@pytest.mark.bench
def test_lines_of_a_step_divided_among_processes():
    flags = ("--processes=2", "--size=16", "--batch=2", "--rounds=1")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.processes", *flags],
        cwd=ROOT,
        # A device each; what they compute need not be fast.
        env=os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Gloo says on standard output that it is connected, and the lines of two processes mix.
    (line,) = (json.loads(text) for text in done.stdout.splitlines() if text.startswith("{"))
    assert (line["processes"], line["size"], line["batch"]) == (2, 16, 2)
    assert line["mb"] == pytest.approx(4 * 867_842 / 1e6)  # the report's parameters
    assert min(line["step_ms"], line["sum_ms"], line["asked_ms"]) > 0
