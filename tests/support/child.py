"""Trains in a separate process, which tests can kill, signal or give other devices.

python -m tests.support.child NAME FOLDER [NAME FOLDER …] [--field=value …]

Exits like launch.py. FOLDER.phase holds its current phase, "step" or "validate". With --port,
--process and --processes, it is one process of a job.
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

# Narrow, so that steps are quick. One model has BatchNorm, another a discriminator.
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

    def with_phase(batches, text):
        for batch in batches:
            if phase is not None:
                phase.write_text(text)
            yield batch

    return dataclasses.replace(
        made,
        train_batches=lambda step: with_phase(made.train_batches(step), "step"),
        eval_batches=lambda split: with_phase(made.eval_batches(split), "validate"),
    )


def main(arguments):
    compilation.use_cache()
    flags = dict(flag.removeprefix("--").split("=") for flag in arguments if flag[:2] == "--")
    port = flags.pop("port", None)
    job = None
    if port is not None:
        index, count = int(flags.pop("process")), int(flags.pop("processes"))
        job = launcher.Job(index, count, f"localhost:{port}")
        launcher.supervise()
    try:
        with processes.joined(job):
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
