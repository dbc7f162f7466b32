"""A fitted law as a file: what `--mode=calibrate` writes and `data.degradation.file` names.

A JSON object of

    format, version   "restore_jax law", 1
    law               the fields of `definition.Law`; null where a field is not known
    intervals         by field, what 90 % of repetitions would find: (low, high) a parameter
    unknown           by field, why it is not known
    residual          what the law leaves unexplained, by figure
    images            how many photographs it was fitted to

Only `law` has an effect. What is not known does nothing, but for `quantise`: photographs are
rounded to whole levels.
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
    """Writes a law with what is told beside it, whole or not at all.

    Args:
        path: the file; it is replaced.
        content: the sections "law", "intervals", "unknown", "residual" and "images".

    Raises:
        UsageError: where it cannot be written.
    """
    assert set(content) == set(_SECTIONS)
    text = json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=2)
    try:
        files.write_text(path, text + "\n")
    except OSError as error:
        raise UsageError(f"--output={path}: cannot be written ({error.strerror})") from error


def read(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads the fields of a law that are known, as JSON has them; their values are not checked.

    Raises:
        UsageError: in one line, for a file that cannot be read or is no law.
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
    """Puts the law of `file`, if it names one, in the place of the preset.

    Args:
        degradation: `config.data.degradation`.

    Returns:
        The section without `file`: what is given in it goes before what the file says.

    Raises:
        UsageError: as `read`.
    """
    given = dict(degradation.items())
    path = given.pop("file", "")
    if not path:
        return given
    given["preset"] = "none"
    return given | {k: v for k, v in read(path).items() if given.get(k) is None}


def take_in(config: "ConfigDict") -> None:
    """Copies the law of `config.data.degradation.file` into the fields beside it.

    So a run has the law itself, whatever becomes of the file: it can be evaluated without it,
    and is not gone on with by another one.

    Args:
        config: is changed; `file` becomes "".

    Raises:
        UsageError: for a file that is no law.
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
        f"config.data.degradation.file={path}: {problem}; name a file that --mode=calibrate "
        "wrote"
    )
