"""Draws the curves of a training run, and sheets of images before and after restoration."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

OUTLINE = (255, 60, 60)
_ROW_HEIGHT = 256
_GAP = 6
_CAPTION = 22


@dataclasses.dataclass(frozen=True)
class Triplet:
    """One image of an evaluation, kept for the sheet of examples.

    Attributes:
        category, defect_type, id: of the image.
        degraded, restored, clean: uint8 [H, W, 3].
        mask: [H, W, 1] in {0, 1}, one on the defect.
        input_psnr, psnr: of the degraded and the restored image, in dB.
    """

    category: str
    defect_type: str
    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    input_psnr: float
    psnr: float
    id: str = ""


class Selection:
    """Collects the first images of each category and picks the same number of each from them.

    Args:
        limit: the largest number of pictures to pick.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, list[Triplet]] = {}

    def wants(self, category: str) -> bool:
        """Returns whether another picture of the category is needed."""
        return len(self._kept.get(category, ())) < self._limit

    def add(self, picture: Triplet) -> None:
        """Adds a picture."""
        self._kept.setdefault(picture.category, []).append(picture)

    def merged(self, pictures: Iterable[Triplet]) -> "Selection":
        """Returns a selection with the same limit from pictures of several selections."""
        selection = Selection(self._limit)
        for picture in pictures:
            selection.add(picture)
        return selection

    def pictures(self) -> list[Triplet]:
        """Returns the picked pictures, sorted by category.

        They are the first picture of each category, then the second of each, up to the limit.
        """
        by_turn = [
            (turn, category, picture)
            for category, pictures in self._kept.items()
            for turn, picture in enumerate(pictures)
        ]
        by_turn.sort(key=lambda item: item[:2])
        chosen = by_turn[: self._limit]
        return [picture for _, _, picture in sorted(chosen, key=lambda item: item[1::-1])]


def outline(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Returns the pixels just outside a mask.

    Args:
        mask: [H, W, 1] in {0, 1}.
        width: width of the outline, in px.

    Returns:
        Bool [H, W].
    """
    inside = mask[..., 0] > 0
    return ndimage.binary_dilation(inside, iterations=width) & ~inside


def _panel(image: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    """Scales an image towards the row height; small ones by a whole factor, to stay exact."""
    height = image.shape[0]
    zoom = max(1, _ROW_HEIGHT // height)
    pixels = np.repeat(np.repeat(image, zoom, 0), zoom, 1)
    if mask is not None:
        large = np.repeat(np.repeat(mask, zoom, 0), zoom, 1)
        # Wide enough to remain visible when scaled down below.
        pixels[outline(large, max(1, height * zoom // _ROW_HEIGHT))] = OUTLINE
    panel = Image.fromarray(pixels)
    if panel.height > _ROW_HEIGHT:
        size = (max(1, round(panel.width * _ROW_HEIGHT / panel.height)), _ROW_HEIGHT)
        panel = panel.resize(size, Image.Resampling.LANCZOS)
    return panel


def draw_triplets(pictures: Sequence[Triplet], path: pathlib.Path) -> None:
    """Writes a sheet with rows of degraded | restored | clean | clean with outlined defect.

    Args:
        pictures: the images, one per row.
        path: the PNG file to write.
    """
    font = ImageFont.load_default(size=14)
    rows = []
    for picture in pictures:
        defect = (
            picture.defect_type if picture.mask.any() else f"{picture.defect_type}, no mask"
        )
        rows.append(
            [
                (_panel(picture.degraded), f"degraded, {picture.input_psnr:.2f} dB"),
                (_panel(picture.restored), f"restored, {picture.psnr:.2f} dB"),
                (_panel(picture.clean), f"clean: {picture.category}"),
                (_panel(picture.clean, picture.mask), defect),
            ]
        )
    widths = [max(row[i][0].width for row in rows) for i in range(4)]
    heights = [max(panel.height for panel, _ in row) + _CAPTION for row in rows]
    sheet = Image.new(
        "RGB",
        (sum(widths) + _GAP * 5, sum(heights) + _GAP * (len(rows) + 1)),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for (panel, caption), column in zip(row, widths, strict=True):
            draw.text((left + 2, top + 1), caption, fill=(30, 30, 30), font=font)
            sheet.paste(panel, (left, top + _CAPTION))
            left += column + _GAP
        top += height + _GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def draw_curves(records: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Plots loss, PSNR and SSIM of training and validation over the epochs.

    Args:
        records: the lines of metrics.jsonl.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("loss", "loss"), ("psnr", "PSNR (dB)"), ("ssim", "SSIM"))
    colours = {"train": "#7f8c8d", "val": "#1f6fb4"}
    for axes, (name, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for split, colour in colours.items():
            points = [
                (record["epoch"], record[name])
                for record in records
                if record["split"] == split and record.get(name) is not None
            ]
            if points:
                marker = "o" if len(points) < 40 else None
                axes.plot(
                    *zip(*points, strict=True), color=colour, label=split, marker=marker, ms=3
                )
        baseline = [r[f"input_{name}"] for r in records if r.get(f"input_{name}") is not None]
        if baseline:
            axes.axhline(baseline[-1], color="#c0392b", ls="--", lw=1, label="degraded input")
        axes.set_xlabel("epoch")
        axes.set_title(label)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
