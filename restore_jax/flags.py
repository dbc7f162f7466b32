"""The flags of launch.py: which there are, which command takes which, and their checks.

Light enough to tell of a wrong flag at once, without waiting for JAX and TensorFlow.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from restore_jax import job
from restore_jax.errors import UsageError

MODES = ("train", "evaluate", "compare", "restore", "export", "import")
_SHARED = ("train", "evaluate", "restore")
_READING = ("evaluate", "compare", "restore", "export")

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: configs/NAME.py[:DATA].")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
# Those of some commands, with the modes that have a use for them.
_USES = (
    (flags.DEFINE_multi_string("workdir", [], "The run's folder [runs/NAME_DATA]."), MODES),
    (flags.DEFINE_string("checkpoint", None, "best, latest or a step [best]."), _READING),
    (flags.DEFINE_bool("watch", False, "Evaluate each new checkpoint."), ("evaluate",)),
    (
        flags.DEFINE_bool("write_tree", False, "Save the images as MVTec AD does."),
        ("evaluate",),
    ),
    (flags.DEFINE_multi_string("input", [], "A file, folder or glob."), ("restore",)),
    (
        flags.DEFINE_string("output", None, "Where the results go."),
        ("compare", "restore", "export"),
    ),
    (
        flags.DEFINE_string("format", None, "png, jpeg, tiff, bmp, webp, gif, … [its own]."),
        ("restore",),
    ),
    (flags.DEFINE_bool("overwrite", False, "Replace what is there."), ("restore", "export")),
    (flags.DEFINE_bool("dry_run", False, "Only say what would be done."), ("restore",)),
    (flags.DEFINE_bool("compare", False, "Save side-by-side pictures too."), ("restore",)),
    (flags.DEFINE_float("strength", None, "0 (input) to 1 (restored) [1]."), ("restore",)),
    (flags.DEFINE_string("self_ensemble", None, "none, flips or all8 [none]."), ("restore",)),
    (flags.DEFINE_integer("tile", None, "Side of the tiles, px [as trained]."), ("restore",)),
    (flags.DEFINE_string("shard", None, "I/N: the I-th of N parts."), ("restore",)),
    (
        flags.DEFINE_integer("white", None, "White of 16-bit files [told, or found]."),
        ("restore",),
    ),
    (
        flags.DEFINE_enum("pages", None, ("all", "first"), "Of TIFF stacks [all]."),
        ("restore",),
    ),
    (
        flags.DEFINE_integer("max_megapixels", None, "Larger images are refused [200]."),
        ("restore",),
    ),
    (flags.DEFINE_string("weights", None, "The file to import."), ("import",)),
)
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
    if rest[1:]:
        raise UsageError(f"{rest[1]}: not a flag; see python launch.py --help")
    mode = MODE.value
    for flag, modes in _USES:
        if _is_given(flag.value) and mode not in modes:
            raise UsageError(f"--{flag.name}: only for --mode={' or '.join(modes)}")
    _check_job(mode)
    if CONFIG.value is None and mode in ("train", "import"):
        raise UsageError("--config: missing; for example --config=configs/sca_unet.py:sample")
    if CONFIG.value is not None and mode in ("restore", "export"):
        raise UsageError(f"--config: not for --mode={mode}, which takes the workdir's")
    if CONFIG.value is None and not flags.FLAGS.workdir:
        raise UsageError("--workdir: missing; it names the run, for example runs/mine")
    for name, needing in (
        ("input", ("restore",)),
        ("output", ("restore", "export")),
        ("weights", ("import",)),
    ):
        if mode in needing and not flags.FLAGS[name].value:
            raise UsageError(f"--{name}: missing; --mode={mode} needs it")
    return rest


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


def _job() -> job.Job | None:
    return job.from_flags(**{flag.name: flag.value for flag in _JOB})


def joined_job() -> job.Job | None:
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
