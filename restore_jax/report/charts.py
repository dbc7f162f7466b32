"""Draws the charts of the HTML pages with matplotlib, as inline SVG.

All charts are drawn as wide as the text column on a phone and scale up with their column, so
that text stays readable. Colours are CSS variables of the page, which follow its colour scheme;
text stays text, in the font of the page. What does not fit in the drawing, such as the full
name of a bar, becomes an SVG title, which browsers show as a tooltip.
"""

import dataclasses
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from restore_jax.report.forms import defined, number, printable

# Lengths in CSS pixels: matplotlib writes 72 units per inch to an SVG.
_WIDTH = 328
_TICK_ROW = 20
_FONT_SIZE = 11
# The longest name that fits in one line with a difference and its interval.
_SHORT_NAME = 15

# Placeholder colours, which `_svg` replaces by the CSS variables of the same name.
_VARIABLES = "text muted line strong-line input restored better worse ground"
_COLOURS = {name: f"#0102{i:02x}" for i, name in enumerate(_VARIABLES.split())}
_TITLE = "title:"
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": _FONT_SIZE,
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "xtick.major.pad": 5,
    "ytick.major.pad": 6,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 1,
} | {f"{axis}tick.{part}": 0 for axis in "xy" for part in ("major.size", "minor.size")}


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference and its confidence interval, one row of a forest plot.

    Attributes:
        run: letter of the run that is compared with the first.
        images: number of images, as text.
        value: the difference; None if it has no value.
        low, high: bounds of the interval; None if there is none.
        verdict: "better", "worse", "unclear" or "few" (too few images).
        text: the difference and its interval, formatted.
    """

    run: str
    images: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    text: str


def bars(
    title: str,
    rows: Sequence[tuple[str, float | None, float | None]],
    digits: int,
    limit: float | None = None,
) -> Markup:
    """Draws two horizontal bars per name, from zero: the degraded input and the restored image.

    Args:
        title: measure and unit.
        rows: (name, input, restored) from top to bottom; None or NaN for no value.
        digits: number of decimals of the values beside the bars.
        limit: upper end of the axis; None for the largest value, but at least 1.
    """
    row, thick = 46, 11
    values = [value for _, *both in rows for value in both if defined(value)]
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(row * len(rows), right=52)
        axes.set_xlim(0, limit or max([*values, 1.0]))
        axes.xaxis.set_major_locator(_ticks(4))
        axes.grid(axis="x")
        for i, (name, *both) in enumerate(rows):
            top = i * row
            _write(axes, top + 13, shortened(name, 44), title=name)
            for kind, value in zip(("input", "restored"), both, strict=True):
                top += 18 if kind == "input" else thick + 1
                length = max(0.0, value) if defined(value) else 0.0
                shown = number(value, digits)
                axes.barh(
                    top, length, thick, align="edge", color=_COLOURS[kind],
                    gid=f"{_TITLE}{name}, {kind}: {shown}",
                )  # fmt: skip
                axes.annotate(
                    shown, (length, top + thick / 2), (4, 0), textcoords="offset points",
                    va="center_baseline",
                )  # fmt: skip
        return _svg(figure, title, f"{title}, input and restored, for each category")


def histogram(
    title: str,
    series: Mapping[str, Sequence[float]],
    edges: Sequence[float],
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draws a histogram of images; the outer bars include the values beyond the edges.

    Args:
        title: measure and unit.
        series: the values of "input", of "restored" or of both; NaN is left out.
        edges: edges of the bins, equally spaced.
        marks: values to mark with a vertical line, each with a short label.
    """
    ends = edges[0], edges[-1]
    values = [np.clip([v for v in found if defined(v)], *ends) for found in series.values()]
    colours = [_COLOURS[kind] for kind in series]
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(150, left=26, right=6, above=_TICK_ROW, below=24)
        counts, _, drawn = axes.hist(values, edges, color=colours, rwidth=0.86)
        for kind, group in zip(series, drawn if len(series) > 1 else [drawn], strict=True):
            for i, bar in enumerate(group):
                images = int(bar.get_height())
                bar.set_visible(images > 0)
                span = f"{number(edges[i])} to {number(edges[i + 1])}"
                bar.set_gid(f"{_TITLE}{span}, {kind}: {images}")
        axes.set_ylim(0, 1.05 * max(1, np.max(counts)))
        axes.set_xlim(ends)
        axes.xaxis.set_major_locator(_ticks(8))
        axes.yaxis.set_major_locator(_ticks(4, integer=True))
        axes.xaxis.tick_bottom()
        axes.tick_params(axis="x", pad=8)
        axes.grid(axis="y")
        for place, label in marks:
            axes.axvline(place, color=_COLOURS["text"], lw=1, ls=(0, (4, 3)))
            axes.annotate(
                label, (place, 1), (3, 4), ("data", "axes fraction"), "offset points",
                color=_COLOURS["muted"],
            )  # fmt: skip
        return _svg(figure, title, f"Histogram: {title}")


