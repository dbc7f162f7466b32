import datetime

import jax
import pytest

from restore_jax import progress
from restore_jax.train import forecast, loop
from tests.support import tiny

NOON = datetime.datetime(2026, 11, 27, 12)


def test_a_training_of_days_is_told_when_it_ends_and_what_shortens_it():
    line = forecast.of_long_run(tiny.config(), 3 * 86_400, 1.0, NOON, "cpu")
    assert "2026-11-30 12:00, in 3.0 days" in line
    assert "(1 images/s)" in line
    assert "a GPU" in line
    assert "config.train.epochs" in line
    assert "config.data.image_size" in line
    assert "\n" not in line


def test_what_shortens_it_is_what_the_machine_and_the_configuration_lack():
    config = tiny.config()
    config.data.image_size = 0
    line = forecast.of_long_run(config, 10**6, 1.0, NOON, "gpu")
    assert "config.data.crop_size" in line
    assert "image_size" not in line
    assert "GPU" not in line


@pytest.mark.parametrize(("left", "rate"), [(86_400, 1.0), (10**9, 0.0), (0, 5.0)])
def test_within_a_day_or_without_a_speed_nothing_is_told(left, rate):
    assert forecast.of_long_run(tiny.config(), left, rate, NOON, "cpu") is None


@pytest.mark.usefixtures("compiled_once")
def test_a_training_says_what_it_does_and_once_that_it_takes_days(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(forecast, "AFTER", 0.0)
    monkeypatch.setattr(progress.Speed, "rate", property(lambda _: 1e-5))
    loop.train(tiny.config(), tmp_path / "run", tiny.data, jax.devices()[:1])
    out = capsys.readouterr().out.splitlines()
    told = ("preparing the first batch", "compiling the training step", " days;", "validating")
    assert [part for line in out for part in told if part in line] == list(told)
