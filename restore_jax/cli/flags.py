"""The flags of launch.py: their definitions, the commands that accept them, and their checks.

This module is light, so that a wrong flag is reported without waiting for JAX and TensorFlow.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import config_flags

from restore_jax import shipped
from restore_jax.degradation import definition
from restore_jax.errors import UsageError
from restore_jax.parallel import launcher

MODES = (
    "train", "evaluate", "compare", "restore", "export", "import", "calibrate", "trust",
    "serve",
)  # fmt: skip
_SHARED = ("train", "evaluate", "restore")
_READING = ("evaluate", "compare", "restore", "export", "trust")
_RESTORING = ("restore",)
_SERVING = ("serve",)
_OF_RUNS = tuple(mode for mode in MODES if mode != "calibrate")

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: configs/NAME.py[:DATA].")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")


class _Flag(NamedTuple):
    name: str
    define: Callable[..., flags.FlagHolder[Any]]
    default: Any
    help: str
    modes: tuple[str, ...]  # those that accept it


def _define_pages(
    name: str, default: str | None, text: str, **options: Any
) -> flags.FlagHolder[Any]:
    return flags.DEFINE_enum(name, default, ("all", "first"), text, **options)


# Flags that only some commands accept.
_FLAGS = tuple(
    _Flag(*row)
    for row in (
        ("workdir", flags.DEFINE_multi_string, [],
         "A run's folder; to read, also a weights file or shipped model [runs/NAME_DATA].",
         _OF_RUNS),
        ("checkpoint", flags.DEFINE_string, None, "best, latest or a step [best].",
         (*_READING, "serve")),
        ("watch", flags.DEFINE_bool, False, "Evaluate each new checkpoint.", ("evaluate",)),
        ("write_tree", flags.DEFINE_bool, False, "Save the images in the layout of MVTec AD.",
         ("evaluate",)),
        ("input", flags.DEFINE_multi_string, [], "A file, folder or glob.", _RESTORING),
        ("output", flags.DEFINE_string, None, "Where the results go.",
         (*_READING, "calibrate")),
        ("format", flags.DEFINE_string, None,
         "png, jpeg, tiff, bmp, webp, gif, … [as the input].", _RESTORING),
        ("overwrite", flags.DEFINE_bool, False, "Replace existing files.",
         ("restore", "export", "calibrate", "trust")),
        ("dry_run", flags.DEFINE_bool, False, "Only print what would be done.", _RESTORING),
        ("side_by_side", flags.DEFINE_bool, False,
         "Also save before-and-after comparison images.", _RESTORING),
        ("report", flags.DEFINE_bool, False,
         "Also write a page, the worst photographs first.", _RESTORING),
        ("compare", flags.DEFINE_bool, False, "The former name of side_by_side.", _RESTORING),
        ("strength", flags.DEFINE_float, None, "0 (input) to 1 (restored) [1].", _RESTORING),
        ("skip_outside", flags.DEFINE_bool, False,
         "Copy photographs unlike those of the training.",
         _RESTORING),
        ("skip_assessment", flags.DEFINE_bool, False,
         "Do not estimate noise and blur: faster.", _RESTORING),
        ("self_ensemble", flags.DEFINE_string, None, "none, flips or all8 [none].",
         _RESTORING),
        ("tile", flags.DEFINE_integer, None, "Side of the tiles, px [as trained].",
         _RESTORING),
        ("shard", flags.DEFINE_string, None, "I/N: the I-th of N parts.", _RESTORING),
        ("white", flags.DEFINE_integer, None,
         "White level of 16-bit files [stated, or a guess].", _RESTORING),
        ("undo_gain", flags.DEFINE_bool, None,
         "Undo the channels' digital gains [as trained].", _RESTORING),
        ("pages", _define_pages, None, "all or first, of TIFF stacks [all].", _RESTORING),
        ("max_megapixels", flags.DEFINE_integer, None,
         "Refuse larger images [200; serve: 64].", (*_RESTORING, *_SERVING)),
        ("trust", flags.DEFINE_bool, False,
         "Also save maps of how wrong each pixel may be.", _RESTORING),
        ("host", flags.DEFINE_string, None, "Address to listen at [127.0.0.1].", _SERVING),
        ("port", flags.DEFINE_integer, None, "Port, 0 for any free one [8000].", _SERVING),
        ("max_megabytes", flags.DEFINE_integer, None, "Refuse larger files [512].", _SERVING),
        ("max_queue", flags.DEFINE_integer, None, "Photographs that may wait [8].", _SERVING),
        ("timeout", flags.DEFINE_integer, None, "Longest wait for one, in s [600].", _SERVING),
        ("dtype", flags.DEFINE_string, None,
         "float32, float16 or, of .onnx, int8 [float32].", ("export",)),
        ("calibration", flags.DEFINE_string, None,
         "Folder of degraded photographs, for int8.", ("export",)),
        ("pack", flags.DEFINE_bool, False,
         "Write a folder with ONNX files, code and a page.", ("export",)),
        ("size", flags.DEFINE_string, None, "HxW: fixed size, px, of .onnx or StableHLO [any].",
         ("export",)),
        ("metadata", flags.DEFINE_multi_string, [],
         "KEY=TEXT: name, purpose, training_data or licence.", ("export",)),
        ("weights", flags.DEFINE_string, None, "The file to import.", ("import",)),
    )
)  # fmt: skip
_RESTORING_FLAGS = tuple(flag for flag in _FLAGS if "restore" in flag.modes)
_MODELS_HELP = "List the models that come with the package."
_USES = tuple((flag.define(flag.name, flag.default, flag.help), flag.modes) for flag in _FLAGS)
# Flags for a job of several processes, see docs/scale.md.
_JOB_FLAGS = tuple(
    _Flag(*row, ("train", "evaluate"))
    for row in (
        ("coordinator", flags.DEFINE_string, None,
         "HOST:PORT of the first of several processes."),
        ("num_processes", flags.DEFINE_integer, None, "Number of processes."),
        ("process_id", flags.DEFINE_integer, None, "Index of this process, from 0."),
        ("distributed", flags.DEFINE_bool, False, "Take these from Slurm or Open MPI."),
    )
)  # fmt: skip
_JOB = tuple(flag.define(flag.name, flag.default, flag.help) for flag in _JOB_FLAGS)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line.

    Returns:
        The arguments that are not flags: the program's name.

    Raises:
        UsageError: for any mistake, in one line.
    """
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.ERROR  # Orbax logs everything it does
        if CONFIG.value is not None:
            _ = CONFIG.value.name  # an unreadable file raises only on access
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            raise UsageError(
                f"--{error.flagname}: sets a field of a configuration, which is missing; add "
                "for example --config=configs/sca_unet.py:sample"
            ) from error
        raise UsageError(_one_line(error)) from error
    except (flags.Error, OSError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(_one_line(error)) from error
    if CONFIG.value is not None:
        definition.inline_file(CONFIG.value)
    _check_rest(rest, "python launch.py")
    mode = MODE.value
    for flag, modes in _USES:
        if _is_given(flag.value) and mode not in modes:
            raise UsageError(f"--{flag.name}: only for --mode={' or '.join(modes)}")
    _check_job(mode)
    if CONFIG.value is None and mode in ("train", "import"):
        raise UsageError("--config: missing; for example --config=configs/sca_unet.py:sample")
    if CONFIG.value is None and mode == "calibrate":
        raise UsageError(
            "--config: missing; for example --config=configs/general.py:pairs "
            "--config.data.root=DIR"
        )
    if CONFIG.value is not None and mode in ("restore", "export", "serve"):
        raise UsageError(f"--config: not for --mode={mode}, which uses that of the workdir")
    if CONFIG.value is None and not flags.FLAGS.workdir:
        if mode not in ("restore", "serve"):
            raise UsageError("--workdir: missing; it names the run, for example runs/mine")
        shipped.default()
    for name, needing in (
        ("input", ("restore",)),
        ("output", ("restore", "export", "calibrate")),
        ("weights", ("import",)),
    ):
        if mode in needing and not flags.FLAGS[name].value:
            raise UsageError(f"--{name}: missing; --mode={mode} needs it")
    return rest


def parse_restoring(argv: Sequence[str]) -> flags.FlagValues:
    """Parses a command line of `restore-jax` without a verb, of flags alone.

    Returns:
        The flags of `--mode=restore`, separate from those of several processes, and `help`,
        `models` and `version`.

    Raises:
        UsageError: for any mistake, in one line.
    """
    values = flags.FlagValues()
    for flag in _RESTORING_FLAGS:
        flag.define(flag.name, flag.default, flag.help, flag_values=values)
    flags.DEFINE_bool("models", False, _MODELS_HELP, flag_values=values)
    flags.DEFINE_bool("version", False, "Print the version.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UsageError(_one_line(error)) from error
    _check_rest(rest, "restore-jax")
    if not (values.help or values.models or values.version):
        for name in ("input", "output"):
            if not values[name].value:
                raise UsageError(f"--{name}: missing; --help shows an example")
        if not values.workdir:
            shipped.default()
    return values


def restoring(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the values of the flags of `parse_restoring` by name, as `given` does."""
    return {flag.name: values[flag.name].value for flag in _RESTORING_FLAGS}


def of_mode(mode: str) -> list[tuple[flags.Flag, str]]:
    """Returns the flags that have a use in a mode, each with its help; none for another word.

    A former name is left out, and so are those of several processes for `restore`, whose
    processes need not know of each other: `--shard` does the same.
    """
    rows = (flag for flag in (*_FLAGS, *_JOB_FLAGS) if mode in flag.modes)
    # Not absl's help, which tells of the values in a way of its own.
    return [(flags.FLAGS[row.name], row.help) for row in rows if row.name != "compare"]


def _check_rest(rest: Sequence[str], program: str) -> None:
    if rest[1:]:
        raise UsageError(f"{rest[1]}: not a flag; see {program} --help")


def _one_line(error: Exception) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(error, AttributeError) and isinstance(cause, KeyError):
        # ml_collections raises this for an unknown field; the cause names it and suggests one.
        error = ValueError(f"--config: no such field: {cause.args[0]}")
    if absent := re.search(
        r"Failed loading config file.*No such file.*: '(.+)'", str(error), re.S
    ):
        # ml_collections tells of its attempts.
        return f"{absent[1]}: no such file; configs/ has the configurations"
    return " ".join(str(error).split())


def _is_given(value: Any) -> bool:
    # Not `in (None, False, [])`: 0 equals False, but is a valid process_id or strength.
    return value is not None and value is not False and value != []


def _check_job(mode: str) -> None:
    named = next((flag.name for flag in _JOB if _is_given(flag.value)), None)
    if named is None:
        return
    _job()
    if mode not in _SHARED:
        raise UsageError(
            f"--{named}: --mode={mode} runs in one process; only {', '.join(_SHARED)} run in "
            "several"
        )
    for flag, why in (
        ("watch", "a single process waits for the checkpoints of a training"),
        ("write_tree", "a single process writes the tree"),
        ("shard", "every process of the job has its own shard"),
    ):
        if flags.FLAGS[flag].value:
            raise UsageError(f"--{flag}: not with --{named}; {why}")


def _job() -> launcher.Job | None:
    return launcher.from_flags(**{flag.name: flag.value for flag in _JOB})


def joined_job() -> launcher.Job | None:
    """Returns the job whose processes communicate; None if this process works independently.

    When restoring, every process has its own images and needs no other process.
    """
    found = _job()
    return None if found is None or found.count == 1 or MODE.value == "restore" else found


def given() -> dict[str, Any]:
    """Returns the values of the parsed flags by name."""
    values = {flag.name: flag.value for flag, _ in _USES} | {"config": CONFIG.value}
    if MODE.value == "restore" and (found := _job()) is not None:
        values["shard"] = found.shard
    return values
