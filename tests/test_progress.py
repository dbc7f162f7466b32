import io
import sys

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
