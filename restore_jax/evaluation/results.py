"""The result files of an evaluation, and its figures as a table for the terminal."""

import csv
import hashlib
import io
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from restore_jax import files
from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.evaluation.per_image import Row
from restore_jax.metrics import coverage, defects, fidelity, kla
from restore_jax.report import evaluation_lines, evaluation_page, plots
from restore_jax.report.forms import counted

Summary = dict[str, Any]

# Fields of data and evaluation that do not affect any figure.
_FREE_FIELDS = ("cache_dir", "batch_size", "pictures")

_COLUMNS = (
    "id",
    "category",
    "defect_type",
    *fidelity.IMAGE_FIGURES,
    *fidelity.DEFECT_FIGURES,
    *defects.FIGURES,
)


def folder_of(folder: pathlib.Path, config: ConfigDict, which: str) -> pathlib.Path:
    """Returns the folder of an evaluation: `evaluation/<data>-<checkpoint>`.

    A split other than val is appended to the name of the data, `<data>_<split>-<checkpoint>`,
    and so is "oracle" if the model is given the ground-truth masks,
    `<data>_oracle-<checkpoint>`.
    """
    split = config.eval.split
    label = config.data.name if split == "val" else f"{config.data.name}_{split}"
    if config.eval.oracle_mask:
        label += "_oracle"
    return folder / "evaluation" / f"{label}-{which}"


def settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the data and evaluation fields that affect the figures, as in JSON."""
    fields = workdir.as_json(config)
    return {
        section: {k: v for k, v in fields[section].items() if k not in _FREE_FIELDS}
        for section in ("data", "eval")
    }


def data_and_settings(config: ConfigDict) -> Summary:
    """Returns "data" (without the number of images) and "settings" as in metrics.json."""
    return {
        "data": {
            "name": config.data.name,
            "split": config.eval.split,
            "image_size": config.data.image_size,
        },
        "settings": settings(config),
    }


def read_stored(
    folder: pathlib.Path, config: ConfigDict, which: str, sha256: str | None = None
) -> tuple[Summary, pathlib.Path] | None:
    """Reads the results of an earlier evaluation.

    Args:
        folder: the workdir.
        config: its configuration, with the requested data and evaluation sections.
        which: "best", "latest" or a step; for a weights file "shipped" or "weights".
        sha256: digest of the weights file; None for a checkpoint of the workdir.

    Returns:
        The content of its metrics.json and its folder; None if there is no such evaluation, it
        was made with another checkpoint, weights file or settings, or it lacks fields that this
        release writes.
    """
    found = folder_of(folder, config, which)
    if not all((found / name).is_file() for name in ("metrics.json", "images.csv")):
        return None
    field, current = "sha256", sha256
    if sha256 is None:
        with checkpoint.open_manager(folder, read_only=True) as manager:
            field, current = "step", checkpoint.find_step(manager, which, folder)
    try:
        summary = json.loads((found / "metrics.json").read_text(encoding="utf-8"))
        evaluated, used = summary["checkpoint"][field], summary["settings"]
        same = evaluated == current and used == settings(config) and "trained_on" in summary
    except (ValueError, KeyError, TypeError):
        return None
    return (summary, found) if same else None


def set_aside_previous(
    folder: pathlib.Path, config: ConfigDict, found: Mapping[str, Any]
) -> None:
    """Moves an earlier evaluation out of the way where it would be mixed with the new one.

    An evaluation with other settings, or of another weights file, is renamed to
    `<folder>-<digest>`. One with the same settings but of another training step stays and will
    be overwritten; only its tree/ is removed, since the new evaluation may not write one.

    Args:
        folder: the folder of the evaluation.
        config: the configuration of the run, with the requested data and evaluation sections.
        found: what is about to be evaluated, as "checkpoint" in metrics.json.
    """
    try:
        summary = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        before, evaluated = summary["settings"], summary["checkpoint"]
        step, sha256 = evaluated["step"], evaluated.get("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    differing = "settings" if before != settings(config) else "weights"
    if differing == "settings" or sha256 != found.get("sha256"):
        if sha256 is not None:
            before = {**before, "sha256": sha256}
        digest = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:8]
        kept = folder.with_name(f"{folder.name}-{digest}")
        if kept.exists():
            shutil.rmtree(kept)
        folder.rename(kept)
        print(f"{folder}: was evaluated with other {differing}; it is kept as {kept.name}")
    elif step != found["step"]:
        shutil.rmtree(folder / "tree", ignore_errors=True)


def read_rows(path: pathlib.Path) -> list[Row]:
    """Reads images.csv or good.csv.

    Returns:
        A row per image, NaN where a figure is not defined; an empty list if the file does not
        exist.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [
        {k: v if k in _COLUMNS[:3] else float(v or "nan") for k, v in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]


def write(
    results: pathlib.Path,
    summary: Summary,
    rows: Sequence[Row],
    good_rows: Sequence[Row],
    pictures: Sequence[plots.Triplet],
    page: evaluation_page.Report,
) -> None:
    """Writes the files of an evaluation.

    Args:
        results: the folder.
        summary: content of metrics.json. It is written last, so that its presence means that
            the other files are complete.
        rows: content of images.csv.
        good_rows: content of good.csv, if there are any.
        pictures: content of triplets.png, if there are any.
        page: content of report.html.
    """
    files.write_text(results / "images.csv", _csv(rows))
    _write_or_remove(results / "good.csv", _csv(good_rows) if good_rows else None)
    evaluation_page.write_report(results / "report.html", page)
    if pictures:
        plots.draw_triplets(pictures, results / "triplets.png")
    else:
        (results / "triplets.png").unlink(missing_ok=True)
    files.write_text(
        results / "metrics.json", json.dumps(summary, indent=2, allow_nan=False) + "\n"
    )


def _write_or_remove(path: pathlib.Path, content: str | None) -> None:
    """Writes a file; without content, removes the one that an earlier evaluation left."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        files.write_text(path, content)


def _csv(rows: Sequence[Row]) -> str:
    table = io.StringIO()
    others = (*kla.KLA_FIGURES, *coverage.FIGURES)
    further = [f for f in others if rows and f in rows[0]]
    writer = csv.DictWriter(
        table, [*_COLUMNS, *further], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        # An undefined figure is an empty cell, as is usual in spreadsheets.
        writer.writerow(
            {k: "" if isinstance(v, float) and v != v else v for k, v in row.items()}
        )
    return table.getvalue()


def format_cell(value: float | None, form: str) -> str:
    """Formats a figure for a table; "-" if it is not defined."""
    return "-" if value is None else format(value, form)


def format_table(summary: Summary) -> str:
    """Formats the figures for the terminal: a line per category, then micro and macro means.

    The columns are PSNR and SSIM of the degraded input and of the restored image, their PSNR
    over the pixels of the defects, the contrast kept and the erasure rate.
    """
    columns = (
        ("PSNR of input", "input_psnr", ".2f"),
        ("restored", "psnr", ".2f"),
        ("SSIM of input", "input_ssim", ".4f"),
        ("restored", "ssim", ".4f"),
        ("defect PSNR of input", "input_defect_psnr", ".2f"),
        ("restored", "defect_psnr", ".2f"),
        ("contrast kept", "defect_contrast", ".2f"),
        ("erased", "erasure_rate", ".0%"),
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
            cells.append(format_cell(figures_[key], form).rjust(len(title)))
        if name == "mean of images":
            lines.append("─" * len(lines[0]))
        lines.append("  ".join(cells))
    return "\n".join(lines)


def format_report(summary: Summary, results: pathlib.Path) -> str:
    """Formats the final output of a command: the figures, and the paths of the files."""
    found = summary["checkpoint"]
    if found["step"] is None:
        source = ("weights", found["file"])
    else:
        source = ("checkpoint", results.parent.parent / "checkpoints" / str(found["step"]))
    lines = [
        f"\n{counted(summary['data']['count'], 'image')} of {summary['data']['name']} "
        f"({summary['data']['split']}), {evaluation_lines.checkpoint_line(found)}"
        + (", with oracle mask\n" if summary["oracle_mask"] else "\n"),
        *filter(None, [evaluation_lines.seen_in_training(summary)]),
        *filter(None, [evaluation_lines.target_line(summary["data"])]),
        format_table(summary),
        *_format_kla(summary["macro"]),
        *_format_detectability(summary["detectability"]),
        *_format_trust(summary["micro"]),
        f"\n{source[0]:10}  {source[1]}",
        f"figures     {results / 'metrics.json'}",
        f"report      {results / 'report.html'}",
    ]
    if (results / "triplets.png").exists():
        lines.append(f"picture     {results / 'triplets.png'}")
    return "\n".join(lines)


def _format_trust(micro: Mapping[str, Any]) -> list[str]:
    if "trust_coverage" not in micro:
        return []
    return [
        "\nTrust map",
        f"pixels within their 90 % interval  {micro['trust_coverage']:.1%}, inside defects "
        + format_cell(micro["trust_defect_coverage"], ".1%"),
        f"{micro['wrong_regions']} erased or invented regions, of which the 5 % widest "
        f"intervals flag {format_cell(micro['flagged_share'], '.0%')} "
        f"({format_cell(micro['chance_share'], '.0%')} by chance)",
        f"alarming pixels: {micro['alarm_area']:.1%} of all, "
        f"{format_cell(micro['alarm_pixel_share'], '.0%')} of those regions' pixels; in "
        f"{format_cell(micro['alarm_share'], '.0%')} of the regions",
    ]


def _format_kla(macro: Mapping[str, Any]) -> list[str]:
    if "kla_psnr" not in macro:
        return []
    columns = (
        ("PSNR", "kla_psnr", ".2f"),
        ("SSIM", "kla_ssim", ".4f"),
        ("defect PSNR", "kla_defect_psnr", ".2f"),
        ("defect SSIM", "kla_defect_ssim", ".4f"),
    )
    found = [
        f"{title} {format(macro[key], form)}"
        for title, key, form in columns
        if macro[key] is not None
    ]
    return ["\nBy the KLA set's own protocol (mean of categories)", ", ".join(found)]


def _format_detectability(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = []
    for key, label in (("pixel_auroc", "pixel AUROC"), ("aupro", "AUPRO")):
        values = [found["macro"][version][key] for version in ("clean", "degraded", "restored")]
        share = found["macro"]["recovery"][key]
        if None not in values:
            clean, degraded, restored = values
            lines.append(
                f"{label:12}{clean:.3f} clean, {degraded:.3f} degraded, {restored:.3f} restored"
                + ("" if share is None else f": {share:.0%} recovered")
            )
    return ["\nDetectability of the defects (mean of categories)", *lines] if lines else []
