"""Evaluation: a pure, jitted pass over batches, and the files that it leaves behind."""

import csv
import functools
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches, checkpoint, figures, losses, metrics, models, optim, workdir
from restore_jax.errors import UsageError
from restore_jax.state import abstract_state, inference_variables

Row = dict[str, Any]
Summary = dict[str, Any]

SPLITS = ("val", "train", "all")


@functools.partial(jax.jit, static_argnames=("model", "terms"))
def evaluate_batch(
    model: nn.Module,
    terms: tuple[str, ...],
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Restores a batch, without its masks, and measures it.

    Args:
        model: the architecture.
        terms: names of loss terms to compute along with the metrics.
        variables: what `model.apply` takes.
        batch: the arrays of a batch (see `batches`).

    Returns:
        Figures by name, [B] each: those of `metrics.image_metrics`, and "loss_NAME" for each
        loss term. And the restored images [B, H, W, 3] as they came, not clipped.
    """
    restored = model.apply(variables, batch["degraded"])
    clean, mask = batch["clean"], batch["mask"]
    measured = metrics.image_metrics(
        restored, batch["degraded"], clean, mask, batch["has_mask"]
    )
    losses_by_name = {
        f"loss_{name}": losses.LOSSES[name](restored, clean, mask) for name in terms
    }
    return measured | losses_by_name, restored


def evaluate(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Iterable[batches.Batch],
    mesh: Mesh,
    terms: Sequence[str] = (),
    pictures: int = 0,
) -> tuple[list[Row], list[figures.Picture]]:
    """Measures a model on a data set, image by image.

    Args:
        model: the architecture.
        variables: what `model.apply` takes, on the devices of the mesh.
        images: the batches.
        mesh: the devices.
        terms: names of loss terms to compute along with the metrics.
        pictures: how many images to keep for a look, spread over the categories.

    Returns:
        A row of figures per valid image, with its id, category and defect type, sorted by id;
        and the pictures.
    """
    rows, kept = [], figures.Selection(pictures)
    for batch in images:
        measured, restored = evaluate_batch(
            model, tuple(terms), variables, batches.to_devices(batch, mesh)
        )
        measured = jax.device_get(measured)
        for i in np.flatnonzero(batch["valid"]):
            row: Row = {
                "id": str(batch["id"][i]),
                "category": str(batch["category"][i]),
                "defect_type": str(batch["defect_type"][i]),
            }
            row |= {name: float(values[i]) for name, values in measured.items()}
            rows.append(row)
            if kept.wants(row["category"]):
                kept.add(
                    figures.Picture(
                        category=row["category"],
                        defect_type=row["defect_type"],
                        degraded=figures.to_uint8(batch["degraded"][i]),
                        restored=figures.to_uint8(np.asarray(restored[i])),
                        clean=figures.to_uint8(batch["clean"][i]),
                        mask=batch["mask"][i],
                        input_psnr=row["input_psnr"],
                        psnr=row["psnr"],
                    )
                )
    return sorted(rows, key=lambda row: row["id"]), kept.pictures()


def mean_losses(rows: Sequence[Row], weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean of each loss term over the images, and "loss", their weighted sum."""
    terms = {
        name: float(np.mean([row[f"loss_{name}"] for row in rows]))
        for name in losses.active(weights)
    }
    total = sum(weights[name] * value for name, value in terms.items())
    return {"loss": total} | {f"loss_{name}": value for name, value in terms.items()}


def check_split(split: str) -> None:
    """Checks `config.eval.split`.

    Raises:
        UsageError: for an unknown one.
    """
    if split not in SPLITS:
        raise UsageError(f"config.eval.split: {split!r} is not one of {', '.join(SPLITS)}")


def evaluate_checkpoint(
    folder: pathlib.Path,
    which: str,
    make_data: Callable[[ConfigDict], batches.Data],
    override: ConfigDict | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Summary, pathlib.Path]:
    """Evaluates a checkpoint of a workdir and writes the results into it.

    Writes `evaluation/<data>-<which>/`: metrics.json, images.csv and triplets.png.

    Args:
        folder: the workdir; the model is the one it was made with.
        which: "best", "latest" or a step.
        make_data: makes the data that a configuration asks for.
        override: a configuration whose data and evaluation sections take the place of the
            workdir's.
        devices: those to run on; all there are, if None.

    Returns:
        The content of metrics.json, and the folder of the results.

    Raises:
        UsageError: for a workdir without such a checkpoint, or a wrong field.
    """
    config = workdir.read_config(folder)
    if override is not None:
        config.data, config.eval = override.data, override.eval
    check_split(config.eval.split)
    mesh = batches.make_mesh(devices)
    batches.check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")
    model = models.from_config(config)
    template = abstract_state(
        model,
        optim.make_optimizer(config.optimizer),
        config.optimizer.ema_decay > 0,
        batches.replicated(mesh),
    )
    with checkpoint.open_manager(folder, read_only=True) as manager:
        step = checkpoint.find_step(manager, which, folder)
        state, saved = checkpoint.restore(manager, step, template)

    data = make_data(config)
    splits = ("train", "val") if config.eval.split == "all" else (config.eval.split,)
    rows, pictures = evaluate(
        model,
        inference_variables(state),
        (batch for split in splits for batch in data.eval_batches(split)),
        mesh,
        # The terms of the validations in training: their compiled program serves here again.
        terms=losses.active(config.loss),
        pictures=config.eval.pictures,
    )
    summary = {
        "checkpoint": {"step": step, "epoch": saved["epoch"], "which": which},
        "data": {
            "name": data.name,
            "split": config.eval.split,
            "count": len(rows),
            "image_size": config.data.image_size,
        },
        **metrics.summarise(rows),
    }
    label = data.name if config.eval.split == "val" else f"{data.name}_{config.eval.split}"
    results = folder / "evaluation" / f"{label}-{which}"
    write_results(results, summary, rows, pictures)
    return summary, results


def stored_results(folder: pathlib.Path) -> tuple[Summary, pathlib.Path] | None:
    """Returns what `evaluate_checkpoint` wrote of the best state, if it still is the best."""
    results = folder / "evaluation" / f"{workdir.read_config(folder).data.name}-best"
    if not (results / "metrics.json").is_file():
        return None
    summary = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    with checkpoint.open_manager(folder, read_only=True) as manager:
        current = checkpoint.find_step(manager, "best", folder)
    return (summary, results) if summary["checkpoint"]["step"] == current else None


def write_results(
    results: pathlib.Path,
    summary: Summary,
    rows: Sequence[Row],
    pictures: Sequence[figures.Picture],
) -> None:
    """Writes metrics.json, images.csv and, where there are pictures, triplets.png."""
    workdir.write_text(
        results / "metrics.json", json.dumps(summary, indent=2, allow_nan=False) + "\n"
    )
    table = io.StringIO()
    columns = ["id", "category", "defect_type", *metrics.IMAGE_FIGURES, *metrics.DEFECT_FIGURES]
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # An empty cell where a figure is not defined, as in every spreadsheet.
        writer.writerow(
            {k: "" if isinstance(v, float) and v != v else v for k, v in row.items()}
        )
    workdir.write_text(results / "images.csv", table.getvalue())
    picture = results / "triplets.png"
    if pictures:
        figures.draw_triplets(pictures, picture)
    else:
        picture.unlink(missing_ok=True)  # of an earlier evaluation, which these figures replace


def format_table(summary: Summary) -> str:
    """Formats the figures for a terminal: a line per category, then micro and macro means.

    PSNR and SSIM of the degraded input and of the restored image, and the PSNR over the pixels
    of the defects alone.
    """
    columns = (
        ("PSNR of input", "input_psnr", ".2f"),
        ("restored", "psnr", ".2f"),
        ("SSIM of input", "input_ssim", ".4f"),
        ("restored", "ssim", ".4f"),
        ("defect PSNR of input", "input_defect_psnr", ".2f"),
        ("restored", "defect_psnr", ".2f"),
        ("contrast kept", "defect_contrast", ".2f"),
    )
    named = [
        *summary["categories"].items(),
        ("mean of images", summary["micro"]),
        ("mean of categories", summary["macro"]),
    ]
    width = max(len(name) for name, _ in named)
    lines = ["  ".join(["".ljust(width), "images", *(title for title, _, _ in columns)])]
    for name, figures_ in named:
        cells = [name.ljust(width), f"{figures_['count']:6d}"]
        for title, key, form in columns:
            value = figures_[key]
            cells.append(("-" if value is None else format(value, form)).rjust(len(title)))
        if name == "mean of images":
            lines.append("─" * len(lines[0]))
        lines.append("  ".join(cells))
    return "\n".join(lines)


def format_report(summary: Summary, results: pathlib.Path) -> str:
    """Formats what a command ends with: the table, and where checkpoint and picture lie."""
    found = summary["checkpoint"]
    folder = results.parent.parent
    lines = [
        f"\n{summary['data']['count']} images of {summary['data']['name']} "
        f"({summary['data']['split']}), {found['which']} checkpoint: "
        f"step {found['step']}, epoch {found['epoch']}\n",
        format_table(summary),
        f"\ncheckpoint  {folder / 'checkpoints' / str(found['step'])}",
        f"figures     {results / 'metrics.json'}",
    ]
    if (results / "triplets.png").exists():
        lines.append(f"picture     {results / 'triplets.png'}")
    return "\n".join(lines)