def band(title: str, at: np.ndarray, low: np.ndarray, high: np.ndarray, label: str) -> Markup:
    """Draws what lies between two curves from zero up; where they are one, a line.

    Args:
        title: measure and unit.
        at: places along the axis, rising.
        low: the lower curve there.
        high: the upper one.
        label: what the axis shows.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(150, left=30, right=8, above=8, below=40)
        axes.fill_between(at, low, high, color=_COLOURS["input"], lw=0, alpha=0.6)
        for curve in (low, high):
            axes.plot(at, curve, color=_COLOURS["restored"], lw=2)
        axes.set_ylim(0, 1.1 * max(float(np.max(high)), 1.0))
        axes.set_xlim(at[0], at[-1])
        axes.xaxis.set_major_locator(_ticks(6))
        axes.yaxis.set_major_locator(_ticks(4))
        axes.xaxis.tick_bottom()
        axes.set_xlabel(label, color=_COLOURS["muted"])
        axes.grid(axis="y")
        ends = f"{number(low[0], 1)} to {number(high[0], 1)} at {at[0]:g}"
        return _svg(figure, title, f"{title} over {label}: {ends}")


def forest(title: str, blocks: Sequence[tuple[str, Sequence[Interval]]]) -> Markup:
    """Draws a forest plot: a row per difference with its interval, on an axis that includes 0.

    Args:
        title: measure, unit and which side is better.
        blocks: names, each with its differences, from top to bottom. If all names are short and
            have a single difference, name and difference share a line.
    """
    separate = any(len(group) > 1 or len(name) > _SHORT_NAME for name, group in blocks)
    head, row, band = 16 if separate else 0, 32, 12
    ends = [
        end
        for _, group in blocks
        for one in group
        for end in (one.value, one.low, one.high)
        if defined(end)
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    ticks = _ticks(4).tick_values(*((low, high) if low < high else (-1.0, 1.0)))
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(sum(head + row * len(group) for _, group in blocks))
        # Margins, as half a marker and half a tick label extend beyond the ends.
        room = 0.07 * (ticks[-1] - ticks[0])
        axes.set_xlim(ticks[0] - room, ticks[-1] + room)
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(_signed))
        top = 0
        for name, group in blocks:
            axes.axhline(top, color=_COLOURS["line"], lw=1)
            heading = shortened(name, 40) if separate else f"{name} ({group[0].images})"
            _write(axes, top + 13, heading, title=name, weight="bold")
            top += head
            for one in group:
                if separate:
                    _write(axes, top + 13, f"{one.run} ({one.images})")
                _write(axes, top + 13, one.text, at=1, **_TEXT_STYLES[one.verdict])
                middle = top + 23
                span = middle - band / 2, middle + band / 2
                axes.vlines(ticks, *span, _COLOURS["line"], lw=1)
                axes.vlines(0, *span, _COLOURS["strong-line"], lw=1.5)
                if defined(one.value):
                    _draw_interval(axes, one, middle, f"{_TITLE}{name}, {one.run}: {one.text}")
                top += row
        return _svg(figure, title, f"{title}, for each category; a table below has the numbers")


_TEXT_STYLES: Mapping[str, Mapping[str, Any]] = {
    "better": {"color": _COLOURS["better"], "weight": "bold"},
    "worse": {"color": _COLOURS["worse"], "weight": "bold"},
    "unclear": {},
    "few": {"color": _COLOURS["muted"]},
}


def _draw_interval(axes: Axes, one: Interval, y: float, gid: str) -> None:
    """Draws a difference and its interval, filled and thick if better or worse."""
    decided = one.verdict in ("better", "worse")
    colour = _COLOURS[one.verdict if decided else "muted"]
    width = 3 if decided else 1.5
    if defined(one.low):
        style = (0, (2, 2)) if one.verdict == "few" else "solid"
        axes.plot([one.low, one.high], [y, y], color=colour, lw=width, ls=style)
    fill = colour if decided else _COLOURS["ground"]
    axes.plot(one.value, y, "o", ms=8, mec=colour, mfc=fill, mew=1.5, gid=gid)


def _signed(value: float, _: int) -> str:
    return f"{value:+.10g}".replace("-", "−") if value else "0"


def _ticks(about: int, **options: Any) -> MaxNLocator:
    return MaxNLocator(about, steps=[1, 2, 2.5, 5, 10], **options)


def bin_edges(values: Sequence[float]) -> list[float]:
    """Chooses at most 25 bin edges at round steps, which span all values and at least 5."""
    low, high = min(values), max(values)
    return _ticks(23).tick_values(low, max(high, low + 5)).tolist()


def shortened(name: str, longest: int) -> str:
    """Shortens a long name in the middle, since related names differ at their ends."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _canvas(
    plot: int, left: int = 0, right: int = 0, above: int = _TICK_ROW, below: int = 1
) -> tuple[Figure, Axes]:
    """Makes axes `plot` px high, with margins; their y runs downwards from the top, in px."""
    height = above + plot + below
    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / _WIDTH, below / height, 1 - (left + right) / _WIDTH, plot / height)
    )
    axes.set_ylim(plot, 0)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    return figure, axes


