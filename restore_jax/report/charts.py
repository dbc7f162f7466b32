"""The figures of the evaluation report: headline, tables and charts."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from restore_jax.metrics.defects import ERASED_BELOW
from restore_jax.report.html import (
    Column,
    Form,
    Means,
    bar_chart,
    bin_edges,
    defined,
    definitions,
    difference,
    histogram,
    number,
    percent,
    section,
    table,
    text,
)

_CONTRAST_EDGES = [round(-0.5 + 0.1 * i, 1) for i in range(26)]
# An image that equals its clean one scores 100 dB, and would squeeze all others together.
_HIGHEST_PSNR = 60.0
_LISTED_IMAGES = 12

_PLAIN = functools.partial(number, digits=2)
_PLAIN_GAIN = functools.partial(number, digits=2, sign=True)
_FINE = functools.partial(number, digits=4)
_FINE_GAIN = functools.partial(number, digits=4, sign=True)
_SHARE = functools.partial(number, digits=3)
_GREY = functools.partial(number, digits=1)
_WHOLE = functools.partial(number, digits=0)

# What the main table or the headline shows, and so not "further figures".
_SHOWN = {
    "count",
    "mask_count",
    "good_count",
    *(
        prefix + name
        for name in ("psnr", "ssim", "defect_psnr", "defect_contrast", "erasure_rate")
        for prefix in ("", "input_")
    ),
}

# Headings and form of further figures; one that is not listed keeps its name.
_FURTHER: dict[str, tuple[str, Form]] = {
    "mae": ("MAE", _FINE),
    "background_psnr": ("background PSNR, dB", _PLAIN),
    "defect_ssim": ("defect SSIM", _FINE),
    "regions": ("defect regions", _WHOLE),
    "erased_regions": ("erased", _WHOLE),
    "error_ratio": ("error at the defect, ratio", _PLAIN),
    "hallucination": ("hallucination", _FINE),
    "masked_frame_psnr": ("masked frame PSNR, dB", _PLAIN),
    "masked_frame_ssim": ("masked frame SSIM", _FINE),
    "kla_psnr": ("KLA PSNR, dB", _PLAIN),
    "kla_ssim": ("KLA SSIM", _FINE),
    "kla_defect_psnr": ("KLA defect PSNR, dB", _PLAIN),
    "kla_defect_ssim": ("KLA defect SSIM", _FINE),
}

_DETECTION = {
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO, 30 % FPR",
    "image_auroc": "image AUROC",
    "f1": "pixel F1",
    "hallucination_fpr": "share of pixels flagged on good images",
}
_VERSIONS = ("clean", "degraded", "restored", "recovery")

_LEGEND = (
    '<p class="legend"><span class="input">degraded input</span>'
    '<span class="restored">restored</span></p>\n'
)


def headline(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures to read first, against the input's, and the images that failed."""
    micro = summary["micro"]

    def entry(
        key: str,
        form: Form,
        change: Form,
        unit: str = "",
        quality: Callable[[float], float] = float,
    ) -> str:
        after, before = micro.get(key), micro.get(f"input_{key}")
        gain = difference(after, before)
        against = f"input {form(before)}"
        if gain is not None:
            css = "better" if quality(after) > quality(before) else "worse"
            css = "muted" if after == before else css
            against += f'; <span class="{css}">{change(gain)}</span>'
        return (
            f'<span class="figure">{form(after)}{unit if defined(after) else ""}</span>'
            f'<span class="against">{against}</span>'
        )

    def points(share: float) -> str:
        return number(share * 100, 1, sign=True) + " points"

    pairs = [
        ("PSNR", entry("psnr", _PLAIN, _PLAIN_GAIN, " dB")),
        ("SSIM", entry("ssim", _FINE, _FINE_GAIN)),
        ("Defect PSNR", entry("defect_psnr", _PLAIN, _PLAIN_GAIN, " dB")),
        (
            "Contrast kept",
            entry("defect_contrast", _PLAIN, _PLAIN_GAIN, quality=lambda kept: -abs(1 - kept)),
        ),
        ("Erasure rate", entry("erasure_rate", percent, points, quality=lambda rate: -rate)),
    ]
    means = (
        f'<p class="muted">Means over the {text(micro["count"])} images, '
        f"{text(micro['mask_count'])} of them with a known defect.{_good(micro)} "
        'Each measure is defined <a href="#measures">below</a>.</p>\n'
    )
    content = definitions(pairs, "headline") + means + _failures(micro, rows)
    return section("summary", "Restored images against the degraded input", content)


