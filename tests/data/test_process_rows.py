"""What each of several processes reads: its rows of a training, its images of an evaluation."""

import itertools

import numpy as np
import pytest
from PIL import Image

from configs import sca_unet
from data import pipeline
from data.sources import examples
from restore_jax import batches


def settings(**data):
    config = sca_unet.get_config("sample")
    config.data.update({"sample_size": 48, "sample_count": 2, "image_size": 32, **data})
    config.data.augment = "flips"
    config.train.batch_size = config.eval.batch_size = 12
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [{}, {"realisations": 3}, {"realisations": 0}, {"image_size": 0, "crop_size": 16}],
    ids=str,
)
def test_the_rows_of_a_process_are_those_of_the_batches_of_one(data):
    config = settings(**data)

    def taken(share):  # from within an epoch into the one after the next
        made = pipeline.make_data(config, share)
        return list(itertools.islice(made.train_batches(2), 8))

    # The second of two stands for both: the first one's rows are those that one process has
    # at the same places.
    whole, part = taken(batches.Share()), taken(batches.Share(1, 2))
    for batch, rows in zip(whole, part, strict=True):
        for name, value in batch.items():
            if value.dtype == np.float32:
                np.testing.assert_allclose(rows[name], value[6:], rtol=0, atol=1e-7)
            else:
                np.testing.assert_array_equal(rows[name], value[6:])


def test_each_process_reads_its_own_share_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 6)):
        (tmp_path / part).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{i:02d}.png")
    config = settings(sample_size=64)
    config.data.update({"name": "clean", "root": str(tmp_path), "image_size": 16})
    config.train.batch_size = config.eval.batch_size = 4
    read = []
    original = examples._read
    monkeypatch.setattr(
        examples, "_read", lambda e, *rest: read.append(e.id) or original(e, *rest)
    )
    seen, evaluated = [], []
    for index in range(2):
        made = pipeline.make_data(config, batches.Share(index, 2))
        read.clear()
        epoch = list(itertools.islice(made.train_batches(0), 4))
        # The set is prefetched by one epoch at most.
        assert len(epoch[0]["id"]) == 2
        trained = [name for batch in epoch for name in batch["id"]]
        assert sorted(read) == sorted(trained)
        seen += trained
        read.clear()
        for batch in made.eval_batches("val"):
            evaluated += batch["id"][batch["valid"]].tolist()
        assert len(read) == 3
    assert sorted(seen) == [f"train/{i:02d}" for i in range(16)]
    assert sorted(evaluated) == [f"val/{i:02d}" for i in range(6)]


def test_a_share_is_a_block_of_every_batch():
    assert batches.Share().rows(8) == slice(0, 8)
    assert [batches.Share(i, 4).rows(8) for i in (0, 3)] == [slice(0, 2), slice(6, 8)]
