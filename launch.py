"""Trains, evaluates and uses networks that restore images.

python launch.py --config=configs/sca_unet.py:sample
python launch.py --config=configs/sca_unet.py --config.data.root=DIR --workdir=runs/mine
python launch.py --mode=evaluate --workdir=runs/mine [--checkpoint=latest] [--watch]
python launch.py --mode=compare --workdir=runs/mine --workdir=runs/other
python launch.py --mode=restore --workdir=runs/mine --input=photographs --output=restored
python launch.py --mode=export --workdir=runs/mine --output=mine.onnx
python launch.py --mode=import --config=configs/rcan.py --weights=model.pth --workdir=runs/rcan
"""

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app

from restore_jax import cores, flags, job
from restore_jax.errors import RunError, UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from restore_jax.batches import Data


def fail(error: UsageError | RunError) -> None:
    """Ends the program with the error's line and status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; whatever is wrong with them is one line, exit status 2."""
    try:
        return flags.parse(argv)
    except UsageError as error:
        return fail(error)


def make_data(config: "ConfigDict") -> "Data":
    """Makes the data that a configuration asks for."""
    # Imported here: most commands wait for TensorFlow only if they need images to train on.
    if config.data.get("resident", False):
        from restore_jax import resident_data  # noqa: PLC0415

        return resident_data.make_data(config, lambda: importlib.import_module("data.realised"))
    from data import pipeline  # noqa: PLC0415
    from restore_jax import hosts  # noqa: PLC0415

    return pipeline.make_data(config, hosts.share())


def main(_: Sequence[str]) -> None:
    """Runs what the flags say; a mistake of the user's is one line."""
    if flags.joined_job() is not None:
        job.supervise()
    cores.prepare(in_job=flags.joined_job() is not None)
    # Imported here: a wrong flag is told at once, without waiting for JAX.
    from restore_jax import commands, compilation, hosts  # noqa: PLC0415

    compilation.use_cache()
    try:
        with hosts.joined(flags.joined_job()):
            commands.COMMANDS[flags.MODE.value](commands.Flags(**flags.given()), make_data)
    except (UsageError, RunError) as error:
        fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        fail(RunError(f"{error.filename}: {error.strerror}"))  # a full disk, a wrong permission
    except KeyboardInterrupt:
        print("error: stopped; the same command goes on from what is saved", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
