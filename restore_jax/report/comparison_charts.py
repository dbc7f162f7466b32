"""Differences between models in each category, as forest plots: tables with drawn intervals."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from restore_jax.report.html import axis_ticks, breakable, defined, number, section, text

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Style:
    """How a measure is written: its heading, and a factor, digits and unit of its numbers."""

    title: str
    digits: int
    unit: str = ""
    factor: float = 1.0

    @property
    def difference_unit(self) -> str:
        """The unit of a difference; "" where there is none."""
        return "points" if self.unit == "%" else self.unit

    def form(self, value: float | None, sign: bool = False) -> str:
        """Formats a figure, without its unit; "n/a" where it has no value."""
        scaled = value * self.factor if defined(value) else None
        return number(scaled, self.digits, sign)


STYLES = {
    "psnr": Style("PSNR", 2, "dB"),
    "ssim": Style("SSIM", 4),
    "defect_psnr": Style("Defect PSNR", 2, "dB"),
    "contrast_error": Style("Contrast error", 3),
    "erasure_rate": Style("Erasure rate", 1, "%", 100.0),
    "hallucination": Style("Hallucination", 4),
    "kla_psnr": Style("KLA PSNR", 2, "dB"),
    "kla_ssim": Style("KLA SSIM", 4),
}

VERDICTS = {
    "better": "better",
    "worse": "worse",
    "unclear": "no clear difference",
    "few": "too few images",
}

_LEGEND = (
    ("better", "better: the whole interval on that side of 0"),
    ("worse", "worse, likewise"),
    ("unclear", "no clear difference: the interval holds 0"),
    ("few", "too few images to tell"),
)


def bounds(delta: Fields, style: Style) -> str:
    """Formats the interval of a difference."""
    if not defined(delta["low"]):
        return "no interval"
    return f"{style.form(delta['low'], True)} to {style.form(delta['high'], True)}"


def categories(comparison: Fields) -> str:
    """The section with a forest plot per measure."""
    grouped: dict[str, list[Fields]] = {}
    for found in comparison["differences"]:
        grouped.setdefault(found["measure"], []).append(found)
    count = max((len(f["categories"]) for f in comparison["differences"]), default=0)
    few = comparison["interval"]["min_images"]
    legend = "".join(
        '<span><svg width="36" height="12" aria-hidden="true">'
        f"{_interval(kind, '2', '34', '18', '6')}</svg>{text(meaning)}</span>"
        for kind, meaning in _LEGEND
    )
    introduction = (
        f"<p>Difference to {comparison['runs'][0]['letter']} in each category. Of {count} "
        "categories about one in twenty will seem to differ by chance alone, and a category of "
        f"under {few} images decides nothing.</p>\n"
        f'<p class="markers">{legend}</p>\n'
    )
    plots = "".join(_forest(STYLES[key], found) for key, found in grouped.items())
    content = f'{introduction}<div class="forests">\n{plots}</div>\n'
    return section("categories", "Differences by category", content) if grouped else ""


def _forest(style: Style, found: Sequence[Fields]) -> str:
    """Draws a measure's differences of each later run: a block per category, then the means."""
    names = sorted({name for one in found for name in one["categories"]})
    blocks = [
        *((name, [one["categories"].get(name, {}) for one in found], "") for name in names),
        ("All categories", [one["macro"] for one in found], " mean first"),
        ("All images", [one["micro"] for one in found], " mean"),
    ]
    axis = _Axis(
        [
            delta[field] * style.factor
            for _, deltas, _ in blocks
            for delta in deltas
            for field in ("difference", "low", "high")
            if defined(delta.get(field))
        ]
    )
    letters = [one["run"] for one in found]
    rows = "".join(
        _row(name, letter if len(found) > 1 else "", i == 0, delta, style, axis, css)
        for name, deltas, css in blocks
        for i, (letter, delta) in enumerate(zip(letters, deltas, strict=True))
    )
    wanted = "right" if found[0]["better"] == "higher" else "left"
    several = " several" if len(found) > 1 else ""
    unit = style.difference_unit
    title = f"{style.title}{f', {unit}' if unit else ''} ({wanted} is better)"
    return (
        f"<figure><figcaption>{text(title)}</figcaption>\n"
        f'<div class="forest{several}" role="table" aria-label="{text(title)}">\n'
        '<div class="row head" role="row"><span class="name" role="columnheader">Category'
        '</span><span class="plot" role="columnheader" aria-label="Verdict">'
        f"{axis.labels()}</span>"
        '<span class="value" role="columnheader">Difference (interval)</span>'
        '<span class="count" role="columnheader">Images</span></div>\n'
        f"{rows}</div></figure>\n"
    )


