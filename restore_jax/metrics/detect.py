"""A small defect detector without a neural network: a Gaussian over responses of fixed filters.

It is related to PaDiM (Defard et al. 2021): a Gaussian over the features at every position is
fitted on clean photographs without defects, and the anomaly score is the Mahalanobis distance
from it. In place of a pretrained network there is a fixed filter bank, which needs no weights
and no training and takes some ten milliseconds per image. The detector is meant for comparing
versions of an image (see `detectability`), not for competing with the detectors of the
literature.

Everything runs in NumPy and SciPy on the host and is deterministic.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

MIN_SIZE = 32
MIN_IMAGES = 2

# With fewer references, the 0.5 % of their pixels above the threshold only reflect the
# peculiarities of one or two of them.
MIN_FOR_THRESHOLD = 8

# False-positive rate of the frozen threshold on held-out clean pixels without defects.
_CLEAN_FPR = 0.005

# Grey and two opponent colours.
_OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0, -0.5], [-0.25, 0.5, -0.25]], np.float32)

# Standard deviations, in quarters of the grid step (which is 4 px for images of 128 px and up).
_COLOUR = (2.0, 4.0, 8.0)
_BLOB = (2.0, 4.0, 8.0)
_EDGE = ((0.8, 2.5), (1.6, 4.0), (3.2, 8.0))  # of the derivative, of averaging its square
_DEVIATION = (2.5, 5.0)
_MIN_ENERGY = 1e-5  # added in the logarithm: a standard deviation of 0.8 grey levels

# Deviations that count as none however little the references vary: 0.01 in colour, 3 % in an
# energy. Without it, constant features (grey cameras, flat backgrounds) would dominate.
_FLOOR = np.array(
    [0.01] * (3 * len(_COLOUR))
    + [0.002] * len(_BLOB)
    + [0.03] * (3 * len(_EDGE) + len(_DEVIATION)),
    np.float32,
)
_SHRINKAGE = 0.02
_NEIGHBOURS = 1.5  # grid steps over which neighbouring positions share their statistics
_SMOOTHING = 1.0  # of the anomaly map, in grid steps


class Detector(NamedTuple):
    """A fitted detector.

    Attributes:
        mean: float32 [h, w, F], the expected features at each position.
        whitening: float32 [F, F]; W · Wᵀ is the precision matrix of the deviations, the same
            at all positions.
        scale: float32 [h, w], a factor on the distance at each position: above 1 where the
            references vary less than elsewhere.
        threshold: distance above which a pixel counts as defective. It is exceeded by 0.5 % of
            the reference pixels, each reference scored by a model of the others. None with
            fewer than `MIN_FOR_THRESHOLD` references.
        references: the number of photographs it was fitted on.
    """

    mean: np.ndarray
    whitening: np.ndarray
    scale: np.ndarray
    threshold: float | None
    references: int


def features(image: np.ndarray) -> np.ndarray:
    """Applies the filter bank to an image and samples the responses on a grid.

    The features are grey level and opponent colours at three scales; the Laplacian of Gaussian
    of the grey image at three scales; at three scales, the local energies of its horizontal and
    vertical derivatives (logarithms of the root mean square) and their correlation, which
    distinguishes the diagonals; and the logarithm of the local standard deviation at two
    scales.

    Images of 384 px and more are first reduced by an integer factor, by block averaging, to a
    short side of about 256 px. Borders are reflected.

    Args:
        image: float [H, W, 3], clipped to [0, 1]; at least 32 px on each side.

    Returns:
        float32 [h, w, F], one position every 4 px (after the reduction); every 1 to 3 px if the
        image is under 128 px.

    Raises:
        ValueError: if the image has another shape, or contains values that are not finite.
    """
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIZE:
        raise ValueError(
            f"expected an image [H, W, 3] of {MIN_SIZE} px or more, got shape {image.shape}"
        )
    if not np.isfinite(image).all():
        raise ValueError("the image holds values that are not finite")
    planes = np.moveaxis(_reduced(np.clip(image, 0.0, 1.0)) @ _OPPONENT.T, -1, 0)
    grey, (height, width) = planes[0], planes.shape[1:]
    step = min(4, min(height, width) // 32)
    grid = round(height / step), round(width / step)
    unit = step / 4

    responses = [_filtered(plane, grid, s * unit) for s in _COLOUR for plane in planes]
    for sigma in _BLOB:
        across = _filtered(grey, grid, sigma * unit, (0, 2))
        responses.append(across + _filtered(grey, grid, sigma * unit, (2, 0)))
    energies = []
    for i, (sigma, window) in enumerate(_EDGE):
        # Coarser derivatives need fewer samples.
        fine = ((height, width), (2 * grid[0], 2 * grid[1]), grid)[i]
        dx = _filtered(grey, fine, sigma * unit, (0, 1))
        dy = _filtered(grey, fine, sigma * unit, (1, 0))
        # From px to samples of the finer grid.
        window *= unit * fine[0] / height
        xx, yy, xy = (_filtered(p, grid, window) for p in (dx * dx, dy * dy, dx * dy))
        responses.append(xy / (np.sqrt(np.maximum(xx * yy, 0.0)) + _MIN_ENERGY))
        energies += [xx, yy]
    for sigma in _DEVIATION:
        mean = _filtered(grey, grid, sigma * unit)
        energies.append(_filtered(grey * grey, grid, sigma * unit) - mean * mean)
    responses += [0.5 * np.log(np.maximum(energy, 0.0) + _MIN_ENERGY) for energy in energies]
    return np.stack(responses, axis=-1)


def fit_features(measured: Sequence[np.ndarray]) -> Detector:
    """Fits a detector on clean photographs of one category without defects.

    The expected features lie between those of the position and those of the category as a
    whole. The weight of the position is the slope of a regression of each reference's features
    on the mean of the others at the same position: near 1 for aligned objects, near 0 for
    textures, whose positions have nothing in common. The variance at each position is treated
    in the same way. Thus no prior knowledge of the category is needed.

    Args:
        measured: the `features` of two or more photographs. Where sizes differ, positions
            correspond by their relative coordinates.

    Raises:
        ValueError: if there are fewer than two photographs.
    """
    found = [feature / _FLOOR for feature in measured]
    count = len(found)
    if count < MIN_IMAGES:
        raise ValueError(
            f"a detector needs {MIN_IMAGES} or more images to be fitted on, got {count}"
        )
    height, width = min(feature.shape[:2] for feature in found)
    found = [_resized(feature, height, width) for feature in found]
    total = functools.reduce(np.add, found)
    centre = total.mean(axis=(0, 1)) / count
    smooth_total = _smoothed(total)

    def others(feature: np.ndarray) -> np.ndarray:
        return (smooth_total - _smoothed(feature)) / (count - 1) - centre

    products, squares = np.zeros_like(centre), np.zeros_like(centre)
    for feature in found:
        predicted = others(feature)
        products += ((feature - centre) * predicted).sum(axis=(0, 1))
        squares += (predicted * predicted).sum(axis=(0, 1))
    slope = _slope(products, squares)
    mean = centre + slope * (smooth_total / count - centre)

    scatter = []
    for feature in found:
        feature -= centre + slope * others(feature)
        rows = feature.reshape(-1, centre.size).astype(np.float64)
        scatter.append(rows.T @ rows / (height * width))
    total_scatter = functools.reduce(np.add, scatter)
    # The covariance of a few references generalises poorly. Threshold and scale are therefore
    # fitted on held-out distances: the covariance for each reference is that of the others.
    distances = np.stack(
        [
            np.square(feature @ _whitening((total_scatter - own) / (count - 1))).sum(-1)
            for feature, own in zip(found, scatter, strict=True)
        ]
    )
    spread = distances / max(float(distances.mean()), 1e-12)
    smooth = np.stack([_smoothed(each) for each in spread])
    elsewhere = (smooth.sum(axis=0) - smooth) / (count - 1) - 1.0
    trust = _slope(((spread - 1.0) * elsewhere).sum(), np.square(elsewhere).sum())
    held_out = [
        _blurred(np.sqrt(distance) * _scale(trust * other))
        for distance, other in zip(distances, elsewhere, strict=True)
    ]
    threshold = None
    if count >= MIN_FOR_THRESHOLD:
        # A distance below 1 (one `_FLOOR`, if the references do not vary) is never a defect.
        threshold = max(1.0, float(np.quantile(np.stack(held_out), 1 - _CLEAN_FPR)))
    return Detector(
        mean=(mean * _FLOOR).astype(np.float32),
        whitening=_whitening(total_scatter / count) / _FLOOR[:, None],
        scale=_scale(trust * (smooth.mean(axis=0) - 1.0)),
        threshold=threshold,
        references=count,
    )


def score(detector: Detector, image: np.ndarray) -> np.ndarray:
    """Computes the anomaly map of an image.

    Args:
        detector: a detector from `fit_features`.
        image: as for `features`; its size may differ from that of the references.

    Returns:
        float32 [H, W], the Mahalanobis distance of each pixel from the clean photographs, 0 or
        more. Its maximum is the image's score.
    """
    found = features(image)
    height, width = found.shape[:2]
    whitened = (found - _resized(detector.mean, height, width)) @ detector.whitening
    distance = np.sqrt(np.square(whitened).sum(-1)) * _resized(detector.scale, height, width)
    return _resized(_blurred(distance), *np.shape(image)[:2])


def _reduced(image: np.ndarray) -> np.ndarray:
    """Reduces an image by averaging square blocks; incomplete ones repeat the border."""
    height, width, channels = image.shape
    factor = max(1, round(min(height, width) / 256))
    if factor == 1:
        return image
    image = np.pad(image, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    return image.reshape(
        image.shape[0] // factor, factor, image.shape[1] // factor, factor, channels
    ).mean(axis=(1, 3))


def _filtered(
    plane: np.ndarray, grid: tuple[int, int], sigma: float, orders: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Applies a Gaussian derivative to a plane [H, W], sampled at the centres of grid cells."""
    down, across = (
        _gaussian(length, count, sigma, order)
        for length, count, order in zip(plane.shape, grid, orders, strict=True)
    )
    return down @ plane @ across.T


