"""Writes the report of an evaluation: one HTML file with figures, images and failures.

The file is self-contained: style sheet, script, charts and images are embedded, and its Content
Security Policy forbids every request. It shows the figures and arrays it is given; only the map
of squared errors of each image and its error ratio are computed here. Its layout and text are
in evaluation.html.jinja.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from restore_jax import batches, files
from restore_jax.metrics.defects import ERASED_BELOW, error_ratio
from restore_jax.report import charts, evaluation_lines, evaluation_tables, image_panels, pages
from restore_jax.report.forms import change, defined, number
from restore_jax.report.image_panels import Frame
from restore_jax.trust import maps

_CONTRAST_EDGES = [round(-0.5 + 0.1 * i, 1) for i in range(26)]
# An image identical to its clean one scores 100 dB, which would squeeze all other bars.
_HIGHEST_PSNR = 60.0
_RANKS = ("best", "median", "worst")

_TRAINED_ON = {
    "defects": "photographs with defects (split “defects”)",
    "good": "defect-free photographs only (split “good”)",
    "all": "photographs with and without defects (split “all”)",
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One image of a category, shown as an example.

    Attributes:
        rank: rank by the PSNR of the restored image within its category.
        category, defect_type, id: of the image.
        degraded, restored, clean: float [H, W, 3], clipped to [0, 1].
        mask: [H, W, 1], one on the defect.
        has_mask: false if the mask is not known; its zeros then mean nothing.
        row: figures of the image.
        half_width: [H, W], the trust map; None without one.
    """

    rank: Literal["best", "median", "worst"]
    category: str
    defect_type: str
    id: str
    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    has_mask: bool
    row: Mapping[str, Any]
    half_width: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: heading of the page.
        summary: the content of metrics.json. Figures beyond the usual ones get columns of their
            own; the figure of the degraded input has the prefix "input_".
        rows: figures per image, with id, category and defect type; NaN or None for no value.
        examples: images to show, in any order.
        config: configuration of the run as a nested dict.
        detectability: {"macro": D, "categories": {name: D}}, where D holds the figures (or
            None) of a detector on the "clean", "degraded" and "restored" images and their
            "recovery"; None if it was not measured.
        oracle_mask: whether the model was given the true masks.
    """

    title: str
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Example] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    detectability: Mapping[str, Any] | None = None
    oracle_mask: bool = False


def write_report(path: pathlib.Path, report: Report) -> None:
    """Writes the report as one HTML file, which replaces an existing one atomically."""
    files.write_text(path, render(report))


def render(report: Report) -> str:
    """Returns the report as an HTML document."""
    summary, config = report.summary, report.config
    names = sorted({example.category for example in report.examples})
    anchors = {name: f"category-{i}" for i, name in enumerate(names)}
    failures, failed_images = evaluation_tables.failures(summary["micro"], report.rows)
    categories, further = evaluation_tables.categories(summary, anchors)
    return pages.render(
        "evaluation.html.jinja",
        title=report.title,
        summary=summary,
        micro=summary["micro"],
        data=evaluation_lines.data_line(summary["data"]),
        checkpoint=evaluation_lines.checkpoint_line(summary["checkpoint"]),
        oracle_mask=report.oracle_mask,
        seen_in_training=evaluation_lines.seen_in_training(summary),
        target=evaluation_lines.target_line(summary["data"]),
        undegraded=evaluation_lines.undegraded_line(report.rows),
        training_split=_training_split(summary),
        headline=evaluation_tables.headline(summary["micro"]),
        failures=failures,
        failed_images=failed_images,
        categories=categories,
        further=further,
        bars=_bars(summary["categories"]),
        histograms=_histograms(report.rows),
        detectability=evaluation_tables.detectability(report.detectability),
        anchors=anchors,
        examples={name: _examples(report.examples, name, anchors[name]) for name in names},
        max_side=image_panels.MAX_SIDE,
        error_gradient=image_panels.error_gradient(),
        trust_gradient=f"linear-gradient(to right, {', '.join(maps.COLOURS)})",
        kla=any(name.startswith("kla_") for name in summary["micro"] | summary["macro"]),
        trust="trust_coverage" in summary["micro"],
        provenance=_provenance(report),
        fields=[(path, _value(value)) for path, value in _flatten(config)],
    )


def _bars(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, Markup]:
    """Draws bar charts of PSNR and SSIM per category, in alphabetical order, by title."""

    def rows(key: str) -> list[tuple[str, float | None, float | None]]:
        found = sorted(categories.items())
        return [(name, means.get(f"input_{key}"), means.get(key)) for name, means in found]

    return {
        "PSNR, dB": charts.bars("PSNR, dB", rows("psnr"), 2),
        "SSIM": charts.bars("SSIM", rows("ssim"), 4, 1.0),
    }


def _histograms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Markup | None]:
    """Draws histograms of PSNR and contrast kept, by title; None if no image has a contrast."""

    def series(key: str) -> dict[str, list[float]]:
        both = {"input": f"input_{key}", "restored": key}
        found = {
            kind: [row[name] for row in rows if defined(row.get(name))]
            for kind, name in both.items()
        }
        return {kind: values for kind, values in found.items() if values}

    drawn: dict[str, Markup | None] = {}
    if psnr := series("psnr"):
        values = [min(value, _HIGHEST_PSNR) for found in psnr.values() for value in found]
        title = "Images by PSNR, dB"
        drawn[title] = charts.histogram(title, psnr, charts.bin_edges(values))
    if contrast := series("defect_contrast"):
        title = "Images by contrast kept (outer bars hold the rest)"
        marks = ((ERASED_BELOW, f"{ERASED_BELOW:g}"), (1.0, "1: kept"))
        drawn[title] = charts.histogram(title, contrast, _CONTRAST_EDGES, marks)
    else:
        drawn["Contrast kept"] = None
    return drawn


def _examples(shown: Sequence[Example], category: str, anchor: str) -> list[Mapping[str, Any]]:
    """Returns the examples of a category for the template, each image once, best first."""
    ranked: dict[str, list[Example]] = {}
    for example in sorted(shown, key=lambda one: _RANKS.index(one.rank)):
        # In a small category, the best image may also be the median or the worst.
        if example.category == category:
            ranked.setdefault(example.id, []).append(example)
    return [
        _example(same[0], ", ".join(one.rank for one in same), f"outline-{anchor}-{i}")
        for i, same in enumerate(ranked.values())
    ]


def _example(example: Example, ranks: str, outline: str) -> dict[str, Any]:
    frame = Frame.of(outline, example.mask, example.has_mask)
    error_map, top = image_panels.embed_error_map(
        image_panels.squared_error(example.restored, example.clean)
    )
    unmarked = "no defect" if example.has_mask else "no mask known"
    return {
        "frame": frame,
        "name": f"{example.category}, {ranks}",
        "ranks": ranks,
        "id": example.id,
        "degraded": image_panels.embed_photograph(example.degraded),
        "restored": image_panels.embed_photograph(example.restored),
        "clean": image_panels.embed_photograph(example.clean),
        "error_map": error_map,
        "top": 255 * math.sqrt(top),
        "trust": None
        if example.half_width is None
        else image_panels.embed_heat_map(maps.heat_map(example.half_width)),
        "defect": "defect outlined" if frame.outline else unmarked,
        "facts": _facts(example),
    }


def _facts(example: Example) -> list[tuple[str, str]]:
    row, kept = example.row, example.row.get("defect_contrast")
    contrast = number(kept)
    if defined(kept) and kept < ERASED_BELOW:
        contrast = Markup('<strong class="worse">{}, under half</strong>').format(contrast)
    mask = example.mask if example.has_mask else np.zeros_like(example.mask)
    ratio = error_ratio(example.restored, example.clean, mask)
    return [
        ("Defect type", pages.breakable(example.defect_type)),
        ("PSNR, dB", change(row, "psnr", 2)),
        ("SSIM", change(row, "ssim", 4)),
        ("Defect PSNR, dB", change(row, "defect_psnr", 2)),
        ("Contrast kept", contrast),
        ("Error at defect", f"{number(ratio)} × the rest" if defined(ratio) else "n/a"),
    ]


def _provenance(report: Report) -> list[tuple[str, str]]:
    summary = report.summary
    model = dict(report.config.get("model") or {})
    name = str(model.pop("name", "n/a"))
    trained_on = summary["trained_on"]["name"]
    if split := _training_split(summary):
        trained_on += f": {_TRAINED_ON[split]}"
    masks = "given the true masks (oracle)" if report.oracle_mask else "given no masks"
    return [
        ("Checkpoint", evaluation_lines.checkpoint_line(summary["checkpoint"])),
        ("Model", f"{name}: {_options(model)}" if model else name),
        ("Masks", f"the model was {masks}"),
        ("Data", evaluation_lines.data_line(summary["data"])),
        ("Trained on", trained_on),
        ("Degradation", _degradation(report)),
    ]


def _training_split(summary: Mapping[str, Any]) -> str | None:
    """Returns the split of MVTec AD the model was trained on; None for other data."""
    trained = summary["trained_on"]
    return trained["split"] if trained["name"] in ("mvtec_ad", "inspection") else None


def _degradation(report: Report) -> str:
    if report.summary["data"]["name"] in batches.DEGRADED_FILES:
        return "none added: the files already contain degraded images"
    law = dict((report.config.get("data") or {}).get("degradation") or {})
    if not law:
        return "n/a"
    preset = law.pop("preset", "n/a")
    changed = {field: value for field, value in law.items() if value not in (None, "")}
    return f"preset {preset}, " + (f"except {_options(changed)}" if changed else "unchanged")


def _options(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {_value(value)}" for field, value in fields.items())


def _value(value: object) -> str:
    if value is None:
        return "not set"
    if value == "":
        return "empty"
    if isinstance(value, list | tuple):
        return f"({', '.join(_value(one) for one in value)})"
    return str(value)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for field, value in tree.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{field}.")
        else:
            flat.append((f"{prefix}{field}", value))
    return flat