def _write(
    axes: Axes, y: float, words: str, at: int = 0, title: str = "", **style: Any
) -> None:
    """Writes text at the left (`at=0`) or right (1) edge; `title` is its tooltip."""
    axes.text(
        at, y, printable(words), transform=axes.get_yaxis_transform(), ha=("left", "right")[at],
        gid=f"{_TITLE}{title}" if title else None, **style,
    )  # fmt: skip


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """Converts a figure into inline SVG.

    Args:
        figure: the figure.
        name: unique on the page, so that the ids in the SVG are unique too.
        description: text for screen readers.
    """
    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser renders the text, with fonts that have more glyphs than matplotlib's.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(
            content, format="svg", transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )  # fmt: skip
    drawing = printable(content.getvalue())
    # Leave out the head, whose stylesheet would apply to the whole page.
    drawing = drawing[drawing.index("<g ") :].replace("xlink:href", "href")
    drawing = re.sub(r"""<g id=("|')(.*?)\1([^>]*)>""", _without_id, drawing)
    for variable, colour in _COLOURS.items():
        drawing = re.sub(f"(fill|stroke): {colour}", rf"\1: var(--{variable})", drawing)
    width, height = figure.get_size_inches() * 72
    return Markup(
        f'<svg role="img" aria-label="{escape(description)}" '
        f'viewBox="0 0 {width:g} {height:g}">{drawing}'
    )


def _without_id(group: re.Match[str]) -> str:
    """Drops the id of a group, as other charts repeat it; a title becomes a `<title>`."""
    found = group[2].removeprefix(_TITLE)
    title = "" if found == group[2] else f"<title>{found}</title>"
    return f"<g{group[3]}>{title}"
