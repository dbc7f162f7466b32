"""Encodes the images of the pages: photographs, squared-error maps and outlines of defects.

Images are embedded as data URLs. The browser enlarges small ones by a whole factor. The
outlines of defects are SVG paths over the images, so that the pixels below can be uncovered.
"""

import base64
import dataclasses
import io
import math

import numpy as np
from PIL import Image
from scipy import ndimage

from restore_jax.trust import maps

MAX_SIDE = 384
ENLARGED_SIDE = 256

# Lossless up to this side; beyond it, the noise would make a page of 20 MB.
_LOSSLESS_SIDE = 128
_WEBP_QUALITY = 85

_ERROR_LEVELS = 48
_ERROR_PERCENTILE = 99.5


@dataclasses.dataclass(frozen=True)
class Frame:
    """Size and defect outline that all pictures of one image share.

    Attributes:
        name: id of the outline in the page.
        height, width: of the image, in pixels.
        outline: SVG path of the defect by `outline_path`; "" if there is no defect, or the mask
            is not known.
    """

    name: str
    height: int
    width: int
    outline: str

    @classmethod
    def of(cls, name: str, mask: np.ndarray, has_mask: bool) -> "Frame":
        """Creates the frame of an image from its mask [H, W, 1], ignored unless `has_mask`."""
        return cls(name, *mask.shape[:2], outline_path(mask) if has_mask else "")

    @property
    def enlarged(self) -> bool:
        """Whether the page shows the image larger than its pixels."""
        return display_zoom(self.height, self.width) > 1

    @property
    def shown_width(self) -> str:
        """The largest width of the image in the page, in CSS pixels."""
        zoom = display_zoom(self.height, self.width)
        return f"{min(MAX_SIDE / max(self.height, self.width), zoom) * self.width:g}"


def display_zoom(height: int, width: int) -> int:
    """Returns the whole factor by which a small image is enlarged, to at most 256 px a side."""
    return max(1, ENLARGED_SIDE // max(height, width))


def embed_photograph(image: np.ndarray) -> str:
    """Encodes an image as a data URL.

    Args:
        image: [H, W, 3], clipped to [0, 1].

    Returns:
        A WebP of at most 384 px on the long side; lossless if that is at most 128 px.
    """
    picture = Image.fromarray(to_uint8(image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    exact = max(picture.size) <= _LOSSLESS_SIDE
    return _data_url(
        picture, "webp", lossless=exact, quality=60 if exact else _WEBP_QUALITY, method=2
    )


def squared_error(restored: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Returns the squared error of the clipped images, averaged over the channels, [H, W]."""
    difference = np.clip(restored, 0, 1).astype(np.float64) - np.clip(clean, 0, 1)
    return np.mean(np.square(difference), axis=-1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Converts values, clipped to [0, 1], to uint8 by rounding."""
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def embed_error_map(error: np.ndarray) -> tuple[str, float]:
    """Encodes a map of squared errors in the colours of `error_gradient`.

    Args:
        error: squared error, [H, W].

    Returns:
        The PNG as a data URL, and the error shown in the lightest colour: the 99.5th percentile
        of the map, to which larger errors are clipped.
    """
    top = float(np.percentile(error, _ERROR_PERCENTILE))
    if top == 0.0:
        # At most 0.5 % of the pixels differ.
        top = float(error.max())
    share = np.clip(error / top, 0, 1) if top > 0 else np.zeros_like(error)
    plane = Image.fromarray(share.astype(np.float32))
    plane.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    levels = np.round(np.asarray(plane) * (_ERROR_LEVELS - 1)).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(maps.palette(_ERROR_LEVELS).tobytes())
    return _data_url(picture, "png", optimize=True), top


def embed_heat_map(heat_map: np.ndarray) -> str:
    """Encodes a coloured map, uint8 [H, W, 3], as a lossy WebP data URL of at most 384 px."""
    picture = Image.fromarray(heat_map)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    return _data_url(picture, "webp", quality=_WEBP_QUALITY, method=2)


def error_gradient() -> str:
    """Returns the colours of the error maps, from 0 to the maximum, as a CSS gradient."""
    return f"linear-gradient(to right, {', '.join(maps.COLOURS)})"


def outline_path(mask: np.ndarray) -> str:
    """Traces the outline of a defect along pixel edges.

    The outline runs about 2 px of the page outside the defect, so that it does not hide a
    scratch. Masks of more than 384 px a side are reduced by a whole factor first; a block
    counts as defect if any of its pixels does, so that even the smallest defect has an outline.

    Args:
        mask: [H, W, 1], one on the defect.

    Returns:
        The `d` attribute of an SVG path in pixels of the mask, with (0, 0) at its upper left
        corner; "" if there is no defect.
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
    """Returns the runs of True in each row as (row, first, length), multiplied by the step."""
    steps = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    found = np.stack([rows, starts, ends - starts], axis=-1) * step
    return [tuple(run) for run in found.tolist()]


def _data_url(picture: Image.Image, format: str, **options: object) -> str:
    content = io.BytesIO()
    picture.save(content, format, **options)
    return f"data:image/{format};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
