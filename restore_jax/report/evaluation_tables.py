"""The tables of the evaluation report: headline, failures, categories and detectability."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from restore_jax.metrics.defects import ERASED_BELOW
from restore_jax.report.forms import defined, difference, number, percent
from restore_jax.report.pages import Column, Figures, Formatter, Table

_LISTED_IMAGES = 12

_PLAIN = functools.partial(number, digits=2)
_PLAIN_GAIN = functools.partial(number, digits=2, sign=True)
_FINE = functools.partial(number, digits=4)
_FINE_GAIN = functools.partial(number, digits=4, sign=True)
_SHARE = functools.partial(number, digits=3)
_WHOLE = functools.partial(number, digits=0)

# What the main table or the headline shows; the rest are "further figures".
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

# Headings and formatters of further figures; a figure not listed keeps its name.
_FURTHER: dict[str, tuple[str, Formatter]] = {
    "mae": ("MAE", _FINE),
    "background_psnr": ("background PSNR, dB", _PLAIN),
    "defect_ssim": ("defect SSIM", _FINE),
    "regions": ("defect regions", _WHOLE),
    "erased_regions": ("erased", _WHOLE),
    "error_ratio": ("error at the defect, ratio", _PLAIN),
    "hallucination": ("hallucination", _FINE),
    "masked_frame_psnr": ("masked frame PSNR, dB", _PLAIN),
    "masked_frame_ssim": ("masked frame SSIM", _FINE),
    "trust_coverage": ("within 90 % interval", percent),
    "trust_defect_coverage": ("within it, inside defects", percent),
    "wrong_regions": ("erased or invented regions", _WHOLE),
    "flagged_share": ("flagged by the trust map", percent),
    "chance_share": ("flagged by chance", percent),
    "alarm_area": ("alarming pixels", percent),
    "alarm_share": ("regions with alarming pixels", percent),
    "alarm_pixel_share": ("alarming pixels of these regions", percent),
    "half_width": ("half-width of the interval", _FINE),
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


@dataclasses.dataclass(frozen=True)
class Headline:
    """A figure at the top of the report.

    Attributes:
        title: the measure.
        figure: value of the restored images, with its unit.
        before: value of the degraded input.
        change: restored minus input; "" if either has no value.
        css: CSS class of the change, "better", "worse" or "muted".
    """

    title: str
    figure: str
    before: str
    change: str
    css: str


def headline(micro: Figures) -> list[Headline]:
    """Returns the headline figures of the restored images and of their input."""

    def entry(
        title: str,
        key: str,
        formatter: Formatter,
        change: Formatter,
        unit: str = "",
        quality: Callable[[float], float] = float,
    ) -> Headline:
        after, before = micro.get(key), micro.get(f"input_{key}")
        gain, css = difference(after, before), "muted"
        if gain and change(gain)[0] in "+−":
            css = "better" if quality(after) > quality(before) else "worse"
        figure = formatter(after) + (unit if defined(after) else "")
        return Headline(
            title, figure, formatter(before), "" if gain is None else change(gain), css
        )

    def points(share: float) -> str:
        return number(share * 100, 1, sign=True) + " points"

    def kept(contrast: float) -> float:
        return -abs(1 - contrast)

    return [
        entry("PSNR", "psnr", _PLAIN, _PLAIN_GAIN, " dB"),
        entry("SSIM", "ssim", _FINE, _FINE_GAIN),
        entry("Defect PSNR", "defect_psnr", _PLAIN, _PLAIN_GAIN, " dB"),
        entry("Contrast kept", "defect_contrast", _PLAIN, _PLAIN_GAIN, quality=kept),
        entry("Erasure rate", "erasure_rate", percent, points, quality=lambda rate: -rate),
    ]


def failures(micro: Figures, rows: Sequence[Figures]) -> tuple[list[str], Table | None]:
    """Reports images that became worse than their input and defects that faded.

    Args:
        micro: means over all images.
        rows: figures per image.

    Returns:
        Texts with the counts, and a table of at most 12 images: faded defects by contrast
        kept, then the others by loss of PSNR. None if there are none.
    """
    if not rows:
        return [], None
    worse = [row for row in rows if (difference(row["psnr"], row["input_psnr"]) or 0) < 0]
    measured = [row for row in rows if defined(row.get("defect_contrast"))]
    faded = [row for row in measured if row["defect_contrast"] < ERASED_BELOW]
    # Worded so that each also reads well of a single image or region.
    found = [f"Images with a lower PSNR than their input: {len(worse)} of {len(rows)}."]
    if measured:
        found.append(
            "Images that keep less than half of a defect’s contrast: "
            f"{len(faded)} of {len(measured)} with a measurable defect."
        )
    if micro.get("regions") and defined(micro.get("erased_regions")):
        found.append(
            "Defect regions erased: "
            f"{_WHOLE(micro['erased_regions'])} of {_WHOLE(micro['regions'])}."
        )
    known = {row["id"] for row in faded}
    listed = sorted(faded, key=lambda row: row["defect_contrast"])
    by_loss = sorted(worse, key=lambda row: row["psnr"] - row["input_psnr"])
    listed += [row for row in by_loss if row["id"] not in known]
    if not listed:
        return found, None
    columns = [
        Column("Contrast", "kept", lambda row: row.get("defect_contrast"), _PLAIN),
        *_compared("Defect PSNR, dB", "defect_psnr", _PLAIN, _PLAIN_GAIN),
        *_compared("PSNR, dB", "psnr", _PLAIN, _PLAIN_GAIN),
    ]
    shown = [(row["id"], row) for row in listed[:_LISTED_IMAGES]]
    caption = f"Images to look at first: {len(shown)} of {len(listed)}"
    return found, Table(caption, "Image", columns, shown)


def _compared(group: str, key: str, formatter: Formatter, change: Formatter) -> list[Column]:
    """Returns three columns for a figure: input, restored and gain."""
    return [
        Column(group, "input", lambda row: row.get(f"input_{key}"), formatter),
        Column(group, "restored", lambda row: row.get(key), formatter),
        Column(group, "gain", lambda r: difference(r.get(key), r.get(f"input_{key}")), change),
    ]


def _plain(group: str, label: str, key: str, formatter: Formatter) -> Column:
    return Column(group, label, lambda row: row.get(key), formatter)


def categories(summary: Figures, anchors: Mapping[str, str]) -> tuple[Table, Table]:
    """Returns the tables of figures per category, which end with micro and macro means.

    Args:
        summary: the content of metrics.json.
        anchors: for each category, the id of the page section with its images.

    Returns:
        The table of the figures that every evaluation has, and the table of all further ones.
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
    for group, key, formatter in (
        ("Contrast kept", "defect_contrast", _PLAIN),
        ("Erasure rate", "erasure_rate", percent),
    ):
        if f"input_{key}" in micro:
            columns.append(_plain(group, "input", f"input_{key}", formatter))
        columns.append(_plain(group, "restored", key, formatter))
    further = [
        _plain("", *_further(key))
        for key, value in {**macro, **micro}.items()
        if key not in _SHOWN and (value is None or defined(value))
    ]
    caption = "Means over the images of each category"
    return (
        Table(caption, "Category", columns, rows, means, anchors),
        Table(f"Further {caption[0].lower()}{caption[1:]}", "Category", further, rows, means),
    )


def _further(key: str) -> tuple[str, str, Formatter]:
    if key in _FURTHER:
        label, formatter = _FURTHER[key]
    elif key.removeprefix("input_") in _FURTHER:
        label, formatter = _FURTHER[key.removeprefix("input_")]
        label += ", input"
    else:
        label, formatter = key.replace("_", " "), _FINE
    return label, key, formatter


def detectability(found: Figures | None) -> dict[str, Table] | None:
    """Returns the tables of a detector's figures on clean, degraded and restored images.

    Args:
        found: `Report.detectability`.

    Returns:
        The table of the means ("overall") and that of the categories ("each"); None without
        figures.
    """
    if found is None:
        return None

    def column(group: str, version: str, value: Callable[[Figures], float | None]) -> Column:
        return Column(group, version, value, percent if version == "recovery" else _SHARE)

    def figure(means: Figures, version: str, key: str) -> float | None:
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
    each_row = list(found["categories"].items())
    return {
        "overall": Table("Means of the categories (macro)", "Measure", overall, measures),
        "each": Table("Detector on the images of each category", "Category", each, each_row),
    }
