import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from restore_jax import batches, evaluate, figures, metrics, models, train, workdir
from restore_jax.errors import UsageError
from tests import tiny

M = {
    "count", "psnr", "ssim", "mae", "input_psnr", "input_ssim", "mask_count", "defect_psnr",
    "background_psnr", "defect_ssim", "input_defect_psnr", "defect_contrast",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "trained"
    train.train_and_evaluate(tiny.config(), folder, tiny.data, jax.devices()[:1])
    return folder


def assess(folder, which="best", override=None, devices=1):
    return evaluate.evaluate_checkpoint(
        folder, which, tiny.data, override, jax.devices()[:devices]
    )


def test_the_files_have_the_promised_content(trained):
    summary, results = assess(trained, "latest")
    assert results == trained / "evaluation" / "tiny-latest"
    assert {path.name for path in results.iterdir()} == {
        "metrics.json", "images.csv", "triplets.png",
    }  # fmt: skip
    stored = json.loads((results / "metrics.json").read_text())
    assert stored == summary
    assert stored["checkpoint"] == {"step": 6, "epoch": 2, "which": "latest"}
    assert stored["data"] == {"name": "tiny", "split": "val", "count": 6, "image_size": 64}
    assert stored.keys() == {"checkpoint", "data", "micro", "macro", "categories"}
    assert list(stored["categories"]) == ["a", "b"]
    for figures_ in (stored["micro"], stored["macro"], *stored["categories"].values()):
        assert figures_.keys() == M
    assert stored["micro"]["count"] == stored["micro"]["mask_count"] == 6
    rows = list(csv.DictReader((results / "images.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == sorted(tiny.images(6)["id"])
    mean = np.mean([float(row["psnr"]) for row in rows])
    assert stored["micro"]["psnr"] == pytest.approx(mean, rel=1e-5)


def test_figures_are_those_of_the_validation_in_training(trained):
    summary, _ = assess(trained, "latest")
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("psnr", "ssim", "input_psnr", "defect_psnr", "defect_contrast"):
        assert summary["micro"][name] == pytest.approx(last[name], rel=1e-6)


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (3, 1), (8, 4)])
def test_batch_and_devices_do_not_change_the_figures(trained, batch_size, devices):
    expected, _ = assess(trained)
    override = tiny.config()
    override.eval.batch_size = batch_size
    summary, _ = assess(trained, override=override, devices=devices)
    for group in ("micro", "macro"):
        assert summary[group] == pytest.approx(expected[group], rel=1e-5)


def test_a_given_configuration_decides_on_data_and_evaluation_alone(trained):
    override = tiny.config()
    override.eval.split = "all"
    override.eval.pictures = 0
    override.model.widths = (32, 64)
    summary, results = assess(trained, override=override)
    assert results.name == "tiny_all-best"
    assert summary["data"] == {"name": "tiny", "split": "all", "count": 16, "image_size": 64}
    assert not (results / "triplets.png").exists()


def test_wrong_requests_name_the_flag(trained, tmp_path):
    with pytest.raises(UsageError, match=r"--checkpoint=7: not in .*there are best"):
        assess(trained, "7")
    with pytest.raises(UsageError, match="no run in it"):
        assess(tmp_path)
    override = tiny.config()
    override.eval.split = "test"
    with pytest.raises(UsageError, match=r"config\.eval\.split: 'test' is not one of"):
        assess(trained, override=override)
    workdir.claim(tmp_path / "new", tiny.config())
    with pytest.raises(UsageError, match="no checkpoint in it yet; train it first"):
        assess(tmp_path / "new")


def test_unknown_and_empty_masks_give_null_and_never_nan(tmp_path):
    pairs = tiny.images(4)
    pairs["has_mask"][:] = [True, True, False, False]
    pairs["mask"][1:] = 0
    pairs["degraded"][3] = pairs["clean"][3]
    config = tiny.config()
    model = models.from_config(config)
    variables = model.init(jax.random.key(0), pairs["clean"])
    # No residual at all: the last image is restored to its clean self.
    variables["params"]["output"] = jax.tree.map(np.zeros_like, variables["params"]["output"])
    mesh = batches.make_mesh(jax.devices()[:1])
    rows, pictures = evaluate.evaluate(model, variables, [pairs], mesh, pictures=4)
    summary = metrics.summarise(rows)
    assert summary["micro"]["mask_count"] == 1
    assert summary["categories"]["b"]["defect_psnr"] is None
    assert rows[3]["psnr"] == pytest.approx(100.0)
    evaluate.write_results(tmp_path, summary, rows, pictures)
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    cells = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert [bool(cell["defect_psnr"]) for cell in cells] == [True, False, False, False]


def test_rows_that_are_not_valid_are_left_out():
    pairs = tiny.images(3)
    config = tiny.config()
    model = models.from_config(config)
    variables = model.init(jax.random.key(0), pairs["clean"])
    mesh = batches.make_mesh(jax.devices()[:1])
    batch = tiny.batch_rows(pairs, [0, 1], 3)
    rows, _ = evaluate.evaluate(model, variables, [batch], mesh)
    assert [row["id"] for row in rows] == list(pairs["id"][:2])


def test_the_table_shows_every_category_and_both_means(trained):
    summary, results = assess(trained)
    text = evaluate.format_report(summary, results)
    lines = [line.split() for line in text.splitlines()]
    starts = [line[0] for line in lines if line]
    for name in ("a", "b", "mean", "checkpoint", "picture"):
        assert name in starts
    row = next(line for line in lines if line and line[0] == "a")
    assert float(row[3]) == pytest.approx(summary["categories"]["a"]["psnr"], abs=0.005)
    assert str(trained / "checkpoints") in text


def test_the_picture_shows_the_images_side_by_side(tmp_path):
    black = np.zeros((16, 16, 3), np.uint8)
    mask = np.zeros((16, 16, 1), np.float32)
    mask[4:8, 4:8] = 1
    picture = figures.Picture("a", "scratch", black + 51, black + 102, black + 153, mask, 1, 2)
    figures.draw_triplets([picture, picture], tmp_path / "out" / "triplets.png")
    pixels = np.asarray(Image.open(tmp_path / "out" / "triplets.png"))
    middle = figures._GAP + figures._CAPTION + 250  # below the outline
    panel = figures._ROW_HEIGHT + figures._GAP
    values = [int(pixels[middle, figures._GAP + 5 + i * panel, 0]) for i in range(4)]
    assert values == [51, 102, 153, 153]
    assert (pixels == figures.OUTLINE).all(-1).sum() > 100


def test_pictures_are_spread_over_the_categories():
    def picture(category, number):
        image = np.zeros((8, 8, 3), np.uint8)
        return figures.Picture(category, str(number), image, image, image, image[..., :1], 0, 0)

    selection = figures.Selection(3)
    for number in range(5):
        for category in "ab":
            if selection.wants(category):
                selection.add(picture(category, number))
    chosen = [(p.category, p.defect_type) for p in selection.pictures()]
    assert chosen == [("a", "0"), ("a", "1"), ("b", "0")]
