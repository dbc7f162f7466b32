"""Parts of the evaluation report: escaped text, numbers, tables and charts in SVG.

Charts have no view box: widths are shares of the page's, text and heights are CSS pixels, so
that letters keep their size on every screen.
"""

import base64
import dataclasses
import hashlib
import html
import importlib.resources
import itertools
import math
import numbers
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Means = Mapping[str, Any]
Form = Callable[[float | None], str]

_TICK_STEPS = (1, 2, 2.5, 5, 10)


def asset(name: str) -> str:
    """Reads a file of `assets`."""
    folder = importlib.resources.files("restore_jax.report") / "assets"
    return (folder / name).read_text(encoding="utf-8")


def document(title: str, style: str, body: str) -> str:
    """Builds a page that needs nothing but itself.

    Args:
        title: not escaped.
        style: CSS, after that of all reports.
        body: HTML.
    """
    script = asset("report.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(asset("page.html")).substitute(
        title=text(title),
        script=script,
        script_hash=f"sha256-{script_hash}",
        style=asset("report.css") + style,
        body=body,
    )


def text(value: object) -> str:
    """Escapes a value for an element's content or a quoted attribute."""
    # File names need not be valid Unicode; half a surrogate pair cannot be written as UTF-8.
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def breakable(name: str) -> str:
    """Escapes a name that may be long, such as an image's id, and lets it break at joints."""
    return re.sub(r"([/_])(?=.)", r"\1<wbr>", text(name))


def defined(value: object) -> bool:
    """Tells whether a figure has a value: a number that is not NaN or infinite."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Formats a figure with a fixed number of digits; "n/a" where it has no value."""
    if not defined(value):
        return "n/a"
    plain = f"{abs(value):.{digits}f}"
    # What rounds to zero has no sign.
    is_zero = not plain.strip("0.")
    return ("" if is_zero else "−" if value < 0 else "+" if sign else "") + plain


def percent(value: float | None, sign: bool = False) -> str:
    """Formats a share as per cent, with a digit; "n/a" where it has no value."""
    return number(value * 100, 1, sign) + " %" if defined(value) else "n/a"


