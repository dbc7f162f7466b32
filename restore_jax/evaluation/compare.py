"""Statistical comparison of trained models that were evaluated on the same images.

Every run is compared with the first, image by image. Only images that all runs have in common
count, and runs with different degraded images are rejected.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from restore_jax import batches
from restore_jax.errors import UsageError
from restore_jax.metrics import defects, fidelity, kla
from restore_jax.metrics.cost import Cost
from restore_jax.metrics.intervals import LEVEL, Difference, paired_difference

Row = Mapping[str, Any]

# The differences of four images all have the same sign by chance in one case of eight, and no
# interval within the range of so few differences can contain the true mean in 95 % of cases.
MIN_IMAGES = 5

# Tolerance in dB. Two evaluations of the same image agree to 1e-5 dB on any device; a different
# draw of the noise changes the PSNR by more than this.
_SAME_INPUT = 1e-3


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated model.

    Attributes:
        workdir: the workdir, weights file or model name, as the user gave it.
        name: name of its experiment, for example "sca_unet".
        summary: the content of metrics.json.
        rows: figures per image, as in images.csv; NaN or None where undefined.
        cost: computational cost of the model; None if it was not measured.
        good_rows: the same for photographs without defects that were evaluated in addition to
            the split; only their hallucination counts.
        oracle_mask: whether the model was given the ground-truth masks.
        seen_in_training: whether it was trained on some of the images.
    """

    workdir: str
    name: str
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    cost: Cost | None = None
    good_rows: Sequence[Row] = ()
    oracle_mask: bool = False
    seen_in_training: bool = False


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric that is compared image by image.

    Attributes:
        key: its name in the comparison.
        higher_is_better: whether larger values are better.
        value: returns it for the row of an image; NaN or None where undefined.
        weight: for a rate, the name of the figure in its denominator.
    """

    key: str
    higher_is_better: bool
    value: Callable[[Row], float | None]
    weight: str | None = None


def contrast_error(row: Row, prefix: str = "") -> float | None:
    """Returns the deviation of the contrast kept from 1: |1 − contrast kept|, 0 is best.

    Contrast can be lost or exaggerated, so a larger contrast is not always better. None where
    the contrast kept is undefined.
    """
    kept = row.get(f"{prefix}defect_contrast")
    return abs(1.0 - kept) if fidelity.is_defined(kept) else None


def _figure(key: str, higher_is_better: bool) -> Measure:
    return Measure(key, higher_is_better, lambda row: row.get(key))


MEASURES = (
    _figure("psnr", True),
    _figure("ssim", True),
    _figure("defect_psnr", True),
    Measure("contrast_error", False, contrast_error),
    Measure("erasure_rate", False, lambda row: row.get("erased_regions"), "regions"),
    _figure("hallucination", False),
    _figure("kla_psnr", True),
    _figure("kla_ssim", True),
)


def check(runs: Sequence[Run]) -> None:
    """Checks that runs can be compared.

    Raises:
        UsageError: if there are fewer than 2 or more than 26 runs, an image occurs twice in the
            results of one, they were evaluated on different data or on different degraded
            images of the same name, or no image is common to all runs.
    """
    if not 2 <= len(runs) <= len(string.ascii_uppercase):
        raise UsageError(
            f"a comparison takes 2 to {len(string.ascii_uppercase)} runs, got {len(runs)}"
        )
    for run in runs:
        ids = [row["id"] for row in run.rows]
        if len(set(ids)) < len(ids):
            duplicate = next(name for i, name in enumerate(ids) if name in ids[:i])
            raise UsageError(
                f"{run.workdir}: image {duplicate} occurs twice in its results; evaluate it "
                "again"
            )
    check_data([(run.workdir, run.summary) for run in runs])
    first = runs[0]
    for other in runs[1:]:
        inputs = {row["id"]: row["input_psnr"] for row in first.rows}
        for row in other.rows:
            if abs(inputs.get(row["id"], row["input_psnr"]) - row["input_psnr"]) > _SAME_INPUT:
                raise UsageError(
                    f"{other.workdir}: image {row['id']} has an input PSNR of "
                    f"{row['input_psnr']:.3f} dB, but {inputs[row['id']]:.3f} dB in "
                    f"{first.workdir}; their degraded images differ: evaluate both on the same "
                    "ones"
                )
    if not _common_ids(runs):
        raise UsageError(
            f"{runs[-1].workdir}: has no image in common with {first.workdir}; evaluate all "
            "runs on the same data, with the same --config"
        )


def check_data(summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Checks, from their settings only, that runs use the same degraded images.

    Args:
        summaries: the workdir of each run, and its "data" and "settings" as in metrics.json.

    Raises:
        UsageError: if the settings differ.
    """
    (first, summary), *others = summaries
    expected = _data_fields(summary)
    for other, summary in others:
        found = _data_fields(summary)
        for field in expected:
            if field in found and expected[field] != found[field]:
                raise UsageError(
                    f"{other}: evaluated with {field} {found[field]}, but {first} with "
                    f"{expected[field]}; evaluate both with the same --config"
                )


