"""The file of a fitted law, written by `--mode=calibrate`, named in `data.degradation.file`.

A JSON object of

    format, version   "restore_jax law", 1
    law               the fields of `definition.Law`; null if a field is unknown
    intervals         90 % confidence intervals by field, (low, high)
    unknown           why a field is unknown, by field
    residual          statistics of what the law does not explain
    images            number of photographs that the law was fitted to

Only `law` has an effect. Steps whose fields are unknown are off, except that an unknown
`quantise` means rounding to integers.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from restore_jax import files
from restore_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FORMAT = "restore_jax law"
VERSION = 1
MAX_BYTES = 1 << 20

_SECTIONS = ("law", "intervals", "unknown", "residual", "images")


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a law and the sections about it, atomically.

    Args:
        path: the file; it is replaced.
        content: the sections "law", "intervals", "unknown", "residual" and "images".

    Raises:
        UsageError: the file cannot be written.
    """
    assert set(content) == set(_SECTIONS)
    text = json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=2)
    try:
        files.write_text(path, text + "\n")
    except OSError as error:
        raise UsageError(f"--output={path}: cannot be written ({error.strerror})") from error


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads the known fields of a law as JSON values, which are not checked.

    Raises:
        UsageError: the file cannot be read or is not a law.
    """
    path = pathlib.Path(path)
    try:
        path = path.expanduser()
        if path.stat().st_size > MAX_BYTES:
            raise _refused(path, f"has more than {MAX_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    except RuntimeError as error:  # no home of that user, or nested too deeply
        raise _refused(path, str(error)) from error
    except ValueError as error:
        raise _refused(path, f"is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _refused(path, f"has no format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise _refused(path, f"is of version {content.get('version')!r}, not {VERSION}")
    if not isinstance(content.get("law"), dict):
        raise _refused(path, "has no section law")
    known = {name: value for name, value in content["law"].items() if value is not None}
    return {"quantise": "round"} | known


def resolved(degradation: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the preset by the law of `file`, if one is named.

    Args:
        degradation: `config.data.degradation`.

    Returns:
        The section without `file`; fields that are set in the section override the file's.

    Raises:
        UsageError: as `read`.
    """
    given = dict(degradation.items())
    path = given.pop("file", "")
    if not path:
        return given
    given["preset"] = "none"
    return given | {k: v for k, v in read(path).items() if given.get(k) is None}


def inline(config: "ConfigDict") -> None:
    """Copies the law of `config.data.degradation.file` into the other fields of the section.

    The configuration then holds the law itself: a run can be evaluated without the file, and
    cannot be resumed with a different law after the file has changed. Without a file, nothing
    is done.

    Args:
        config: is changed; `file` becomes "".

    Raises:
        UsageError: the file is not a law.
    """
    section = config.data.degradation
    if not section.get("file"):
        return
    path = section.file
    for name, value in resolved(section).items():
        if name not in section:
            raise _refused(pathlib.Path(path), f"its law has an unknown field {name!r}")
        try:
            section[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise _refused(pathlib.Path(path), f"{name} cannot be {value!r}") from error
    section.file = ""


def _refused(path: pathlib.Path, problem: str) -> UsageError:
    problem = " ".join(problem.split())
    return UsageError(
        f"config.data.degradation.file={path}: {problem}; name a file that restore-jax "
        "calibrate wrote"
    )
