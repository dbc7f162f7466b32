"""Compares training on bad shots alone (Noise2Noise) with training on clean targets.

    python -m benchmarks.shots --sigma=20
    python -m benchmarks.shots --sigma=20 --blur=1.5

Renders the parts of the data `sample`, photographs each several times with the same blur and
new noise, and trains a small gain U-Net without the gain, for the same number of steps from the
same seed: on `clean` photographs that the same law degrades with new noise in every epoch, and
on `shots`, validated on shots too. Both best states are evaluated on the same held-out
photographs. One JSON line per training:

    op, model, size, batch, device, dtype
    data              shots or clean
    parts, shots      parts trained on, and shots of each
    sigma, blur       of the noise in grey levels, and of the blur in px; 0 for none
    loss              terms and weights
    steps, seconds    of the training, with its validations
    images_per_s      training images per second
    own_psnr          on its own validation, for shots to the mean of the other shots
    psnr, ssim        of held-out photographs to the clean ones
    input_psnr        of what was to be restored
    blurred_psnr      with blur, to the blurred photographs without noise; else None
    difference        of psnr to the training on clean targets, dB
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
from configs import gain_unet
from data import degrade, pipeline
from data.rendered import sample
from restore_jax.degradation import definition
from restore_jax.evaluation import evaluate
from restore_jax.parallel import compilation, cores
from restore_jax.train import loop

_WIDTHS = (12, 16, 24)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains according to the flags and prints the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="side length, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--count", type=int, default=8, help="parts of each kind")
    parser.add_argument("--shots", type=int, default=4, help="shots of each part")
    parser.add_argument("--sigma", type=float, default=20.0, help="noise, grey levels")
    parser.add_argument("--blur", type=float, default=0.0, help="Gaussian blur, px; 0: none")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--loss", default="charbonnier", help="the only term of the loss")
    given = parser.parse_args(argv)
    compilation.use_cache()
    cores.prepare()
    for record in measure(**vars(given)):
        emit(record)


def measure(
    size: int,
    batch: int,
    count: int,
    shots: int,
    sigma: float,
    blur: float,
    epochs: int,
    loss: str,
) -> Iterator[dict[str, Any]]:
    """Yields a record per training; `main` explains the arguments."""
    logging.set_verbosity(logging.ERROR)
    reference = None
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        parts = write_parts(root, size, count, shots, sigma, blur)
        for name in ("clean", "shots"):
            config = make_config(name, root, size, batch, epochs, loss)
            config.data.degradation.update(law(sigma, blur))
            # The messages of training must not mix with the JSON lines.
            with contextlib.redirect_stdout(sys.stderr):
                found = _train_and_evaluate(config, root, sigma, blur)
            reference = found["psnr"] if reference is None else reference
            yield {
                "op": "shots",
                "model": config.name,
                "size": size,
                "batch": batch,
                "device": jax.devices()[0].device_kind,
                "dtype": config.dtype,
                "data": name,
                "parts": parts,
                "shots": shots,
                "sigma": sigma,
                "blur": blur,
                "loss": {loss: 1.0},
                "steps": epochs * -(-parts // batch),
                "images_per_s": round(epochs * parts / found["seconds"], 1),
                **found,
                "difference": round(found["psnr"] - reference, 3),
            }


def law(sigma: float, blur: float) -> dict[str, Any]:
    """Returns the fields of `config.data.degradation`."""
    return {
        "preset": "none",
        "blur": ("gaussian",) if blur else ("none",),
        "sigma_x": (blur, blur),
        "sigma_y": (blur, blur),
        "noise_sigma": (sigma, sigma),
        "quantise": "round",
    }


def make_config(
    name: str, root: pathlib.Path, size: int, batch: int, epochs: int, loss: str
) -> ConfigDict:
    """Returns the configuration of a training, all but the law."""
    config = gain_unet.get_config(name)
    config.model.update(widths=_WIDTHS, blocks=1, gain=False)
    config.loss = {loss: 1.0}
    config.optimizer.update(learning_rate=2e-3, ema_decay=0.99, warmup_epochs=0.5)
    config.train.update(epochs=epochs, batch_size=batch)
    config.eval.every_epochs = max(1, epochs // 5)
    config.data.update(root=str(root / name), image_size=size, augment="flips", realisations=0)
    return config


def write_parts(
    root: pathlib.Path, size: int, count: int, shots: int, sigma: float, blur: float
) -> int:
    """Renders parts; writes them clean, blurred and as shots.

    A sixth of each kind, but at least one, is held out for validation.

    Returns:
        The number of parts to train on.
    """
    held_out = max(1, count // 6)
    noisy = definition.law_from_config(law(sigma, blur))
    blurred = definition.law_from_config(law(0.0, blur))
    trained_on = 0
    for category, kind, index in sample.listing(count):
        image = tf.constant(sample.render(category, kind, index, size)[0])
        side = "val" if index < held_out else "train"
        trained_on += side == "train"
        part = f"{side}/{category}/{kind}-{index:03d}"
        key = tf.constant(part)
        _write(root / "clean" / f"{part}.png", image)
        _write(
            root / "blurred" / f"{part}.png",
            degrade.degrade(image, blurred, degrade.draw_seed(1, key, 0)),
        )
        for shot in range(shots):
            seed = degrade.draw_seed(1, key, shot)
            _write(root / "shots" / part / f"{shot}.png", degrade.degrade(image, noisy, seed))
    return trained_on


def _write(path: pathlib.Path, image: tf.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.clip(np.round(np.asarray(image)), 0, 255).astype(np.uint8)
    Image.fromarray(levels).save(path)


def _train_and_evaluate(
    config: ConfigDict, root: pathlib.Path, sigma: float, blur: float
) -> dict[str, Any]:
    workdir = root / f"run_{config.data.name}"
    began = time.perf_counter()
    loop.train(config, workdir, pipeline.make_data)
    seconds = time.perf_counter() - began

    def evaluated(folder: str, blur: float) -> dict[str, float]:
        override = config.copy_and_resolve_references()
        override.data.update(
            name="shots" if folder == "shots" else "clean", root=str(root / folder)
        )
        override.data.degradation.update(law(sigma, blur))
        summary, _ = evaluate.evaluate_checkpoint(workdir, "best", pipeline.make_data, override)
        return summary["micro"]

    own, found = evaluated(config.data.name, blur), evaluated("clean", blur)
    to_blurred = evaluated("blurred", 0.0)["psnr"] if blur else None
    return {
        "seconds": round(seconds, 1),
        "own_psnr": round(own["psnr"], 3),
        "psnr": round(found["psnr"], 3),
        "ssim": round(found["ssim"], 4),
        "input_psnr": round(found["input_psnr"], 3),
        "blurred_psnr": None if to_blurred is None else round(to_blurred, 3),
    }


if __name__ == "__main__":
    main()