def _row(
    name: str, letter: str, names_it: bool, delta: Fields, style: Style, axis: "_Axis", css: str
) -> str:
    """Builds the row of a category and a run; `names_it` is false where the row above does."""
    value, low, high = (delta.get(field) for field in ("difference", "low", "high"))
    verdict, shown = delta.get("verdict", "few"), style.form(value, sign=True)
    mark = ""
    if defined(value):
        ends = (low, high) if defined(low) else (value, value)
        places = [axis.place(one * style.factor) for one in (*ends, value)]
        mark = _interval(verdict, *places, "50%")
    if defined(low):
        shown += f" ({bounds(delta, style)})"
    title = f'<span class="{"title" if names_it else "unseen"}">{breakable(name)}</span>'
    shown_letter = f" <b>{text(letter)}</b>" if letter else ""
    more = " more" if not names_it else ""
    return (
        f'<div class="row{css if names_it else css.replace(" first", "")}{more}" role="row">'
        f'<span class="name" role="rowheader">{title}{shown_letter}</span>'
        f'<span class="plot" role="cell" aria-label="{VERDICTS[verdict]}">'
        f'<svg width="100%" height="100%" aria-hidden="true">{axis.grid()}{mark}</svg></span>'
        f'<span class="value {verdict}" role="cell">{shown}</span>'
        f'<span class="count" role="cell">{number(delta.get("images"), 0)}</span></div>\n'
    )


class _Axis:
    """A horizontal axis that holds some values and 0, from one round step to another."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min([0.0, *values]), max([0.0, *values])
        self._step = axis_ticks(0.0, high - low, 4)[1] if high > low else 1.0
        # What rounding adds to a whole number of steps is no further step.
        self._first = math.floor(low / self._step + 1e-9)
        self._last = math.ceil(high / self._step - 1e-9)
        if self._first == self._last:
            self._first, self._last = -1, 1

    def place(self, value: float) -> str:
        """Where a value lies; half a mark and half a number have room beyond the ends."""
        share = (value / self._step - self._first) / (self._last - self._first)
        return f"{5.0 + 90.0 * share:.3f}%"

    def _ticks(self) -> list[tuple[str, float]]:
        ticks = [i * self._step for i in range(self._first, self._last + 1)]
        return [(self.place(tick), tick) for tick in ticks]

    def grid(self) -> str:
        """The lines of a row."""
        return "".join(
            f'<line class="{"grid" if tick else "zero"}" x1="{x}" x2="{x}" y1="0" y2="100%"/>'
            for x, tick in self._ticks()
        )

    def labels(self) -> str:
        """The numbers above the lines."""
        numbers = "".join(
            f'<text x="{x}" y="13" text-anchor="middle">'
            f"{f'{tick:+g}'.replace('-', '−') if tick else '0'}</text>"
            for x, tick in self._ticks()
        )
        return f'<svg width="100%" height="18" aria-hidden="true">{numbers}</svg>'


def _interval(verdict: str, low: str, high: str, at: str, y: str) -> str:
    """A line from bound to bound and a mark on it; filled where it decides something."""
    return (
        f'<g class="interval {verdict}"><line x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{at}" cy="{y}" r="4.5"/></g>'
    )
