"""Restores photographs with a trained model; in a checkout, trains models too.

restore-jax restore photographs -o restored
restore-jax restore a.png b/ 'scans/**/*.tif' -o restored --model=general_small
restore-jax train configs/sca_unet.py:sample --config.train.epochs=1

`python -m restore_jax` is the same. Flags without a command also restore:
--input=photographs --output=restored; --models lists the models, --version
prints the version.
"""

import os
import pathlib
import sys
from typing import Any

from absl import logging

from restore_jax import errors, shipped, version
from restore_jax.cli import flags, verbs
from restore_jax.parallel import cores


def list_models() -> str:
    """Returns two lines for each model that comes with the package, the default first."""
    lines = []
    for model in shipped.MODELS:
        size = f"{shipped.verified(model.name).path.stat().st_size / 1e6:.1f} MB"
        default = ", the default" if model is shipped.default() else ""
        licence = model.licence.partition(",")[0]
        lines.append(f"{model.name}: {size}, licence {licence}{default}")
        lines.append(f"    {model.purpose}")
    return "\n".join(lines) or "No models come with this version."


def main() -> None:
    """Runs the command that the command line asks for; user errors are one line each."""
    with errors.exit_on_failure():
        given = sys.argv[1:]
        if not given:
            raise errors.UsageError("no command given; restore-jax --help lists them")
        if given[0] == "help":
            given = [*given[1:2], "--help"]
            sys.argv[1:] = given
        if given[0].startswith("-"):
            _run_flags()
        else:
            _run_verb(verbs.parse(given))


def _run_flags() -> None:
    """Prints help or the models, or restores, as the flags without a command ask for."""
    values = flags.parse_restoring(sys.argv)
    if values.help:
        print(f"{__doc__}\n{verbs.overview()}")
    elif values.models:
        print(list_models())
    elif values.version:
        print(f"restore_jax {version.installed() or '(a checkout, not installed)'}")
    else:
        _run("restore", flags.restoring(values))


def _run_verb(call: verbs.Call) -> None:
    if call.verb == "models":
        print(list_models())
    elif verbs.VERBS[call.verb].in_checkout:
        here = pathlib.Path.cwd()
        verbs.check_checkout(call.verb, here)
        # A new process, as the installed package may differ in version from the checkout.
        os.execv(sys.executable, [sys.executable, str(here / "launch.py"), *call.as_flags()])
    else:
        _run(call.verb, call.values)


def _run(mode: str, values: dict[str, Any]) -> None:
    """Runs a command that needs no checkout, in this process."""
    logging.set_verbosity(logging.ERROR)  # Orbax logs everything it does
    cores.prepare()
    # Imported here, so that a wrong flag is reported at once, without waiting for JAX.
    from restore_jax.cli import commands  # noqa: PLC0415
    from restore_jax.parallel import compilation  # noqa: PLC0415

    compilation.use_cache()
    commands.run(mode, commands.Flags(**values))


if __name__ == "__main__":
    main()
