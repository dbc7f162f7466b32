"""Photographs outside of what a model knows: named, listed and, if asked for, left alone."""

import csv
import dataclasses
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage

import restore_jax
from restore_jax import models
from restore_jax.degradation.calibration import Estimate
from restore_jax.degradation.known_range import KnownRange
from restore_jax.errors import RunError, UsageError
from restore_jax.folders import plan, run
from restore_jax.folders import table as tables
from restore_jax.folders.table import Row, Table
from restore_jax.inference import assessment
from restore_jax.inference.assessment import Assessment
from restore_jax.inference.restorer import Restorer
from tests.support import networks

KNOWN = KnownRange((0.0, 10.0), (0.0, 100.0), (0.0, 100.0))


def make_restorer(known=KNOWN, **data):
    fields = {"name": "pexels_cnn", "widths": (2,)}
    model = models.create(**fields)
    variables = networks.init(model, np.zeros((1, 16, 16, 3)))
    return Restorer(
        model, variables, ConfigDict({"model": fields, "data": data}), tile=64, known=known
    )


@pytest.fixture(scope="module")
def restorer():
    return make_restorer()


def photograph(sigma, seed=0, side=96):
    """A ramp with noise of a known standard deviation, uint8 [side, side, 3]."""
    ramp = np.linspace(60, 190, side)[:, None, None] * np.ones((1, side, 3))
    noise = sigma * np.random.default_rng(seed).standard_normal(ramp.shape)
    return np.clip(np.round(ramp + noise), 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    (path / "b").mkdir(parents=True)
    Image.fromarray(photograph(4.0)).save(path / "good.png")
    Image.fromarray(photograph(30.0)).save(path / "b" / "noisy.png", compress_level=0)
    Image.fromarray(photograph(30.0, 1)).save(path / "noisy.jpg", quality=100, subsampling=0)
    (path / "bad.png").write_bytes(b"nothing")
    return path


def restore(restorer, folder, output, file_format=None, **options):
    items = plan.plan([str(folder)], output, file_format)
    table = tables.table([str(folder)], output)
    outcome = run.restore_files(
        restorer, items, file_format=file_format, table=table, **options
    )
    return outcome, table


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(("sigma", "inside"), [(4.0, True), (30.0, False)])
def test_an_image_is_compared_with_the_range_of_the_model(restorer, sigma, inside):
    found = restorer.assess(photograph(sigma))
    assert isinstance(found, restore_jax.Assessment)
    assert [channel.value for channel in found.noise] == pytest.approx([sigma] * 3, rel=0.15)
    assert found.overall_noise == pytest.approx(sigma, rel=0.1)
    assert found.inside is inside
    assert [reason.split()[0] for reason in found.reasons] == ["noise"] * (not inside)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.inside = None


def test_the_scale_and_the_alpha_of_an_image_do_not_matter(restorer):
    image = photograph(12.0)
    expected = restorer.assess(image).overall_noise
    opaque = np.concatenate([image, np.full((96, 96, 1), 255, np.uint8)], -1)
    twelve_bits = np.round(image * (4095 / 255)).astype(np.uint16)
    for same, white in (
        (opaque, None), (image / np.float32(255), None), (twelve_bits, 4095)
    ):  # fmt: skip
        assert restorer.assess(same, white).overall_noise == pytest.approx(expected, rel=0.01)
    grey = restorer.assess(image[..., 0])
    assert grey.noise == restorer.assess(image[..., :1]).noise
    assert len(grey.noise) == 1


def test_what_cannot_be_known_is_neither_inside_nor_outside(restorer):
    assert restorer.assess(np.zeros((5, 7), np.uint8)).inside is None
    assert make_restorer(known=None).assess(photograph(4.0)).inside is None
    blurred = Assessment((), (None, None), None, ())
    assert blurred.overall_noise is None


def test_without_measured_limits_those_of_the_law_hold():
    restorer = make_restorer(None, name="mvtec_ad", degradation={"preset": "kla"})
    assert restorer.assess(photograph(4.0)).inside is False
    assert restorer.assess(photograph(65.0)).inside is True


@pytest.mark.parametrize(
    ("image", "message"),
    [(np.zeros((2, 70, 70, 3)), "shape"), (np.full((9, 9), 7.0), "floats"), ([1], "list")],
)
def test_no_image_is_refused_in_one_line(restorer, image, message):
    with pytest.raises(ValueError, match=message) as found:
        restorer.assess(image)
    assert "\n" not in str(found.value)


def test_a_range_travels_with_the_weights(restorer, tmp_path):
    path = tmp_path / "a.safetensors"
    restore_jax.save_weights(
        path, restorer.variables, restorer.config, metadata={"known_range": KNOWN.as_text()}
    )
    assert restore_jax.load(path).known == KNOWN


def test_change_is_the_psnr_of_the_result_against_its_source():
    rng = np.random.default_rng(0)
    before = [rng.integers(0, 4096, (700, 20, 3), np.uint16) for _ in range(2)]
    after = [rng.integers(0, 4096, (700, 20, 3), np.uint16) for _ in range(2)]
    errors = (np.stack(before).astype(float) - np.stack(after)) / 4095
    expected = -10 * np.log10(np.mean(errors**2))
    assert assessment.change_in_db(before, after, 4095) == pytest.approx(expected, abs=1e-3)
    assert assessment.change_in_db(before, before, None) == np.inf
    alpha = np.zeros((4, 4, 4), np.uint8)
    assert assessment.change_in_db([alpha], [alpha + np.uint8([0, 0, 0, 9])], None) == np.inf


def test_every_file_has_a_row_and_one_outside_a_line(restorer, folder, tmp_path, capfd):
    output = tmp_path / "out"
    outcome, table = restore(restorer, folder, output)
    assert (outcome.restored, outcome.copied, outcome.outside) == (3, 0, 2)
    assert len(outcome.failed) == 1
    rows = rows_of(output / "restore.csv")
    assert list(rows) == ["b/noisy.png", "bad.png", "good.png", "noisy.jpg"]
    assert {row.file for row in table.rows} == set(rows)
    assert [row["range"] for row in rows.values()] == [
        "outside", "unknown", "inside", "outside"
    ]  # fmt: skip
    assert rows["bad.png"]["action"] == "failed" and "bad.png" in rows["bad.png"]["error"]
    for name in ("b/noisy.png", "good.png"):
        before, after = (
            np.asarray(Image.open(at / name)).astype(float) for at in (folder, output)
        )
        change = 10 * np.log10(255**2 / np.mean((after - before) ** 2))
        assert float(rows[name]["change_db"]) == pytest.approx(change, abs=0.01)
    assert float(rows["good.png"]["noise"]) == pytest.approx(4.0, rel=0.1)
    lines = [line for line in capfd.readouterr().err.splitlines() if "outside" in line]
    assert len(lines) == 2
    assert all("noise of" in line and "restored all the same" in line for line in lines)
    assert "2 outside of what the model knows" in (
        run.format_outcome(dataclasses.replace(outcome, failed=[]), output)
    )


def test_files_outside_are_left_alone_if_asked_for(restorer, folder, tmp_path, capfd):
    output = tmp_path / "out"
    outcome, _ = restore(restorer, folder, output, skip_outside=True)
    assert (outcome.restored, outcome.copied, outcome.outside) == (1, 2, 2)
    for name in ("b/noisy.png", "noisy.jpg"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()
    assert (output / "good.png").read_bytes() != (folder / "good.png").read_bytes()
    assert capfd.readouterr().err.count("copied unchanged") == 2
    rows = rows_of(output / "restore.csv")
    assert rows["noisy.jpg"]["action"] == "copied unchanged"
    assert rows["noisy.jpg"]["change_db"] == ""
    assert "2 of them copied unchanged" in (
        run.format_outcome(dataclasses.replace(outcome, failed=[]), output)
    )


def test_a_file_left_alone_has_the_format_that_was_asked_for(restorer, folder, tmp_path):
    output = tmp_path / "out"
    restore(restorer, folder, output, "png", skip_outside=True)
    with Image.open(output / "noisy.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(image, Image.open(folder / "noisy.jpg"))
    assert (output / "b/noisy.png").read_bytes() == (folder / "b/noisy.png").read_bytes()


def test_a_good_photograph_that_was_changed_is_named(tmp_path, capfd):
    # An untrained model changes everything; of little noise and no blur, that is suspicious.
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    image = np.full((256, 256, 1), 120.0)
    for _ in range(60):
        cy, cx, radius = rng.uniform(0, 256), rng.uniform(0, 256), rng.uniform(3, 25)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(60, 190)
    image = ndimage.gaussian_filter(image, (0.8, 0.8, 0.0))  # as of a lens
    noise = rng.standard_normal((256, 256, 3))
    folder = tmp_path / "in"
    folder.mkdir()
    for name, sigma in (("good.png", 0.7), ("noisy.png", 5.0)):
        Image.fromarray(np.round(image + sigma * noise).astype(np.uint8)).save(folder / name)
    _, table = restore(make_restorer(), folder, tmp_path / "out")
    assert "good.png: little noise and blur, but changed (" in capfd.readouterr().err
    reasons = {row.file: row.as_columns()["reason"] for row in table.rows}
    assert reasons["good.png"].startswith("little noise") and not reasons["noisy.png"]
    change = next(row.change_db for row in table.rows if row.file == "good.png")
    assert change < 45
    found = table.rows[0].assessment
    assert found.doubt(44.9) and not found.doubt(45.0)
    # Noise of 5 grey levels, removed altogether, is a change of 34.2 dB.
    noisy = table.rows[1].assessment
    assert "but hardly changed (60.0 dB)" in noisy.doubt(60.0)
    assert not noisy.doubt(40.0) and not noisy.doubt(None)


def test_without_an_assessment_nothing_is_outside(restorer, folder, tmp_path):
    output = tmp_path / "out"
    outcome, _ = restore(restorer, folder, output, assesses=False)
    assert (outcome.restored, outcome.outside) == (3, 0)
    row = rows_of(output / "restore.csv")["noisy.jpg"]
    assert (row["noise"], row["range"], row["action"]) == ("", "unknown", "restored")


def test_a_folder_all_outside_is_copied(restorer, folder, tmp_path):
    outcome, _ = restore(restorer, folder / "b", tmp_path / "out", skip_outside=True)
    assert (outcome.restored, outcome.copied, outcome.failed) == (0, 1, [])


def test_the_rows_of_an_earlier_run_are_kept(restorer, folder, tmp_path):
    output = tmp_path / "out"
    restore(restorer, folder, output)
    (folder / "bad.png").unlink()
    Image.fromarray(photograph(6.0)).save(folder / "new.png")
    outcome, table = restore(restorer, folder, output)
    assert (outcome.restored, outcome.skipped) == (1, 3)
    assert [row.file for row in table.rows] == ["new.png"]
    assert len(rows_of(output / "restore.csv")) == 5
    restore(restorer, folder, output, overwrite=True)
    assert len(rows_of(output / "restore.csv")) == 5


def test_rows_are_written_even_if_the_model_fails(restorer, folder, tmp_path, monkeypatch):
    def fail(images, **_):
        images = iter(images)
        next(images)
        next(images)
        raise RunError("no memory")

    monkeypatch.setattr(restorer, "restore_many", fail)
    with pytest.raises(RunError, match="no memory"):
        restore(restorer, folder, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "restore.csv")
    assert rows["bad.png"]["action"] == "failed"


@pytest.mark.parametrize(
    "content",
    [b"a,b\n1,2\n", b"", b"\xff\xfe\x00", ",".join(tables.COLUMNS).encode() + b"\na,b\n"],
)
def test_a_table_of_the_user_is_never_replaced(tmp_path, content):
    path = tmp_path / "restore.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"restore\.csv.*move it") as found:
        tables.table([str(tmp_path)], tmp_path)
    assert "\n" not in str(found.value)
    assert path.read_bytes() == content


def test_a_table_that_cannot_be_written_is_said_in_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    table = Table(tmp_path / "restore.csv")
    table.path = blocked / "restore.csv"
    table.rows.append(Row("a.png", "in/a.png", tables.FAILED))
    with pytest.raises(RunError, match="cannot be written"):
        table.write()


def test_any_name_and_text_can_be_read_back(tmp_path):
    found = Assessment((Estimate(3.0, 0.1),), (Estimate(1.25, 0.1), None), True, ())
    name = 'a, "b"\nü.png'
    with Table(tmp_path / "restore.csv") as table:
        table.add(Row(name, os.fsdecode(b"in/\xff.png"), tables.RESTORED, found, 31.5))
    row = rows_of(tmp_path / "restore.csv")[name]
    assert (row["noise"], row["blur_x"], row["blur_y"]) == ("3.00", "1.25", "")
    assert (row["range"], row["change_db"]) == ("inside", "31.50")


def test_a_single_file_has_no_table_and_a_shard_its_own(folder, tmp_path):
    assert tables.table([str(folder / "good.png")], tmp_path) is None
    assert tables.table([str(folder)], tmp_path, "1/1").path.name == "restore.csv"
    assert tables.table([str(folder)], tmp_path, "2/3").path.name == "restore-2-of-3.csv"
