"""Verdicts without the true image, and the page of a restored folder."""

import csv
import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage, stats

from restore_jax import models
from restore_jax.degradation.known_range import KnownRange
from restore_jax.errors import UsageError
from restore_jax.folders import plan, report, run, verdict
from restore_jax.folders import table as tables
from restore_jax.inference import assessment
from restore_jax.inference.restorer import Restorer
from restore_jax.report import restoration_page
from tests.support import networks
from tests.support.page import Page

KNOWN = KnownRange((0.0, 25.0), (0.0, 100.0), (0.0, 100.0))


def textured(seed, side=128, contrast=20.0):
    draws = np.random.default_rng(seed).normal(size=(side, side, 3))
    coarse = ndimage.gaussian_filter(draws, (10, 10, 0))
    fine = ndimage.gaussian_filter(draws, (1.5, 1.5, 0))
    return 128 + 20 * coarse / coarse.std() + contrast * fine / fine.std()


def stored(image):
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def judged(before, after):
    return verdict.judge(before, after, None, assessment.assess(before, None, KNOWN, False))


def wiener(image, sigma, power):
    """The best linear filter of an object of known spectrum, in noise."""
    spectrum = np.fft.fft2(image - 128, axes=(0, 1))
    return 128 + np.fft.ifft2(spectrum * power / (power + sigma**2), axes=(0, 1)).real


