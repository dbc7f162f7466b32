"""Compares training with a law fitted by `--mode=calibrate` with training with the true one.

    python -m benchmarks.calibrated --law=kla

Renders ten photographs of parts that nothing is trained on, degrades them by a preset and fits
the law to these pairs. Then `configs/gain_unet.py:sample` is trained with the preset and with
the file of the fitted law, from the same seeds for the same number of steps, and both are
evaluated on the same held-out photographs, degraded by the preset. One JSON line per training:

    op, model, size, device, dtype
    law               the preset
    fitted            the fields of the fitted law; None: trained with the preset
    seed              of initial parameters, order, noise and blur
    epochs            of the training
    seconds           of the training, with its validations
    psnr, ssim        of held-out photographs that the preset degraded, to the clean ones
    input_psnr        of what was to be restored
    difference        of psnr to the training with the preset of the same seed, dB
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.common import emit
from configs import default, gain_unet
from data import degrade, pipeline
from data.rendered import sample
from restore_jax.degradation import definition, law_file
from restore_jax.evaluation import calibrate, evaluate
from restore_jax.parallel import compilation, cores
from restore_jax.train import loop

# Numbers of the photographs that the law is fitted to: far beyond those of any training.
_FIRST = 5000
_PAIRS = calibrate.MOST


def main(argv: Sequence[str] | None = None) -> None:
    """Trains according to the flags and prints the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--law", default="kla", help="preset")
    parser.add_argument("--seeds", type=int, default=2, help="trainings with each law")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--count", type=int, default=8, help="parts of each kind")
    parser.add_argument("--side", type=int, default=256, help="px of the photographs")
    given = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)
    compilation.use_cache()
    cores.prepare()
    with tempfile.TemporaryDirectory() as folder:
        for record in measure(pathlib.Path(folder), **vars(given)):
            emit(record)


def measure(
    root: pathlib.Path, law: str, seeds: int, epochs: int, count: int, side: int
) -> Iterator[dict[str, Any]]:
    """Yields a record per training; `main` explains the arguments."""
    write_pairs(root / "pairs", law, side)
    file = root / "law.json"
    of_pairs = default.get_config("pairs")
    of_pairs.data.root = str(root / "pairs")
    # The messages of fitting and training must not mix with the JSON lines.
    with contextlib.redirect_stdout(sys.stderr):
        print(calibrate.calibrate(of_pairs, file))
    for seed in range(seeds):
        reference = None
        for name, path in (("true", ""), ("fitted", str(file))):
            config = make_config(law, path, seed, epochs, count, side)
            workdir = root / f"{name}-{seed}"
            with contextlib.redirect_stdout(sys.stderr):
                found = _train_and_evaluate(config, workdir, law)
            reference = found["psnr"] if reference is None else reference
            yield {
                "op": "calibrated",
                "model": config.name,
                "size": config.data.image_size,
                "device": jax.devices()[0].device_kind,
                "dtype": config.dtype,
                "law": law,
                "fitted": law_file.read(path) if path else None,
                "seed": seed,
                "epochs": epochs,
                **found,
                "difference": round(found["psnr"] - reference, 3),
            }


def write_pairs(root: pathlib.Path, law: str, side: int) -> None:
    """Renders photographs, one of each kind in turn; writes them and degraded ones."""
    drawn = definition.law_from_config({"preset": law})
    kinds = sample.listing(1)
    for number in range(_PAIRS):
        category, kind, _ = kinds[number * len(kinds) // _PAIRS]
        clean = sample.render(category, kind, _FIRST + number, side)[0]
        degraded = degrade.degrade(
            tf.constant(clean), drawn, degrade.draw_seed(2, tf.constant(f"{number}"), 0)
        )
        for folder, image in (("clean", clean), ("degraded", np.asarray(degraded))):
            path = root / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(np.round(image), 0, 255).astype(np.uint8)).save(path)


def make_config(
    law: str, file: str, seed: int, epochs: int, count: int, side: int
) -> ConfigDict:
    """Returns the configuration of a training with a preset or, if not "", a fitted law."""
    config = gain_unet.get_config("sample")
    config.seed = seed
    config.train.epochs = epochs
    config.eval.every_epochs = max(1, epochs // 5)
    config.data.update(sample_count=count, sample_size=side)
    config.data.degradation.update(preset=law, file=file)
    definition.inline_file(config)
    return config


def _train_and_evaluate(config: ConfigDict, workdir: pathlib.Path, law: str) -> dict[str, Any]:
    began = time.perf_counter()
    loop.train(config, workdir, pipeline.make_data)
    seconds = time.perf_counter() - began
    truth = make_config(
        law, "", config.seed, config.train.epochs, config.data.sample_count,
        config.data.sample_size,
    )  # fmt: skip
    summary, _ = evaluate.evaluate_checkpoint(workdir, "best", pipeline.make_data, truth)
    found = summary["micro"]
    return {
        "seconds": round(seconds, 1),
        "psnr": round(found["psnr"], 3),
        "ssim": round(found["ssim"], 4),
        "input_psnr": round(found["input_psnr"], 3),
    }


if __name__ == "__main__":
    main()
