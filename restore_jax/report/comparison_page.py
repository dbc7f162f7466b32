"""The comparison of models as one HTML page, in the form of the evaluation report.

As that report, it needs nothing but itself. Runs are named by letters; the first one, A, is
what the others are compared with.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from restore_jax import files
from restore_jax.report import (
    comparison_charts,
    comparison_images,
    evaluation_page,
)
from restore_jax.report.comparison_charts import STYLES, VERDICTS, bounds
from restore_jax.report.comparison_images import Shown
from restore_jax.report.html import (
    Column,
    Form,
    asset,
    breakable,
    defined,
    definitions,
    document,
    number,
    section,
    table,
    text,
)

Fields = Mapping[str, Any]


def write_comparison(
    folder: pathlib.Path, comparison: Mapping[str, Any], shown: Sequence[Shown]
) -> None:
    """Writes comparison.json and compare.html; existing ones are replaced, each in one step."""
    content = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    files.write_text(folder / "compare.html", render(comparison, shown))
    files.write_text(folder / "comparison.json", content)


def render(comparison: Mapping[str, Any], shown: Sequence[Shown] = ()) -> str:
    """Returns the comparison as an HTML document.

    Args:
        comparison: what `compare.compare` returns.
        shown: images to look at, in the order in which they are to stand.
    """
    sections = (
        _header(comparison),
        _runs(comparison),
        _overall(comparison),
        comparison_charts.categories(comparison),
        comparison_images.images(comparison, shown),
        _measures(comparison),
        _provenance(comparison),
    )
    title = f"{len(comparison['runs'])} models compared"
    return document(title, asset("compare.css"), "\n".join(filter(None, sections)))


def _label(run: Fields) -> str:
    """The letter, the workdir, and what must not be left unsaid."""
    oracle = ", with oracle mask" if run["oracle_mask"] else ""
    return f"{run['letter']}: {run['workdir']}{oracle}"


def _header(comparison: Fields) -> str:
    data, runs = comparison["data"], comparison["runs"]
    size = data["image_size"]
    at = f"{size} × {size} px" if size else "their native size"
    found = f"{data['count']} images of {data['name']} ({data['split']}) at {at}"
    notes = [
        f"{_label(run)} was evaluated on {run['left_out']} images more, which others lack and "
        "which are left out here."
        for run in runs
        if run["left_out"]
    ]
    oracle = [run["letter"] for run in runs if run["oracle_mask"]]
    if oracle:
        notes.append(
            f"With oracle mask: {', '.join(oracle)} got the true defect mask of every image. "
            "Whoever restores a new photograph has none."
        )
    seen = [run["letter"] for run in runs if run["seen_in_training"]]
    if seen:
        notes.append(
            f"Trained on some of the images that it was evaluated on: {', '.join(seen)}. It "
            "may do worse on others, and a comparison with a model that was not is not fair."
        )
    shown = "".join(f'<p class="note">{breakable(note)}</p>\n' for note in notes)
    return (
        f"<header><h1>{len(runs)} models compared on the same images</h1>\n"
        f'<p class="muted">{text(found)}</p>\n{shown}</header>'
    )


# Heading, figure, its form, and how good a value is: higher is better.
_Quality = Callable[[float], float]
_FIGURES: tuple[tuple[str, str, Form, _Quality], ...] = (
    ("PSNR, dB", "psnr", functools.partial(number, digits=2), float),
    ("SSIM", "ssim", functools.partial(number, digits=4), float),
    ("defect PSNR, dB", "defect_psnr", functools.partial(number, digits=2), float),
    ("contrast kept", "defect_contrast", number, lambda kept: -abs(1 - kept)),
    ("contrast error", "contrast_error", STYLES["contrast_error"].form, lambda e: -e),
    ("erasure rate, %", "erasure_rate", STYLES["erasure_rate"].form, lambda e: -e),
    ("hallucination", "hallucination", STYLES["hallucination"].form, lambda e: -e),
    ("KLA PSNR, dB", "kla_psnr", STYLES["kla_psnr"].form, float),
    ("KLA SSIM", "kla_ssim", STYLES["kla_ssim"].form, float),
)
_MACRO = ("psnr", "ssim", "kla_psnr", "kla_ssim")
_COSTS = (
    ("", "parameters", "parameters"),
    ("", "GMAC per image", "gmac"),
    ("Milliseconds per image", "median", "ms_per_image"),
    ("Milliseconds per image", "lower quartile", "ms_low"),
    ("Milliseconds per image", "upper quartile", "ms_high"),
)


def _runs(comparison: Fields) -> str:
    """The table of every run's figures and cost, and the degraded input's."""
    runs = comparison["runs"]

    def column(group: str, label: str, value: Any, form: Form, quality: _Quality) -> Column:
        found = [v for v in map(value, runs) if defined(v)]
        best = max(map(quality, found), default=math.nan)

        def marked(shown: float | None) -> str:
            is_best = defined(shown) and len(found) > 1 and quality(shown) == best
            return f"<strong>{form(shown)}</strong>" if is_best else form(shown)

        return Column(group, label, value, marked)

    def of(group: str, key: str) -> Callable[[Fields], float | None]:
        return lambda run: run[group].get(key)

    columns = [
        column(heading, label, of(group, key), form, quality)
        for heading, group in (("Mean of images", "micro"), ("Mean of categories", "macro"))
        for label, key, form, quality in _FIGURES
        if (group == "micro" or key in _MACRO) and any(defined(r[group].get(key)) for r in runs)
    ]
    degraded = {
        group: {key: runs[0][group].get(f"input_{key}") for _, key, _, _ in _FIGURES}
        for group in ("micro", "macro")
    }
    rows = [(_label(run), run) for run in runs]
    content = table(
        "Figures of each run; the best of a column in bold",
        "Run",
        columns,
        rows,
        [("Degraded input", degraded)],
    )
    if any(run["cost"] for run in runs):
        costs = [
            column(
                heading, label, lambda run, key=key: (run["cost"] or {}).get(key), _amount, _low
            )
            for heading, label, key in _COSTS
        ]
        content += table("Cost of each run; the lowest in bold", "Run", costs, rows)
    return section("runs", "The models", content + _conditions(comparison["conditions"]))


def _low(value: float) -> float:
    return -value


def _amount(value: float | None) -> str:
    """A count in full, any other amount with four digits that matter."""
    if not defined(value) or not value:
        return number(value, 0)
    if value == int(value):
        return f"{int(value):,}"
    return number(value, max(0, 3 - math.floor(math.log10(abs(value)))))


def _conditions(conditions: Fields | None) -> str:
    if not conditions:
        return ""
    size = f"{conditions['height']} × {conditions['width']} px"
    return (
        f'<p class="muted">GMAC: 10⁹ multiply-accumulates of an image of {text(size)}. Time on '
        f"{text(conditions['device'])}: the median of {text(conditions['rounds'])} rounds "
        f"after a warm-up, the models in turn, {text(conditions['batch'])} images of "
        f"{text(size)} a call.</p>\n"
    )


def _overall(comparison: Fields) -> str:
    """What to read first: each later run against the first, over all images."""
    first, *others = comparison["runs"]
    parts = []
    for run in others:
        pairs = []
        for found in comparison["differences"]:
            if found["run"] != run["letter"]:
                continue
            key, delta = found["measure"], found["micro"]
            style = STYLES[key]
            unit = f" <small>{style.difference_unit}</small>" if style.difference_unit else ""
            before, after = (style.form(one["micro"].get(key)) for one in (first, run))
            pairs.append(
                (
                    style.title,
                    f'<span class="figure">{style.form(delta["difference"], True)}{unit}</span>'
                    f'<span class="against">{before} → {after}</span>'
                    f'<span class="against">{bounds(delta, style)}</span>'
                    f'<span class="against">{_verdict(delta)}</span>',
                )
            )
        heading = f"{_label(run)}, against {first['letter']}: {first['workdir']}"
        parts.append(f"<h3>{breakable(heading)}</h3>\n{definitions(pairs, 'headline')}")
    level = number(comparison["interval"]["level"] * 100, 0)
    introduction = (
        f"<p>Mean differences over the images, and {level} % intervals: what other images of "
        "the same kind would give. Another training of the same model may differ by as much. "
        'The intervals are explained <a href="#measures">below</a>.</p>\n'
    )
    return section("overall", "Differences over all images", introduction + "".join(parts))


def _verdict(delta: Fields) -> str:
    verdict = delta["verdict"]
    css = verdict if verdict in ("better", "worse") else "muted"
    return f'<span class="{css}">{VERDICTS[verdict]}</span>'


def _measures(comparison: Fields) -> str:
    kla = any(found["measure"].startswith("kla_") for found in comparison["differences"])
    body = asset("compare_measures.html") + asset("measures.html")
    body += asset("measures_kla.html") if kla else ""
    content = f'<dl class="wide facts measures">\n{body}</dl>\n'
    return section("measures", "What the measures are", content)


def _provenance(comparison: Fields) -> str:
    law = comparison["data"]["degradation"]
    facts = []
    for run in comparison["runs"]:
        found = run["checkpoint"]
        facts.append(
            (
                f"Run {run['letter']}",
                breakable(
                    f"{run['workdir']}: {run['name']}, {evaluation_page.checkpoint_line(found)}"
                    + (", with oracle mask" if run["oracle_mask"] else "")
                ),
            )
        )
    if law:
        given = ", ".join(
            f"{field} {value}" for field, value in law.items() if value is not None
        )
        facts.append(("Degradation", text(given)))
    return section("provenance", "What was compared", definitions(facts, "wide facts"))
