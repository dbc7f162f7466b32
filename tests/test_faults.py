"""What comes over a training from outside: kills, signals, damage, full disks, devices."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.parallel import signals
from restore_jax.train import loop
from restore_jax.train.logs import Logs
from tests.support import checkpoints, child, kills, tiny

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("compiled_once")


def run(config, folder, make_data=tiny.data, devices=1):
    return loop.train(config, folder, make_data, jax.devices()[:devices])


def config(epochs=3, every_steps=0, **train_fields):
    fields = tiny.config(epochs=epochs, **train_fields)
    fields.checkpoint.every_steps = every_steps
    return fields


def is_same(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def steps_of(folder):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return sorted(manager.all_steps())


def record_of(folder, step):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return manager.metrics(step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    """Three epochs of three steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(config(), folder)


def assert_ends_as(whole, folder, **fields):
    state = run(config(**fields), folder)
    assert is_same(state, whole[1])
    assert (folder / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    with checkpoint.open_manager(folder, read_only=True) as manager:
        best = checkpoint.find_step(manager, "best", folder)
        found = checkpoints.restore(manager, best, state)
    with checkpoint.open_manager(whole[0], read_only=True) as manager:
        assert checkpoint.find_step(manager, "best", whole[0]) == best
        expected = checkpoints.restore(manager, best, state)
    assert is_same(found[0], expected[0])
    assert found[1] == expected[1]


def disturbed(at_step=None, at_validation=None, act=None):
    """Data that do something as the batch of a step, or of a validation, is asked for."""

    def make(settings):
        data = tiny.data(settings)
        validations = iter(range(1, 100))

        def train_batches(step):
            for number, batch in enumerate(data.train_batches(step), step + 1):
                if number == at_step:
                    act()
                yield batch

        def eval_batches(split):
            number = next(validations)
            for i, batch in enumerate(data.eval_batches(split)):
                if number == at_validation and i == 1:
                    act()
                yield batch

        return dataclasses.replace(data, train_batches=train_batches, eval_batches=eval_batches)

    return make


def send(*numbers):
    def act():
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


# Steps within epochs, the last one of an epoch, before whose validation it then ends, the last
# of all, and validations.
@pytest.mark.parametrize(
    ("where", "saved", "epoch", "number"),
    [
        ({"at_step": 2}, 2, 1, signal.SIGINT),
        ({"at_step": 6}, 6, 2, signal.SIGTERM),
        pytest.param({"at_step": 9}, 9, 3, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param({"at_validation": 1}, 3, 1, signal.SIGTERM, marks=pytest.mark.slow),
        ({"at_validation": 3}, 9, 3, signal.SIGINT),
    ],
    ids=str,
)
def test_a_signal_ends_the_step_saves_and_the_run_goes_on_to_the_same_bits(
    whole, tmp_path, capfd, where, saved, epoch, number
):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(signals.Interrupted) as stopped:
        run(config(), tmp_path / "run", disturbed(**where, act=send(number)))
    name = number.name
    assert re.fullmatch(
        rf"stopped by {name} after step {saved}, in epoch {epoch} of 3; everything is saved in "
        ".*/run, and the same command resumes from there",
        str(stopped.value),
    )
    assert stopped.value.exit_status == {"SIGTERM": 143, "SIGINT": 130}[name]
    assert f"{name}: finishing the step, saving" in capfd.readouterr().err
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert steps_of(tmp_path / "run")[-1] == saved
    assert record_of(tmp_path / "run", saved)["epoch"] == epoch - 1
    assert_ends_as(whole, tmp_path / "run")


def test_a_signal_as_an_epoch_ends_keeps_the_checkpoint_with_its_figures(
    whole, tmp_path, monkeypatch
):
    write = Logs.write

    def write_and_send(self, step, epoch, split, figures):
        write(self, step, epoch, split, figures)
        if (epoch, split) == (2, "val"):
            send(signal.SIGTERM)()

    monkeypatch.setattr(Logs, "write", write_and_send)
    with pytest.raises(signals.Interrupted, match="after step 6, in epoch 3 of 3"):
        run(config(), tmp_path / "run")
    assert "ssim" in record_of(tmp_path / "run", 6)
    monkeypatch.undo()
    assert_ends_as(whole, tmp_path / "run")


def test_stopped_again_and_again_it_still_ends_in_the_same_bits(whole, tmp_path):
    for step in (2, 5, 8):
        with pytest.raises(signals.Interrupted, match=f"after step {step},"):
            run(config(), tmp_path / "run", disturbed(step, act=send(signal.SIGTERM)))
    assert_ends_as(whole, tmp_path / "run")


def test_a_second_ctrl_c_stops_at_once_and_nothing_is_lost(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(
            config(),
            tmp_path / "run",
            disturbed(5, act=send(signal.SIGINT, signal.SIGINT)),
        )
    assert steps_of(tmp_path / "run") == [3]
    assert_ends_as(whole, tmp_path / "run")


def test_signals_are_left_alone_outside_the_main_thread(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    states = []
    thread = threading.Thread(target=lambda: states.append(run(config(), tmp_path / "run")))
    thread.start()
    thread.join()
    assert is_same(states[0], whole[1])
    assert signal.getsignal(signal.SIGTERM) is before


def stops(at_step):
    def act():
        raise ConnectionError("gone")

    return disturbed(at_step, act=act)


@pytest.mark.parametrize(("at_step", "saved"), [(2, 0), (6, 4)])
def test_checkpoints_within_an_epoch_resume_there(whole, tmp_path, capsys, at_step, saved):
    with pytest.raises(ConnectionError):
        run(config(every_steps=2), tmp_path / "run", stops(at_step))
    # Whether or not to save in between may be changed; of a crash the epoch's lines are gone.
    assert_ends_as(whole, tmp_path / "run", every_steps=1)
    assert (f"resuming from step {saved}" in capsys.readouterr().out) == (saved > 0)


def test_a_checkpoint_within_an_epoch_is_due_where_no_validation_is(tmp_path):
    fields = config(epochs=4, every_steps=3)
    fields.eval.every_epochs = 4
    run(fields, tmp_path / "straight")
    with pytest.raises(ConnectionError):
        run(fields, tmp_path / "run", stops(8))
    assert steps_of(tmp_path / "run") == [3, 6]
    record = record_of(tmp_path / "run", 6)
    assert (record["epoch"], record["sums"], "ssim" in record) == (2, {}, False)
    run(fields, tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (
        tmp_path / "straight/metrics.jsonl"
    ).read_bytes()
    assert steps_of(tmp_path / "run") == [9, 12]


def test_a_negative_interval_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"config\.checkpoint\.every_steps: -1"):
        run(config(every_steps=-1), tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(tmp_path):
    told = []
    found = kills.kill_and_compare(tmp_path, 3, seed=1, tell=told.append, epochs=6)
    assert sum("in" in line for line in told) == 3
    assert not any(found)


def flip(folder, step):
    """Flips a bit in the middle of the arrays of a checkpoint."""
    files = (path for path in (folder / f"checkpoints/{step}").rglob("*") if path.is_file())
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def copy_of(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder, 9),
        lambda folder: shutil.rmtree(folder / "checkpoints/9/state"),
        lambda folder: (folder / "checkpoints/9/metrics/metrics").write_text('{"epoch": 3, "s'),
        lambda folder: [
            shutil.rmtree(folder / "checkpoints/9"),
            (folder / "checkpoints/9").mkdir(),
        ],
    ],
    ids=["a bit", "no arrays", "half a record", "an empty folder"],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_serves(
    whole, tmp_path, capfd, damage
):
    folder = copy_of(whole, tmp_path)
    damage(folder)
    assert_ends_as(whole, folder)
    out, err = capfd.readouterr()
    assert re.search(r"checkpoints/9: damaged \(.*\); moved to .*damaged/9\n", out)
    assert "resuming from step 6" in out
    assert "Traceback" not in err
    assert (folder / "damaged/9").is_dir()
    damage(folder)
    run(config(), folder)
    assert (folder / "damaged/9.2").is_dir()


def test_a_damaged_best_checkpoint_of_a_finished_run_is_set_aside(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path)
    path = folder / "checkpoints/6/metrics/metrics"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ssim": 0.99}))
    state = run(config(), folder)
    out = capsys.readouterr().out
    assert re.search(r"checkpoints/6: damaged \(its record changed\).*\n.*finished", out)
    assert is_same(state, whole[1])
    assert 6 not in steps_of(folder)


def test_a_run_without_a_readable_checkpoint_is_refused_and_left_as_it_is(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    for step in steps_of(folder):
        flip(folder, step)
    with pytest.raises(RunError, match=r"none of its checkpoints can be read \(9: .*; 6: "):
        run(config(), folder)
    assert steps_of(folder) == steps_of(whole[0])
    assert not (folder / "damaged").exists()


def test_damaged_lines_cost_only_themselves_and_are_kept(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0][:20], *lines[1:], "[1]", "{"]))
    shutil.rmtree(folder / "checkpoints/9")
    run(config(), folder)
    assert "metrics.jsonl: damaged, 1 of 2 epochs are missing" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_text().splitlines() == lines[1:]
    assert (folder / "damaged/metrics.jsonl").read_text().startswith(lines[0][:20])


def test_a_run_without_its_records_goes_on(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path)
    (folder / "metrics.jsonl").unlink()
    shutil.rmtree(folder / "checkpoints/9")
    assert is_same(run(config(), folder), whole[1])
    assert "metrics.jsonl: missing; a new one starts" in capsys.readouterr().out


def test_a_run_killed_as_it_began_is_taken_up(whole, tmp_path):
    folder = tmp_path / "run"
    with workdir.held(folder):
        (folder / ".tmp-99-config.json").write_text('{"na')
        (folder / ".tmp-99-6").mkdir()
    assert_ends_as(whole, folder)
    assert not list(folder.glob(".tmp*"))


def on_a_small_disk(tmp_path, size):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    return place


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_with_room(tmp_path):
    place = on_a_small_disk(tmp_path, "5m")
    try:
        filler = place / "filler"
        process = kills.start(place / "run", epochs=20)
        while process.poll() is None and not checkpoint.latest_step(place / "run"):
            time.sleep(0.05)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 14))
        _, errors = process.communicate()
        assert process.returncode == 1, errors
        assert "Traceback" not in errors
        assert re.search(
            r"^error: .*(no checkpoint can be written|No space left)", errors, re.M
        )
        kept = steps_of(place / "run")
        assert kept
        filler.unlink()
        process = kills.start(place / "run", epochs=20)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert steps_of(place / "run")[-1] == 60
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("target", ["metrics.jsonl", "events", "curves.png"])
def test_a_disk_that_fills_up_under_the_logs_is_one_line(whole, tmp_path, monkeypatch, target):
    def full(*_):
        raise OSError(28, "No space left on device", target)

    place = {
        "metrics.jsonl": ("restore_jax.train.logs.Logs.write", full),
        "events": ("restore_jax.train.logs._Events.flush", full),
        "curves.png": ("restore_jax.report.plots.draw_curves", full),
    }[target]
    monkeypatch.setattr(*place)
    with pytest.raises(
        RunError, match=f"{target}: No space left on device; the training stops"
    ):
        run(config(), tmp_path / "run")
    monkeypatch.undo()
    assert_ends_as(whole, tmp_path / "run")


