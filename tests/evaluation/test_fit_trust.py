import functools
import json

import jax
import numpy as np
import pytest

from restore_jax.errors import UsageError
from restore_jax.evaluation import evaluate, fit_trust, trained
from restore_jax.inference.restorer import load
from restore_jax.train import loop
from restore_jax.trust import planted
from tests.support import tiny

data = functools.partial(tiny.data, image_size=32, held_out=12)


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("run") / "trained"
    loop.train(tiny.config(epochs=1), folder, data, jax.devices()[:1])
    return folder


@pytest.fixture(scope="module")
def fitted(run):
    """What the command says of a run, whose folder then has a trust map."""
    return fit_trust.fit_trust(trained.find(run, "best"), data, pixels=40_000, updates=150)


def test_a_run_gets_a_calibrated_trust_map(fitted, run):
    assert f"trust map: {run / 'trust.safetensors'}" in fitted
    restorer = load(run, tile=32)
    notes = restorer.trust_map.notes
    assert notes["calibrated_on"] == 12
    assert notes["coverage"] == pytest.approx(np.mean(notes["folds"]))
    assert 0.8 < notes["coverage"] < 0.98  # few pixels, few images
    pairs = tiny.images(4, seed=9, size=32)
    restored, half_width = restorer(pairs["degraded"], trust=True)
    error = np.abs(restored - pairs["clean"]).max(axis=-1)
    assert 0.75 < (error <= half_width).mean() < 0.99


def test_the_evaluation_reports_it(fitted, run):
    summary, where = evaluate.evaluate_checkpoint(run, "best", data, devices=jax.devices()[:1])
    micro = summary["micro"]
    assert 0.8 < micro["trust_coverage"] < 0.98
    assert micro["trust_defect_coverage"] is not None
    assert summary["trust"]["data"] == "tiny"
    assert micro["alarm_area"] == pytest.approx(fit_trust.ALARMING, abs=0.03)
    assert json.loads((where / "metrics.json").read_text()) == summary
    header = (where / "images.csv").read_text().splitlines()[0]
    assert "trust_covered" in header
    page = (where / "report.html").read_text()
    assert page.count("<span>Trust map</span>") == len({"best", "median", "worst"}) * 2
    assert "of the pixels lie within their 90 % interval" in page


def test_patches_are_views_of_all_three_images():
    random = np.random.default_rng(0)
    image = random.random((40, 48, 3)).astype(np.float16)
    crop = planted.Crop(image, image, image)
    drawn = [fit_trust.patch([crop], 32, random) for _ in range(200)]
    assert all(one.clean.shape == (32, 32, 3) for one in drawn)
    untouched = [np.array_equal(one.restored, one.clean) for one in drawn]
    assert 0.1 < np.mean(untouched) < 0.4
    levels = set(image.ravel().tolist())
    assert set(drawn[np.argmax(untouched)].degraded.ravel().tolist()) <= levels


def test_folds_take_turns_within_a_category():
    def image(category, name):
        return fit_trust.Measured(category, name, *[np.zeros(1)] * 3)

    images = [image(*name) for name in ("b2", "a3", "b1", "a1", "a2", "b3")]
    names = [[one.category + one.id for one in part] for part in fit_trust.folds(images)]
    assert names == [["a1", "b2"], ["a2", "b3"], ["a3"], ["b1"]]
    assert [len(part) for part in fit_trust.folds(images[:2])] == [1, 1]


def test_the_loss_is_least_at_the_quantile():
    errors = np.random.default_rng(0).exponential(0.1, 4001).astype(np.float32)
    widths = np.quantile(errors, [0.85, 0.9, 0.95])
    losses = [fit_trust.pinball(errors, np.full(errors.shape, width)) for width in widths]
    assert np.argmin(losses) == 1


def test_a_wrong_output_is_refused_before_anything_is_read(run, tmp_path):
    source = trained.find(run, "best")
    with pytest.raises(UsageError, match="is saved in its workdir; leave it out"):
        fit_trust.fit_trust(source, None, tmp_path / "a.safetensors")
    shipped = trained.find("general_small", "best", tiny.config())
    with pytest.raises(UsageError, match="--output: name the file to write general_small"):
        fit_trust.fit_trust(shipped, None)
    taken = tmp_path / "taken.safetensors"
    taken.touch()
    with pytest.raises(UsageError, match="exists; take another name, or give --overwrite"):
        fit_trust.fit_trust(shipped, None, taken)


def test_too_few_validation_images_are_refused(run):
    with pytest.raises(UsageError, match="no two validation images"):
        fit_trust.fit_trust(
            trained.find(run, "best"), functools.partial(data, held_out=1), pixels=4096
        )
