import json

import pytest

from benchmarks import alone
from restore_jax.metrics import gaussian_window
from restore_jax.models import layers
from restore_jax.models.conv import convolution, winograd

# What each way of the program is reached by; the others are settings of a process.
REACHED_BY = {
    "blocks": (convolution, "_is_small"),
    "winograd": (winograd, "is_faster"),
    "upsampling": (layers, "upsample2"),
    "window": (gaussian_window, "by_products"),
}


@pytest.mark.parametrize("way", REACHED_BY)
def test_a_way_is_left_out(way, monkeypatch):
    module, name = REACHED_BY[way]
    before = getattr(module, name)
    monkeypatch.setattr(module, name, before)  # restored after the test
    alone.WAYS[way]()
    assert getattr(module, name) is not before


def test_unknown_names_are_refused(capsys):
    for flag in ("--loads=sample,all", "--without=all"):
        with pytest.raises(SystemExit):
            alone.main([flag])
        assert "all: choose from " in capsys.readouterr().err


@pytest.mark.bench
def test_lines_of_a_load(capsys):
    alone.main(["--loads=small", "--without=winograd,allocator", "--rounds=1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["without"] for line in lines] == [None, "winograd", "allocator"]
    assert lines[0]["relative_cpu"] == lines[0]["relative_wall"] == 1
    for line in lines:
        assert line["cpu_ms"] >= line["system_ms"] >= 0 and line["peak_mb"] > 100
