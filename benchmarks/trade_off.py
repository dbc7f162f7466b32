"""Measures the trade-off of restoration strength: PSNR of the image against defect contrast.

python -m benchmarks.trade_off --workdir=general --root=DIR --preset=kla --chart=trade_off.png

At strength s, the result is the degraded image plus s times the change that the model makes.
Prints a JSON line for each strength, with

  strength, psnr, ssim       means over the images
  defect_psnr                over the pixels of the defects, mean over the images with defects
  contrast_median, contrast_mean   contrast of the defects to their surroundings, relative to
                             the clean image (1: equal)
  erased, regions            number of defect regions erased (under half of the contrast kept),
                             and of all with a measurable contrast

and --chart plots PSNR against the median contrast.
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import emit
from configs import default
from data import pipeline
from restore_jax import errors, load
from restore_jax.evaluation import evaluate
from restore_jax.metrics import defects, fidelity
from restore_jax.parallel import compilation, cores

STRENGTHS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)


def measure(
    model: str, root: str, preset: str, size: int, split: str, images: str
) -> Iterator[dict[str, Any]]:
    """Yields the figures of each strength.

    Args:
        model: a workdir, a weights file or the name of a shipped model.
        root: folder of MVTec AD, or of a part of it.
        preset: preset of the degradation.
        size: side of the images in px; 0 for their native size.
        split: `config.data.split`.
        images: `config.eval.split`.
    """
    config = default.get_config("mvtec_ad")
    config.data.update(root=root, split=split, image_size=size, references=0)
    config.data.degradation.preset = preset
    config.eval.batch_size = 1
    data = pipeline.make_data(config)
    restorer = load(model)
    figures = jax.jit(fidelity.image_metrics)
    rows: dict[float, list[dict[str, Any]]] = {strength: [] for strength in STRENGTHS}
    for batch in evaluate.images_of(data, images):
        degraded, clean, mask = (batch[name][0] for name in ("degraded", "clean", "mask"))
        change = restorer(degraded) - degraded
        for strength, found in rows.items():
            image = np.clip(degraded + strength * change, 0, 1)
            arrays = (image, degraded, clean, mask, batch["has_mask"][0])
            measured = jax.device_get(figures(*(np.asarray(a)[None] for a in arrays)))
            row = {name: float(value[0]) for name, value in measured.items()}
            known, good = bool(batch["has_mask"][0]), batch["defect_type"][0] == "good"
            row |= defects.preservation_figures(image, degraded, clean, mask, known, good)
            found.append(row)
    for strength, found in rows.items():
        yield {
            "op": "trade_off",
            "model": model,
            "preset": preset,
            "size": size,
            "images": len(found),
            "strength": strength,
            **summarise(found),
        }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Returns the figures of one strength, averaged or counted over the images."""
    contrast = [row["defect_contrast"] for row in rows if np.isfinite(row["defect_contrast"])]
    defect_psnr = [row["defect_psnr"] for row in rows if np.isfinite(row["defect_psnr"])]
    return {
        "psnr": round(float(np.mean([row["psnr"] for row in rows])), 3),
        "ssim": round(float(np.mean([row["ssim"] for row in rows])), 4),
        "defect_psnr": round(float(np.mean(defect_psnr)), 3),
        "contrast_median": round(float(np.median(contrast)), 3),
        "contrast_mean": round(float(np.mean(contrast)), 3),
        "erased": int(np.nansum([row["erased_regions"] for row in rows])),
        "regions": int(np.nansum([row["regions"] for row in rows])),
    }


def draw(records: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Plots PSNR against median contrast, with a point for each strength."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    xs = [record["contrast_median"] for record in records]
    ys = [record["psnr"] for record in records]
    axes.plot(xs, ys, "o-", color="#1f5fa8")
    for record, x, y in zip(records, xs, ys, strict=True):
        axes.annotate(f"{record['strength']:g}", (x, y), (6, -4), textcoords="offset points")
    axes.axvline(1.0, color="#888", lw=1, ls="--")
    axes.set_xlabel("contrast of the defects, median (1: as in the clean image)")
    axes.set_ylabel("PSNR, dB")
    first = records[0]
    axes.set_title(f"{first['model']}, preset {first['preset']}: strength of the restoration")
    axes.grid(color="#ddd")
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurement that the command line asks for and prints its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="general", help="workdir, weights file or name")
    parser.add_argument("--root", required=True, help="folder of MVTec AD, or of a part of it")
    parser.add_argument("--preset", default="kla", help="preset of the degradation")
    parser.add_argument("--size", type=int, default=0, help="side of images, px; 0: native")
    parser.add_argument("--split", default="all", help="config.data.split")
    parser.add_argument("--images", choices=("val", "train", "all"), default="val")
    parser.add_argument("--chart", type=pathlib.Path, help="image file for the chart")
    given = parser.parse_args(argv)
    compilation.use_cache()
    cores.prepare()
    with errors.exit_on_failure():
        records = []
        for record in measure(
            given.workdir, given.root, given.preset, given.size, given.split, given.images
        ):
            emit(record)
            records.append(record)
        if given.chart:
            draw(records, given.chart)


if __name__ == "__main__":
    main()
