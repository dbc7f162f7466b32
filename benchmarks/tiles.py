"""How far a photograph restored in tiles is from the same restored in one piece.

    python -m benchmarks.tiles --model=gain_unet_kla_native --side=4096 --tile=512

Renders a photograph of 1024×1024, repeats it to the given side, degrades it by the `kla` law
and restores it both ways. Prints a JSON line: the PSNR between the two in dB; the largest
difference of a value, and the largest step of the difference's mean from one square of the
tile's side to the next, both in grey levels; and the seconds of each. Requires TensorFlow.
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from data import degrade
from data.rendered import sample
from restore_jax import errors, load
from restore_jax.degradation import definition
from restore_jax.parallel import cores


def main(argv: Sequence[str] | None = None) -> None:
    """Measures according to the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gain_unet_kla_native", help="what to restore with")
    parser.add_argument("--side", type=int, default=4096, help="side of the photograph, px")
    parser.add_argument("--tile", type=int, default=512, help="side of the tiles, px")
    given = parser.parse_args(argv)
    cores.prepare()
    with errors.exit_on_failure():
        print(json.dumps(measure(given.model, given.side, given.tile)))


def measure(model: str, side: int, tile: int) -> dict[str, object]:
    """Restores a photograph in tiles and in one piece, and compares the two."""
    rendered, _ = sample.render("tile", "crack", 0, min(side, 1024))
    repeats = -(-side // len(rendered))
    clean = np.tile(rendered, (repeats, repeats, 1))[:side, :side]
    law = definition.PRESETS["kla"]
    degraded = degrade.degrade(clean, law, (0, 0)).numpy().astype(np.uint8)
    restorer, results, seconds = load(model), [], []
    for size in (tile, side):
        began = time.monotonic()
        results.append(restorer(degraded, tile=size).astype(np.float64))
        seconds.append(round(time.monotonic() - began, 1))
    difference = results[0] - results[1]
    count = side // tile
    squares = difference[: count * tile, : count * tile].reshape(count, tile, count, tile, 3)
    means = squares.mean((1, 3))
    steps = [np.abs(np.diff(means, axis=axis)).max(initial=0.0) for axis in (0, 1)]
    return {
        "op": "tiles",
        "model": model,
        "side": side,
        "tile": tile,
        "psnr_between": round(10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9)), 1),
        "largest_difference": float(np.abs(difference).max()),
        "largest_step": round(float(max(steps)), 4),
        "seconds_in_tiles": seconds[0],
        "seconds_in_one_piece": seconds[1],
    }


if __name__ == "__main__":
    main()
