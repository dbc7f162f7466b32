"""Training with a fitted law beside training with the true one, on the smallest workload."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import calibrated


def test_pairs_are_degraded_by_the_law_and_of_several_kinds(tmp_path):
    calibrated.write_pairs(tmp_path, "mild", 64)

    def read(folder):
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / folder).iterdir())]

    clean, degraded = read("clean"), read("degraded")
    assert len(clean) == len(degraded) == 10
    assert len({image.tobytes() for image in clean}) == 10
    for good, bad in zip(clean, degraded, strict=True):
        assert good.shape == (64, 64, 3) and 2 < np.std(bad - good.astype(float)) < 40


@pytest.mark.bench
def test_a_line_per_training(capsys):
    calibrated.main(["--seeds=1", "--epochs=2", "--count=2", "--side=96"])
    true, fitted = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert true["fitted"] is None and true["difference"] == 0
    assert fitted["fitted"]["sigma_x"] == pytest.approx([10, 10], rel=0.3)
    assert true["input_psnr"] == fitted["input_psnr"]
