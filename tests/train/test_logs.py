import json

import pytest
from tensorboard.backend.event_processing import event_accumulator

from restore_jax.report import plots
from restore_jax.train.logs import Logs, epochs_without_gain, read_records


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(plots, "draw_curves", lambda records, path: path.write_bytes(b"png"))


def write(folder, losses, step=0, epoch=0):
    """Logs epochs of three steps each, going on after an epoch."""
    with Logs(folder, step, epoch, 3) as logs:
        for number, loss in enumerate(losses, epoch + 1):
            logs.write(3 * number, number, "train", {"loss": loss, "defect_psnr": None})
            logs.write_speed(3 * number, 10.0)
            logs.refresh()


def scalars(folder, name):
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_lines_and_events_hold_the_same(tmp_path):
    write(tmp_path, [0.5, 0.25])
    assert [(record["step"], record["loss"]) for record in read_records(tmp_path)] == [
        (3, 0.5),
        (6, 0.25),
    ]
    assert scalars(tmp_path, "train/loss") == [(3, 0.5), (6, 0.25)]
    assert scalars(tmp_path, "train/images_per_second") == [(3, 10.0), (6, 10.0)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_going_on_takes_back_the_lines_and_hides_the_events_of_later_epochs(tmp_path):
    write(tmp_path, [0.5, 0.25, 0.125])
    write(tmp_path, [0.2, 0.1], step=4, epoch=1)
    assert [record["loss"] for record in read_records(tmp_path)] == [0.5, 0.2, 0.1]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert scalars(tmp_path, "train/loss") == [(3, 0.5), (6, 0.2), (9, 0.1)]


def test_a_damaged_line_is_left_out_and_those_after_it_are_not(tmp_path):
    lines = [
        json.dumps({"step": s, "epoch": s, "split": "val", "ssim": 0.1}) for s in (1, 2, 3)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        "\n".join([lines[0], lines[1][:9], lines[2], "7", "{}"]).encode() + b"\xff"
    )
    assert [record["step"] for record in read_records(tmp_path)] == [1, 3]


def test_epochs_since_the_best_validation():
    def records(*ssims):
        return [
            {"epoch": 2 * i, "split": split, "ssim": ssim}
            for i, ssim in enumerate(ssims, 1)
            for split in ("train", "val")
        ]

    assert epochs_without_gain([]) == 0
    assert epochs_without_gain(records(0.1)) == 0
    assert epochs_without_gain(records(0.1, 0.5, 0.4, 0.3)) == 4
    assert epochs_without_gain(records(0.1, 0.5, 0.4, 0.5)) == 0


def test_a_lost_file_begins_anew(tmp_path, capsys):
    write(tmp_path, [0.5, 0.25])
    (tmp_path / "metrics.jsonl").unlink()
    write(tmp_path, [0.125], step=6, epoch=2)
    assert "metrics.jsonl: missing; a new one starts without the 2 epochs trained so far" in (
        capsys.readouterr().out
    )
    assert [record["epoch"] for record in read_records(tmp_path)] == [3]
    assert not (tmp_path / "damaged").exists()


def test_the_place_of_a_damaged_file_is_told(tmp_path, capsys):
    write(tmp_path, [0.5, 0.25])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0][:9], lines[1]]))
    write(tmp_path, [], step=6, epoch=2)
    place = tmp_path / "damaged/metrics.jsonl"
    assert (
        f"damaged, 1 of 2 epochs are missing; the old file is now {place}\n"
        in capsys.readouterr().out
    )
    assert place.read_text().startswith(lines[0][:9])


def test_the_epoch_that_an_import_stands_in_for_is_not_missed(tmp_path, capsys):
    with Logs(tmp_path, 1, 0, 1) as logs:
        logs.write(1, 1, "val", {"ssim": 0.5})
        logs.write(2, 2, "train", {"loss": 0.5})
    before = (tmp_path / "metrics.jsonl").read_text()
    with Logs(tmp_path, 2, 2, 1):
        pass
    assert capsys.readouterr().out == ""
    assert (tmp_path / "metrics.jsonl").read_text() == before
    # With a damaged line it may have been that one.
    (tmp_path / "metrics.jsonl").write_text("{\n" + before)
    with Logs(tmp_path, 2, 2, 1):
        pass
    assert "damaged, 1 of 2 epochs are missing" in capsys.readouterr().out
