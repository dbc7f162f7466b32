import collections
import csv
import functools
import itertools
import os
import pathlib
import shutil
import tempfile
import threading
import time

import numpy as np
import pytest
import tifffile
from ml_collections import ConfigDict
from PIL import Image

from restore_jax import models
from restore_jax.degradation import digital_gain
from restore_jax.errors import RunError, UsageError
from restore_jax.folders import plan, read_ahead, run
from restore_jax.folders import table as tables
from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import ImageFileError, Photograph
from restore_jax.inference.restorer import Restorer
from tests.support import image_fuzz, networks


@pytest.fixture(scope="module")
def restorer():
    fields = {"name": "sca_unet", "widths": (2, 4)}
    model = models.create(**fields)
    variables = networks.init(model, np.zeros((1, 16, 16, 3)))
    config = ConfigDict({"model": fields})
    return Restorer(model, variables, config, tile=32, batch_size=4)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "in"
    for i, name in enumerate(("a.png", "b/a.png", "b/c.bmp", "b/d/e.tif")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24 + i, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def restore_folder(restorer, folder, output, **options):
    items = plan.plan([str(folder)], output, options.get("file_format"))
    return run.restore_files(restorer, items, **options)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_comes_back_restored(restorer, photographs, tmp_path):
    outcome = restore_folder(restorer, photographs, tmp_path / "out")
    assert (outcome.restored, outcome.skipped, outcome.failed) == (4, 0, [])
    assert names(tmp_path / "out") == ["a.png", "b/a.png", "b/c.bmp", "b/d/e.tif"]
    for name in names(photographs):
        before = np.asarray(Image.open(photographs / name))
        after = np.asarray(Image.open(tmp_path / "out" / name))
        np.testing.assert_array_equal(after, restorer(before))
        assert np.any(after != before)
    assert "4 images restored into" in run.format_outcome(outcome, tmp_path)


def test_every_picture_of_a_stack_is_restored(restorer, photographs, tmp_path):
    stack = np.random.default_rng(0).integers(0, 65536, (5, 20, 30), np.uint16)
    for name in ("b/stack.tif", "b/z.tif"):
        tifffile.imwrite(photographs / name, stack, imagej=True, metadata={"axes": "ZYX"})
    outcome = restore_folder(restorer, photographs, tmp_path / "out")
    assert (outcome.restored, outcome.failed) == (6, [])
    expected = np.stack([restorer(plane) for plane in stack])
    for name in ("b/stack.tif", "b/z.tif"):
        with tifffile.TiffFile(tmp_path / "out" / name) as tiff:
            assert tiff.series[0].axes == "ZYX"
            np.testing.assert_array_equal(tiff.asarray(), expected)
    after = np.asarray(Image.open(tmp_path / "out" / "b/d/e.tif"))
    np.testing.assert_array_equal(
        after, restorer(np.asarray(Image.open(photographs / "b/d/e.tif")))
    )
    items = plan.plan([str(photographs / "b/z.tif")], tmp_path / "first")
    run.restore_files(restorer, items, pages="first")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "first" / "z.tif"), expected[0])


def test_cameras_with_12_bits_keep_their_range(restorer, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 4001, (20, 30), np.uint16)
    levels[0, 0] = 4000
    Image.fromarray(levels).save(folder / "a.png")
    tag = (281, 3, 1, 4095, True)
    tifffile.imwrite(folder / "told.tif", levels, extratags=[tag], metadata=None)
    Image.fromarray((levels >> 4).astype(np.uint8)).save(folder / "eight.png")
    outputs = {}
    for white in (None, 4095, 65535):
        items = plan.plan([str(folder)], tmp_path / f"out{white}")
        outcome = run.restore_files(restorer, items, white=white, file_format=None)
        assert (outcome.restored, outcome.failed) == (3, [])
        outputs[white] = {item.relative.name: image_files.read(item.target) for item in items}
    expected = restorer(levels, white=4095)
    as_floats = restorer((levels / 4095).astype(np.float32))
    assert np.abs(expected - as_floats * 4095).max() <= 0.51
    assert expected.max() <= 4095 and expected.mean() > 200
    for white in (None, 4095):
        for name in ("a.png", "told.tif"):
            np.testing.assert_array_equal(outputs[white][name].pixels, expected)
    assert outputs[None]["told.tif"].white == 4095
    np.testing.assert_array_equal(outputs[65535]["a.png"].pixels, restorer(levels))
    for white in outputs:
        np.testing.assert_array_equal(
            outputs[white]["eight.png"].pixels, restorer((levels >> 4).astype(np.uint8))
        )
    items = plan.plan([str(folder / "a.png")], tmp_path / "low")
    outcome = run.restore_files(restorer, items, white=3000)
    assert "its levels reach 4,000, above the white 3,000" in outcome.failed[0]


