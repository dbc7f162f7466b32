import functools
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from restore_jax.errors import UsageError
from restore_jax.evaluation import compare_runs, evaluate
from restore_jax.evaluation.compare import Run
from restore_jax.parallel import device_mesh
from restore_jax.train import loop
from tests.support import shipping, tiny

ONE = jax.devices()[:1]
data = functools.partial(tiny.data, image_size=32, good=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 0), ("second", 1)):
        config = tiny.config(epochs=1)
        config.seed = seed
        loop.train(config, folder / name, data, ONE)
    return folder / "first", folder / "second"


def test_runs_are_evaluated_once_and_compared(runs, capsys, monkeypatch):
    comparison, where = compare_runs.compare_runs(runs, "best", data, devices=ONE)
    assert where == runs[0] / "evaluation" / "sample-best-against-second"
    assert json.loads((where / "comparison.json").read_text()) == comparison
    page = (where / "compare.html").read_text().replace("<wbr>", "")
    assert sum(f"{name}<" in page for name in tiny.images(6)["id"]) == 2  # config.eval.pictures
    for run, folder in zip(comparison["runs"], runs, strict=True):
        stored = json.loads((folder / "evaluation/sample-best/metrics.json").read_text())
        assert run["micro"]["psnr"] == pytest.approx(stored["micro"]["psnr"], rel=1e-6)
        assert run["micro"]["hallucination"] == pytest.approx(stored["micro"]["hallucination"])
        assert run["cost"]["parameters"] > 0
        assert run["cost"]["ms_per_image"] > 0
    psnr = next(one for one in comparison["differences"] if one["measure"] == "psnr")
    means = [run["micro"]["psnr"] for run in comparison["runs"]]
    assert psnr["micro"]["difference"] == pytest.approx(means[1] - means[0])
    text = compare_runs.format_comparison(comparison, where)
    assert "B against A: PSNR" in text
    degraded = stored["micro"]
    (row,) = (line.split() for line in text.splitlines() if line.startswith("degraded input"))
    assert row[2:4] == [f"{degraded['input_psnr']:.2f}", f"{degraded['input_ssim']:.4f}"]
    assert str(where / "compare.html") in text
    assert capsys.readouterr().out.count(": evaluated,") == 2

    def evaluate_again(*given):
        raise AssertionError("it was evaluated before")

    monkeypatch.setattr(evaluate, "evaluate_model", evaluate_again)
    again, _ = compare_runs.compare_runs(
        runs, "best", data, output=runs[0].parent / "there", devices=ONE
    )
    assert again["differences"] == comparison["differences"]
    assert (runs[0].parent / "there" / "compare.html").exists()
    assert capsys.readouterr().out.count(": already evaluated,") == 2


def test_names_and_weights_files_are_compared_with_workdirs(runs, tmp_path, monkeypatch):
    shipping.ship(monkeypatch, tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    file = shipping.write(tmp_path / "mine.safetensors", seed=5)
    # Files have no data of their own: they take those of the first workdir.
    given = (shipping.NAME, runs[0], file)
    comparison, where = compare_runs.compare_runs(given, "best", data, devices=ONE)
    assert where.resolve() == (
        tmp_path / "runs" / "tiny" / "evaluation" / "sample-shipped-against-first-mine"
    )
    assert [run["workdir"] for run in comparison["runs"]] == list(map(str, given))
    assert (tmp_path / "runs/mine/evaluation/sample-weights/metrics.json").exists()
    page = (where / "compare.html").read_text().replace("<wbr>", "")
    assert "shipped file tiny.safetensors, SHA-256" in page
    with pytest.raises(UsageError, match=r"mine\.safetensors: weights only, without data"):
        compare_runs.compare_runs([shipping.NAME, file][::-1], "best", data)


def test_an_output_receives_the_evaluations_of_models_without_a_folder(
    runs, tmp_path, monkeypatch, capsys
):
    shipping.ship(monkeypatch, tmp_path / "weights")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = shipping.write(tmp_path / "mine.safetensors", seed=5)
    given, output = (shipping.NAME, runs[0], file), tmp_path / "page"
    _, where = compare_runs.compare_runs(given, "best", data, output=output, devices=ONE)
    assert where == output
    assert {path.parent.relative_to(output).as_posix() for path in output.rglob("*.html")} == {
        ".",
        "tiny/evaluation/sample-shipped",
        "mine/evaluation/sample-weights",
    }
    assert not list(elsewhere.iterdir())
    capsys.readouterr()
    compare_runs.compare_runs(given, "best", data, output=output, devices=ONE)
    assert capsys.readouterr().out.count(": already evaluated,") == 3


def test_what_cannot_be_compared_is_said_in_one_line(runs, tmp_path):
    with pytest.raises(UsageError, match="two or more"):
        compare_runs.compare_runs(runs[:1], "best", data)
    with pytest.raises(UsageError, match="given twice"):
        compare_runs.compare_runs([runs[0], runs[0] / ".." / "first"], "best", data)
    with pytest.raises(UsageError, match="no run in it"):
        compare_runs.compare_runs([runs[0], tmp_path], "best", data)
    with pytest.raises(UsageError, match=r"--output=.*config.json: is a file"):
        compare_runs.compare_runs(runs, "best", data, output=runs[0] / "config.json")
    config = tiny.config(epochs=1)
    config.data.degradation.preset = "mild"
    other = tmp_path / "other"
    loop.train(config, other, data, ONE)
    with pytest.raises(UsageError, match=r"other: evaluated with .*mild"):
        compare_runs.compare_runs([runs[0], other], "best", data, devices=ONE)
    assert not (other / "evaluation").exists()  # refused before anything is computed


class Painter(nn.Module):
    """Restores to black, and paints the mask it is shown white."""

    def __call__(self, degraded, mask=None, train=False):
        return 0 * degraded if mask is None else 0 * degraded + mask


def test_pictures_are_restored_with_the_masks_that_each_run_was_evaluated_with():
    found = tiny.images(4)
    names = found["id"][[0, 3]].tolist()
    rows = [{"id": name, "psnr": 1.0} for name in found["id"].tolist()]
    # Whichever comes first.
    for oracles in ((False, True), (True, False)):
        runs = [Run(str(i), "painter", {}, rows, oracle_mask=o) for i, o in enumerate(oracles)]
        mesh = device_mesh.make_mesh(ONE)
        models = [(Painter(), {})] * 2
        images = [lambda: iter([found])] * 2
        shown = compare_runs._restore_chosen(models, runs, images, names, mesh)
        assert [image.id for image in shown] == names
        for image in shown:
            for restored, oracle in zip(image.restored, oracles, strict=True):
                expected = np.broadcast_to(image.mask * oracle, (16, 16, 3))
                np.testing.assert_array_equal(restored, expected)
