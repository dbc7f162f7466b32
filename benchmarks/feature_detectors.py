"""PaDiM and PatchCore: defect detectors on the features of a pretrained network.

PaDiM (Defard et al., ICPR 2021, arXiv:2011.08785) fits a Gaussian at every position; PatchCore
(Roth et al., CVPR 2022, arXiv:2106.08265) keeps a coreset of the features of all positions and
measures the distance to the nearest of them. Both see a photograph as *maps*: a network's
features at 1/4, 1/8 and 1/16 of its size, and score the positions at 1/8. (PaDiM's authors
score them at 1/4: the results are coarser here, and the Gaussians take a quarter of the
memory.)

Everything here runs in NumPy and SciPy and is deterministic; the network is the caller's.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from restore_jax.metrics import detect
from restore_jax.metrics.detectability import Scores

Maps = Sequence[np.ndarray]
"""Features of a photograph at 1/4, 1/8 and 1/16 of its size, float32 [h, w, C] each."""

# PaDiM: channels drawn, and what is added to the variance of each, as in the paper.
_CHANNELS = 100
_REGULARISATION = 0.01

# PatchCore: positions averaged along each axis, share of the patches that is kept, dimensions
# in which it is chosen, and the neighbours that weight the score of an image.
_PATCH = 3
_KEPT = 0.1
_PROJECTED = 64
_NEIGHBOURS = 9

_SIDE = 256  # of the maps that are smoothed, px
_SMOOTHING = 4.0  # px of these
_FOLDS = 5
_QUANTILE = 0.995  # of the held-out reference pixels: the threshold of `detect`
_ROWS = 1024  # patches whose distances are computed at a time


class Padim(NamedTuple):
    """A Gaussian at every position.

    Attributes:
        channels: int [D], those of all channels that are used.
        mean: float32 [h, w, D].
        precision: float32 [h, w, D, D], the inverse covariance.
    """

    channels: np.ndarray
    mean: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(cls, photographs: Sequence[Maps]) -> "Padim":
        """Fits the Gaussians to two or more photographs of one size."""
        found = np.stack([_stacked(maps, maps[1].shape[:2]) for maps in photographs])
        count = found.shape[-1]
        rng = np.random.default_rng(0)
        channels = np.sort(rng.permutation(count)[:_CHANNELS])
        found = np.ascontiguousarray(np.moveaxis(found[..., channels], 0, 2))  # [h, w, N, D]
        mean = found.mean(axis=2)
        deviation = found - mean[:, :, None]
        covariance = np.swapaxes(deviation, 2, 3) @ deviation / (len(photographs) - 1)
        covariance += _REGULARISATION * np.eye(len(channels), dtype=np.float32)
        return cls(channels, mean, np.linalg.inv(covariance))

    def score(self, maps: Maps) -> Scores:
        """Returns the Mahalanobis distance at each position and, for the image, the highest."""
        found = _stacked(maps, self.mean.shape[:2])[..., self.channels] - self.mean
        squared = (found[..., None, :] @ self.precision @ found[..., None])[..., 0, 0]
        pixels = _smooth(np.sqrt(np.maximum(squared, 0.0)))
        return Scores(pixels, float(pixels.max()))


class PatchCore(NamedTuple):
    """A coreset of patches.

    Attributes:
        patches: float32 [M, C].
    """

    patches: np.ndarray

    @classmethod
    def fit(cls, photographs: Sequence[Maps]) -> "PatchCore":
        """Chooses the coreset of the patches of one or more photographs."""
        found = np.concatenate(
            [_patches(maps).reshape(-1, _depth(maps)) for maps in photographs]
        )
        return cls(found[coreset(found, math.ceil(_KEPT * len(found)))])

    def score(self, maps: Maps) -> Scores:
        """Returns the distance of each patch to the nearest of the coreset.

        The score of the image is the largest of them, weighted by how unusual that nearest
        patch is within the coreset itself.
        """
        grid = maps[1].shape[:2]
        found = _patches(maps).reshape(-1, _depth(maps))
        nearest = nearest_patches(found, self.patches, 1)[:, 0]
        distances = np.linalg.norm(found - self.patches[nearest], axis=1)
        worst = int(distances.argmax())
        around = nearest_patches(self.patches[nearest[worst], None], self.patches, _NEIGHBOURS)
        others = np.linalg.norm(self.patches[around[0]] - found[worst], axis=1)
        highest = others.max()  # keeps the exponentials finite
        weight = 1.0 - np.exp(distances[worst] - highest) / np.exp(others - highest).sum()
        return Scores(_smooth(distances.reshape(grid)), float(weight * distances[worst]))


METHODS: dict[str, Callable[[Sequence[Maps]], Padim | PatchCore]] = {
    "padim": Padim.fit,
    "patchcore": PatchCore.fit,
}


class Detector(NamedTuple):
    """A fitted detector of one category.

    Attributes:
        model: what scores a photograph.
        threshold: exceeded by 0.5 % of the reference pixels, each reference scored by a model
            of others. None with fewer than `detect.MIN_FOR_THRESHOLD` references.
        references: the number of photographs it was fitted on.
    """

    model: Padim | PatchCore
    threshold: float | None
    references: int


def fit(method: str, photographs: Sequence[Maps]) -> Detector:
    """Fits a detector to clean photographs without defects, and its threshold.

    Args:
        method: a key of `METHODS`.
        photographs: the maps of two or more, all of one size.
    """
    make, count = METHODS[method], len(photographs)
    threshold = None
    if count >= detect.MIN_FOR_THRESHOLD:
        held_out = []
        for fold in range(_FOLDS):
            model = make([maps for i, maps in enumerate(photographs) if i % _FOLDS != fold])
            held_out += [model.score(maps).pixels for maps in photographs[fold::_FOLDS]]
        threshold = float(np.quantile(np.stack(held_out), _QUANTILE))
    return Detector(make(photographs), threshold, count)


def score(detector: Detector, maps: Maps, size: tuple[int, int]) -> Scores:
    """Scores a photograph; its map has the given size [H, W]."""
    found = detector.model.score(maps)
    return found._replace(pixels=_zoomed(found.pixels, size))


def coreset(patches: np.ndarray, count: int) -> np.ndarray:
    """Chooses patches such that all others are near one of them.

    Greedily: each is the one farthest from those before it, the first is patch 0. Distances are
    those of a random projection to 64 dimensions, where there are more.

    Args:
        patches: float32 [N, C].
        count: how many to choose, 1 to N.

    Returns:
        int [count], their rows.
    """
    depth = patches.shape[1]
    if depth > _PROJECTED:
        projection = np.random.default_rng(0).normal(size=(depth, _PROJECTED))
        patches = patches @ (projection / math.sqrt(_PROJECTED)).astype(np.float32)
    squares = np.square(patches).sum(axis=1)
    chosen = np.zeros(count, np.int64)
    # Squared distances to the nearest chosen one, each less its own square.
    least = np.full(len(patches), np.inf, np.float32)
    for i in range(1, count):
        last = chosen[i - 1]
        np.minimum(least, squares[last] - 2.0 * (patches @ patches[last]), out=least)
        chosen[i] = (least + squares).argmax()
    return chosen


def nearest_patches(found: np.ndarray, patches: np.ndarray, count: int) -> np.ndarray:
    """Finds the nearest patches by the Euclidean distance.

    Args:
        found: float32 [N, C].
        patches: float32 [M, C].
        count: how many to find for each, at most M.

    Returns:
        int [N, min(count, M)], rows of `patches`, in no order.
    """
    squares = np.square(patches).sum(axis=1)
    count = min(count, len(patches))
    rows = []
    for start in range(0, len(found), _ROWS):
        distances = squares - 2.0 * (found[start : start + _ROWS] @ patches.T)
        rows.append(np.argpartition(distances, count - 1, axis=1)[:, :count])
    return np.concatenate(rows)


def _depth(maps: Maps) -> int:
    return sum(plane.shape[-1] for plane in maps[1:])


def _patches(maps: Maps) -> np.ndarray:
    """Returns the features at 1/8 and 1/16, averaged over 3×3 positions each; [h, w, C]."""
    size = (_PATCH, _PATCH, 1)
    around = [ndimage.uniform_filter(plane, size, mode="nearest") for plane in maps[1:]]
    return _stacked(around, maps[1].shape[:2])


def _stacked(maps: Maps, grid: tuple[int, int]) -> np.ndarray:
    return np.concatenate([_zoomed(plane, grid) for plane in maps], axis=-1)


def _zoomed(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [h, w] or [h, w, C] bilinearly, aligning the outer edges of the corner pixels."""
    if plane.shape[:2] == tuple(size):
        return plane
    factors = [new / old for new, old in zip(size, plane.shape[:2], strict=True)]
    factors += [1.0] * (plane.ndim - 2)
    return ndimage.zoom(plane, factors, order=1, mode="nearest", grid_mode=True)


def _smooth(distances: np.ndarray) -> np.ndarray:
    """Enlarges distances [h, w] to the side of the photographs and smooths them, as both do."""
    pixels = _zoomed(distances, (_SIDE, _SIDE))
    return ndimage.gaussian_filter(pixels, _SMOOTHING, mode="nearest")
