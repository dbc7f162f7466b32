"""Trains and evaluates networks that restore images.

python launch.py --config=configs/sca_unet.py:sample
python launch.py --config=configs/sca_unet.py --config.data.root=DIR --workdir=runs/mine
python launch.py --mode=evaluate --workdir=runs/mine --checkpoint=best
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from restore_jax.errors import RunError, UsageError

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: configs/NAME.py[:DATA].")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder [runs/NAME_DATA].")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "evaluate: best, latest or a step [best].")


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
    except (UsageError, flags.Error, OSError, AttributeError, KeyError, TypeError) as error:
        fail(UsageError(" ".join(str(error).split())))
    return rest


def fail(error: UsageError | RunError) -> None:
    """Ends the program with the error's line and status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)


def run() -> None:
    """Does the work of one command."""
    config, which, found = CONFIG.value, CHECKPOINT.value or "best", None
    if MODE.value == "train" and CHECKPOINT.value:
        raise UsageError("--checkpoint: only for --mode=evaluate; training goes on by itself")
    if MODE.value == "train" and config is None:
        raise UsageError("--config: missing; for example --config=configs/sca_unet.py:sample")
    if WORKDIR.value is None and config is None:
        raise UsageError("--workdir: missing; it names the run, for example runs/mine")
    folder = pathlib.Path(WORKDIR.value or f"runs/{config.name}_{config.data.name}")
    # Imported here: a wrong flag is told at once, without waiting for JAX and TensorFlow.
    from data import pipeline  # noqa: PLC0415
    from restore_jax import compilation, evaluate, train  # noqa: PLC0415

    compilation.use_cache()
    if MODE.value == "train":
        train.train_and_evaluate(config, folder, pipeline.make_data)
        config, found = None, evaluate.stored_results(folder)
    found = found or evaluate.evaluate_checkpoint(folder, which, pipeline.make_data, config)
    print(evaluate.format_report(*found))


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say; a mistake of the user's is one line."""
    del argv
    try:
        run()
    except (UsageError, RunError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail(RunError("stopped; the same command goes on from the latest checkpoint"))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
