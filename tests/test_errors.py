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
