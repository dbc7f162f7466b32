import io
import itertools
import re
import sys
import time

import pytest

from restore_jax import progress


def shown(monkeypatch, in_terminal, **options):
    stream = io.StringIO()
    stream.isatty = lambda: in_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    done = list(progress.bar(range(3), total=3, title="reading", **options))
    assert done == [0, 1, 2]
    return stream.getvalue()


def test_a_log_file_gets_lines_and_no_control_characters(monkeypatch):
    text = shown(monkeypatch, in_terminal=False)
    assert text.endswith("\n")
    assert all(line.isprintable() and line.startswith("reading:") for line in text.splitlines())
    assert "0/3" in text.splitlines()[0]
    assert "3/3" in text.splitlines()[-1]


def test_a_terminal_gets_a_bar_that_is_drawn_over(monkeypatch):
    text = shown(monkeypatch, in_terminal=True)
    assert "\r" in text
    assert "3/3" in text


def test_what_others_write_meanwhile_leaves_a_log_file_whole(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(total=4, initial=1) as bar:
        bar.write("error: one line", file=stream)
        bar.update(3)
    assert all(line.isprintable() for line in stream.getvalue().splitlines())
    assert "error: one line" in stream.getvalue().splitlines()
    assert "4/4" in stream.getvalue().splitlines()[-1]


def test_what_is_not_shown_writes_nothing(monkeypatch):
    assert shown(monkeypatch, in_terminal=False, shown=False) == ""


class Clock:
    """The time of progress and tqdm, set by a test."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)


def test_the_speed_is_that_of_the_last_minutes_and_leaves_out_compilation():
    speed = progress.Speed()
    assert speed.rate == speed.measured == 0
    speed.add(50.0, 8)  # after 50 s of compilation
    assert speed.rate == 0
    for step in range(1, 101):
        speed.add(50.0 + step, 8 + 4 * step)
    assert speed.rate == pytest.approx(4)
    assert speed.measured == 100
    for step in range(1, 201):  # half as fast from here on
        speed.add(150.0 + step, 408 + 2 * step)
    assert speed.rate == pytest.approx(2)
    assert speed.measured == 300


def test_the_speed_of_many_short_steps_is_exact_and_takes_little_memory():
    speed = progress.Speed()
    for step in range(100_000):
        speed.add(step / 500, step)
    assert speed.rate == pytest.approx(500)
    assert len(speed._marks) < 4 * progress.WINDOW


def test_the_images_of_a_batch_count_together():
    speed = progress.Speed()
    for batch in range(1, 4):
        for image in range(8):
            speed.add(16 * batch + 0.001 * image, 8 * (batch - 1) + image + 1)
        assert speed.rate == pytest.approx(0.5 if batch > 1 else 0)


def test_the_speed_of_steps_that_take_minutes_is_that_of_the_last_ones():
    speed = progress.Speed()
    for seconds, count in ((0, 1), (1000, 2), (1200, 3), (1400, 4)):
        speed.add(seconds, count)
    assert speed.rate == pytest.approx(1 / 200)


def test_the_time_left_does_not_count_the_compilation(monkeypatch):
    stream, clock = io.StringIO(), Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(total=1010) as bar:
        clock.now += 50
        bar.update(10)
        assert "?" in str(bar)
        for _ in range(10):
            clock.now += 10
            bar.update(10)
        assert "<15:00,  1.00 images/s" in str(bar)


def test_a_log_of_days_has_some_hundred_lines_none_of_them_far_apart(monkeypatch):
    stream, clock = io.StringIO(), Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    minutes = 3 * 24 * 60
    with progress.bar(total=minutes) as bar:
        for _ in range(minutes):
            clock.now += 60
            bar.update()
    lines = stream.getvalue().splitlines()
    assert 400 < len(lines) < 600
    counts = [int(re.search(r"(\d+)/", line)[1]) for line in lines]
    assert counts[-1] == minutes
    assert max(after - before for before, after in itertools.pairwise(counts)) <= 11


def test_a_loop_over_items_counts_each_of_them_once(monkeypatch):
    stream, clock = io.StringIO(), Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.bar(range(5000), total=5000)
    for item in bar:
        assert bar.n == item
        clock.now += 1
    assert "5000/5000" in stream.getvalue().splitlines()[-1]
