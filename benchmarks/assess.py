"""Measures how often photographs outside of a model's known range are flagged, and others not.

python -m benchmarks.assess --model=general --root=DIR --count=30

DIR is a folder of good photographs, such as MVTec AD; `count` of them, spread over it, are
degraded by laws derived from that of the model, shrunk if its training was, and assessed as
`Restorer.assess` does. Prints a JSON line for each law:

  inside       the law of the training
  clean        not degraded
  noise        twice to two and a half times the largest noise
  blur         twice to two and a half times the widest Gaussian, along both axes

with

  photographs, flagged    numbers of photographs
  of_noise, of_blur       how many were flagged for each
  blur_known              of how many the blur along both, or one, of the axes is known
  known_flagged           how many of these were flagged
  ms                      median time of an assessment

and with --restore, for photographs that are not degraded,

  db, least_db            PSNR of the restored middle (512 px each way) against the photograph,
                          median and least, of those not flagged
  below_45_db, named      how many are below 45 dB, and how many of these a line would name

--known_range prints the limits measured on the photographs degraded by the law of the training
instead, as a weights file holds them (`--metadata=known_range=…`).
"""

import argparse
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.common import emit
from data import degrade, resize
from restore_jax import errors, load
from restore_jax.degradation import definition, known_range
from restore_jax.degradation.definition import Law
from restore_jax.errors import UsageError
from restore_jax.image_io import image_files, image_paths
from restore_jax.inference import assessment
from restore_jax.inference.restorer import Restorer

_MIDDLE = 512
_SEEDS = {"inside": 1, "clean": 2, "noise": 3, "blur": 4, "known_range": 5}


def laws(law: Law) -> dict[str, Law]:
    """Returns the laws that photographs are degraded by, by the name of their line."""
    degraded = dataclasses.replace(law, clean_share=0.0)
    noise, x, y = law.noise_sigma[1], law.sigma_x[1], law.sigma_y[1]
    return {
        "inside": law,
        "clean": Law(),
        "noise": dataclasses.replace(degraded, noise_sigma=_twice(noise), skew=1.0),
        "blur": dataclasses.replace(
            degraded, blur=("gaussian",), sigma_x=_twice(x), sigma_y=_twice(y)
        ),
    }


def _twice(highest: float) -> definition.Range:
    return 2 * highest, 2.5 * highest


def photographs(root: str, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields photographs spread over a folder, uint8 [H, W, 3], with their paths."""
    found = sorted(
        path
        for path in pathlib.Path(root).rglob("*")
        if image_paths.is_image(path) and "ground_truth" not in path.parts
    )
    if not found:
        raise UsageError(f"--root={root}: there are no images")
    for place in np.unique(np.linspace(0, len(found) - 1, count).astype(int)):
        pixels = image_files.read(found[place]).pixels
        yield str(found[place]), np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3))


def degraded(image: np.ndarray, law: Law, seed: Sequence[int], size: int) -> np.ndarray:
    """Degrades a photograph and shrinks it to `size` px each way, if that is not 0; uint8."""
    found = degrade.degrade(image, law, tf.constant(seed, tf.int64))
    if size:
        found = resize.resize(found, size, "bilinear")
    return np.clip(np.round(found.numpy()), 0, 255).astype(np.uint8)


def measure(
    restorer: Restorer, root: str, count: int, restores: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields the figures of each law."""
    data = restorer.config.data
    for name, law in laws(definition.law_from_config(data.degradation)).items():
        found, times, changes = [], [], []
        for number, (_, image) in enumerate(photographs(root, count)):
            image = degraded(image, law, (_SEEDS[name], number), data.image_size)
            start = time.perf_counter()
            found.append(restorer.assess(image))
            times.append(time.perf_counter() - start)
            if restores and name == "clean" and found[-1].inside is not False:
                part = middle(image)
                change = assessment.change_in_db([part], [restorer(part)], None)
                changes.append((change, bool(found[-1].doubt(change))))
        known = [one for one in found if any(width is not None for width in one.blur)]
        reasons = [" ".join(one.reasons) for one in found]
        yield {
            "law": name,
            "photographs": len(found),
            "flagged": sum(one.inside is False for one in found),
            "of_noise": sum("noise" in reason for reason in reasons),
            "of_blur": sum("blur" in reason for reason in reasons),
            "blur_known": len(known),
            "known_flagged": sum(one.inside is False for one in known),
            "ms": round(1000 * statistics.median(times), 1),
            **_changes(changes),
        }


def middle(image: np.ndarray, side: int = _MIDDLE) -> np.ndarray:
    """Returns the middle of a photograph, `side` px each way at most."""
    top, left = (max(0, length - side) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _changes(changes: Sequence[tuple[float, bool]]) -> dict[str, float]:
    if not changes:
        return {}
    decibels = [change for change, _ in changes]
    return {
        "db": round(statistics.median(decibels), 1),
        "least_db": round(min(decibels), 1),
        "below_45_db": sum(change < 45 for change in decibels),
        "named": sum(is_named for _, is_named in changes),
    }


def measured_range(restorer: Restorer, root: str, count: int) -> str:
    """Returns the limits of photographs degraded as in the training, as one line."""
    data = restorer.config.data
    law = definition.law_from_config(data.degradation)
    found = known_range.of_photographs(
        [
            known_range.measure(
                degraded(image, law, (_SEEDS["known_range"], number), data.image_size),
                is_resized=bool(data.image_size),
            )
            for number, (_, image) in enumerate(photographs(root, count))
        ]
    )
    by_law = known_range.of_config(data)
    if found is None or by_law is None:
        raise UsageError(f"--root={root}: too few photographs tell their noise")
    # Of photographs that were shrunk, the law tells too little.
    return (found if data.image_size else found.widened(by_law)).as_text()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurement that the command line asks for and prints its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="general", help="workdir, weights file or name")
    parser.add_argument("--root", required=True, help="folder of good photographs")
    parser.add_argument("--count", type=int, default=30, help="number of photographs")
    parser.add_argument("--known_range", action="store_true", help="print measured limits")
    parser.add_argument("--restore", action="store_true", help="restore good photographs")
    given = parser.parse_args(argv)
    with errors.exit_on_failure():
        restorer = load(given.model)
        if given.known_range:
            print(measured_range(restorer, given.root, given.count))
            return
        for record in measure(restorer, given.root, given.count, given.restore):
            emit({"op": "assess", "model": given.model, **record})


if __name__ == "__main__":
    main()