def compare(
    runs: Sequence[Run],
    conditions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares each run with the first one.

    Args:
        runs: two or more.
        conditions: how the costs were measured: "device", "height", "width", "batch" (images
            per call) and "rounds".

    Returns:
        The content of comparison.json, JSON-serialisable: plain numbers, None where undefined.

        - "data": {"name", "split", "image_size", "count" (images common to all runs),
          "degradation" (fields of the law; None if it is not known)};
        - "conditions": as passed;
        - "interval": {"level", "min_images"};
        - "runs": a list of {"letter" (A, B, …), "workdir", "name", "checkpoint", "oracle_mask",
          "seen_in_training", "left_out" (number of images that other runs lack), "cost"
          (`cost.Cost` as a dict, or None), "micro": M, "macro": M, "categories": {name: M}}, M
          as in metrics.json, with "contrast_error" added, over the common images;
        - "differences": a list, for each run after the first and each metric that both have, of
          {"run", "against" (letters), "measure", "better" ("higher" or "lower"), "micro": D,
          "macro": D, "categories": {name: D}}. D has "images", "difference" (the run's figure
          minus the first run's), the bounds "low" and "high" of its confidence interval, and
          "verdict": "better" or "worse" if the interval excludes 0, "unclear" if it does not,
          "few" if there are fewer than `MIN_IMAGES` images or there is no interval.

    Raises:
        UsageError: as `check`.
        RunError: if a figure is not finite.
    """
    check(runs)
    common = _common_ids(runs)
    good = set.intersection(*({row["id"] for row in run.good_rows} for run in runs)) - common
    data = runs[0].summary["data"]
    described = []
    for letter, run in zip(string.ascii_uppercase, runs, strict=False):
        described.append(
            {
                "letter": letter,
                "workdir": run.workdir,
                "name": run.name,
                "checkpoint": dict(run.summary["checkpoint"]),
                "oracle_mask": run.oracle_mask,
                "seen_in_training": run.seen_in_training,
                "left_out": len(run.rows) - len(common),
                "cost": None if run.cost is None else _finite(dataclasses.asdict(run.cost)),
                **_summarise(_select(run.rows, common), _select(run.good_rows, good)),
            }
        )
    return {
        "data": {
            "name": data["name"],
            "split": data["split"],
            "image_size": data["image_size"],
            "count": len(common),
            "degradation": {
                field.removeprefix("data.degradation."): value
                for field, value in _data_fields(runs[0].summary).items()
                if field.startswith("data.degradation.")
            }
            or None,
        },
        "conditions": dict(conditions) if conditions else None,
        "interval": {"level": LEVEL, "min_images": MIN_IMAGES},
        "runs": described,
        "differences": [
            {"run": letter, "against": "A", **_differences(pairs, measure)}
            for letter, run in zip(string.ascii_uppercase[1:], runs[1:], strict=False)
            for measure in MEASURES
            if (pairs := _pairs(runs[0], run, measure, common, good))
        ],
    }


def choose_images(runs: Sequence[Run], limit: int) -> list[str]:
    """Chooses the images to show: those on which the PSNR of the runs differs most.

    Args:
        runs: the runs.
        limit: how many; exceeded if there are more categories.

    Returns:
        Ids, in the order of their categories. They are the top image of each category, then the
        second of each, and so on until `limit` is reached.
    """
    psnr = [{row["id"]: row["psnr"] for row in run.rows} for run in runs]

    def spread(name: str) -> float:
        found = [figures[name] for figures in psnr]
        return max(found) - min(found)

    categories: dict[str, list[str]] = {}
    for row in _select(runs[0].rows, _common_ids(runs)):
        categories.setdefault(row["category"], []).append(row["id"])
    ranked = []
    for category, ids in categories.items():
        ids.sort(key=lambda name: (-spread(name), name))
        ranked += [(rank, category, name) for rank, name in enumerate(ids)]
    chosen = sorted(ranked)[: max(limit, len(categories))]
    return [name for _, name in sorted((category, name) for _, category, name in chosen)]


def _data_fields(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config fields that determine which degraded images a run was evaluated on."""
    data = summary["data"]
    settings = (summary.get("settings") or {}).get("data") or {}
    fields = {
        "data.name": data["name"],
        "data.image_size": data["image_size"],
        "eval.split": data["split"],
    }
    if "resize" in settings:
        fields["data.resize"] = settings["resize"]
    if data["name"] not in batches.DEGRADED_FILES:
        law = settings.get("degradation") or {}
        fields |= {f"data.degradation.{field}": value for field, value in law.items()}
    return fields


def _common_ids(runs: Sequence[Run]) -> set[str]:
    return set.intersection(*({row["id"] for row in run.rows} for run in runs))


def _select(rows: Sequence[Row], ids: set[str]) -> list[Row]:
    return sorted((row for row in rows if row["id"] in ids), key=lambda row: row["id"])


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if fidelity.is_defined(v) else None for k, v in fields.items()}


def _summarise(rows: Sequence[Row], good_rows: Sequence[Row]) -> dict[str, Any]:
    """Recomputes the figures of metrics.json over some of the images."""
    rows = [
        {**row, **{f"{p}contrast_error": contrast_error(row, p) for p in ("", "input_")}}
        for row in rows
    ]
    names = ("contrast_error", "input_contrast_error")
    parts = [
        fidelity.summarise(rows),
        fidelity.by_category(
            rows, lambda some: {f: fidelity.mean_of_defined(some, f) for f in names}, names
        ),
    ]
    if all("regions" in row for row in rows):
        parts.append(defects.summarise_preservation([*rows, *good_rows]))
    if all("kla_psnr" in row for row in rows):
        parts.append(kla.summarise_kla(rows))
    return fidelity.merge(parts)


def _pairs(
    first: Run, other: Run, measure: Measure, common: set[str], good: set[str]
) -> list[tuple[Row, Row]]:
    """Returns the rows of both runs for each image that has the metric in both."""
    pairs = list(zip(*(_select(run.rows, common) for run in (first, other)), strict=True))
    if measure.key == "hallucination":
        pairs += zip(*(_select(run.good_rows, good) for run in (first, other)), strict=True)

    def has_measure(row: Row) -> bool:
        weight = row.get(measure.weight) if measure.weight else 1.0
        return (
            fidelity.is_defined(measure.value(row))
            and fidelity.is_defined(weight)
            and weight > 0
        )

    return [(a, b) for a, b in pairs if has_measure(a) and has_measure(b)]


def _differences(pairs: Sequence[tuple[Row, Row]], measure: Measure) -> dict[str, Any]:
    def over(some: Sequence[tuple[Row, Row]], macro: bool = False) -> dict[str, Any]:
        difference = paired_difference(
            [measure.value(a) for a, _ in some],
            [measure.value(b) for _, b in some],
            [a["category"] for a, _ in some] if macro else None,
            [a.get(measure.weight) for a, _ in some] if measure.weight else None,
        )
        return _with_verdict(difference, measure.higher_is_better)

    return {
        "measure": measure.key,
        "better": "higher" if measure.higher_is_better else "lower",
        "micro": over(pairs),
        "macro": over(pairs, macro=True),
        "categories": {
            name: over([(a, b) for a, b in pairs if a["category"] == name])
            for name in sorted({a["category"] for a, _ in pairs})
        },
    }


def _with_verdict(found: Difference, higher_is_better: bool) -> dict[str, float | str | None]:
    verdict = "unclear"
    if found.images < MIN_IMAGES or found.low is None or found.high is None:
        verdict = "few"
    elif found.low > 0 or found.high < 0:
        verdict = "better" if (found.low > 0) == higher_is_better else "worse"
    return {
        "images": found.images,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "verdict": verdict,
    }
