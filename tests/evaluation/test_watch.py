import functools
import json
import multiprocessing
import threading

import jax
import pytest

from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.errors import UsageError
from restore_jax.evaluation import evaluate as assess
from restore_jax.evaluation import watch
from restore_jax.train import loop
from tests.support import tiny

ONE = jax.devices()[:1]
data = functools.partial(tiny.data, held_out=2)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)


def test_every_checkpoint_that_is_there_is_evaluated_while_the_training_runs(
    tmp_path, monkeypatch, capsys
):
    folder, config = tmp_path / "run", tiny.config(epochs=3)
    evaluated, saved = threading.Event(), checkpoint.save

    def save_and_wait(manager, *rest):
        saved(manager, *rest)
        manager.wait_until_finished()
        evaluated.wait(60)
        evaluated.clear()

    monkeypatch.setattr(checkpoint, "save", save_and_wait)
    evaluate = assess.evaluate_checkpoint

    def evaluate_and_tell(*given):
        found = evaluate(*given)
        evaluated.set()
        return found

    monkeypatch.setattr(assess, "evaluate_checkpoint", evaluate_and_tell)
    calls = []

    def make_data(settings):
        calls.append(settings)
        return data(settings)

    training = threading.Thread(target=loop.train, args=(config, folder, data, ONE))
    training.start()
    while not (folder / "config.json").exists():
        pass
    steps = watch.watch(folder, make_data, devices=ONE)
    training.join()
    assert steps == [3, 6, 9]
    assert len(calls) == 1
    for step in steps:
        metrics = folder / "evaluation" / f"sample-{step}" / "metrics.json"
        assert json.loads(metrics.read_text())["checkpoint"]["step"] == step
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()[0].isdigit()] == ["3", "6", "9"]
    assert "no training is running; 3 of 3 epochs are done." in lines[-1]


def test_a_run_that_has_ended_is_evaluated_once(tmp_path):
    folder = tmp_path / "run"
    loop.train(tiny.config(), folder, data, ONE)
    assert watch.watch(folder, data, devices=ONE) == [6]


def test_a_checkpoint_that_vanishes_is_passed_over(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    loop.train(tiny.config(), folder, data, ONE)
    steps = iter([4, 6, 6])
    monkeypatch.setattr(checkpoint, "latest_step", lambda folder: next(steps))
    assert watch.watch(folder, data, devices=ONE) == [6]


def test_nothing_to_watch_is_said(tmp_path):
    with pytest.raises(UsageError, match="no run in it"):
        watch.watch(tmp_path, data)
    workdir.claim(tmp_path / "new", tiny.config())
    with pytest.raises(UsageError, match="no checkpoint in it and no training is running"):
        watch.watch(tmp_path / "new", data)


def _hold(folder, holding, release):
    with workdir.held(folder):
        holding.set()
        release.wait(30)


def test_two_trainings_never_share_a_workdir(tmp_path):
    context = multiprocessing.get_context("spawn")
    folder, holding, release = tmp_path / "run", context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder, holding, release))
    other.start()
    assert holding.wait(60)
    assert workdir.is_held(folder)
    with pytest.raises(UsageError, match="another training is running in it"):
        loop.train(tiny.config(), folder, data, ONE)
    other.kill()
    other.join()
    assert not workdir.is_held(folder)
    with workdir.held(folder):
        assert workdir.is_held(folder)
    assert not (folder / "config.json").exists()
