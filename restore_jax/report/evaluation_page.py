"""The report of an evaluation: one HTML file that shows figures, images and where they fail.

The file needs nothing but itself: style, script, charts and images stand in it, and its content
policy forbids every request. It is made of the figures and arrays it is given; nothing is
measured again but the map of squared errors beside each image and its ratio.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from restore_jax import files
from restore_jax.report import charts, image_panels
from restore_jax.report.html import asset, definitions, document, section, text
from restore_jax.report.image_panels import Example

__all__ = ["Example", "Report", "render", "write_report"]

# The data whose degraded images are files, not made here.
_DEGRADED_FILES = ("kla", "pairs")

_TRAINED_ON = {
    "defects": "photographs with defects (split “defects”)",
    "good": "photographs without defect alone (split “good”)",
    "all": "photographs with and without defects (split “all”)",
}

# What was trained on with the first is never validated on with the second.
_APART = (("good", "defects"), ("defects", "test"))

_ORACLE = (
    '<p class="note"><strong>With oracle mask.</strong> The model was given the true defect '
    "mask of every image. Whoever restores a new photograph has none, so these figures are no "
    "estimate of the model’s use.</p>\n"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        title: its heading.
        summary: the content of metrics.json. Figures beyond the usual ones get columns of their
            own; a figure of the degraded input is called "input_" and the figure's name.
        rows: figures per image, with id, category and defect type; NaN or None for none.
        examples: images to look at, in any order.
        config: the run's configuration as a nested dict.
        detectability: {"macro": D, "categories": {name: D}}, D with the figures (or None) of a
            detector on the "clean", "degraded" and "restored" images and their "recovery"; None
            where it was not measured.
        oracle_mask: whether the model was given the true masks.
    """

    title: str
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Example] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    detectability: Mapping[str, Any] | None = None
    oracle_mask: bool = False


def write_report(path: pathlib.Path, report: Report) -> None:
    """Writes the report as one HTML file; an existing one is replaced in one step."""
    files.write_text(path, render(report))


def render(report: Report) -> str:
    """Returns the report as an HTML document."""
    anchors = image_panels.anchors(report.examples)
    colours = f":root {{ --errors: {image_panels.error_gradient()}; }}\n"
    sections = (
        _header(report),
        charts.headline(report.summary, report.rows),
        charts.categories(report.summary, anchors),
        charts.charts(report.summary, report.rows),
        charts.detectability(report.detectability, _training_split(report)),
        image_panels.examples(report.examples, report.summary["categories"]),
        _measures(report),
        _provenance(report),
    )
    return document(report.title, colours, "\n".join(filter(None, sections)))


def seen_in_training(summary: Mapping[str, Any]) -> str:
    """Says that the model was trained on some of the evaluated images; "" where it was not.

    Args:
        summary: the content of metrics.json.
    """
    data, trained = summary["data"], summary["trained_on"]
    if trained["name"] != data["name"]:
        return ""
    if data["split"] in ("train", "all"):
        return (
            f"Split “{data['split']}” holds images that the model was trained on; it may do "
            "worse on others."
        )
    division = summary["settings"]["data"]["split"]
    if division == trained["split"] or (trained["split"], division) in _APART:
        return ""
    return (
        f"The model was trained with data.split “{trained['split']}” and is evaluated with "
        f"“{division}”: it was trained on some of these images, and may do worse on others."
    )


def checkpoint_line(found: Mapping[str, Any]) -> str:
    """Says which checkpoint or weights file was evaluated, as metrics.json has it."""
    if found["step"] is None:
        return f"{found['which']} file {found['file']}, SHA-256 {found['sha256'][:12]}…"
    return f"{found['which']} checkpoint, step {found['step']}, epoch {found['epoch']}"


def _header(report: Report) -> str:
    note = _ORACLE if report.oracle_mask else ""
    seen = seen_in_training(report.summary)
    note += f'<p class="note">{text(seen)}</p>\n' if seen else ""
    return (
        f"<header><h1>{text(report.title)}</h1>\n"
        f'<p class="muted">{_data(report)}; {_checkpoint(report)}</p>\n{note}</header>'
    )


def _checkpoint(report: Report) -> str:
    return text(checkpoint_line(report.summary["checkpoint"]))


def _data(report: Report) -> str:
    data = report.summary["data"]
    size = data["image_size"]
    at = f"{size} × {size} px" if size else "their native size"
    return text(f"{data['count']} images of {data['name']} ({data['split']}) at {at}")


def _measures(report: Report) -> str:
    figures = {**report.summary["micro"], **report.summary["macro"]}
    kla = any(name.startswith("kla_") for name in figures)
    body = asset("measures.html") + (asset("measures_kla.html") if kla else "")
    return section(
        "measures", "What the measures are", f'<dl class="wide facts measures">\n{body}</dl>\n'
    )


def _provenance(report: Report) -> str:
    model = dict(report.config.get("model") or {})
    name = str(model.pop("name", "n/a"))
    trained_on = report.summary["trained_on"]["name"]
    if split := _training_split(report):
        trained_on += f": {_TRAINED_ON[split]}"
    masks = "given the true masks (oracle)" if report.oracle_mask else "given no masks"
    facts = definitions(
        [
            ("Checkpoint", _checkpoint(report)),
            ("Model", text(f"{name}: {_options(model)}" if model else name)),
            ("Masks", text(f"the model was {masks}")),
            ("Data", _data(report)),
            ("Trained on", text(trained_on)),
            ("Degradation", text(_degradation(report))),
        ],
        "wide facts",
    )
    fields = "".join(
        f'<tr><th scope="row">{text(path)}</th><td>{text(_value(value))}</td></tr>\n'
        for path, value in _flatten(report.config)
    )
    table = (
        "<details><summary>Configuration, every field</summary>\n"
        '<div class="scroll" role="region" tabindex="0" aria-label="Configuration">'
        f'<table class="fields"><tbody>\n{fields}</tbody></table></div></details>\n'
    )
    return section("provenance", "What was evaluated", facts + (table if fields else ""))


def _training_split(report: Report) -> str | None:
    """Which photographs of MVTec AD the model was trained on; None for other data."""
    trained = report.summary["trained_on"]
    return trained["split"] if trained["name"] in ("mvtec_ad", "inspection") else None


def _degradation(report: Report) -> str:
    if report.summary["data"]["name"] in _DEGRADED_FILES:
        return "as in the files, which hold degraded images"
    law = dict((report.config.get("data") or {}).get("degradation") or {})
    if not law:
        return "n/a"
    preset = law.pop("preset", "n/a")
    changed = {field: value for field, value in law.items() if value is not None}
    return f"preset {preset}, " + (f"but {_options(changed)}" if changed else "nothing changed")


def _options(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {_value(value)}" for field, value in fields.items())


def _value(value: object) -> str:
    if value is None:
        return "not set"
    if value == "":
        return "empty"
    if isinstance(value, list | tuple):
        return f"({', '.join(_value(one) for one in value)})"
    return str(value)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for field, value in tree.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{field}.")
        else:
            flat.append((f"{prefix}{field}", value))
    return flat
