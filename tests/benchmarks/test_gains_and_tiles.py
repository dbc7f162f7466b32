"""The scripts that measure how gains are found and how tiles agree, on small photographs."""

import json

import pytest

from benchmarks import digital_gains, tiles

pytestmark = pytest.mark.bench


def test_a_line_of_the_gains(capsys):
    digital_gains.main(["--root=", "--data=sample", "--images=2"])
    line = json.loads(capsys.readouterr().out)
    assert line["channels"] == 6
    assert line["missed"] < 6
    assert line["largest_error"] < 0.02


def test_a_line_of_tiles(capsys):
    tiles.main(["--model=general_small", "--side=192", "--tile=128"])
    line = json.loads(capsys.readouterr().out)
    assert 20 < line["psnr_between"] < 91
    assert 0 <= line["largest_step"] <= line["largest_difference"]


def test_wrong_flags_are_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        tiles.main(["--model=nothing_of_that_name"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: nothing_of_that_name")
