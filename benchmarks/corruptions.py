"""Shifts of light, sharpness, noise and weather, of the strength that ADShift tests with.

ADShift (Cao, Zhu and Pang, "Anomaly Detection under Distribution Shift", ICCV 2023,
arXiv:2303.13845) corrupts the test photographs of MVTec AD with four of the corruptions of
ImageNet-C (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261) at severity 3 of 5:
brightness, contrast, defocus blur and Gaussian noise. Here, fog stands for the weather. Written
from the papers, with their values; only the fog's texture is made otherwise: octaves of random
values, bilinearly enlarged, for the diamond-square algorithm.

None of them is tuned to a photograph's size: ImageNet-C's are of 224 px.
"""

import math
import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage, signal

_BRIGHTNESS = 0.3  # added to the value of HSV
_CONTRAST = 0.2  # factor on the deviation from the mean of a channel
_RADIUS, _ALIASING = 6, 0.5  # of the disc, and of the Gaussian that smooths its edge, px
_NOISE = 0.18  # standard deviation
# The fog's amount, and by how much each octave is weaker than the next coarser one: the square
# of ImageNet-C's 1.7, since its code multiplies by the amplitude twice.
_FOG, _DECAY = 2.5, 1.7**2


def _brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + _BRIGHTNESS, 1.0)
    # Hue and saturation stay; black has neither.
    return np.where(value > 0, image * (raised / np.maximum(value, 1e-6)), raised)


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + _CONTRAST * (image - mean)


def _defocus(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    margin = _RADIUS + 2
    offsets = np.arange(-margin, margin + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= _RADIUS**2).astype(float)
    disc = ndimage.gaussian_filter(disc / disc.sum(), _ALIASING)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return signal.fftconvolve(padded, disc[..., None], mode="valid", axes=(0, 1))


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image + rng.normal(0.0, _NOISE, image.shape)


def _fog(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    side, texture = max(height, width), np.zeros((height, width))
    for octave in range(1, math.ceil(math.log2(side)) + 1):
        values = rng.uniform(-1.0, 1.0, (2**octave + 1, 2**octave + 1))
        rows, columns = np.mgrid[:height, :width] * (2**octave / side)
        texture += ndimage.map_coordinates(values, (rows, columns), order=1) / _DECAY**octave
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    highest = image.max()
    return (image + _FOG * texture[..., None]) * (highest / (highest + _FOG))


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "defocus_blur": _defocus,
    "gaussian_noise": _noise,
    "fog": _fog,
}


def corrupt(image: np.ndarray, name: str, image_id: str) -> np.ndarray:
    """Corrupts a photograph; the same id gives the same draw.

    Args:
        image: float [H, W, 3] in [0, 1].
        name: a key of `CORRUPTIONS`.
        image_id: identifies the photograph.

    Returns:
        float32 [H, W, 3] in [0, 1], of 256 levels.
    """
    rng = np.random.default_rng(zlib.crc32(f"{name}/{image_id}".encode()))
    found = np.clip(CORRUPTIONS[name](image, rng), 0.0, 1.0)
    return (np.round(255.0 * found) / 255.0).astype(np.float32)
