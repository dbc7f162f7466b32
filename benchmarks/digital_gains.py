"""How exactly digital gains are found in photographs degraded by a law.

    python -m benchmarks.digital_gains --root=DIR --images=60

Degrades photographs of MVTec AD at their native size, without the law's gain, multiplies each
channel by a known one from the law's range, and prints a JSON line: the number of channels, how
many gains were not found, the median and largest error of the others, and the milliseconds of
CPU time per photograph. Requires TensorFlow.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Sequence

import numpy as np

from configs import default
from data import batching, degrade, pipeline
from data.sources import images
from restore_jax.degradation import digital_gain
from restore_jax.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Measures according to the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="MVTec AD: its folder or archives")
    parser.add_argument("--data", default="mvtec_ad", help="another data set, as :DATA")
    parser.add_argument("--preset", default="kla", help="the degradation law")
    parser.add_argument("--images", type=int, default=60, help="photographs to measure")
    given = parser.parse_args(argv)
    try:
        print(json.dumps(measure(given.root, given.data, given.preset, given.images)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def measure(root: str, data: str, preset: str, count: int) -> dict[str, object]:
    """Measures the errors on the first photographs of the training split."""
    config = default.get_config(data)
    config.data.root = root
    config.data.split = "all"
    config.data.references = 0
    config.data.degradation.preset = preset
    config, law, sources = pipeline.load(config)
    without = dataclasses.replace(law, gain=(1.0, 1.0))
    rng = np.random.default_rng(0)
    errors, missed, seconds = [], 0, 0.0
    records = batching.as_numpy(sources["train"].dataset)
    for number, record in enumerate(itertools.islice(records, count)):
        clean = images.decode(record["image"], 3)
        degraded = degrade.degrade(clean, without, degrade.draw_seed(0, record["id"], number))
        gains = rng.uniform(*law.gain, 3).astype(np.float32)
        changed = degrade.quantise(degraded * gains, law.quantise).numpy().astype(np.uint8)
        for channel, gain in zip(np.moveaxis(changed, -1, 0), gains, strict=True):
            counts = np.bincount(channel.ravel(), minlength=256)
            began = time.process_time()
            found = digital_gain.estimate(counts)
            seconds += time.process_time() - began
            if found is None:
                missed += 1
            else:
                errors.append(abs(found.value - float(gain)))
    return {
        "op": "digital_gains",
        "preset": preset,
        "channels": len(errors) + missed,
        "missed": missed,
        "median_error": float(np.median(errors)) if errors else None,
        "largest_error": max(errors, default=None),
        "cpu_ms_per_photograph": round(3e3 * seconds / max(1, len(errors) + missed), 1),
    }


if __name__ == "__main__":
    main()
