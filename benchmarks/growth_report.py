"""Tabulates and plots the lines of `benchmarks.growth`."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from restore_jax.errors import UsageError

Line = Mapping[str, Any]

# The keys of a line that are used here.
_KEYS = {
    *("op", "axis", "value", "model", "size", "batch", "dtype", "device", "ms_per_image"),
    *("images_per_s", "peak_mb", "base_mb", "exponent", "memory_exponent", "failed"),
}
# Okabe and Ito's colours, which colour-blind readers can distinguish, with different markers.
_STYLES = {
    "restore": {"color": "#0072B2", "marker": "o", "label": "restoring in one piece"},
    "train_step": {"color": "#D55E00", "marker": "s", "label": "training step"},
    "restorer": {"color": "#009E73", "marker": "^", "label": "restoring in tiles"},
}
_TITLES = {
    "side": ("one image at once", "side of the image (px)"),
    "batch": ("images of {size}×{size} px", "batch"),
    "devices": ("batch {batch}, {size}×{size} px", "devices"),
    "images": ("{size}×{size} px, one by one", "images"),
}
_PANELS = {"ms_per_image": "time per image (ms)", "work_mb": "memory of the work (MB)"}
# Slope of a proportional cost on logarithmic axes.
_SLOPES = {("ms_per_image", "side"): 2, ("work_mb", "side"): 2, ("work_mb", "batch"): 1}
_PROPORTION = {"color": "#777777", "lw": 1, "ls": ":"}
_FAILED = {"color": "#777777", "marker": "x", "ls": "", "ms": 6, "mew": 2}


def work_mb(line: Line) -> float:
    """Returns the memory of the work alone, in 10⁶ bytes."""
    return line["peak_mb"] - line["base_mb"]


def exponents(before: Line, line: Line) -> dict[str, float | None]:
    """Returns the exponents of time per image and memory between two lines of a series."""
    further = math.log(line["value"] / before["value"])

    def of(first: float, second: float) -> float | None:
        # No more memory than the idle process: too little to be measured.
        return round(math.log(second / first) / further, 2) if min(first, second) > 0 else None

    return {
        "exponent": of(before["ms_per_image"], line["ms_per_image"]),
        "memory_exponent": of(work_mb(before), work_mb(line)),
    }


def read(path: pathlib.Path) -> list[Line]:
    """Reads the lines of an earlier run; a table below them is ignored.

    Raises:
        UsageError: the file does not hold such lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    except (OSError, ValueError) as error:
        raise UsageError(f"--lines={path}: cannot be read: {error}") from None
    if not lines or any(not set(line) >= _KEYS for line in lines):
        raise UsageError(f"--lines={path}: give a file of what this benchmark has printed")
    return lines


def table(lines: Sequence[Line]) -> str:
    """Returns the lines as a Markdown table, with – for missing figures."""
    heads = (
        *("work", "grows with", "value", "ms per image", "images/s", "peak, MB"),
        *("of the work, MB", "time ∝ value^", "memory ∝ value^"),
    )
    rows = [heads, ("---",) * len(heads)]
    for line in lines:
        row = [line["op"], line["axis"], line["value"]]
        if line["failed"] is not None:
            rows.append((*row, line["failed"], *["–"] * 5))
            continue
        figures = [line["ms_per_image"], line["images_per_s"], line["peak_mb"], work_mb(line)]
        grown = [line["exponent"], line["memory_exponent"]]
        rows.append(
            (
                *row,
                *(_three_digits(value) for value in figures),
                *("–" if value is None else f"{value:.2f}" for value in grown),
            )
        )
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _three_digits(value: float) -> str:
    """Formats a number with three significant digits, never in exponent notation."""
    return f"{float(f'{value:.3g}'):,.10g}"


def draw(lines: Sequence[Line], path: pathlib.Path) -> None:
    """Plots time and memory against each axis, on logarithmic scales.

    Args:
        lines: lines of one model, precision and device.
        path: the PNG to write.

    Raises:
        UsageError: the lines are of several models, precisions or devices.
    """
    names = {(line["model"], line["dtype"]) for line in lines}
    devices = {line["device"] for line in lines if line["device"] is not None}
    if len(names) > 1 or len(devices) > 1:
        raise UsageError(
            "--plot: the lines are of several models or devices; give those of one"
        )
    of_axis = {
        name: own
        for name in _TITLES
        if (own := [line for line in lines if line["axis"] == name])
    }
    figure = Figure(figsize=(max(5.0, 2.5 * len(of_axis)), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(_PANELS), len(of_axis), sharex="col", sharey="row", squeeze=False
    )
    for row, (name, label) in zip(grid, _PANELS.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, own in zip(row, of_axis.values(), strict=True):
            _draw_panel(axes, own, name)
    for column, (name, own) in zip(grid.T, of_axis.items(), strict=True):
        title, label = _TITLES[name]
        column[0].set_title(title.format(**own[0]), fontsize=9)
        column[-1].set_xlabel(label)
    figure.suptitle(", ".join([*names.pop(), *devices]), fontsize=10)
    handles = _handles(lines)
    columns = min(len(handles), max(1, len(of_axis)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def _draw_panel(axes: Any, lines: Sequence[Line], name: str) -> None:
    """Plots one quantity of the lines of an axis, and marks the points that failed."""
    axes.set(xscale="log", yscale="log", ymargin=0.2)
    first = []
    for place, (op, style) in enumerate(_STYLES.items()):
        own = [line for line in lines if line["op"] == op]
        points = [
            (line["value"], work_mb(line) if name == "work_mb" else line[name])
            for line in own
            if line["failed"] is None
        ]
        # A logarithmic axis cannot show points without measurable memory.
        points = [point for point in points if point[1] > 0]
        if points:
            first.append(points[0])
            axes.plot(*zip(*points, strict=True), lw=1.6, ms=5, **style)
        failed = [line["value"] for line in own if line["failed"] is not None]
        # Along the upper edge, one operation below the other, since they have no value.
        axes.plot(
            *(failed, [0.95 - 0.07 * place] * len(failed)),
            transform=axes.get_xaxis_transform(),
            **(_FAILED | {"color": style["color"]}),
        )
    values = sorted({line["value"] for line in lines})
    slope = _SLOPES.get((name, lines[0]["axis"]))
    if slope is not None and first:
        start, height = min(first, key=lambda point: point[1])
        ends = np.array([values[0], values[-1]])
        axes.plot(ends, height / 2 * (ends / start) ** slope, **_PROPORTION)
    axes.xaxis.set_major_locator(ticker.FixedLocator(values))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)


def _handles(lines: Sequence[Line]) -> list[Line2D]:
    """Returns the legend entries for what occurs in the lines."""
    ops = {line["op"] for line in lines}
    handles = [Line2D([], [], ms=5, **style) for op, style in _STYLES.items() if op in ops]
    if any((name, line["axis"]) in _SLOPES for name in _PANELS for line in lines):
        handles.append(Line2D([], [], label="in proportion to pixels, batch", **_PROPORTION))
    if any(line["failed"] is not None for line in lines):
        handles.append(Line2D([], [], label="no figure: memory or time", **_FAILED))
    return handles
