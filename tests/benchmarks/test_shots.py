"""Training on shots beside training on clean targets, on the smallest workload."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import shots


def test_shots_share_all_but_their_noise(tmp_path, monkeypatch):
    def grey(category, kind, index, size):
        return np.full((size, size, 3), 100 + index, np.uint8), None

    monkeypatch.setattr(shots.sample, "render", grey)
    monkeypatch.setattr(
        shots.sample, "listing", lambda count: [("nut", "good", i) for i in range(count)]
    )
    assert shots.write_parts(tmp_path, 32, count=3, shots=2, sigma=5.0, blur=1.0) == 2

    def read(path):
        return np.asarray(Image.open(tmp_path / path), float)

    for part, level in (("val/nut/good-000", 100), ("train/nut/good-002", 102)):
        first, second = (read(f"shots/{part}/{n}.png") - level for n in range(2))
        assert (read(f"clean/{part}.png") == level).all()
        assert (read(f"blurred/{part}.png") == level).all()
        assert 4.5 < first.std() < 5.5 and 4.5 < second.std() < 5.5
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


@pytest.mark.bench
def test_a_line_per_training(capsys):
    flags = ("--size=32", "--count=2", "--shots=2", "--epochs=1", "--blur=1")
    shots.main([*flags, "--batch=16"])
    clean, noisy = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (clean["data"], noisy["data"]) == ("clean", "shots")
    assert clean["difference"] == 0 and np.isfinite(noisy["difference"])
    assert clean["own_psnr"] == clean["psnr"] and noisy["own_psnr"] != noisy["psnr"]
    for line in (clean, noisy):
        assert line["steps"] == 3 and line["images_per_s"] > 0
        assert line["blurred_psnr"] > line["psnr"]