def _good(micro: Means) -> str:
    """Says what the restoration invents on images without defects, where any were tested."""
    if not micro.get("good_count"):
        return ""
    return (
        f" On {_WHOLE(micro['good_count'])} images without defects, one pixel in a thousand is "
        f"off by more than {_GREY(255 * micro['hallucination'])} grey levels."
    )


def _failures(micro: Means, rows: Sequence[Mapping[str, Any]]) -> str:
    """Says how many images came out worse than wanted, and lists the first to look at."""
    if not rows:
        return ""
    worse = [row for row in rows if (difference(row["psnr"], row["input_psnr"]) or 0) < 0]
    measured = [row for row in rows if defined(row.get("defect_contrast"))]
    faded = [row for row in measured if row["defect_contrast"] < ERASED_BELOW]
    found = [f"{len(worse)} of {len(rows)} images have a lower PSNR than their input."]
    if measured:
        found.append(
            f"{len(faded)} of {len(measured)} images with a measurable defect keep less than "
            "half of its contrast."
        )
    if micro.get("regions") and defined(micro.get("erased_regions")):
        found.append(
            f"{_WHOLE(micro['erased_regions'])} of {_WHOLE(micro['regions'])} defect regions "
            "are erased."
        )
    known = {row["id"] for row in faded}
    listed = sorted(faded, key=lambda row: row["defect_contrast"])
    by_loss = sorted(worse, key=lambda row: row["psnr"] - row["input_psnr"])
    listed += [row for row in by_loss if row["id"] not in known]
    html = f"<p>{' '.join(found)}</p>\n"
    if not listed:
        return html
    columns = [
        Column("Contrast", "kept", lambda row: row.get("defect_contrast"), _PLAIN),
        *_compared("Defect PSNR, dB", "defect_psnr", _PLAIN, _PLAIN_GAIN),
        *_compared("PSNR, dB", "psnr", _PLAIN, _PLAIN_GAIN),
    ]
    shown = [(row["id"], row) for row in listed[:_LISTED_IMAGES]]
    caption = f"Images to look at first: {len(shown)} of {len(listed)}"
    return html + table(caption, "Image", columns, shown)


def _compared(group: str, key: str, form: Form, change: Form) -> list[Column]:
    """Columns of a figure: the input's, the restored image's, and the gain."""
    return [
        Column(group, "input", lambda row: row.get(f"input_{key}"), form),
        Column(group, "restored", lambda row: row.get(key), form),
        Column(group, "gain", lambda r: difference(r.get(key), r.get(f"input_{key}")), change),
    ]


def _plain(group: str, label: str, key: str, form: Form) -> Column:
    return Column(group, label, lambda row: row.get(key), form)


def categories(summary: Mapping[str, Any], anchors: Mapping[str, str]) -> str:
    """The tables per category, micro and macro means at their end.

    Args:
        summary: the content of metrics.json.
        anchors: the id of the section with the images of a category.
    """
    micro, macro = summary["micro"], summary["macro"]
    rows = list(summary["categories"].items())
    means = [("Mean of images (micro)", micro), ("Mean of categories (macro)", macro)]
    columns = [
        _plain("Images", "all", "count", _WHOLE),
        _plain("Images", "defect", "mask_count", _WHOLE),
        *_compared("PSNR, dB", "psnr", _PLAIN, _PLAIN_GAIN),
        *_compared("SSIM", "ssim", _FINE, _FINE_GAIN)[:2],
        *_compared("Defect PSNR, dB", "defect_psnr", _PLAIN, _PLAIN_GAIN),
    ]
    for group, key, form in (
        ("Contrast kept", "defect_contrast", _PLAIN),
        ("Erasure rate", "erasure_rate", percent),
    ):
        if f"input_{key}" in micro:
            columns.append(_plain(group, "input", f"input_{key}", form))
        columns.append(_plain(group, "restored", key, form))
    html = table(
        "Means over the images of each category", "Category", columns, rows, means, anchors
    )
    further = [
        _plain("", *_further(key))
        for key, value in {**macro, **micro}.items()
        if key not in _SHOWN and (value is None or defined(value))
    ]
    if further:
        html += (
            "<details><summary>Further figures per category</summary>\n"
            + table(
                "Further means over the images of each category",
                "Category",
                further,
                rows,
                means,
            )
            + "</details>\n"
        )
    return section("categories", "Categories", html)


