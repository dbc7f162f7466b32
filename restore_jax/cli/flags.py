"""The flags of launch.py: which there are, which command takes which, and their checks.

Light enough to tell of a wrong flag at once, without waiting for JAX and TensorFlow.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import config_flags

from restore_jax import shipped
from restore_jax.degradation import law_file
from restore_jax.errors import UsageError
from restore_jax.parallel import launcher

MODES = ("train", "evaluate", "compare", "restore", "export", "import", "calibrate")
_SHARED = ("train", "evaluate", "restore")
_READING = ("evaluate", "compare", "restore", "export")
_RESTORING = ("restore",)
_OF_RUNS = tuple(mode for mode in MODES if mode != "calibrate")

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: configs/NAME.py[:DATA].")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")


class _Flag(NamedTuple):
    name: str
    define: Callable[..., flags.FlagHolder[Any]]
    default: Any
    help: str
    modes: tuple[str, ...]  # those that have a use for it


def _define_pages(
    name: str, default: str | None, text: str, **options: Any
) -> flags.FlagHolder[Any]:
    return flags.DEFINE_enum(name, default, ("all", "first"), text, **options)


# Those of some commands.
_FLAGS = tuple(
    _Flag(*row)
    for row in (
        ("workdir", flags.DEFINE_multi_string, [],
         "A run's folder, or to read: a weights file or shipped model [runs/NAME_DATA].",
         _OF_RUNS),
        ("checkpoint", flags.DEFINE_string, None, "best, latest or a step [best].", _READING),
        ("watch", flags.DEFINE_bool, False, "Evaluate each new checkpoint.", ("evaluate",)),
        ("write_tree", flags.DEFINE_bool, False, "Save the images as MVTec AD does.",
         ("evaluate",)),
        ("input", flags.DEFINE_multi_string, [], "A file, folder or glob.", _RESTORING),
        ("output", flags.DEFINE_string, None, "Where the results go.",
         (*_READING, "calibrate")),
        ("format", flags.DEFINE_string, None, "png, jpeg, tiff, bmp, webp, gif, … [its own].",
         _RESTORING),
        ("overwrite", flags.DEFINE_bool, False, "Replace what is there.",
         ("restore", "export", "calibrate")),
        ("dry_run", flags.DEFINE_bool, False, "Only say what would be done.", _RESTORING),
        ("side_by_side", flags.DEFINE_bool, False, "Save pictures of before and after too.",
         _RESTORING),
        ("compare", flags.DEFINE_bool, False, "The former name of side_by_side.", _RESTORING),
        ("strength", flags.DEFINE_float, None, "0 (input) to 1 (restored) [1].", _RESTORING),
        ("self_ensemble", flags.DEFINE_string, None, "none, flips or all8 [none].",
         _RESTORING),
        ("tile", flags.DEFINE_integer, None, "Side of the tiles, px [as trained].",
         _RESTORING),
        ("shard", flags.DEFINE_string, None, "I/N: the I-th of N parts.", _RESTORING),
        ("white", flags.DEFINE_integer, None, "White of 16-bit files [told, or found].",
         _RESTORING),
        ("pages", _define_pages, None, "all or first, of TIFF stacks [all].", _RESTORING),
        ("max_megapixels", flags.DEFINE_integer, None, "Larger images are refused [200].",
         _RESTORING),
        ("dtype", flags.DEFINE_string, None, "float32 or float16, of .safetensors [float32].",
         ("export",)),
        ("size", flags.DEFINE_string, None, "HxW: one size, px, for .onnx or StableHLO [any].",
         ("export",)),
        ("metadata", flags.DEFINE_multi_string, [],
         "KEY=TEXT: name, purpose, training_data or licence.", ("export",)),
        ("weights", flags.DEFINE_string, None, "The file to import.", ("import",)),
    )
)  # fmt: skip
# Those of `python -m restore_jax`, which has models at hand rather than runs.
_RESTORING_FLAGS = tuple(
    flag._replace(help="A shipped model, weights file or run's folder [the default model].")
    if flag.name == "workdir"
    else flag
    for flag in _FLAGS
    if "restore" in flag.modes
)
_USES = tuple((flag.define(flag.name, flag.default, flag.help), flag.modes) for flag in _FLAGS)
# Of several processes that work together, see docs/scale.md.
_JOB = (
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes."),
    flags.DEFINE_integer("num_processes", None, "How many processes there are."),
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0."),
    flags.DEFINE_bool("distributed", False, "Ask Slurm or Open MPI about these."),
)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line.

    Returns:
        What is no flag: the program's name.

    Raises:
        UsageError: whatever is wrong, in one line.
    """
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.ERROR  # Orbax tells of every step it takes
        if CONFIG.value is not None:
            _ = CONFIG.value.name  # a file that cannot be read says so only here
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            raise UsageError(
                f"--{error.flagname}: sets a field of a configuration; give that too, for "
                "example --config=configs/sca_unet.py:sample"
            ) from error
        raise UsageError(_one_line(error)) from error
    except (flags.Error, OSError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(_one_line(error)) from error
    if CONFIG.value is not None:
        law_file.take_in(CONFIG.value)
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
    if CONFIG.value is not None and mode in ("restore", "export"):
        raise UsageError(f"--config: not for --mode={mode}, which takes the workdir's")
    if CONFIG.value is None and not flags.FLAGS.workdir:
        if mode != "restore":
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
    """Parses the command line of `python -m restore_jax`, which restores and nothing else.

    Returns:
        The flags of `--mode=restore`, apart from those of launch.py; and `help` and `models`.

    Raises:
        UsageError: whatever is wrong, in one line.
    """
    values = flags.FlagValues()
    for flag in _RESTORING_FLAGS:
        flag.define(flag.name, flag.default, flag.help, flag_values=values)
    flags.DEFINE_bool("models", False, "List the models that come along.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UsageError(_one_line(error)) from error
    _check_rest(rest, "python -m restore_jax")
    if not values.help and not values.models:
        for name in ("input", "output"):
            if not values[name].value:
                raise UsageError(f"--{name}: missing; --help shows an example")
        if not values.workdir:
            shipped.default()
    return values


def restoring_help() -> str:
    """Returns a line for each flag of `python -m restore_jax`."""
    rows = [(flag.name, flag.help) for flag in _RESTORING_FLAGS]
    rows.append(("models", "List the models that come along."))
    return "\n".join(f"  --{name:14} {text}" for name, text in rows)


def restoring(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the flags of `parse_restoring` by their names, as `given` does."""
    return {flag.name: values[flag.name].value for flag in _RESTORING_FLAGS}


def _check_rest(rest: Sequence[str], program: str) -> None:
    if rest[1:]:
        raise UsageError(f"{rest[1]}: not a flag; see {program} --help")


def _one_line(error: Exception) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(error, AttributeError) and isinstance(cause, KeyError):
        # Of a field, and only its name and what it may have been meant to be.
        error = ValueError(f"--config: no such field: {cause.args[0]}")
    return " ".join(str(error).split())


def _is_given(value: Any) -> bool:
    # Not `in (None, False, [])`: 0 equals False, and is a process or a strength.
    return value is not None and value is not False and value != []


def _check_job(mode: str) -> None:
    named = next((flag.name for flag in _JOB if _is_given(flag.value)), None)
    if named is None:
        return
    _job()
    if mode not in _SHARED:
        raise UsageError(
            f"--{named}: --mode={mode} is for one process; {' and '.join(_SHARED)} take several"
        )
    for flag, why in (
        ("watch", "one process waits for the checkpoints of a training"),
        ("write_tree", "one process writes the tree"),
        ("shard", "every process of the job has a shard of its own"),
    ):
        if flags.FLAGS[flag].value:
            raise UsageError(f"--{flag}: not with --{named}; {why}")


def _job() -> launcher.Job | None:
    return launcher.from_flags(**{flag.name: flag.value for flag in _JOB})


def joined_job() -> launcher.Job | None:
    """Returns the job whose processes wait for each other; None where this one is alone.

    To restore, every process has images of its own and needs no other.
    """
    found = _job()
    return None if found is None or found.count == 1 or MODE.value == "restore" else found


def given() -> dict[str, Any]:
    """Returns the flags by their names, once they are parsed."""
    values = {flag.name: flag.value for flag, _ in _USES} | {"config": CONFIG.value}
    if MODE.value == "restore" and (found := _job()) is not None:
        values["shard"] = found.shard
    return values
