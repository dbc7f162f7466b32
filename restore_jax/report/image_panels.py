"""The images of the pages: photographs, maps of squared error and outlines of defects.

Pictures stand in the page as data addresses. Small ones are enlarged by the browser, by whole
pixels; defects are outlined by SVG paths over them, so that no pixel is painted over for good.
"""

import base64
import dataclasses
import io
import math

import matplotlib
import numpy as np
from matplotlib import colors
from PIL import Image
from scipy import ndimage

from restore_jax.report import plots

MAX_SIDE = 384
ENLARGED_SIDE = 256

# Up to this side the pixels are kept exactly; above it the noise would make a page of 20 MB.
_LOSSLESS_SIDE = 128
_WEBP_QUALITY = 85

_ERROR_LEVELS = 48
_ERROR_PERCENTILE = 99.5

# From dark to light, so that it needs no colour vision.
_ERROR_COLOURS = matplotlib.colormaps["inferno"]


@dataclasses.dataclass(frozen=True)
class Frame:
    """How the pictures of one image stand in the page.

    Attributes:
        name: the id of its outline.
        height, width: of the image, in pixels.
        outline: the defect's, as of `outline_path`; "" where there is none, or none is known.
    """

    name: str
    height: int
    width: int
    outline: str

    @classmethod
    def of(cls, name: str, mask: np.ndarray, has_mask: bool) -> "Frame":
        """Makes that of an image with a mask [H, W, 1], of no meaning unless `has_mask`."""
        return cls(name, *mask.shape[:2], outline_path(mask) if has_mask else "")

    @property
    def enlarged(self) -> bool:
        """Whether a pixel of the image is several of the page."""
        return display_zoom(self.height, self.width) > 1

    @property
    def shown_width(self) -> str:
        """The width in the page at most, in CSS pixels."""
        zoom = display_zoom(self.height, self.width)
        return f"{min(MAX_SIDE / max(self.height, self.width), zoom) * self.width:g}"


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
    palette = _ERROR_COLOURS(np.linspace(0, 1, _ERROR_LEVELS), bytes=True)[:, :3]
    picture.putpalette(palette.tobytes())
    return _data_address(picture, "png", optimize=True), top


def error_gradient() -> str:
    """The colours of the error maps from 0 to the top, as a CSS gradient."""
    stops = map(colors.to_hex, _ERROR_COLOURS(np.linspace(0, 1, 9)))
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


def _data_address(picture: Image.Image, form: str, **options: object) -> str:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
