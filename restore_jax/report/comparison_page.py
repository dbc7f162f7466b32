"""Writes the comparison of models as one HTML page, in the style of the evaluation report.

Like that report, the page is self-contained; its layout and text are in comparison.html.jinja.
Runs are named by letters; the others are compared with the first one, A.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from restore_jax import files
from restore_jax.report import comparison_tables, evaluation_lines, image_panels, pages
from restore_jax.report.comparison_tables import label
from restore_jax.report.forms import defined, number
from restore_jax.report.image_panels import Frame

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Shown:
    """One image as restored by every run.

    Attributes:
        id, category, defect_type: of the image.
        degraded, clean: float [H, W, 3] in [0, 1].
        restored: the result of each run, float [H, W, 3] in [0, 1], in the order of the runs.
        mask: [H, W, 1], one on the defect.
        has_mask: false if the mask is not known; its zeros then mean nothing.
        rows: the figures of the image for each run, in the order of the runs.
    """

    id: str
    category: str
    defect_type: str
    degraded: np.ndarray
    clean: np.ndarray
    restored: Sequence[np.ndarray]
    mask: np.ndarray
    has_mask: bool
    rows: Sequence[Mapping[str, Any]]


def write_comparison(
    folder: pathlib.Path, comparison: Mapping[str, Any], shown: Sequence[Shown]
) -> None:
    """Writes comparison.json and compare.html; each replaces an existing file atomically."""
    content = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    files.write_text(folder / "compare.html", render(comparison, shown))
    files.write_text(folder / "comparison.json", content)


def render(comparison: Mapping[str, Any], shown: Sequence[Shown] = ()) -> str:
    """Returns the comparison as an HTML document.

    Args:
        comparison: what `compare.compare` returns.
        shown: images to show, in the order of the page.
    """
    runs, differences = comparison["runs"], comparison["differences"]
    return pages.render(
        "comparison.html.jinja",
        title=f"{len(runs)} models compared",
        runs=runs,
        label=label,
        data=evaluation_lines.data_line(comparison["data"]),
        notes=_notes(runs),
        conditions=comparison["conditions"],
        interval=comparison["interval"],
        figures=comparison_tables.figures(comparison),
        costs=comparison_tables.costs(comparison),
        overall=comparison_tables.overall(comparison),
        forests=comparison_tables.forests(comparison),
        differences=comparison_tables.differences(comparison),
        category_count=max((len(one["categories"]) for one in differences), default=0),
        images=[_image(runs, one, f"defect-{i}") for i, one in enumerate(shown)],
        max_side=image_panels.MAX_SIDE,
        kla=any(one["measure"].startswith("kla_") for one in differences),
        provenance=_provenance(comparison),
    )


def _notes(runs: Sequence[Fields]) -> list[str]:
    """Returns notes on what makes the comparison unfair, one sentence or two per note."""
    notes = [
        f"{label(run)} was evaluated on {run['left_out']} more images, which other runs lack "
        "and which are left out here."
        for run in runs
        if run["left_out"]
    ]
    oracle = [run["letter"] for run in runs if run["oracle_mask"]]
    if oracle:
        notes.append(
            f"With oracle mask: {', '.join(oracle)} got the true defect mask of every image. "
            "No such mask exists for a new photograph."
        )
    seen = [run["letter"] for run in runs if run["seen_in_training"]]
    if seen:
        notes.append(
            f"Trained on some of the evaluated images: {', '.join(seen)}. Such a model may do "
            "worse on other images; a comparison with one that has not seen them is unfair."
        )
    return notes


def _image(runs: Sequence[Fields], image: Shown, outline: str) -> dict[str, Any]:
    """Returns what the template shows of an image: degraded, each run's result, clean."""
    frame = Frame.of(outline, image.mask, image.has_mask)
    best = max(row["psnr"] for row in image.rows)
    defect = image.defect_type
    if not frame.outline:
        defect += ", no defect" if image.has_mask else ", no mask known"
    before = _decibels(image.rows[0]["input_psnr"])
    panels = [_panel("Degraded", image.degraded, before)]
    for run, pixels, row in zip(runs, image.restored, image.rows, strict=True):
        name = f"{run['letter']}: {run['name']}{', oracle mask' if run['oracle_mask'] else ''}"
        below = (
            f"defect {_decibels(row.get('defect_psnr'))}, contrast kept "
            f"{number(row.get('defect_contrast'))}"
        )
        panel = _panel(name, pixels, _decibels(row["psnr"]), below if frame.outline else "")
        panels.append(panel | {"best": row["psnr"] == best})
    panels.append(_panel("Clean", image.clean, below=defect))
    return {"frame": frame, "category": image.category, "id": image.id, "panels": panels}


def _panel(name: str, pixels: np.ndarray, psnr: str = "", below: str = "") -> dict[str, Any]:
    source = image_panels.embed_photograph(pixels)
    return {"name": name, "source": source, "psnr": psnr, "below": below, "best": False}


def _decibels(value: float | None) -> str:
    return f"{number(value)} dB" if defined(value) else number(value)


def _provenance(comparison: Fields) -> list[tuple[str, str]]:
    facts = []
    for run in comparison["runs"]:
        found = evaluation_lines.checkpoint_line(run["checkpoint"])
        oracle = ", with oracle mask" if run["oracle_mask"] else ""
        line = f"{run['workdir']}: {run['name']}, {found}{oracle}"
        facts.append((f"Run {run['letter']}", pages.breakable(line)))
    if law := comparison["data"]["degradation"]:
        options = (
            f"{field} {value}" for field, value in law.items() if value not in (None, "")
        )
        facts.append(("Degradation", ", ".join(options)))
    return facts
