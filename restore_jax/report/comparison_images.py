"""The images of a comparison: degraded, restored by each model, and clean, side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from restore_jax.report import image_panels
from restore_jax.report.html import breakable, defined, number, section, text

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Shown:
    """One image as all runs restored it.

    Attributes:
        id, category, defect_type: of the image.
        degraded, clean: float [H, W, 3] in [0, 1].
        restored: the same of each run, in their order.
        mask: [H, W, 1], one on the defect.
        has_mask: false where the mask is not known, and its zeros mean nothing.
        rows: the figures of the image in each run.
    """

    id: str
    category: str
    defect_type: str
    degraded: np.ndarray
    clean: np.ndarray
    restored: Sequence[np.ndarray]
    mask: np.ndarray
    has_mask: bool
    rows: Sequence[Mapping[str, Any]]


def images(comparison: Fields, shown: Sequence[Shown]) -> str:
    """The section with the same images as every run restored them; "" without any."""
    if not shown:
        return ""
    blocks = []
    for i, image in enumerate(shown):
        zoom = image_panels.display_zoom(*image.clean.shape[:2])
        blocks.append(
            f'<details class="category" open><summary><h3>{breakable(image.category)}</h3> '
            f'<span class="muted">{breakable(image.id)}</span></summary>\n'
            f'<div class="lineup{" enlarged" if zoom > 1 else ""}">'
            f"{_lineup(comparison, image, f'defect-{i}')}</div></details>\n"
        )
    content = (
        "<p>Images on which the models’ PSNR lies furthest apart in their category. Reduced to "
        f"{image_panels.MAX_SIDE} px and compressed for this page; every figure is from the "
        "originals, the best PSNR in bold.</p>\n"
        '<div class="controls" hidden><button type="button">Close all</button>'
        '<label><input type="checkbox" checked>Outline the defects</label></div>\n'
    )
    return section("images", "The same images side by side", content + "".join(blocks))


def _lineup(comparison: Fields, image: Shown, outline_id: str) -> str:
    """Builds the row of an image: degraded, each run's, clean; the defect outlined in all."""
    height, width = image.clean.shape[:2]
    zoom = image_panels.display_zoom(height, width)
    shown_width = min(image_panels.MAX_SIDE / max(height, width), zoom) * width
    path = image_panels.outline_path(image.mask) if image.has_mask else ""
    outline = ""
    if path:
        outline = (
            f'<svg class="outline" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
            f'aria-hidden="true"><use class="casing" href="#{outline_id}"/>'
            f'<use class="border" href="#{outline_id}"/></svg>'
        )

    def panel(name: str, psnr: str, pixels: np.ndarray, below: str) -> str:
        return (
            f"<figure><figcaption><span>{breakable(name)}</span><span>{psnr}</span></figcaption>"
            f'<div class="picture"><img src="{image_panels.embed_photograph(pixels)}" '
            f'alt="{text(f"{image.category}: {name}")}" width="{width}" height="{height}" '
            f'decoding="async">{outline}</div>'
            f'<p class="below">{breakable(below)}</p></figure>\n'
        )

    best = max(row["psnr"] for row in image.rows)
    defect = image.defect_type
    if not path:
        defect += ", no defect" if image.has_mask else ", no mask known"
    panels = [panel("Degraded", _decibels(image.rows[0]["input_psnr"]), image.degraded, "")]
    for run, pixels, row in zip(comparison["runs"], image.restored, image.rows, strict=True):
        psnr = _decibels(row["psnr"])
        name = f"{run['letter']}: {run['name']}{', oracle mask' if run['oracle_mask'] else ''}"
        below = (
            f"defect {_decibels(row.get('defect_psnr'))}, contrast kept "
            f"{number(row.get('defect_contrast'))}"
        )
        panels.append(
            panel(
                name,
                f"<strong>{psnr}</strong>" if row["psnr"] == best else psnr,
                pixels,
                below if path else "",
            )
        )
    panels.append(panel("Clean", "", image.clean, defect))
    traced = ""
    if path:
        traced = (
            '<svg class="traced" width="0" height="0" aria-hidden="true">'
            f'<path id="{outline_id}" d="{path}"/></svg>'
        )
    return (
        f'{traced}<div class="panels" style="--width: {shown_width:g}px">\n'
        f"{''.join(panels)}</div>"
    )


def _decibels(value: float | None) -> str:
    return f"{number(value)} dB" if defined(value) else number(value)