@functools.lru_cache(maxsize=128)
def _gaussian(length: int, count: int, sigma: float, order: int) -> np.ndarray:
    """Returns the matrix [count, length] of a Gaussian or its derivative, borders reflected.

    The taps of each row sum to 1 for order 0. For orders 1 and 2 they sum to 0, and their
    absolute values to 1.
    """
    margin = math.ceil(6 * sigma + length / count)
    positions = np.arange(-margin, length + margin)
    offset = (positions - ((np.arange(count) + 0.5) * length / count - 0.5)[:, None]) / sigma
    # Beyond 6 σ, float32 values become subnormal and slow a product down tenfold.
    bell = np.where(np.abs(offset) <= 6, np.exp(-0.5 * offset * offset), 0.0)
    taps = bell
    if order == 1:
        taps = offset * bell
    elif order == 2:
        taps = (offset * offset - 1) * bell
        taps -= bell * (taps.sum(axis=1) / bell.sum(axis=1))[:, None]
    taps = taps / np.abs(taps).sum(axis=1, keepdims=True)
    folded = positions % (2 * length)
    folded = np.where(folded < length, folded, 2 * length - 1 - folded)
    matrix = np.zeros((length, count))
    np.add.at(matrix, folded, taps.T)
    return np.ascontiguousarray(matrix.T, np.float32)


