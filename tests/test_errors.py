import gc
import sys
import time

import pytest

from restore_jax import errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no\n  such\tfield "), "no such field"),
        (ValueError(" \n"), "ValueError"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("x" * 300), "x" * 200),
    ],
)
def test_a_message_is_quoted_on_one_short_line(error, line):
    assert errors.one_line(error) == line


def test_the_greatest_length_may_be_given():
    assert errors.one_line(RuntimeError("one two"), 3) == "one"


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost(capsys):
    def interrupted(phase, info):
        gc.callbacks.remove(interrupted)
        raise KeyboardInterrupt

    before = sys.unraisablehook
    with pytest.raises(SystemExit) as ended, errors.exit_on_failure():
        gc.callbacks.append(interrupted)
        gc.collect()
        time.sleep(5)
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("error: stopped; ")
    assert sys.unraisablehook is before


def test_what_else_python_drops_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Fails:
        def __del__(self):
            raise ValueError("dropped")

    with errors.exit_on_failure():
        Fails()
        gc.collect()
    assert [str(one.exc_value) for one in told] == ["dropped"]
