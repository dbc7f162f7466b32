"""The images of the evaluation report: sliders, clean images and maps of squared error.

Pictures stand in the page as data addresses. Small ones are enlarged by the browser, by whole
pixels; defects are outlined by SVG paths over them, so that no pixel is painted over for good.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from restore_jax.metrics import defects
from restore_jax.report import plots
from restore_jax.report.html import breakable, defined, definitions, number, section, text

MAX_SIDE = 384
ENLARGED_SIDE = 256

# Up to this side the pixels are kept exactly; above it the noise would make a page of 20 MB.
_LOSSLESS_SIDE = 128
_WEBP_QUALITY = 85

_ERROR_LEVELS = 48
_ERROR_PERCENTILE = 99.5

# Matplotlib's inferno at equal steps: from dark to light, so that it needs no colour vision.
_INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51),
    (249, 140, 10), (249, 201, 50), (252, 255, 164),
)  # fmt: skip


_RANKS = ("best", "median", "worst")

_INTRODUCTION = (
    "<p>By the PSNR of the restored image, in each category. Drag the divider, or move it with "
    "the arrow keys: degraded on its left, restored on its right. Each map of squared errors "
    "has its own scale: compare the outlined defect with the rest of the image, not one image "
    "with another. Images are reduced to 384 px and compressed for this page; every "
    "figure is from the originals.</p>\n"
)


@dataclasses.dataclass(frozen=True)
class Example:
    """One image of a category, to be looked at.

    Attributes:
        rank: by the PSNR of the restored image within its category.
        category, defect_type, id: of the image.
        degraded, restored, clean: float [H, W, 3] in [0, 1]; clipped where they are not.
        mask: [H, W, 1], one on the defect.
        has_mask: false where the mask is not known, and its zeros mean nothing.
        row: the figures of the image.
    """

    rank: Literal["best", "median", "worst"]
    category: str
    defect_type: str
    id: str
    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    has_mask: bool
    row: Mapping[str, Any]


def anchors(shown: Sequence[Example]) -> dict[str, str]:
    """Returns the id of each category's block of images, by category in alphabetical order."""
    names = sorted({example.category for example in shown})
    return {name: f"category-{i}" for i, name in enumerate(names)}


def examples(shown: Sequence[Example], means: Mapping[str, Mapping[str, Any]]) -> str:
    """The section with the best, the median and the worst image of each category.

    Args:
        shown: the images.
        means: the figures of each category.
    """
    if not shown:
        none = "<p>No images were kept with this evaluation.</p>\n"
        return section("images", "Best, median and worst images", none)
    by_category = anchors(shown)
    index = " · ".join(
        f'<a href="#{anchor}">{text(category)}</a>' for category, anchor in by_category.items()
    )
    blocks = []
    for category, anchor in by_category.items():
        ranked: dict[str, list[Example]] = {}
        for example in sorted(shown, key=lambda one: _RANKS.index(one.rank)):
            # A small category's best image may be its median and its worst too.
            if example.category == category:
                ranked.setdefault(example.id, []).append(example)
        articles = "".join(
            _example(same[0], ", ".join(one.rank for one in same), f"outline-{anchor}-{i}")
            for i, same in enumerate(ranked.values())
        )
        figures_ = means.get(category, {})
        blocks.append(
            f'<details class="category" id="{anchor}" open><summary>'
            f'<h3>{breakable(category)}</h3> <span class="muted">'
            f"{_images(figures_.get('count'))}; "
            f"PSNR {_change(figures_, 'psnr', 2)} dB; "
            f"contrast kept {number(figures_.get('defect_contrast'))}</span></summary>\n"
            f"{articles}</details>\n"
        )
    controls = (
        '<div class="controls" hidden><button type="button">Close all</button>'
        '<label><input type="checkbox" checked>Outline the defects</label></div>\n'
    )
    content = f"{_INTRODUCTION}<p>{index}</p>\n{controls}{''.join(blocks)}"
    return section("images", "Best, median and worst images", content)


