import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import trust_bars


def test_figures_by_hand():
    errors = [np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.0, 1.0, 1.0])]
    bars = [np.array([2.0, 2.0, 3.0, 8.0]), np.array([2.0, 2.0, 2.0, 2.0])]
    found = trust_bars.figures(errors, bars)
    assert (found["least"], found["covered"], found["most"]) == (0.75, 0.875, 1.0)
    assert found["photographs"] == 2 and found["bar"] == 2.0
    logarithms = np.log(np.concatenate(errors)), np.log(np.concatenate(bars))
    assert found["correlation"] == pytest.approx(np.corrcoef(*logarithms)[0, 1], abs=0.005)
    # Nine tenths of the way through eight values, between the seventh and the eighth.
    assert found["error"] == pytest.approx(4.0 + 0.3 * 4.0)


@pytest.mark.bench
def test_lines_of_a_model_with_a_trust_map(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for category in ("a", "b"):
        (tmp_path / category / "good").mkdir(parents=True)
        pixels = np.clip(120 + 40 * rng.standard_normal((6, 6)), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
        image.save(tmp_path / category / "good" / "0.png")
    trust_bars.main(["--model=general_small", f"--root={tmp_path}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["law"] for line in lines] == list(trust_bars.laws())
    for line in lines:
        assert line["photographs"] == 2 and line["bar"] > 1
        assert 0.5 < line["least"] <= line["covered"] <= line["most"] <= 1


@pytest.mark.bench
def test_a_root_without_folders_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        trust_bars.main([f"--root={tmp_path}"])
    assert capsys.readouterr().err.count("\n") == 1
