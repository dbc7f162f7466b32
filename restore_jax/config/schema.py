"""Validation of the field types of a configuration that was read from a file.

A config.json or the header of a weights file is untrusted input: it may come from a stranger or
have been edited by hand.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from restore_jax import models
from restore_jax.errors import UsageError
from restore_jax.losses import loss_terms

MAX_BYTES = 1 << 20
MAX_DEPTH = 8
# No field needs more, and larger values overflow in the arithmetic on sizes.
MAX_INTEGER = 2**31 - 1
MAX_STRING_LENGTH = 10_000
MAX_LIST_LENGTH = 1_000


WHITE_OF_OLDER_RUNS = 65535
"""The white level of 16-bit photographs in runs without `config.data.white`."""


class Kind(NamedTuple):
    """A type of field: its name in error messages, and a predicate on JSON values."""

    name: str
    fits: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_STRING_LENGTH and "\0" not in value


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_list(value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) > MAX_LIST_LENGTH:
            return False
        return all(map(fits, value))

    return is_list


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


INTEGER = Kind(f"a whole number up to {MAX_INTEGER}", _is_integer)
NUMBER = Kind("a finite number", _is_number)
STRING = Kind("a string", _is_string)
BOOLEAN = Kind("true or false", _is_boolean)
NUMBERS = Kind("a list of numbers", _list_of(_is_number))
_STRING_OR_NONE = Kind("a string or null", _or_none(_is_string))
_NUMBER_OR_NONE = Kind("a finite number or null", _or_none(_is_number))
_STRINGS_OR_NONE = Kind("a list of strings or null", _or_none(_list_of(_is_string)))
_NUMBERS_OR_NONE = Kind("a list of numbers or null", _or_none(_list_of(_is_number)))

_FIELDS_BY_KIND = {
    STRING: """
        name dtype init_from model.name vgg16_weights optimizer.name optimizer.schedule
        adversarial.discriminator eval.split eval.protocol data.name data.root data.split
        data.resize data.augment data.cache_dir data.resident_file data.degradation.preset
        data.degradation.file
    """,
    INTEGER: """
        seed train.epochs train.batch_size train.early_stopping_patience train.log_every_steps
        train.steps_per_dispatch checkpoint.every_steps eval.every_epochs eval.batch_size
        eval.pictures data.image_size data.crop_size data.crops_per_image data.realisations
        data.references data.sample_size data.sample_count data.max_megapixels data.white
    """,
    NUMBER: """
        optimizer.learning_rate optimizer.weight_decay optimizer.warmup_epochs
        optimizer.final_fraction optimizer.restart_epochs optimizer.restart_factor
        optimizer.clip_norm optimizer.ema_decay adversarial.weight adversarial.learning_rate
        train.mask_dropout
    """,
    BOOLEAN: "eval.oracle_mask data.recolour data.skip_bad data.resident data.undo_gain",
    NUMBERS: "data.shrink",
    _STRING_OR_NONE: "data.degradation.quantise",
    _NUMBER_OR_NONE: """
        data.degradation.clean_share data.degradation.skew data.degradation.jpeg_share
    """,
    _STRINGS_OR_NONE: "data.degradation.blur data.degradation.noise",
    _NUMBERS_OR_NONE: " ".join(
        f"data.degradation.{name}"
        for name in (
            "sigma_x", "sigma_y", "motion_length", "motion_angle", "defocus_radius",
            "noise_sigma", "poisson_peak", "gain", "jpeg_quality",
        )
    ),
}  # fmt: skip

FIELDS: dict[str, Kind] = {
    field: kind for kind, fields in _FIELDS_BY_KIND.items() for field in fields.split()
}
"""The kind of every field by its path. `model` and `loss` take further fields, not listed."""

# Fields that a run may lack: they apply to some data sets only, or matter in training only.
_OPTIONAL = {
    "init_from", "checkpoint.every_steps", "train.steps_per_dispatch", "data.recolour",
    "data.shrink", "data.undo_gain", "data.skip_bad", "data.resident", "data.resident_file",
    "data.crops_per_image", "data.sample_size", "data.sample_count", "data.max_megapixels",
    "data.white",
    "data.degradation.clean_share", "data.degradation.skew", "data.degradation.file",
    "data.degradation.noise", "data.degradation.jpeg_quality", "data.degradation.jpeg_share",
}  # fmt: skip

_SECTIONS = {field.rpartition(".")[0] for field in FIELDS if "." in field} | {"loss", "model"}


def read_file(path: pathlib.Path) -> ConfigDict:
    """Reads a configuration from a JSON file and checks it as `read` does.

    Raises:
        UsageError: if the file cannot be read, and as `read`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _error(str(path), f"has more than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(str(path), str(error)) from error
    return ConfigDict(read(text, str(path)))


def read(text: str, source: str) -> dict[str, Any]:
    """Parses a configuration from JSON and checks the types of the known fields.

    Fields may be missing, and unknown ones are kept unchecked.

    Args:
        text: the content of the file.
        source: the file, for error messages.

    Returns:
        The fields, sections as dicts.

    Raises:
        UsageError: if the text is too large or not a JSON object, or naming the first field of
            a wrong type; always a single line.
    """
    if len(text) > MAX_BYTES:
        raise _error(source, f"has more than {MAX_BYTES:,} characters")
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise _error(source, str(error)) from error
    except RecursionError as error:
        raise _error(source, "nested too deeply") from error
    if not isinstance(fields, dict):
        raise _error(source, "not an object")
    check(fields, source)
    return fields


def check(fields: Mapping[str, Any], source: str) -> None:
    """Checks the types of the known fields that are present.

    Args:
        fields: the configuration, sections as mappings.
        source: the file, for error messages.

    Raises:
        UsageError: naming the first field of a wrong type.
    """
    _check(fields, "", source, _model_kinds(fields))


def require(fields: Mapping[str, Any], source: str) -> None:
    """Checks that all fields required for evaluation and training are present.

    Args:
        fields: the configuration, sections as mappings; already checked by `check`.
        source: the file, for error messages.

    Raises:
        UsageError: naming the first missing field, or an unknown loss term.
    """
    for path in sorted((FIELDS.keys() - _OPTIONAL) | {"loss"}):
        node: Any = fields
        for part in path.split("."):
            if part not in node:
                raise _error(source, f"config.{path} is missing")
            node = node[part]
    for term in fields["loss"]:
        if term not in loss_terms.LOSSES:
            raise _error(source, f"config.loss.{term}: there is no such term")


def undoes_gain(config: ConfigDict) -> bool:
    """Returns `config.data.undo_gain`; False for a run without that field or any data."""
    return (config.get("data") or {}).get("undo_gain", False)


def _error(source: str, problem: str) -> UsageError:
    problem = " ".join(problem.split())
    return UsageError(
        f"{source}: not a configuration ({problem}); restore the file or use another workdir"
    )


def _check(
    fields: Mapping[str, Any], above: str, source: str, model_kinds: Mapping[str, Kind]
) -> None:
    for name, value in fields.items():
        path = above + name
        if not name.isidentifier() or len(path) > 200:
            raise _error(source, f"{path[:60]!r} is not a valid field name")
        if hasattr(ConfigDict, name) or name.startswith("_"):
            raise _error(source, f"config.{path}: this name is reserved")
        kind = model_kinds.get(path) or FIELDS.get(path)
        if kind is None and above == "loss.":
            kind = NUMBER
        if isinstance(value, Mapping):
            if kind is not None:
                raise _error(source, f"config.{path}: a section is not {kind.name}")
            if path.count(".") >= MAX_DEPTH:
                raise _error(source, f"config.{path}: nested too deeply")
            _check(value, f"{path}.", source, model_kinds)
        elif path in _SECTIONS:
            raise _error(source, f"config.{path}: {_shortened(value)} is not a section")
        elif kind is not None and not kind.fits(value):
            raise _error(source, f"config.{path}: {_shortened(value)} is not {kind.name}")


def _model_kinds(fields: Mapping[str, Any]) -> dict[str, Kind]:
    """Returns the kinds of the model's options, inferred from their default values."""
    section = fields.get("model")
    name = section.get("name") if isinstance(section, Mapping) else None
    if not isinstance(name, str) or name not in models.MODELS:
        return {}  # an unknown name is reported where the model is built
    defaults = {
        option: field.default
        for option, field in models.MODELS[name].__dataclass_fields__.items()
        if option in section and option not in ("name", "parent", "dtype")
    }
    return {f"model.{option}": _kind_of(value) for option, value in defaults.items()}


def _kind_of(default: Any) -> Kind:
    if isinstance(default, bool):
        return BOOLEAN
    if isinstance(default, int):
        return Kind("a whole number above 0", lambda value: _is_integer(value) and value > 0)
    if isinstance(default, float):
        return NUMBER
    if isinstance(default, str):
        return STRING
    item = _kind_of(default[0])
    return Kind(f"a list, each {item.name}", lambda v: bool(v) and _list_of(item.fits)(v))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
