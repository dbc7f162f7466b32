"""Trains, evaluates and applies image restoration networks.

python launch.py --config=configs/sca_unet.py:sample
python launch.py --config=configs/sca_unet.py --config.data.root=DIR --workdir=runs/mine
python launch.py --mode=evaluate --workdir=runs/mine [--checkpoint=latest] [--watch]
python launch.py --mode=compare --workdir=runs/mine --workdir=runs/other
python launch.py --mode=restore --input=photographs --output=restored [--workdir=runs/mine|NAME]
python launch.py --mode=export --workdir=runs/mine --output=mine.onnx
python launch.py --mode=import --config=configs/rcan.py --weights=model.pth --workdir=runs/rcan
python launch.py --mode=trust --workdir=runs/mine
python launch.py --mode=calibrate --config=configs/general.py:pairs --config.data.root=DIR …
python launch.py --mode=serve [--port=8000] [--workdir=runs/mine|NAME]
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app

from restore_jax import errors
from restore_jax.cli import flags
from restore_jax.parallel import cores, launcher

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from restore_jax.batches import Data


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; on an error, prints one line and exits with status 2."""
    with errors.exit_on_failure():
        return flags.parse(argv)


def make_data(config: "ConfigDict") -> "Data":
    """Makes the data that a configuration asks for."""
    # Imported here, so that commands that need no such images do not wait for TensorFlow.
    if config.data.get("resident", False):
        from restore_jax.train.on_device import dataset  # noqa: PLC0415

        return dataset.make_data(config, lambda: importlib.import_module("data.export_pairs"))
    from data import pipeline  # noqa: PLC0415
    from restore_jax.parallel import processes  # noqa: PLC0415

    return pipeline.make_data(config, processes.share())


def main(_: Sequence[str]) -> None:
    """Runs the command that the flags ask for; user errors are one line each."""
    if flags.joined_job() is not None:
        launcher.supervise()
    cores.prepare(in_job=flags.joined_job() is not None)
    # Imported here, so that a wrong flag is reported at once, without waiting for JAX.
    from restore_jax.cli import commands  # noqa: PLC0415
    from restore_jax.parallel import compilation, processes  # noqa: PLC0415

    compilation.use_cache()
    with errors.exit_on_failure(), processes.joined(flags.joined_job()):
        commands.run(flags.MODE.value, commands.Flags(**flags.given()), make_data)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
