"""Measures how well the bars of a trust map tell the errors on photographs of cameras.

python -m benchmarks.trust_bars --model=general --root=DIR

DIR is a folder of good photographs with a folder for each category, such as MVTec AD. The
middle (512 px each way) of the first photograph of every category is degraded by each law and
restored with its trust map. Prints a JSON line for each law:

  law                   "mild", "between" (blur of 1 to 3 px, noise of 15 to 40 grey levels) or
                        "kla"; "… without gain" leaves the colours as they are
  photographs
  covered               share of the pixels, all three channels, whose error is within the bar
  least, most           the same of single photographs
  bar                   median half-width, grey levels
  error                 the largest error of a pixel's channels is below this in as many as the
                        bars promise, 90 %; grey levels
  correlation           of the logarithms of bar and error, over all pixels
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import assess
from benchmarks.common import emit
from restore_jax import errors, load
from restore_jax.degradation import definition
from restore_jax.errors import UsageError
from restore_jax.inference.restorer import Restorer
from restore_jax.metrics import coverage

_SEED = 6
_PROMISED = 0.9
# Errors below half a grey level are of the rounding.
_LEAST_ERROR = 0.5


def laws() -> dict[str, definition.Law]:
    """Returns the laws by the name of their line."""
    mild, kla = definition.PRESETS["mild"], definition.PRESETS["kla"]
    between = definition.Law(
        blur=("gaussian",),
        sigma_x=(1.0, 3.0),
        sigma_y=(1.0, 3.0),
        noise_sigma=(15.0, 40.0),
        quantise="round",
    )
    same = (1.0, 1.0)
    return {
        "mild without gain": dataclasses.replace(mild, gain=same),
        "between without gain": between,
        "kla without gain": dataclasses.replace(kla, gain=same),
        "mild": mild,
        "kla": kla,
    }


def measure(restorer: Restorer, root: str) -> Iterator[dict[str, Any]]:
    """Yields the figures of each law."""
    folders = sorted(path for path in pathlib.Path(root).glob("*") if path.is_dir())
    if not folders:
        raise UsageError(f"--root={root}: there are no folders of photographs")
    images = [assess.middle(next(assess.photographs(str(f), 1))[1]) for f in folders]
    for name, law in laws().items():
        errors, bars = [], []
        for number, image in enumerate(images):
            bad = assess.degraded(image, law, (_SEED, number), restorer.config.data.image_size)
            restored, half_width = restorer(bad, trust=True)
            errors.append(255 * coverage.errors(restored / 255.0, image / 255.0).ravel())
            bars.append(255 * half_width.ravel())
        yield {"law": name, **figures(errors, bars)}


def figures(errors: Sequence[np.ndarray], bars: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the figures of a law.

    Args:
        errors: for each photograph the largest error of each pixel, [N] grey levels.
        bars: the half-widths of the same pixels.
    """
    covered = [float(np.mean(e <= b)) for e, b in zip(errors, bars, strict=True)]
    error, bar = np.concatenate(errors), np.concatenate(bars)
    logarithms = np.log(np.maximum(error, _LEAST_ERROR)), np.log(bar)
    return {
        "photographs": len(covered),
        "covered": round(float(np.mean(covered)), 4),
        "least": round(min(covered), 4),
        "most": round(max(covered), 4),
        "bar": round(float(np.median(bar)), 1),
        "error": round(float(np.quantile(error, _PROMISED)), 1),
        "correlation": round(float(np.corrcoef(*logarithms)[0, 1]), 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the model that the command line names and prints its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="general", help="workdir, weights file or name")
    parser.add_argument("--root", required=True, help="folder of good photographs")
    given = parser.parse_args(argv)
    with errors.exit_on_failure():
        for record in measure(load(given.model), given.root):
            emit({"op": "trust_bars", "model": given.model, **record})


if __name__ == "__main__":
    main()