def test_files_are_ranked_by_their_true_psnr():
    true, expected = [], []
    for number in range(12):
        contrast, sigma = 2.0 + 3 * (number % 4), (5.0, 15.0, 40.0)[number // 4]
        clean = textured(number, contrast=contrast)
        noise = np.random.default_rng(100 + number).normal(0, sigma, clean.shape)
        before = stored(clean + noise)
        power = np.abs(np.fft.fft2(clean - 128, axes=(0, 1))) ** 2 / clean[..., 0].size
        power = ndimage.gaussian_filter(power, (3, 3, 0), mode="wrap")
        after = stored(wiener(before.astype(float), sigma, power))
        true.append(10 * np.log10(255**2 / np.mean((clean - after) ** 2)))
        expected.append(judged(before, after)[0].expected_psnr)
    assert stats.spearmanr(true, expected).statistic > 0.9


def test_a_verdict_does_not_depend_on_how_levels_are_stored():
    clean = textured(0)
    before = stored(clean + np.random.default_rng(1).normal(0, 15, clean.shape))
    after = stored(clean)
    plain = judged(before, after)[0]
    wide = judged(before.astype(np.uint16) * 257, after.astype(np.uint16) * 257)[0]
    for field in dataclasses.fields(plain):
        one, other = (getattr(found, field.name) for found in (plain, wide))
        assert one == other or one == pytest.approx(other, rel=1e-3), field.name
    assert plain.noise_after < 8 and plain.trust is None


def test_a_large_photograph_is_judged_in_its_quarters_and_shown_where_it_matters():
    clean = np.full((1100, 1200), 120.0)
    before = clean + np.random.default_rng(0).normal(0, 10, clean.shape)
    before[800:803, 850:950] -= 60
    found, picture = judged(stored(before), stored(clean))
    assert abs(found.place[0] - 801) < 40 and 840 < found.place[1] < 960
    assert picture.before.shape == picture.residual.shape == (384, 384, 3)
    shown = picture.residual[..., 0].astype(float)
    assert np.unravel_index(ndimage.uniform_filter(shown, 5).argmin(), shown.shape)[0] > 100


def test_a_photograph_too_small_or_without_noise_has_no_verdict():
    small = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    assert judged(small, small) is None
    white = np.full((128, 128), 255, np.uint8)
    assert judged(white, white) is None


def test_pictures_of_the_worst_are_kept_and_of_few_others():
    pictures = verdict.Pictures(worst=3, others=2)
    for score in np.random.default_rng(0).permutation(50):
        pictures.add(f"{score}", float(score), verdict.Picture(*[np.zeros((1, 1, 3))] * 3))
    kept = {int(name) for name in pictures.by_name}
    assert {0, 1, 2} < kept and len(kept) == 5


@pytest.fixture(scope="module")
def restorer():
    """A model of strength 0, which returns what it is given."""
    fields = {"name": "pexels_cnn", "widths": (2,)}
    model = models.create(**fields)
    variables = networks.init(model, np.zeros((1, 16, 16, 3)))
    config = ConfigDict({"model": fields, "data": {}})
    return Restorer(model, variables, config, tile=64, strength=0.0, known=KNOWN)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for number, sigma in enumerate((5, 60, 20)):
        noise = np.random.default_rng(number).normal(0, sigma, (96, 96, 3))
        Image.fromarray(stored(128 + noise)).save(tmp_path / f"in/{number}.png")
    (tmp_path / "in/bad<b>.png").write_bytes(b"no image")
    return tmp_path / "in"


def restore_folder(restorer, folder, output, **options):
    table = tables.table([str(folder)], output, always=True)
    page = report.Report(table)
    items = plan.plan([str(folder)], output)
    run.restore_files(restorer, items, table=table, pictures=page.pictures, **options)
    return page.write([str(folder)])


def test_the_page_of_a_folder(restorer, folder, tmp_path, capsys):
    output = tmp_path / "out"
    # The noise stays, so that the files are as bad as they are noisy: by the change of a model
    # that returns what it is given, nothing is known of it.
    assert "restore.html" in restore_folder(restorer, folder, output)
    capsys.readouterr()
    content = (output / "restore.html").read_text(encoding="utf-8")
    page = Page(content)
    assert "bad<b>.png" in page.text and "Failed:" in page.text
    assert "outside" in page.text and page.text.count("residual") > 3
    assert len([one for one in page.all("input") if one.get("type") == "range"]) == 3
    with (output / "restore.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert float(rows["1.png"]["noise_after"]) == pytest.approx(60, rel=0.1)
    assert rows["bad<b>.png"]["expected_psnr"] == "" != rows["0.png"]["expected_psnr"]

    # A second run that has nothing to do leaves the page; one more file keeps the others' rows.
    (folder / "bad<b>.png").unlink()
    assert "not written" in restore_folder(restorer, folder, output)
    assert (output / "restore.html").read_text(encoding="utf-8") == content
    Image.open(folder / "0.png").save(folder / "more.png")
    restore_folder(restorer, folder, output)
    capsys.readouterr()
    text = Page((output / "restore.html").read_text(encoding="utf-8")).text
    assert all(name in text for name in ("more.png", "0.png", "1.png", "2.png"))


def test_another_page_is_not_replaced(restorer, folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "restore.html").write_text("mine")
    with pytest.raises(UsageError, match="is not a page of restored files"):
        restore_folder(restorer, folder, output)
    assert (output / "restore.html").read_text() == "mine"


def row(file, expected, **changes):
    found = verdict.Verdict(expected, 1.0, 0.0, 0.0, (0, 0))
    changes = {"verdict": dataclasses.replace(found, **changes)} if expected else {}
    action = tables.RESTORED if expected else tables.COPIED
    return tables.Row(file, f"in/{file}", action, **changes).as_columns()


def test_the_worst_files_come_first():
    rows = [row("a.png", 30.0), row("b.png", 20.0), row("c.png", None), row("d.png", 25.0)]
    plane = np.zeros((40, 50, 3), np.uint8)
    pictures = {name: verdict.Picture(plane, plane, plane) for name in ("a.png", "b.png")}
    page = Page(restoration_page.render("in", rows, pictures))
    names = [one["data-value"] for one in page.all("th") if "data-value" in one]
    assert names == ["b.png", "d.png", "a.png", "c.png"]
    assert [one["id"] for one in page.all("article")] == ["file-0", "file-1"]
    assert "1 of 4" in page.text and "3 of 4" in page.text and "Error bar" not in page.text


def test_error_bars_and_detail_are_shown_where_they_are_known():
    rows = [row("a.png", 30.0, trust=4.2, structure=0.05), row("b.png", 31.0)]
    plane = np.zeros((40, 50, 3), np.uint8)
    text = Page(
        restoration_page.render("in", rows, {"a.png": verdict.Picture(plane, plane, plane)})
    ).text
    assert "± 4.2" in text and "Error bar" in text
    assert "The residual shows detail" in text


def test_a_folder_of_failures_has_a_page():
    failed = tables.Row("x.png", "in/x.png", tables.FAILED, error="damaged")
    text = Page(restoration_page.render("in", [failed.as_columns()], {})).text
    assert "No file was restored" in text and "in/x.png: damaged" in text
