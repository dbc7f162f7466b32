"""Checks of the options of an architecture, `config.model`, with one-line error messages."""

from collections.abc import Sequence
from typing import Any

from restore_jax.errors import UsageError


def check_choice(field: str, value: Any, choices: Sequence[str]) -> None:
    """Checks that an option is one of its choices.

    Raises:
        UsageError: if it is not.
    """
    if value not in choices:
        raise UsageError(f"config.model.{field}: {value!r} is not one of {list(choices)}")


def check_switch(field: str, value: Any) -> None:
    """Checks that an option is True or False.

    Raises:
        UsageError: if it is not.
    """
    if not isinstance(value, bool):
        raise UsageError(f"config.model.{field}: {value!r} is not one of True, False")


def check_switches(field: str, values: Any, count: int) -> None:
    """Checks that an option is a list of `count` booleans.

    Raises:
        UsageError: if it is not.
    """
    fits = isinstance(values, Sequence) and all(isinstance(value, bool) for value in values)
    if not fits or len(values) != count:
        raise UsageError(
            f"config.model.{field}: {values!r} must be {count} values, each True or False"
        )


def check_number(field: str, value: Any, multiple: int = 1) -> None:
    """Checks that an option is a whole number above 0, and a multiple of `multiple`.

    Raises:
        UsageError: if it is not.
    """
    if not _is_number(value, multiple):
        raise UsageError(f"config.model.{field}: {value!r} must be {_kind(multiple)} above 0")


def check_numbers(
    field: str, values: Any, least: int, most: int | None = None, multiple: int = 1
) -> None:
    """Checks that an option is a list of whole numbers above 0.

    Args:
        field: name of the option.
        values: its value.
        least: smallest allowed number of values.
        most: largest allowed number of values; None: no limit.
        multiple: every value must be a multiple of this.

    Raises:
        UsageError: if it is not.
    """
    fits = isinstance(values, Sequence) and all(_is_number(value, multiple) for value in values)
    if not fits or len(values) < least or (most is not None and len(values) > most):
        count = f"{least}" if most == least else f"{least} or more"
        each = "" if multiple == 1 else f", each {_kind(multiple)}"
        raise UsageError(
            f"config.model.{field}: {values!r} must be {count} whole numbers above 0{each}"
        )


def check_rate(field: str, value: Any) -> None:
    """Checks that an option is a probability below 1.

    Raises:
        UsageError: if it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise UsageError(f"config.model.{field}: {value!r} must lie in [0, 1)")


def _is_number(value: Any, multiple: int) -> bool:
    # bool is a subclass of int, but True is no number of channels.
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and value > 0 and value % multiple == 0


def _kind(multiple: int) -> str:
    return "a whole number" if multiple == 1 else f"a multiple of {multiple}"