def test_a_white_that_was_found_is_said(restorer, tmp_path, capsys):
    levels = np.full((8, 8), 3812, np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    items = plan.plan([str(tmp_path / "a.png")], tmp_path / "out")
    run.restore_files(restorer, items)
    assert (
        "4,095 (12 bits) is taken for white: no level is above 3,812; --white sets another"
        in capsys.readouterr().err
    )


def test_the_white_of_the_training_comes_before_a_guess(restorer, tmp_path, capsys):
    levels = np.random.default_rng(0).integers(0, 900, (20, 30), np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    config = restorer.config.copy_and_resolve_references()
    config.update(data={"white": 4095})
    trained = Restorer(restorer.model, restorer.variables, config, tile=restorer.options.tile)
    items = plan.plan([str(tmp_path / "a.png")], tmp_path / "out")
    run.restore_files(trained, items)
    assert "white: the model was trained with it" in capsys.readouterr().err
    found = image_files.read(tmp_path / "out" / "a.png").pixels
    np.testing.assert_array_equal(found, restorer(levels, white=4095))
    # Above it, the image is not from that camera.
    Image.fromarray(levels * 8).save(tmp_path / "a.png")
    run.restore_files(trained, items, overwrite=True)
    assert "8,191 (13 bits) is taken for white: no level" in capsys.readouterr().err


def test_what_is_passed_over_stands_in_the_summary(restorer, photographs, tmp_path):
    for name in ("x.heic", "b/y.heic", "b/note.txt"):
        (photographs / name).write_bytes(b"")
    passed_over = collections.Counter()
    items = plan.plan([str(photographs)], tmp_path / "out", passed_over=passed_over)
    outcome = run.restore_files(restorer, items)
    line = run.format_outcome(outcome, tmp_path / "out", passed_over)
    assert line.endswith("; passed over: 2 .heic, 1 .txt")


def test_the_limit_to_the_size_can_be_raised(restorer, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    wide = np.random.default_rng(0).integers(0, 256, (9, 40_000), np.uint8)
    Image.fromarray(wide).save(tmp_path / "in" / "scan.png")
    items = plan.plan([str(tmp_path / "in")], tmp_path / "out")
    outcome = run.restore_files(restorer, items, max_pixels=300_000)
    assert outcome.failed == [
        f"{tmp_path}/in/scan.png: has 40,000 × 9 pixels, more than 0.3 megapixels; "
        "--max_megapixels=1 allows it"
    ]
    assert run.restore_files(restorer, items, max_pixels=360_000).restored == 1
    with Image.open(tmp_path / "out" / "scan.png") as image:
        assert image.size == (40_000, 9)


def test_an_output_that_cannot_be_written_is_told_before_the_first_image(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"mine")
    for output in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(UsageError, match=r"--output=.*cannot be written to: "):
            plan.check_output(output)
    assert (tmp_path / "file").read_bytes() == b"mine"
    with pytest.raises(UsageError, match=r"--output=.*one\.PNG: looks like an image, but is"):
        plan.check_output(tmp_path / "one.PNG")
    plan.check_output(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", deny)  # the super-user may write everywhere
    with pytest.raises(UsageError, match="cannot be written to: Permission denied; name"):
        plan.check_output(tmp_path / "new")


def test_the_limit_to_the_size_is_in_millions():
    assert plan.pixel_limit(None) == image_files.MAX_PIXELS
    assert plan.pixel_limit(320) == 320_000_000
    with pytest.raises(UsageError, match="--max_megapixels=0: must be at least 1"):
        plan.pixel_limit(0)


def test_an_interrupted_run_goes_on_where_it_was(restorer, photographs, tmp_path, monkeypatch):
    output, write = tmp_path / "out", image_files.write
    calls = itertools.count()

    def dies(path, *rest):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(image_files, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        restore_folder(restorer, photographs, output)
    done = {name: (output / name).stat().st_mtime_ns for name in names(output)}
    assert 1 <= len(done) < 4
    monkeypatch.setattr(image_files, "write", write)
    outcome = restore_folder(restorer, photographs, output)
    assert (outcome.restored, outcome.skipped) == (4 - len(done), len(done))
    assert names(output) == names(photographs)  # and no half-written file
    for name, written in done.items():
        assert (output / name).stat().st_mtime_ns == written
    assert "skipped, as they exist" in run.format_outcome(outcome, output)
    again = restore_folder(restorer, photographs, output, overwrite=True)
    assert (again.restored, again.skipped) == (4, 0)


def test_what_was_written_before_ctrl_c_stands_in_the_table(
    restorer, photographs, tmp_path, monkeypatch
):
    output, write, restore_many = tmp_path / "out", image_files.write, restorer.restore_many

    def slowly(path, *rest):
        time.sleep(0.1)
        return write(path, *rest)

    def stopped(pages):
        yield from itertools.islice(restore_many(pages), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(image_files, "write", slowly)
    monkeypatch.setattr(restorer, "restore_many", stopped)
    output.mkdir()
    with pytest.raises(KeyboardInterrupt):
        restore_folder(
            restorer, photographs, output, table=tables.Table(output / "restore.csv")
        )
    done = [name for name in names(output) if name != "restore.csv"]
    with (output / "restore.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == done and len(done) == 3


def test_a_picture_beside_one_is_not_written_over_another(photographs, tmp_path):
    output = tmp_path / "out"
    (photographs / "trust").mkdir()
    shutil.copy(photographs / "a.png", photographs / "trust" / "a.png.heat.png")
    items = plan.plan([str(photographs)], output)
    beside = functools.partial(run.files_beside, items)
    plan.check_beside(items, beside(output / "compare", None))
    with pytest.raises(
        UsageError, match=r"trust/a\.png\.heat\.png: would be restored to .*a\.png"
    ):
        plan.check_beside(items, beside(None, output / "trust"))


def test_a_bad_file_is_told_of_and_the_rest_goes_on(restorer, photographs, tmp_path, capsys):
    (photographs / "b" / "bad.png").write_bytes(b"no image")
    (photographs / "empty.jpg").touch()
    outcome = restore_folder(restorer, photographs, tmp_path / "out")
    assert outcome.restored == 4
    assert len(outcome.failed) == 2
    told = capsys.readouterr().err
    for path, line in zip(("b/bad.png", "empty.jpg"), sorted(outcome.failed), strict=True):
        assert line.startswith(str(photographs / path))
        assert f"error: {line}" in told
    with pytest.raises(RunError, match=r"^2 failed, named above; 4 images restored"):
        run.format_outcome(outcome, tmp_path / "out")


def test_a_file_that_cannot_be_written_does_not_stop_the_others(
    restorer, photographs, tmp_path
):
    output = tmp_path / "out"
    output.mkdir()
    (output / "b").write_text("in the way of a folder")
    outcome = restore_folder(restorer, photographs, output)
    assert outcome.restored == 1
    assert len(outcome.failed) == 3
    assert (output / "b").read_text() == "in the way of a folder"


def test_a_batch_is_prepared_while_the_one_before_is_written(restorer, tmp_path, monkeypatch):
    """Nothing is written until all images of the next batch were taken in."""
    folder, batch = tmp_path / "in", 40
    folder.mkdir()
    for i in range(3 * batch):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:03d}.png")
    next_one, late, write = threading.Event(), [], image_files.write

    def slow(path, *rest):
        if not next_one.wait(timeout=20):
            late.append(path)
        return write(path, *rest)

    def restore_many(arrays):
        arrays = iter(arrays)
        images = list(itertools.islice(arrays, batch))
        while images:
            following = list(itertools.islice(arrays, batch))
            yield from (image.pixels for image in images)
            next_one.set()
            images = following

    monkeypatch.setattr(image_files, "write", slow)
    monkeypatch.setattr(restorer, "restore_many", restore_many)
    monkeypatch.setattr(restorer.options.__class__, "cut", (32, 8, batch))
    outcome = restore_folder(restorer, folder, tmp_path / "out")
    assert (outcome.restored, outcome.failed, late) == (3 * batch, [], [])


@pytest.mark.parametrize("side", [8, 600])
def test_few_images_wait_to_be_written(restorer, tmp_path, monkeypatch, side):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(60):
        Image.new("L", (side, side)).save(folder / f"{i:03d}.png")
    monkeypatch.setattr(run, "MOST_BYTES", 5 * 600 * 600)
    monkeypatch.setattr(read_ahead, "MOST_BYTES", 5 * 600 * 600)
    monkeypatch.setattr(run, "_threads", lambda: (4, 6))
    lock, write = threading.Lock(), image_files.write
    waiting, most = 0, 0

    def restore_many(arrays):
        nonlocal waiting, most
        for image in arrays:
            with lock:
                waiting += 1
                most = max(most, waiting)
            yield image.pixels

    def counted(*given):
        nonlocal waiting
        notes = write(*given)
        with lock:
            waiting -= 1
        return notes

    monkeypatch.setattr(image_files, "write", counted)
    monkeypatch.setattr(restorer, "restore_many", restore_many)
    assert restore_folder(restorer, folder, tmp_path / "out").restored == 60
    # Twice as many as there are threads, or as fit; one that comes, and one not yet told of.
    assert most <= (2 * 6 if side == 8 else 5) + 2


class Reader:
    """Reads photographs that it makes up, and counts the bytes that were not taken yet."""

    def __init__(self, monkeypatch, sizes, ahead_bytes):
        self.sizes, self.held, self.most, self.begun = sizes, 0, 0, []
        self.lock = threading.Lock()
        monkeypatch.setattr(read_ahead, "MOST_BYTES", ahead_bytes)

    def read(self, item):
        source = item.source
        number = int(source.name)
        size = self.sizes[number]
        with self.lock:
            self.begun.append(number)
            self.held += size
            self.most = max(self.most, self.held)
        if not size:
            raise ImageFileError(source, "is empty")
        return Photograph(np.zeros((size, 1), np.uint8))

    def take(self, threads, most):
        items = [plan.Item(*[pathlib.Path(str(i))] * 3) for i in range(len(self.sizes))]
        failed = []
        with read_ahead.ReadAhead(items, threads, most, self.read) as reading:
            for item, photograph in reading.take(lambda item, error: failed.append(item)):
                assert photograph.pixels.size == self.sizes[int(item.source.name)]
                yield int(item.source.name)
                with self.lock:
                    self.held -= photograph.pixels.size
        assert [int(item.source.name) for item in failed] == [
            i for i, size in enumerate(self.sizes) if not size
        ]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("most", [1, 3, 40])
def test_images_are_read_ahead_in_order(monkeypatch, threads, most):
    sizes = [1, 0, 2, 0, 0, 3, *range(200), 0]
    reader = Reader(monkeypatch, sizes, 10**6)
    assert list(reader.take(threads, most)) == [i for i, size in enumerate(sizes) if size]
    assert sorted(reader.begun) == list(range(len(sizes)))


def test_a_batch_is_read_ahead_while_nobody_takes_any(monkeypatch):
    reader = Reader(monkeypatch, [5] * 100, 10**6)
    taken = reader.take(4, 36)
    for _ in range(10):
        next(taken)
    # The threads go on by themselves.
    for _ in range(1000):
        if len(reader.begun) >= 9 + 36:
            break
        threading.Event().wait(0.01)
    assert 9 + 36 <= len(reader.begun) <= 10 + 36
    taken.close()


def test_what_is_read_ahead_is_bounded_by_its_size(monkeypatch):
    threads, limit = 4, 1000
    reader = Reader(monkeypatch, [90] * 200, limit)
    assert len(list(reader.take(threads, 40))) == 200
    assert reader.most <= limit + 90  # and the one that was taken
    # Where they become large, as many as there are threads may come unexpected.
    reader = Reader(monkeypatch, [1] * 100 + [900] * 100, limit)
    assert len(list(reader.take(threads, 40))) == 200
    assert reader.most <= limit + (threads + 1) * 900


def test_reading_ends_with_whoever_takes_the_images(monkeypatch):
    reader = Reader(monkeypatch, [5] * 1000, 10**6)
    taken = reader.take(4, 36)
    next(taken)
    taken.close()
    assert len(reader.begun) <= 1 + 36


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, (4, 4)), (2, (4, 4)), (16, (4, 16)), (32, (8, 32)), (224, (16, 32))],
)
def test_threads_are_as_many_as_the_cores_can_use(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    assert run._threads() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert run._threads() == expected


def test_another_format_and_pictures_of_both(restorer, photographs, tmp_path):
    output = tmp_path / "out"
    outcome = restore_folder(
        restorer, photographs, output, file_format="webp", comparisons=output / "compare"
    )
    assert outcome.restored == 4
    assert names(output) == [
        "a.webp", "b/a.webp", "b/c.webp", "b/d/e.webp", "compare/a.webp.png",
        "compare/b/a.webp.png", "compare/b/c.webp.png", "compare/b/d/e.webp.png",
    ]  # fmt: skip
    before = np.asarray(Image.open(photographs / "a.png"))
    after = np.asarray(Image.open(output / "a.webp"))
    both = np.asarray(Image.open(output / "compare" / "a.webp.png"))
    np.testing.assert_array_equal(both[:, :24], before)
    np.testing.assert_array_equal(both[:, -24:], after)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pictures_of_both_are_of_8_bits_of_rgb(dtype):
    white = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    before, after = np.full((4, 5), white, dtype), np.zeros((4, 5), dtype)
    both = run._side_by_side(before, after)
    assert both.shape == (4, 18, 3)
    assert both.dtype == np.uint8
    assert (both[:, :13] == 255).all()
    assert (both[:, 13:] == 0).all()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_share_the_images_out(tmp_path, parts):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(40):
        Image.new("L", (4, 4)).save(folder / f"{i}.png")
    shares = [
        {
            item.source
            for item in plan.plan([str(folder)], tmp_path / "out", shard=f"{i + 1}/{parts}")
        }
        for i in range(parts)
    ]
    assert sum(len(share) for share in shares) == 40
    assert set().union(*shares) == set(folder.iterdir())
    assert all(shares)
    (folder / "new.png").write_bytes((folder / "0.png").read_bytes())
    after = plan.plan([str(folder)], tmp_path / "out", shard=f"1/{parts}")
    assert {item.source for item in after} - {folder / "new.png"} == shares[0]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
def test_a_wrong_shard_is_refused(tmp_path, shard):
    with pytest.raises(UsageError, match=r"--shard=.*give I/N"):
        plan.plan([str(tmp_path)], tmp_path / "out", shard=shard)


def test_files_of_every_kind(restorer, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    cases = list(image_fuzz.generate(folder, 200, seed=7))
    items = plan.plan([str(folder)], output)
    outcome = run.restore_files(restorer, items)
    assert outcome.restored + len(outcome.failed) == len(items)
    targets = {item.source: item.target for item in items}
    good = [case for case in cases if case.good]
    assert len(good) > 80
    for case in good:
        before, after = image_files.read(case.path), image_files.read(targets[case.path])
        assert after.pixels.shape == before.pixels.shape, case
        assert after.pixels.dtype == before.pixels.dtype, case
        assert after.format == before.format, case
        loses_alpha = before.alpha is None or before.format == "GIF"
        assert (after.alpha is None) == loses_alpha, case
        expected = restorer(before.pixels)
        assert expected.shape == before.pixels.shape
        assert expected.dtype == before.pixels.dtype
    for line in outcome.failed:
        assert "\n" not in line
        assert "Traceback" not in line
    for case in cases:
        if case.good is False and case.path in targets:
            assert not targets[case.path].exists(), case


def test_gains_that_are_undone_are_measured_once_and_named(
    restorer, tmp_path, capsys, monkeypatch
):
    measured = []
    of_photograph = digital_gain.of_photograph
    monkeypatch.setattr(
        digital_gain,
        "of_photograph",
        lambda image: measured.append(image.shape) or of_photograph(image),
    )
    rng = np.random.default_rng(0)
    noisy = np.clip(np.rint(rng.normal(140, 40, (300, 300))), 0, 255)
    folder = tmp_path / "in"
    folder.mkdir()
    pages = [np.clip(np.rint(noisy * gain), 0, 255).astype(np.uint8) for gain in (1.0, 1.06)]
    Image.fromarray(pages[0]).save(folder / "plain.png")
    Image.fromarray(pages[1]).save(folder / "brighter.png")
    tifffile.imwrite(folder / "stack.tif", np.stack(pages), photometric="minisblack")
    undoing = restorer.with_options(undo_gain=True)
    assert restore_folder(undoing, folder, tmp_path / "out").restored == 3
    assert len(measured) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if "digital gain" in line]
    assert len(lines) == 2
    assert lines[0].startswith(f"{folder / 'brighter.png'}: digital gain of 1.06")
    assert lines[1].startswith(f"{folder / 'stack.tif'}: page 2: digital gain of 1.06")
