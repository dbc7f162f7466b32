"""Restores photographs with a trained model, from anywhere.

restore-jax --input=photographs --output=restored
restore-jax --input='scans/**/*.tif' --output=restored --workdir=NAME|FILE.safetensors|RUN
restore-jax --models

The same as python -m restore_jax. Without --workdir the default model is taken.
"""

import sys

from absl import logging

from restore_jax import errors, shipped
from restore_jax.cli import flags
from restore_jax.parallel import cores


def list_models() -> str:
    """Returns a line for each model that comes with the package, the default first."""
    rows = [("name", "MB", "licence", "purpose")]
    for model in shipped.MODELS:
        size = f"{shipped.checked(model.name).path.stat().st_size / 1e6:.1f}"
        rows.append((model.name, size, model.licence, model.purpose))
    if not shipped.MODELS:
        return "No model comes with this version."
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows
    )


def main() -> None:
    """Does what the command line says; a mistake of the user's is one line."""
    with errors.told():
        values = flags.parse_restoring(sys.argv)
        if values.help:
            print(f"{__doc__}\n{flags.restoring_help()}")
        elif values.models:
            print(list_models())
        else:
            logging.set_verbosity(logging.ERROR)  # Orbax tells of every step it takes
            cores.prepare()
            # Imported here: a wrong flag is told at once, without waiting for JAX.
            from restore_jax.cli import commands  # noqa: PLC0415
            from restore_jax.parallel import compilation  # noqa: PLC0415

            compilation.use_cache()
            commands.run_restore(commands.Flags(**flags.restoring(values)))


if __name__ == "__main__":
    main()
