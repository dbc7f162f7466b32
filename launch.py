"""Trains and evaluates networks that restore images.

python launch.py --config=configs/sca_unet.py:sample
python launch.py --config=configs/sca_unet.py --config.data.root=DIR --workdir=runs/mine
python launch.py --mode=evaluate --workdir=runs/mine --checkpoint=best
python launch.py --mode=evaluate --workdir=runs/mine --watch
python launch.py --mode=compare --workdir=runs/mine --workdir=runs/other
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from restore_jax.errors import RunError, UsageError

MODES = ("train", "evaluate", "compare")
CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: configs/NAME.py[:DATA].")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
# The flags of a command, with the modes that have a use for them.
USES = (
    (flags.DEFINE_multi_string("workdir", [], "The run's folder [runs/NAME_DATA]."), MODES),
    (flags.DEFINE_string("checkpoint", None, "best, latest or a step [best]."), MODES[1:]),
    (flags.DEFINE_bool("watch", False, "Evaluate each new checkpoint."), ["evaluate"]),
    (flags.DEFINE_bool("write_tree", False, "Save the images as MVTec AD does."), ["evaluate"]),
    (flags.DEFINE_string("output", None, "The folder of the results."), ["compare"]),
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; whatever is wrong with them is one line, exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.ERROR  # Orbax tells of every step it takes
        if CONFIG.value is not None:
            _ = CONFIG.value.name  # a file that cannot be read says so only here
        if rest[1:]:
            raise UsageError(f"{rest[1]}: not a flag; see python launch.py --help")
        for flag, modes in USES:
            if flag.value and MODE.value not in modes:
                raise UsageError(f"--{flag.name}: only for --mode={' or '.join(modes)}")
        if CONFIG.value is None and MODE.value == "train":
            raise UsageError("--config: missing; for example configs/sca_unet.py:sample")
        if CONFIG.value is None and not flags.FLAGS.workdir:
            raise UsageError("--workdir: missing; it names the run, for example runs/mine")
    except (UsageError, flags.Error, OSError, AttributeError, KeyError, TypeError) as error:
        fail(UsageError(" ".join(str(error).split())))
    return rest


def fail(error: UsageError | RunError) -> None:
    """Ends the program with the error's line and status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say; a mistake of the user's is one line."""
    del argv
    # Imported here: a wrong flag is told at once, without waiting for JAX and TensorFlow.
    from data import pipeline  # noqa: PLC0415
    from restore_jax import commands, compilation  # noqa: PLC0415

    compilation.use_cache()
    given = commands.Flags(CONFIG.value, **{flag.name: flag.value for flag, _ in USES})
    try:
        commands.COMMANDS[MODE.value](given, pipeline.make_data)
    except (UsageError, RunError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail(RunError("stopped; the same command goes on from where it is saved"))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
