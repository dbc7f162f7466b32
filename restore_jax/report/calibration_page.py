"""A fitted degradation as one HTML page: parameters, noise, blur and examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from restore_jax.report import charts, image_panels, pages
from restore_jax.report.forms import counted, number
from restore_jax.report.image_panels import Frame

_RESIDUALS = {
    "correlation_x": "Correlation of neighbours along x",
    "correlation_y": "Correlation of neighbours along y",
    "correlation_channels": "Correlation of the channels",
    "blocks": "Deviation of block means, of white noise 1",
}


@dataclasses.dataclass(frozen=True)
class Crop:
    """A crop of a photograph; images are [H, W, 3] in grey levels 0…255.

    Attributes:
        name: the name of the photograph.
        degraded: the real degraded crop.
        clean: the clean crop; None if there is no pair.
        simulated: the clean crop degraded by the law; None if there is no pair.
    """

    name: str
    degraded: np.ndarray
    clean: np.ndarray | None = None
    simulated: np.ndarray | None = None


def render(
    material: str,
    file: str,
    content: Mapping[str, Any],
    noise: tuple[np.ndarray, np.ndarray, np.ndarray],
    kernel: np.ndarray,
    crops: Sequence[Crop],
) -> str:
    """Renders the page as HTML.

    Args:
        material: name of the material.
        file: name of the law's file.
        content: the sections of that file, see `law_file`.
        noise: grey levels, with the smallest and the largest standard deviation at each.
        kernel: the blur kernel at the middle of its ranges, [K, K].
        crops: the examples to show.
    """
    simulated = any(crop.simulated is not None for crop in crops)
    shown = np.repeat((kernel / kernel.max())[..., None], 3, axis=-1)
    return pages.render(
        "calibration.html.jinja",
        title=f"The degradation of {material}",
        material=material,
        file=file,
        fitted_to=counted(content["images"], "pair" if simulated else "photograph"),
        rows=_rows(content),
        unknown=sorted(content["unknown"].items()),
        curve=charts.band("Noise", *noise, "grey level"),
        kernel=image_panels.embed_photograph(shown),
        kernel_side=kernel.shape[0],
        kernel_frame=Frame("kernel", *kernel.shape, ""),
        simulated=simulated,
        crops=[_crop(crop) for crop in crops],
        residual=[
            (_RESIDUALS[name], number(value, 3)) for name, value in content["residual"].items()
        ],
    )


def _rows(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Formats the fitted fields: name, value and confidence interval."""
    law = content["law"]
    rows = []
    for name in ("blur", *content["intervals"], "quantise"):
        value, interval = law[name], content["intervals"].get(name)
        if value is None:
            continue
        texts = [value] if isinstance(value, str) else list(dict.fromkeys(value))
        joint = ", " if isinstance(texts[0], str) else " to "
        rows.append((name, joint.join(map(_text, texts)), _interval(interval)))
    return rows


def _interval(interval: Sequence[float] | None) -> str:
    return " to ".join(map(_text, interval)) if interval else ""


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _crop(crop: Crop) -> dict[str, Any]:
    panels = {"Clean": crop.clean, "Real": crop.degraded, "Simulated": crop.simulated}
    return {
        "name": crop.name,
        "frame": Frame("crop", *crop.degraded.shape[:2], ""),
        "panels": [
            (title, image_panels.embed_photograph(pixels / 255))
            for title, pixels in panels.items()
            if pixels is not None
        ],
    }
