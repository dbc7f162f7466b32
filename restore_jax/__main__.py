"""Restores photographs with a trained model, from any working directory.

restore-jax --input=photographs --output=restored
restore-jax --input='scans/**/*.tif' --output=restored --workdir=NAME|FILE.safetensors|RUN
restore-jax --models

The same as python -m restore_jax. Without --workdir the default model is used.
"""

import sys

from absl import logging

from restore_jax import errors, shipped
from restore_jax.cli import flags
from restore_jax.parallel import cores


def list_models() -> str:
    """Returns a table of the models that come with the package, the default first."""
    rows = [("name", "MB", "licence", "purpose")]
    for model in shipped.MODELS:
        size = f"{shipped.verified(model.name).path.stat().st_size / 1e6:.1f}"
        rows.append((model.name, size, model.licence, model.purpose))
    if not shipped.MODELS:
        return "No models come with this version."
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows
    )


def main() -> None:
    """Runs what the command line asks for; user errors are reported in one line."""
    with errors.exit_on_failure():
        values = flags.parse_restoring(sys.argv)
        if values.help:
            print(f"{__doc__}\n{flags.restoring_help()}")
        elif values.models:
            print(list_models())
        else:
            logging.set_verbosity(logging.ERROR)  # Orbax logs everything it does
            cores.prepare()
            # Imported here: a wrong flag is reported at once, without waiting for JAX.
            from restore_jax.cli import commands  # noqa: PLC0415
            from restore_jax.parallel import compilation  # noqa: PLC0415

            compilation.use_cache()
            commands.run_restore(commands.Flags(**flags.restoring(values)))


if __name__ == "__main__":
    main()
