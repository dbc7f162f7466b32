"""Tables and forest plots of a comparison: figures, costs and differences of the runs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from restore_jax.report import charts
from restore_jax.report.charts import Interval
from restore_jax.report.forms import defined, number
from restore_jax.report.pages import Column, Formatter, Table

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Style:
    """How a measure is formatted.

    Attributes:
        title: heading of the measure.
        digits: number of decimals.
        unit: unit of the values; "" if there is none.
        factor: what values are multiplied by before they are formatted.
    """

    title: str
    digits: int
    unit: str = ""
    factor: float = 1.0

    @property
    def difference_unit(self) -> str:
        """Returns the unit of a difference; "" if there is none."""
        return "points" if self.unit == "%" else self.unit

    @property
    def heading(self) -> str:
        """Returns the title and the unit of a difference."""
        return ", ".join(filter(None, (self.title, self.difference_unit)))

    def format(self, value: float | None, sign: bool = False) -> str:
        """Formats a figure without its unit; "n/a" if it has no value."""
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


_WHOLE = functools.partial(number, digits=0)

# Heading, key, formatter, and how good a value is (higher is better).
_Quality = Callable[[float], float]
_FIGURES: tuple[tuple[str, str, Formatter, _Quality], ...] = (
    ("PSNR, dB", "psnr", functools.partial(number, digits=2), float),
    ("SSIM", "ssim", functools.partial(number, digits=4), float),
    ("defect PSNR, dB", "defect_psnr", functools.partial(number, digits=2), float),
    ("contrast kept", "defect_contrast", number, lambda kept: -abs(1 - kept)),
    ("contrast error", "contrast_error", STYLES["contrast_error"].format, lambda e: -e),
    ("erasure rate, %", "erasure_rate", STYLES["erasure_rate"].format, lambda e: -e),
    ("hallucination", "hallucination", STYLES["hallucination"].format, lambda e: -e),
    ("KLA PSNR, dB", "kla_psnr", STYLES["kla_psnr"].format, float),
    ("KLA SSIM", "kla_ssim", STYLES["kla_ssim"].format, float),
)
_MACRO = ("psnr", "ssim", "kla_psnr", "kla_ssim")
_COSTS = (
    ("", "parameters", "parameters"),
    ("", "GMAC per image", "gmac"),
    ("Milliseconds per image", "median", "ms_per_image"),
    ("Milliseconds per image", "lower quartile", "ms_low"),
    ("Milliseconds per image", "upper quartile", "ms_high"),
)


def label(run: Fields) -> str:
    """Returns the letter and workdir of a run, and whether it was given the true masks."""
    oracle = ", with oracle mask" if run["oracle_mask"] else ""
    return f"{run['letter']}: {run['workdir']}{oracle}"


def figures(comparison: Fields) -> Table:
    """Returns the table of the figures of each run and of the degraded input."""
    runs = comparison["runs"]
    columns = [
        _column(runs, heading, title, (group, key), formatter, quality)
        for heading, group in (("Mean of images", "micro"), ("Mean of categories", "macro"))
        for title, key, formatter, quality in _FIGURES
        if (group == "micro" or key in _MACRO) and any(defined(r[group].get(key)) for r in runs)
    ]
    degraded = {
        group: {key: runs[0][group].get(f"input_{key}") for _, key, _, _ in _FIGURES}
        for group in ("micro", "macro")
    }
    return Table(
        "Figures of each run; the best of a column in bold",
        "Run",
        columns,
        [(label(run), run) for run in runs],
        [("Degraded input", degraded)],
    )


def costs(comparison: Fields) -> Table | None:
    """Returns the table of the cost of each run; None if none was measured."""
    runs = comparison["runs"]
    if not any(run["cost"] for run in runs):
        return None
    columns = [
        _column(runs, heading, title, ("cost", key), _amount, lambda value: -value)
        for heading, title, key in _COSTS
    ]
    rows = [(label(run), run) for run in runs]
    return Table("Cost of each run; the lowest in bold", "Run", columns, rows)


def _column(
    runs: Sequence[Fields],
    group: str,
    title: str,
    path: tuple[str, str],
    formatter: Formatter,
    quality: _Quality,
) -> Column:
    """Returns a column with its best value in bold, unless it is the only value."""

    def value(run: Fields) -> float | None:
        return (run[path[0]] or {}).get(path[1])

    found = [v for v in map(value, runs) if defined(v)]
    best = max(map(quality, found), default=math.nan)

    def marked(shown: float | None) -> str:
        is_best = defined(shown) and len(found) > 1 and quality(shown) == best
        return (
            Markup("<strong>{}</strong>").format(formatter(shown))
            if is_best
            else formatter(shown)
        )

    return Column(group, title, value, marked)


def _amount(value: float | None) -> str:
    """Formats an integer in full and any other amount with four significant digits."""
    if not defined(value) or not value:
        return number(value, 0)
    if value == int(value):
        return f"{int(value):,}"
    return number(value, max(0, 3 - math.floor(math.log10(abs(value)))))


def overall(comparison: Fields) -> list[tuple[Fields, list[dict[str, str]]]]:
    """Returns the headline of each later run: its mean differences from the first run."""
    first, *others = comparison["runs"]
    return [
        (run, [_headline(first, run, one) for one in _of_run(comparison, run)])
        for run in others
    ]


def _headline(first: Fields, run: Fields, found: Fields) -> dict[str, str]:
    key, delta = found["measure"], found["micro"]
    style, verdict = STYLES[key], delta["verdict"]
    before, after = (style.format(one["micro"].get(key)) for one in (first, run))
    return {
        "title": style.title,
        "difference": style.format(delta["difference"], True),
        "unit": style.difference_unit,
        "change": f"{before} → {after}",
        "bounds": _bounds(delta, style),
        "css": verdict if verdict in ("better", "worse") else "muted",
        "verdict": VERDICTS[verdict],
    }


def _of_run(comparison: Fields, run: Fields) -> list[Fields]:
    return [one for one in comparison["differences"] if one["run"] == run["letter"]]


def forests(comparison: Fields) -> dict[str, Markup]:
    """Returns the forest plot of each measure, keyed by its title."""
    grouped: dict[str, list[Fields]] = {}
    for found in comparison["differences"]:
        grouped.setdefault(found["measure"], []).append(found)
    drawn = {}
    for key, found in grouped.items():
        style, wanted = STYLES[key], "right" if found[0]["better"] == "higher" else "left"
        title = f"{style.heading} ({wanted} is better)"
        blocks = [
            (name, [_interval(*one, style) for one in zip(found, deltas, strict=True)])
            for name, deltas in _blocks(found)
        ]
        drawn[title] = charts.forest(title, blocks)
    return drawn


def differences(comparison: Fields) -> list[tuple[Fields, Table]]:
    """Returns the numbers of the forest plots, as a table for each later run."""
    tables = []
    for run in comparison["runs"][1:]:
        found = _of_run(comparison, run)
        columns = []
        for i, one in enumerate(found):
            style = STYLES[one["measure"]]
            signed = functools.partial(style.format, sign=True)
            columns += [
                Column(style.heading, "images", _field(i, "images"), _WHOLE),
                Column(style.heading, "difference", _field(i, "difference"), signed),
                Column(style.heading, "from", _field(i, "low"), signed),
                Column(style.heading, "to", _field(i, "high"), signed),
            ]
        *rows, macro, micro = _blocks(found)
        caption = f"Differences of {run['letter']} from {comparison['runs'][0]['letter']}"
        tables.append((run, Table(caption, "Category", columns, rows, [macro, micro])))
    return tables


def _field(measure: int, field: str) -> Callable[[Sequence[Fields]], float | None]:
    return lambda deltas: deltas[measure].get(field)


def _blocks(found: Sequence[Fields]) -> list[tuple[str, list[Fields]]]:
    """Returns the differences of all measures: each category, macro mean, micro mean."""
    names = sorted({name for one in found for name in one["categories"]})
    return [
        *((name, [one["categories"].get(name, {}) for one in found]) for name in names),
        ("All categories", [one["macro"] for one in found]),
        ("All images", [one["micro"] for one in found]),
    ]


def _interval(found: Fields, delta: Fields, style: Style) -> Interval:
    value, low, high = (
        end * style.factor if defined(end := delta.get(field)) else None
        for field in ("difference", "low", "high")
    )
    shown = style.format(delta.get("difference"), sign=True)
    if low is not None:
        shown += f" ({_bounds(delta, style)})"
    verdict, images = delta.get("verdict", "few"), number(delta.get("images"), 0)
    return Interval(found["run"], images, value, low, high, verdict, shown)


def _bounds(delta: Fields, style: Style) -> str:
    """Formats the confidence interval of a difference."""
    if not defined(delta["low"]):
        return "no interval"
    return f"{style.format(delta['low'], True)} to {style.format(delta['high'], True)}"