def _resized(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [h, w] or [h, w, F] bilinearly, aligning the outer edges of the corner pixels."""
    if maps.shape[:2] == (height, width):
        return maps
    tall = np.tensordot(_interpolation(maps.shape[0], height), maps, (1, 0))
    return np.swapaxes(np.tensordot(_interpolation(maps.shape[1], width), tall, (1, 1)), 0, 1)


@functools.lru_cache(maxsize=32)
def _interpolation(length: int, count: int) -> np.ndarray:
    position = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
    distance = np.abs(position[:, None] - np.arange(length))
    return np.maximum(0.0, 1.0 - distance).astype(np.float32)


def _smoothed(maps: np.ndarray) -> np.ndarray:
    sigmas = (_NEIGHBOURS, _NEIGHBOURS, 0)[: maps.ndim]
    return ndimage.gaussian_filter(maps, sigmas, mode="nearest")


def _blurred(distance: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(distance, _SMOOTHING, mode="nearest")


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """Returns the Cholesky factor of the precision matrix.

    Args:
        covariance: [F, F], of features in units of `_FLOOR`.
    """
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    precision = np.linalg.inv(shrunk + np.eye(len(covariance)))
    return np.linalg.cholesky(precision).astype(np.float32)


def _slope(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Slope of a regression through the origin, clipped to [0, 1]; 0 without any variation."""
    return np.clip(products / np.maximum(squares, 1e-12), 0.0, 1.0)


def _scale(deviation: np.ndarray) -> np.ndarray:
    """Returns 1 / standard deviation, with the variance clamped to at least half its mean.

    Args:
        deviation: relative deviation of the variance from its mean at each position.
    """
    return (1.0 / np.sqrt(np.maximum(1.0 + deviation, 0.5))).astype(np.float32)