def _images(count: int | None) -> str:
    return "1 image" if count == 1 else f"{number(count, 0)} images"


def _example(example: Example, rank: str, outline_id: str) -> str:
    """Builds the figures of an image, its slider, its clean image and its error map."""
    height, width = example.clean.shape[:2]
    zoom = display_zoom(height, width)
    shown_width = min(MAX_SIDE / max(height, width), zoom) * width
    mask = example.mask if example.has_mask else np.zeros_like(example.mask)
    path = outline_path(mask)
    error_map, top = embed_error_map(squared_error(example.restored, example.clean))
    name = text(f"{example.category}, {rank}")

    def picture(source: str, what: str, css: str = "") -> str:
        return (
            f'<img{css} src="{source}" alt="{name}: {what}" width="{width}" '
            f'height="{height}" decoding="async">'
        )

    def outline(definition: str = "") -> str:
        if not path:
            return ""
        return (
            f'<svg class="outline" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
            f'aria-hidden="true">{definition}<use class="casing" href="#{outline_id}"/>'
            f'<use class="border" href="#{outline_id}"/></svg>'
        )

    def panel(caption: str, content: str, css: str = "", below: str = "") -> str:
        return (
            f"<figure><figcaption>{caption}</figcaption>"
            f'<div class="picture{css}">{content}</div>{below}</figure>\n'
        )

    enlarged = " enlarged" if zoom > 1 else ""
    slider = (
        picture(embed_photograph(example.degraded), "degraded")
        + picture(embed_photograph(example.restored), "restored", ' class="after"')
        + '<span class="divider"></span><input type="range" min="0" max="100" value="50" '
        f'aria-label="{name}: divider between the degraded and the restored image">'
    )
    clean = picture(embed_photograph(example.clean), "clean")
    defect = "defect outlined" if path else "no defect" if example.has_mask else "no mask known"
    scale = (
        f'<div class="scale"><span>0</span><i></i><span>({255 * math.sqrt(top):.1f} grey '
        "levels)²</span></div>"
    )
    return (
        f'<article class="example" style="--width: {shown_width:g}px"><div>'
        f'<h4>{text(rank.capitalize())}</h4><p class="identity">{breakable(example.id)}</p>'
        f'{_facts(example, mask)}</div>\n<div class="panels">\n'
        + panel("<span>Degraded</span><span>Restored</span>", slider, f" compare{enlarged}")
        + panel(
            f"<span>Clean, {defect}</span>",
            clean + outline(f'<defs><path id="{outline_id}" d="{path}"/></defs>'),
            enlarged,
        )
        + panel(
            "<span>Squared error</span>",
            picture(error_map, "squared error") + outline(),
            enlarged,
            scale,
        )
        + "</div></article>\n"
    )


def _facts(example: Example, mask: np.ndarray) -> str:
    row, kept = example.row, example.row.get("defect_contrast")
    contrast = number(kept)
    if defined(kept) and kept < defects.ERASED_BELOW:
        contrast = f'<strong class="worse">{contrast}, under half</strong>'
    ratio = defects.error_ratio(example.restored, example.clean, mask)
    return definitions(
        [
            ("Defect type", breakable(example.defect_type)),
            ("PSNR, dB", _change(row, "psnr", 2)),
            ("SSIM", _change(row, "ssim", 4)),
            ("Defect PSNR, dB", _change(row, "defect_psnr", 2)),
            ("Contrast kept", contrast),
            ("Error at defect", f"{number(ratio)} × the rest" if defined(ratio) else "n/a"),
        ]
    )


def _change(row: Mapping[str, Any], key: str, digits: int) -> str:
    before, after = row.get(f"input_{key}"), row.get(key)
    if not defined(before) and not defined(after):
        return number(None)
    return f"{number(before, digits)} → {number(after, digits)}"


