"""The limits that a training measures on its own photographs."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.checkpoints import weights_file
from restore_jax.degradation import known_range
from restore_jax.evaluation import training_range


def make_config(image_size=96):
    return ConfigDict(
        {"data": {"name": "clean", "image_size": image_size, "degradation": {"preset": "kla"}}}
    )


def make_data(sigma, count=12, side=96):
    def eval_batches(split):
        assert split == "val"
        ramp = np.linspace(0.3, 0.7, side)[:, None, None]
        for seed in range(count // 4):
            noise = np.random.default_rng(seed).standard_normal((4, side, side, 3))
            degraded = np.clip(ramp + sigma / 255 * noise, 0, 1).astype(np.float32)
            degraded[3] = 0.5  # of a padding row
            yield {"degraded": degraded, "valid": np.array([True, True, True, False])}

    counts = {"train": 0, "val": count - count // 4}
    return lambda _: batches.Data("clean", counts, 0, lambda _: iter(()), eval_batches)


def test_the_limits_are_those_of_the_photographs(tmp_path):
    training_range.write(tmp_path, make_config(), make_data(20.0, 16))
    text = weights_file.read_source_notes(tmp_path)["known_range"]
    known = known_range.read(text, "a run")
    assert known.photographs == 12
    assert (
        known.noise == pytest.approx((20.0, 20.0), rel=0.1) and known.noise[0] < known.noise[1]
    )
    checkpoint = tmp_path / "checkpoints" / "3"
    checkpoint.mkdir(parents=True)
    assert weights_file.read_source_notes(checkpoint) == {"known_range": text}


def test_limits_that_are_there_are_kept(tmp_path):
    (tmp_path / weights_file.RANGE_FILE).write_text("kept")
    training_range.write(tmp_path, make_config(), lambda _: pytest.fail("read the data"))
    assert (tmp_path / weights_file.RANGE_FILE).read_text() == "kept"


def test_at_native_size_they_hold_those_of_the_law():
    known = training_range.measure(make_config(0), make_data(20.0, 16))
    assert known.noise[0] < 21 and known.noise[1] > 80


@pytest.mark.parametrize(("size", "count"), [(32, 16), (96, 8)])
def test_of_small_or_few_photographs_nothing_is_written(tmp_path, size, count):
    training_range.write(tmp_path, make_config(size), make_data(20.0, count, size))
    assert list(tmp_path.iterdir()) == []
    assert weights_file.read_source_notes(tmp_path) == {}
