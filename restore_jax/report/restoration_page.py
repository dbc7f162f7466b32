"""A restored folder as one HTML page, the worst files first."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from restore_jax.report import image_panels, pages
from restore_jax.report.forms import counted, defined, number, percent
from restore_jax.report.image_panels import Frame
from restore_jax.report.pages import Column, Table

MARK = '<meta name="generator" content="restore_jax: a restored folder">'
"""By this, near its beginning, a page is known to be one of these."""

# From this share of the blocks on, the residual is said to show detail: of white noise, one in
# a thousand does.
STRUCTURE = 0.01

_RANGE = {"inside": 1.0, "outside": 0.0}


class Picture(Protocol):
    """A part of a restoration, uint8 [H, W, 3] each; see `folders.verdict.Picture`."""

    before: np.ndarray
    after: np.ndarray
    residual: np.ndarray


def render(
    material: str, rows: Sequence[Mapping[str, str]], pictures: Mapping[str, Picture]
) -> str:
    """Returns the page.

    Args:
        material: what was restored.
        rows: the columns of each file, those of restore.csv.
        pictures: those to show, by the `file` of the row.
    """
    found = sorted(map(_figures, rows), key=_order)
    shown = [row for row in found if row["file"] in pictures]
    done = [row for row in found if row["action"] != "failed"]
    links = {row["file"]: f"file-{place}" for place, row in enumerate(shown)}
    return pages.render(
        "restoration.html.jinja",
        mark=MARK,
        title=f"Restored: {material}",
        material=material,
        headline=_headline(done),
        table=_table(done, links),
        failed=[row for row in found if row["action"] == "failed"],
        count=len(done),
        examples=[
            _example(row, pictures[row["file"]], links[row["file"]], done.index(row) + 1)
            for row in shown
        ],
        structure=STRUCTURE,
    )


def _figures(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table with its numbers as such; None where it has none."""
    texts = ("file", "source", "range", "reason", "action", "error")
    return {
        name: text if name in texts else float(text) if text else None
        for name, text in row.items()
    }


def _order(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    expected = row["expected_psnr"]
    return expected is None, expected or 0.0, row["file"]


def _headline(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    def median(name: str, digits: int = 1) -> str:
        values = [row[name] for row in rows if defined(row[name])]
        return number(statistics.median(values) if values else None, digits)

    outside = sum(row["range"] == "outside" for row in rows)
    detailed = sum(_shows_detail(row) for row in rows)
    return [
        ("Files", str(len(rows)), "restored or copied"),
        ("Expected PSNR", f"{median('expected_psnr')} dB", "median"),
        ("Noise", f"{median('noise')} → {median('noise_after')}", "median, grey levels"),
        ("Outside of the model’s range", str(outside), f"of {counted(len(rows), 'file')}"),
        ("Residual shows detail", str(detailed), f"of {counted(len(rows), 'file')}"),
    ]


def _shows_detail(row: Mapping[str, Any]) -> bool:
    return (row["residual_structure"] or 0.0) > STRUCTURE


def _table(rows: Sequence[Mapping[str, Any]], links: Mapping[str, str]) -> Table:
    def column(group: str, label: str, name: str, digits: int) -> Column:
        return Column(group, label, lambda row: row[name], lambda value: number(value, digits))

    columns = [
        column("", "Expected PSNR, dB", "expected_psnr", 1),
        column("Noise, grey levels", "before", "noise", 1),
        column("Noise, grey levels", "after", "noise_after", 1),
        column("Blur before, px", "x", "blur_x", 1),
        column("Blur before, px", "y", "blur_y", 1),
        Column("Residual", "detail", lambda row: row["residual_structure"], percent),
        column("Residual", "correlation", "residual_correlation", 2),
        Column("", "Range", lambda row: _RANGE.get(row["range"]), _range),
        column("", "Change, dB", "change_db", 1),
    ]
    if any(row["trust"] is not None for row in rows):
        columns.append(column("", "Error bar, ±", "trust", 1))
    return Table(
        caption="All files, the worst first; click on a heading to sort by it",
        first="File",
        columns=columns,
        rows=[(row["file"], row) for row in rows],
        links=links,
    )


def _range(value: float | None) -> str:
    return "unknown" if value is None else "inside" if value else "outside"


def _example(
    row: Mapping[str, Any], picture: Picture, anchor: str, place: int
) -> dict[str, Any]:
    frame = Frame(anchor, *picture.before.shape[:2], "")
    facts = [
        ("Expected PSNR", f"{number(row['expected_psnr'], 1)} dB"),
        ("Noise", f"{number(row['noise'], 1)} → {number(row['noise_after'], 1)}"),
        ("Blur x, y, px", f"{number(row['blur_x'], 1)}, {number(row['blur_y'], 1)}"),
        ("Residual", f"detail in {percent(row['residual_structure'])}"),
        ("Range", row["range"]),
    ]
    if row["trust"] is not None:
        facts.append(("Error bar", f"± {number(row['trust'], 1)}"))
    return {
        "anchor": anchor,
        "name": row["file"],
        "place": place,
        "frame": frame,
        "facts": facts,
        "reason": row["reason"],
        "shows_detail": _shows_detail(row),
        "panels": [
            image_panels.embed_photograph(plane / np.float32(255))
            for plane in (picture.before, picture.after, picture.residual)
        ],
    }