def display_zoom(height: int, width: int) -> int:
    """By how many whole pixels a small image is enlarged: its long side stays within 256 px."""
    return max(1, ENLARGED_SIDE // max(height, width))


def embed_photograph(image: np.ndarray) -> str:
    """Encodes an image as a data address.

    Args:
        image: [H, W, 3], 0 to 1; clipped.

    Returns:
        A WebP, reduced to 384 px on the long side; lossless where that is 128 px or less.
    """
    picture = Image.fromarray(plots.to_uint8(image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    exact = max(picture.size) <= _LOSSLESS_SIDE
    return _data_address(
        picture, "webp", lossless=exact, quality=60 if exact else _WEBP_QUALITY, method=2
    )


def squared_error(restored: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Mean over the channels of the squared difference of the clipped images, [H, W]."""
    difference = np.clip(restored, 0, 1).astype(np.float64) - np.clip(clean, 0, 1)
    return np.mean(np.square(difference), axis=-1)


def embed_error_map(error: np.ndarray) -> tuple[str, float]:
    """Draws a map of squared errors in the colours of `error_gradient`.

    Args:
        error: [H, W].

    Returns:
        The PNG as a data address, and the error that has the lightest colour: the 99.5th
        percentile of the map. Greater errors have that colour too.
    """
    top = float(np.percentile(error, _ERROR_PERCENTILE))
    if top == 0.0:
        # Few pixels differ, or none.
        top = float(error.max())
    share = np.clip(error / top, 0, 1) if top > 0 else np.zeros_like(error)
    plane = Image.fromarray(share.astype(np.float32))
    plane.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    levels = np.round(np.asarray(plane) * (_ERROR_LEVELS - 1)).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(_error_colours(_ERROR_LEVELS).tobytes())
    return _data_address(picture, "png", optimize=True), top


def error_gradient() -> str:
    """The colours of the error maps from 0 to the top, as a CSS gradient."""
    stops = (f"rgb({red} {green} {blue})" for red, green, blue in _INFERNO)
    return f"linear-gradient(to right, {', '.join(stops)})"


def outline_path(mask: np.ndarray) -> str:
    """Traces the surroundings of a defect along the edges of pixels.

    The line runs outside the defect, by about 2 px of the page, so that it does not hide a
    scratch. Masks of more than 384 px a side are traced in steps of whole pixels, a step being
    defect if any pixel in it is, so that the smallest defect keeps its outline.

    Args:
        mask: [H, W, 1], one on the defect.

    Returns:
        The `d` of an SVG path in pixels of the mask, (0, 0) its upper left corner; "" where
        there is no defect.
    """
    defect = mask[..., 0] > 0.5
    height, width = defect.shape
    step = math.ceil(max(height, width) / MAX_SIDE)
    defect = np.pad(defect, ((0, -height % step), (0, -width % step)))
    defect = defect.reshape(defect.shape[0] // step, step, -1, step).any(axis=(1, 3))
    if defect.any():
        away = math.ceil(2 * max(defect.shape) / ENLARGED_SIDE)
        defect = ndimage.binary_dilation(defect, np.ones((3, 3)), iterations=away)
    padded = np.pad(defect, 1)
    above = padded[1:, 1:-1] != padded[:-1, 1:-1]
    beside = padded[1:-1, 1:] != padded[1:-1, :-1]
    lines = [f"M{first} {row}h{length}" for row, first, length in _runs(above, step)]
    lines += [f"M{row} {first}v{length}" for row, first, length in _runs(beside.T, step)]
    return "".join(lines)


def _runs(lines: np.ndarray, step: int) -> list[tuple[int, int, int]]:
    """Finds the runs of True in each row: (row, first, length), all times the step."""
    steps = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    found = np.stack([rows, starts, ends - starts], axis=-1) * step
    return [tuple(run) for run in found.tolist()]


def _error_colours(count: int) -> np.ndarray:
    anchors = np.array(_INFERNO, np.float64)
    positions = np.linspace(0, len(anchors) - 1, count)
    channels = [np.interp(positions, np.arange(len(anchors)), line) for line in anchors.T]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def _data_address(picture: Image.Image, form: str, **options: object) -> str:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
