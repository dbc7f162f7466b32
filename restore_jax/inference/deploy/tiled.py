"""Restores photographs of any size with an exported model, in overlapping tiles.

This file is part of restore_jax (Apache-2.0) and needs only NumPy and onnxruntime. It lies in
the folder of a model, next to `manifest.json`, which says how the photograph is cut:

    from PIL import Image
    import numpy as np
    import restore

    photograph = np.asarray(Image.open("part.png").convert("RGB"))
    Image.fromarray(restore.Restorer()(photograph)).save("restored.png")
"""

import json
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import onnxruntime


class Restorer:
    """An exported model, callable on photographs.

    Args:
        model: name of the file in the folder; None: the manifest's first.
        folder: where it and `manifest.json` are; None: where this file is.
        providers: those of onnxruntime, such as "CUDAExecutionProvider".
        tile: side of the tiles, px, a multiple of the manifest's `multiple_of`; None: the
            manifest's. Smaller ones take less memory.
        overlap: smallest overlap of neighbouring tiles, px; None: the manifest's, or with a
            `tile` a quarter of it.
    """

    def __init__(
        self,
        model: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        tile: int | None = None,
        overlap: int | None = None,
    ) -> None:
        place = pathlib.Path(folder or pathlib.Path(__file__).parent)
        self.manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        model = model or self.manifest["models"][0]["file"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(
            str(place / model), options, providers=list(providers)
        )
        degraded, *others = self.session.get_inputs()
        if any(isinstance(side, int) for side in degraded.shape[1:3]):
            raise ValueError(f"{model}: takes images of one size, {degraded.shape[1:3]}")
        self.takes_context = bool(others)
        self.multiple = self.manifest["multiple_of"]
        if overlap is None:
            overlap = tile // 4 if tile else self.manifest["overlap"]
        self.tile = tile or self.manifest["tile"]
        self.overlap = overlap

    def __call__(
        self, photograph: np.ndarray, white: int | None = None, gain: Sequence[float] = (1.0,)
    ) -> np.ndarray:
        """Restores a photograph.

        Args:
            photograph: [H, W, 3] RGB or [H, W] grey, uint8, uint16 or float in [0, 1].
            white: the white level of integers, such as 4095; None: the highest of their dtype.
            gain: one factor, or one per channel, that the colours are divided by first.

        Returns:
            The restoration, of the same shape and dtype.
        """
        is_whole = photograph.dtype.kind == "u"
        level = np.float32((white or np.iinfo(photograph.dtype).max) if is_whole else 1.0)
        given = photograph if photograph.ndim == 3 else photograph[..., None]
        degraded = given.astype(np.float32) / level
        if any(factor != 1.0 for factor in gain):
            degraded = degraded / np.asarray(gain, np.float32)
        degraded = np.broadcast_to(degraded, (*degraded.shape[:2], 3))
        restored = self._tiled(degraded)
        if given.shape[-1] == 1:
            restored = restored.mean(axis=-1, keepdims=True)
        restored = np.clip(restored, 0.0, 1.0)
        restored = np.rint(restored * level) if is_whole else restored
        return restored.astype(photograph.dtype).reshape(photograph.shape)

    def _tiled(self, degraded: np.ndarray) -> np.ndarray:
        """float32 [H, W, 3] in [0, 1] → the same shape, near [0, 1]."""
        height, width = degraded.shape[:2]
        inputs = {"context": thumbnail(degraded)[None]} if self.takes_context else {}
        rows, columns = (self._cut(length) for length in (height, width))
        # The last tiles may end after the photograph.
        ends = [starts[-1] + side for side, starts, _ in (rows, columns)]
        result = np.zeros((*ends, 3), np.float32)
        for top, down in zip(*rows[1:], strict=True):
            below = reflected(height, top + rows[0])[top:]
            for left, across in zip(*columns[1:], strict=True):
                beside = reflected(width, left + columns[0])[left:]
                part = np.ascontiguousarray(degraded[below][:, beside])
                inputs["degraded"] = part[None]
                (restored,) = self.session.run(["restored"], inputs)
                weights = down[:, None, None] * across[:, None]
                result[top : top + rows[0], left : left + columns[0]] += weights * restored[0]
        return result[:height, :width]

    def _cut(self, length: int) -> tuple[int, list[int], np.ndarray]:
        """Returns the side of the tiles along an axis, their starts and their weights."""
        side = min(self.tile, self.multiple * math.ceil(length / self.multiple))
        starts = [0]
        if length > side:
            # Multiples of 32, as far as possible: the network works on blocks of pixels.
            shift = side - self.overlap
            unit = math.gcd(side, shift, self.multiple, 2 ** (side.bit_length() - 3))
            last = math.ceil((length - side) / unit)
            gaps = math.ceil(last / (shift // unit))
            starts = [unit * round(i * last / gaps) for i in range(gaps + 1)]
        return side, starts, blending_weights(starts, side)


def blending_weights(starts: Sequence[int], side: int) -> np.ndarray:
    """Returns the weights of the tiles along an axis, float32 [tiles, side].

    Neighbours are cross-faded by a raised cosine over their overlap. The weights of a pixel sum
    to one.
    """
    weights = np.ones((len(starts), side))
    for i in range(len(starts) - 1):
        shared = starts[i] + side - starts[i + 1]
        rise = np.sin(0.5 * np.pi * (np.arange(shared) + 0.5) / max(1, shared)) ** 2
        weights[i, side - shared :] *= rise[::-1]
        weights[i + 1, :shared] *= rise
    total = np.zeros(starts[-1] + side)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + side] += row
    for start, row in zip(starts, weights, strict=True):
        row /= total[start : start + side]
    return weights.astype(np.float32)


def reflected(length: int, padded: int) -> np.ndarray:
    """Returns the pixels that continue an axis by reflection: 0 1 2 1 0 1 … for 3 of them."""
    position = np.arange(padded) % max(1, 2 * (length - 1))
    return np.minimum(position, 2 * (length - 1) - position) if length > 1 else position


def thumbnail(photograph: np.ndarray, side: int = 64) -> np.ndarray:
    """Shrinks a photograph, float32 [H, W, 3], to a square by a triangle filter."""

    def along(size: int) -> np.ndarray:
        ratio = size / side
        centres = (np.arange(side) + 0.5) * ratio - 0.5
        distance = np.abs(np.arange(size)[None, :] - centres[:, None])
        taps = np.maximum(0.0, 1.0 - distance / max(ratio, 1.0))
        return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)

    rows = np.tensordot(along(photograph.shape[0]), photograph, axes=(1, 0))
    small = np.tensordot(along(photograph.shape[1]), rows, axes=(1, 1)).transpose(1, 0, 2)
    return np.ascontiguousarray(small)