def difference(after: float | None, before: float | None) -> float | None:
    """Returns `after - before`, None where one of them has no value."""
    return after - before if defined(after) and defined(before) else None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        group: heading over this column and its neighbours of the same group.
        label: its own heading.
        value: takes the figure out of a row's.
        form: turns the figure into text.
    """

    group: str
    label: str
    value: Callable[[Means], float | None]
    form: Form


def table(
    caption: str,
    first: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[str, Means]],
    pinned: Sequence[tuple[str, Means]] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """Builds a table that a click or a key on a heading sorts.

    Args:
        caption: what it shows; also the name of its scrolling box.
        first: heading of the first column, which holds the rows' names.
        columns: the others.
        rows: names, not escaped, and figures.
        pinned: the same for rows that stay at the end.
        links: the id of the section that a row's name leads to.
    """
    groups = [
        (name, len(list(same)))
        for name, same in itertools.groupby(columns, key=lambda column: column.group)
    ]
    over = "".join(
        f'<th colspan="{span}" scope="colgroup" class="group">{text(name)}</th>'
        for name, span in groups
    )
    if any(name for name, _ in groups):
        over = f'<tr><td class="group"></td>{over}</tr>\n'
    else:
        over = ""
    heads = "".join(
        f'<th scope="col" class="number">{_sort_button(i + 1, column.label, column.group)}</th>'
        for i, column in enumerate(columns)
    )

    def line(name: str, means: Means) -> str:
        shown = breakable(name)
        if links and name in links:
            shown = f'<a href="#{text(links[name])}">{shown}</a>'
        cells = [f'<th scope="row" data-value="{text(name)}">{shown}</th>']
        for column in columns:
            value = column.value(means)
            key = repr(float(value)) if defined(value) else ""
            cells.append(f'<td class="number" data-value="{key}">{column.form(value)}</td>')
        return f"<tr>{''.join(cells)}</tr>\n"

    body = "".join(line(name, means) for name, means in rows)
    foot = "".join(line(name, means) for name, means in pinned)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">\n'
        f'<table class="sortable"><caption>{text(caption)}</caption>\n'
        f"<thead>{over}"
        f'<tr><th scope="col">{_sort_button(0, first)}</th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n"
        f"{f'<tfoot>{chr(10)}{foot}</tfoot>' if foot else ''}</table></div>\n"
    )


def _sort_button(column: int, label: str, group: str = "") -> str:
    name = f"{group}: {label}" if group else label
    return (
        f'<button type="button" data-column="{column}" aria-label="{text(name)}">'
        f"{text(label)}</button>"
    )


def section(name: str, heading: str, content: str) -> str:
    """Builds a section with an id and a heading; the content is HTML already."""
    return f'<section id="{name}"><h2>{text(heading)}</h2>\n{content}</section>\n'


def definitions(pairs: Sequence[tuple[str, str]], css: str = "facts") -> str:
    """Builds a list of terms and what they are; the latter is HTML already."""
    lines = "".join(
        f"<div><dt>{text(term)}</dt><dd>{content}</dd></div>\n" for term, content in pairs
    )
    return f'<dl class="{css}">\n{lines}</dl>\n'


def bar_chart(
    title: str,
    bars: Sequence[tuple[str, float | None, float | None]],
    digits: int,
    limit: float | None = None,
) -> str:
    """Draws two horizontal bars per name, from zero: the degraded input and the restored image.

    Args:
        title: measure and unit.
        bars: name, input, restored, from top to bottom.
        digits: of the numbers beside the bars.
        limit: the end of the axis; from the data, if None.
    """
    values = [value for _, *both in bars for value in both if defined(value)]
    ticks = axis_ticks(0.0, limit or max([*values, 1.0]), 5)
    end, share, row, top = ticks[-1], 84.0, 50, 22
    height = top + row * len(bars)
    parts = []
    for tick in ticks:
        x = f"{tick / end * share:.3f}%"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top - 4}" y2="{height}"/>')
        anchor = "start" if tick == 0 else "middle"
        parts.append(
            f'<text class="tick" x="{x}" y="12" text-anchor="{anchor}">{tick:g}</text>'
        )
    for i, (name, *both) in enumerate(bars):
        y = top + i * row
        parts.append(
            f'<text y="{y + 13}"><title>{text(name)}</title>{text(shortened(name))}</text>'
        )
        for value, kind, below in zip(both, ("input", "restored"), (19, 32), strict=True):
            width = max(0.0, value / end * share) if defined(value) else 0.0
            parts.append(
                f'<rect class="{kind}" y="{y + below}" height="11" width="{width:.3f}%"/>'
                f'<text class="value" x="{width:.3f}%" dx="5" y="{y + below + 10}">'
                f"{number(value, digits)}</text>"
            )
    return chart(title, f"{title}, input and restored, for each category", height, parts)


def histogram(
    title: str,
    series: Sequence[tuple[str, Sequence[float]]],
    edges: Sequence[float],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draws how many images have which value; the outer bars hold what lies beyond the edges.

    Args:
        title: measure and unit.
        series: class of the bars ("input", "restored") and values; NaN is left out.
        edges: of the bars, at equal steps.
        marks: places to mark on the axis, with a short text.
    """
    low, high, count = edges[0], edges[-1], len(edges) - 1
    # The numbers of images stand left of the bars.
    margin = 7.0
    width = (100.0 - margin) / count
    heights = [(kind, _binned(values, edges)) for kind, values in series]
    most = max([1, *(max(bins) for _, bins in heights)])
    ticks = [tick for tick in axis_ticks(0, most, 3) if tick == int(tick)]
    top, plot = 24, 150
    base, scale = top + plot, plot / max(most, ticks[-1])
    parts = []
    for tick in ticks:
        y = f"{base - tick * scale:.1f}"
        parts.append(f'<line class="grid" x1="{margin}%" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="0" y="{y}" dy="4">{tick:g}</text>')
    for place, (kind, bins) in enumerate(heights):
        bar = width * 0.86 / len(series)
        for i, images in enumerate(bins):
            if images:
                x = margin + i * width + width * 0.07 + place * bar
                parts.append(
                    f'<rect class="{kind}" x="{x:.3f}%" width="{bar:.3f}%" '
                    f'y="{base - images * scale:.1f}" height="{images * scale:.1f}">'
                    f"<title>{number(edges[i], 2)} to {number(edges[i + 1], 2)}: {images}"
                    "</title></rect>"
                )

    def position(value: float) -> float:
        return margin + (value - low) / (high - low) * (100.0 - margin)

    for value, label in marks:
        x = f"{position(value):.3f}%"
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{top - 8}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x}" dx="4" y="{top - 8}">{text(label)}</text>')
    step = next(step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10) if (high - low) / step <= 8)
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        x = position(i * step)
        anchor = "end" if x > 99 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.3f}%" y="{base + 16}" text-anchor="{anchor}">'
            f"{f'{i * step:g}'.replace('-', '−')}</text>"
        )
    return chart(title, f"Histogram: {title}", base + 22, parts)


def bin_edges(values: Sequence[float], most: int = 24) -> list[float]:
    """Chooses equal steps of 0.25, 0.5, 1, 2 or 5 that hold all values in few bars."""
    low, high = min(values), max(values)
    for step in (0.25, 0.5, 1.0, 2.0, 5.0):
        first, last = math.floor(low / step), math.floor(high / step) + 1
        if last - first <= most:
            break
    return [i * step for i in range(first, last + 1)]


def _binned(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    bins = [0] * (len(edges) - 1)
    step = (edges[-1] - edges[0]) / len(bins)
    for value in values:
        if defined(value):
            bins[min(len(bins) - 1, max(0, math.floor((value - edges[0]) / step + 1e-9)))] += 1
    return bins


def axis_ticks(low: float, high: float, about: int) -> list[float]:
    """Chooses about so many round steps from `low` on that reach `high`."""
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step * magnitude for step in _TICK_STEPS if step * magnitude >= rough * 0.999)
    return [low + i * step for i in range(math.ceil((high - low) / step * 0.999) + 1)]


def shortened(name: str, longest: int = 44) -> str:
    """Leaves out the middle of a long name: related names differ at their ends."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def chart(title: str, description: str, height: int, parts: Sequence[str]) -> str:
    """Puts the parts of an SVG, so many pixels high, under a title; the description is read."""
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>\n'
        f'<svg width="100%" height="{height}" role="img" aria-label="{text(description)}">\n'
        f"{''.join(parts)}\n</svg></figure>\n"
    )