def _further(key: str) -> tuple[str, str, Form]:
    if key in _FURTHER:
        label, form = _FURTHER[key]
    elif key.removeprefix("input_") in _FURTHER:
        label, form = _FURTHER[key.removeprefix("input_")]
        label += ", input"
    else:
        label, form = key.replace("_", " "), _FINE
    return label, key, form


def charts(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Bars of PSNR and SSIM per category, in alphabetical order, and histograms of images."""
    by_name = sorted(summary["categories"].items())
    if not by_name:
        return ""

    def bars(key: str) -> list[tuple[str, float | None, float | None]]:
        return [(name, means.get(f"input_{key}"), means.get(key)) for name, means in by_name]

    def series(key: str, highest: float = math.inf) -> list[tuple[str, list[float]]]:
        both = []
        for kind, name in (("input", f"input_{key}"), ("restored", key)):
            found = [min(row[name], highest) for row in rows if defined(row.get(name))]
            if found:
                both.append((kind, found))
        return both

    histograms = []
    psnr, contrast = series("psnr", _HIGHEST_PSNR), series("defect_contrast")
    if psnr:
        edges = bin_edges([value for _, found in psnr for value in found])
        histograms.append(histogram("Images by PSNR, dB", psnr, edges))
    if contrast:
        marks = ((ERASED_BELOW, f"{ERASED_BELOW:g}"), (1.0, "1: kept"))
        title = "Images by contrast kept (outer bars hold the rest)"
        histograms.append(histogram(title, contrast, _CONTRAST_EDGES, marks))
    else:
        histograms.append('<p class="muted">Contrast kept: n/a</p>\n')
    psnr_bars, ssim_bars = (
        bar_chart("PSNR, dB", bars("psnr"), 2),
        bar_chart("SSIM", bars("ssim"), 4, 1.0),
    )
    return section(
        "charts",
        "PSNR and SSIM per category",
        f'{_LEGEND}<div class="charts">\n{psnr_bars}{ssim_bars}</div>\n',
    ) + section(
        "histograms",
        "Spread over the images",
        f'{_LEGEND}<div class="charts">\n{"".join(histograms)}</div>\n',
    )


def detectability(found: Mapping[str, Any] | None, training_split: str | None) -> str:
    """What a detector finds in the clean, degraded and restored images; "" if not measured."""
    if found is None:
        return ""

    def column(group: str, version: str, value: Callable[[Means], float | None]) -> Column:
        return Column(group, version, value, percent if version == "recovery" else _SHARE)

    def figure(means: Means, version: str, key: str) -> float | None:
        return (means.get(version) or {}).get(key)

    measures = [
        (label, {version: figure(found["macro"], version, key) for version in _VERSIONS})
        for key, label in _DETECTION.items()
    ]
    each = [
        column(_DETECTION[key], version, functools.partial(figure, version=version, key=key))
        for key in ("pixel_auroc", "aupro", "image_auroc")
        for version in _VERSIONS
        if version != "recovery" or key in (found["macro"].get(version) or {})
    ]
    overall = [column("", v, lambda row, v=v: row[v]) for v in _VERSIONS]
    html = (
        "<p>A detector fitted on clean images without defect, its threshold frozen, scores the "
        "clean, the degraded and the restored version of the same images. Recovery is "
        "(restored − degraded) / (clean − degraded). The detector is a simple one, to compare "
        "these versions with each other, not with published figures. The figures speak for new "
        "defects only if the restorer has seen no such defects in training"
        + (", and this one has" if training_split in ("defects", "all") else "")
        + ".</p>\n"
        + table("Means of the categories (macro)", "Measure", overall, measures)
    )
    if found["categories"]:
        html += (
            "<details><summary>Detectability per category</summary>\n"
            + table(
                "Detector on the images of each category",
                "Category",
                each,
                list(found["categories"].items()),
            )
            + "</details>\n"
        )
    return section("detectability", "Detectability of the defects", html)