def losses_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["split"], record["loss"]) for record in map(json.loads, lines)]


# With BatchNorm and a discriminator, which have the most to exchange.
EXPERIMENT = "pexels_gan"


def train_on_eight(folder):
    """Trains on eight devices, of which this process has too few."""
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.child", EXPERIMENT, str(folder)),
            *("--devices=8", "--batch_size=8"),
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        check=True,
    )


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_losses(tmp_path):
    fields = child.config(EXPERIMENT, batch_size=8)
    for devices in (1, 2, 4):
        run(fields, tmp_path / str(devices), child.data, devices)
    train_on_eight(tmp_path / "8")
    expected = losses_of(tmp_path / "1")
    assert len(expected) == 3  # two epochs, validated at the end
    for folder in (tmp_path / "2", tmp_path / "4", tmp_path / "8"):
        for (split, loss), (same, value) in zip(losses_of(folder), expected, strict=True):
            assert split == same
            # The biases before a BatchNorm have no gradient but rounding, which Adam scales up.
            # Training takes what they drift by out again; the running means lag behind it.
            assert loss == pytest.approx(value, rel=2e-3 if split == "val" else 1e-5), folder


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_program_ends_with_a_line_that_says_how_to_go_on(tmp_path, number, status):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable, "launch.py", "--config=configs/sca_unet.py:sample",
            "--config.data.image_size=32", "--config.data.sample_size=48",
            "--config.data.sample_count=2", "--config.model.widths=(2, 4)",
            "--config.train.epochs=100000", f"--workdir={folder}",
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not checkpoint.latest_step(folder):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    step = re.fullmatch(rf"error: stopped by {number.name} after step (\d+), in .*", last)[1]
    assert steps_of(folder)[-1] == int(step)
