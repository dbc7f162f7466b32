"""A training in a process of its own, to be killed, signalled or given other devices.

python -m tests.support.child NAME FOLDER [NAME FOLDER …] [--field=value …]

Ends as launch.py does. The phase it is in stands in FOLDER.phase: "step" or "validate". With
--port, --process and --processes it is one of several.
"""

import dataclasses
import functools
import importlib
import pathlib
import sys

import jax

from restore_jax.errors import RunError, UsageError
from restore_jax.parallel import compilation, launcher, processes
from restore_jax.train import loop
from tests.support import tiny

# Narrow, so that a step is quick; with BatchNorm, and with a discriminator.
NARROW = {
    "sca_unet": {"widths": (2, 4)},
    "pexels_unet": {"bottleneck": 32},
    "pexels_gan": {"widths": (2, 4)},
}


def config(name, batch_size=4, every_steps=0, epochs=2):
    fields = importlib.import_module(f"configs.{name}").get_config("sample")
    fields.model.update(NARROW[name])
    fields.train.update(
        {"batch_size": batch_size, "epochs": epochs, "early_stopping_patience": 0}
    )
    fields.eval.batch_size = batch_size
    fields.checkpoint.every_steps = every_steps
    return fields


def data(settings, phase=None):
    made = tiny.data(
        settings, count=5 * settings.train.batch_size // 2, share=processes.share()
    )

    def told(batches, text):
        for batch in batches:
            if phase is not None:
                phase.write_text(text)
            yield batch

    return dataclasses.replace(
        made,
        train_batches=lambda step: told(made.train_batches(step), "step"),
        eval_batches=lambda split: told(made.eval_batches(split), "validate"),
    )


def main(arguments):
    compilation.use_cache()
    flags = dict(flag.removeprefix("--").split("=") for flag in arguments if flag[:2] == "--")
    port = flags.pop("port", None)
    among = None
    if port is not None:
        index, count = int(flags.pop("process")), int(flags.pop("processes"))
        among = launcher.Job(index, count, f"localhost:{port}")
        launcher.supervise()
    try:
        with processes.joined(among):
            run(arguments, flags)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def run(arguments, flags):
    count = int(flags.pop("devices", 1))
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:count]
    rest = [argument for argument in arguments if argument[:2] != "--"]
    for name, folder in zip(rest[::2], rest[1::2], strict=True):
        settings = config(name, **{key: int(value) for key, value in flags.items()})
        phase = pathlib.Path(f"{folder}.phase")
        make_data = functools.partial(data, phase=phase)
        loop.train(settings, pathlib.Path(folder), make_data, devices)


if __name__ == "__main__":
    main(sys.argv[1:])
