"""Detectability: does a defect detector still find the defects after the restoration?

A detector fitted on clean photographs without defects, its threshold frozen there (`detect`),
looks at the clean, the degraded and the restored version of the same test images. How much of
the clean images' detection the restoration brings back is its recovery,
`(restored - degraded) / (clean - degraded)`. A restorer for which this is claimed must not have
seen the defects in training.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from restore_jax.metrics import detect

MAX_FPR = 0.3
VERSIONS = ("clean", "degraded", "restored")
FIGURES = ("image_auroc", "pixel_auroc", "aupro", "f1", "hallucination_fpr")
RECOVERED = ("pixel_auroc", "aupro")

# Where clean and degraded differ by less, their difference is no scale to measure on.
MIN_LOSS = 0.05

# Bins of a score's histogram: 1024 to the octave from 2^-5 to 2^11, so that scores within
# 0.07 % of each other count as equal. Set beforehand, they do not depend on the images' order.
_BINS_PER_OCTAVE, _LOWEST, _BINS = 1024, -5, 1 << 14

# Whole numbers add up alike in any order: every region weighs this, spread over its pixels.
_REGION = float(1 << 40)

# Up to so many scores, `aupro` takes each as a threshold.
_MAX_THRESHOLDS = 1 << 20


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a defective one outscores one without defect.

    Ties count one half. In [0, 1], 0.5 by chance.

    Args:
        labels: nonzero where defective, any shape.
        scores: finite numbers, as many.

    Raises:
        ValueError: one of the two classes is missing, or sizes differ.
    """
    labels, scores = _pairs(np.asarray(labels) != 0, scores)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        raise ValueError("AUROC needs scores of both classes, with defect and without")
    # Imported here: it takes most of a second, which every training would wait for.
    from scipy import stats  # noqa: PLC0415

    ranks = stats.rankdata(scores)[labels].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def f1_at(threshold: float, labels: np.ndarray, scores: np.ndarray) -> float:
    """F1 of calling defective what scores above a threshold, `2 TP / (2 TP + FP + FN)`.

    Args:
        threshold: set beforehand, not on these scores.
        labels: nonzero where defective, any shape.
        scores: finite numbers, as many.

    Raises:
        ValueError: nothing is defective, or sizes differ.
    """
    labels, scores = _pairs(np.asarray(labels) != 0, scores)
    if not labels.any():
        raise ValueError("F1 needs at least one defective pixel or image")
    flagged = scores > threshold
    return float(2 * (flagged & labels).sum() / (int(flagged.sum()) + int(labels.sum())))


def aupro(
    maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], max_fpr: float = MAX_FPR
) -> float:
    """Area under the per-region overlap curve up to a false-positive rate, over that rate.

    As MVTec AD defines it (Bergmann et al. 2021): at each threshold, the share of each defect
    region (8-connected, every region counting alike) that is flagged, averaged, against the
    share of flagged pixels among all pixels without defect. Straight lines between thresholds.

    Exact up to 2^20 pixels in all; beyond that the thresholds are every k-th score, at least
    2^19 of them (or their ties), so that thousands of maps can be passed.

    Args:
        maps: anomaly maps [H, W].
        masks: [H, W] or [H, W, 1], nonzero on the defects; empty where there is none.
        max_fpr: in (0, 1].

    Returns:
        In [0, 1]; a detector that guesses has `max_fpr / 2`.

    Raises:
        ValueError: no defect, no pixel without, or sizes that differ.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr: {max_fpr} is not in (0, 1]")
    stride = max(1, -(-sum(np.size(scores) for scores in maps) // _MAX_THRESHOLDS))
    edges = np.unique(np.concatenate([np.zeros(0), *(np.ravel(s)[::stride] for s in maps)]))
    outside, regions = np.zeros(edges.size + 1), np.zeros(edges.size + 1)
    for scores, mask in zip(maps, masks, strict=True):
        weights, scores = _pairs(_region_weights(mask), scores)
        bins = np.searchsorted(edges, scores, side="right")
        outside += np.bincount(bins, weights == 0, outside.size)
        regions += np.bincount(bins, weights, regions.size)
    if not outside.any() or not regions.any():
        raise ValueError("AUPRO needs pixels of both classes, with defect and without")
    return _area_under_pro(outside, regions, max_fpr)


@dataclasses.dataclass
class _Tally:
    """What is kept of one version of a category's images: counts and a score per image."""

    labels: list[bool] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    inside: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))
    outside: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))
    regions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))
    # Pixels above the threshold: in defects, outside them, and of that on good images.
    hits: int = 0
    false_alarms: int = 0
    good_alarms: int = 0
    good_pixels: int = 0
    is_frozen: bool = False

    def add(
        self,
        scores: np.ndarray,
        weights: np.ndarray | None,
        is_good: bool,
        threshold: float | None,
    ) -> None:
        self.labels.append(not is_good)
        self.scores.append(float(scores.max()))
        if weights is None:
            return
        octaves = np.log2(np.maximum(scores, 2.0**_LOWEST)) - _LOWEST
        bins = np.minimum(octaves * _BINS_PER_OCTAVE, _BINS - 1).astype(np.int64).ravel()
        defect = weights > 0
        self.inside += np.bincount(bins, defect.ravel(), _BINS)
        self.outside += np.bincount(bins, ~defect.ravel(), _BINS)
        self.regions += np.bincount(bins, weights.ravel(), _BINS)
        if threshold is None:
            return
        self.is_frozen = True
        flagged = scores > threshold
        self.hits += int((flagged & defect).sum())
        self.false_alarms += int((flagged & ~defect).sum())
        if is_good:
            self.good_alarms += int(flagged.sum())
            self.good_pixels += flagged.size

    def add_counts(self, other: "_Tally") -> None:
        for field in dataclasses.fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            total = own or others if isinstance(own, bool) else own + others
            setattr(self, field.name, total)

    def figures(self) -> dict[str, float | None]:
        found: dict[str, float | None] = dict.fromkeys(FIGURES)
        if 0 < sum(self.labels) < len(self.labels):
            found["image_auroc"] = auroc(np.array(self.labels), np.array(self.scores))
        positives, negatives = self.inside.sum(), self.outside.sum()
        if positives and negatives:
            below = np.cumsum(self.outside) - 0.5 * self.outside
            found["pixel_auroc"] = float(self.inside @ below / (positives * negatives))
            found["aupro"] = _area_under_pro(self.outside, self.regions, MAX_FPR)
        if positives and self.is_frozen:
            flagged = self.hits + self.false_alarms
            found["f1"] = float(2 * self.hits / (flagged + positives))
        if self.good_pixels:
            found["hallucination_fpr"] = self.good_alarms / self.good_pixels
        return found


class Detectability:
    """Measures detectability over images that pass one at a time, in any order.

    Keeps 2 MB of counts per category, and one number per image and version.

    Args:
        detectors: one per category, from `detect.fit`.
    """

    def __init__(self, detectors: Mapping[str, detect.Detector]) -> None:
        self._detectors = dict(detectors)
        self._tallies = {
            name: {version: _Tally() for version in VERSIONS} for name in detectors
        }
        self._masked = dict.fromkeys(detectors, 0)

    def add(
        self,
        category: str,
        clean: np.ndarray,
        degraded: np.ndarray,
        restored: np.ndarray,
        mask: np.ndarray,
        has_mask: bool,
        is_good: bool,
    ) -> None:
        """Scores the three versions of one test image.

        Args:
            category: one that has a detector.
            clean: float [H, W, 3] in [0, 1].
            degraded: the same shape.
            restored: the same shape; clipped here.
            mask: [H, W] or [H, W, 1], nonzero on the defect; ignored on good images.
            has_mask: false where the mask is not known. Such an image counts in the image
                AUROC alone, and so does a defective one whose mask is empty.
            is_good: true for an image without defect.

        Raises:
            ValueError: no detector for the category, shapes that do not fit, or values that
                are not finite.
        """
        if category not in self._detectors:
            raise ValueError(f"{category}: no detector was fitted for this category")
        sizes = {np.shape(image)[:2] for image in (clean, degraded, restored, mask)}
        if len(sizes) > 1:
            raise ValueError(f"{category}: images and mask differ in size: {sorted(sizes)}")
        detector, weights = self._detectors[category], None
        if is_good:
            weights = np.zeros(np.shape(clean)[:2])
        elif has_mask and np.any(mask):
            weights = _region_weights(mask)
        versions = zip(VERSIONS, (clean, degraded, restored), strict=True)
        # All are scored before any is counted, so that a refused image leaves nothing behind.
        maps = {version: detect.score(detector, image) for version, image in versions}
        self._masked[category] += weights is not None and not is_good
        for version, scores in maps.items():
            self._tallies[category][version].add(scores, weights, is_good, detector.threshold)

    def counts(self) -> dict[str, Any]:
        """Returns what was counted so far, for `add_counts` in another process."""
        return {"tallies": self._tallies, "masked": self._masked}

    def add_counts(self, counts: Mapping[str, Any]) -> None:
        """Adds what another process counted, on other images by the same detectors."""
        for name, tallies in counts["tallies"].items():
            self._masked[name] += counts["masked"][name]
            for version, tally in tallies.items():
                self._tallies[name][version].add_counts(tally)

    def result(self) -> dict[str, Any]:
        """Returns the figures so far, fit for JSON: None where one is not defined, no NaN.

        `{"macro": M, "categories": {name: M}}`, categories in alphabetical order. M has, under
        "clean", "degraded" and "restored",
            image_auroc: AUROC of the images' scores; None without images of both kinds;
            pixel_auroc: AUROC over the pixels of all images with a known mask, good ones too;
            aupro: see `aupro`, at 30 % false positives;
            f1: of the pixels above the threshold frozen on the clean references;
            hallucination_fpr: the share of pixels above it on good images; both None where
                there were too few references for a threshold;
        under "recovery", for pixel_auroc and aupro, (restored - degraded) / (clean - degraded):
        1 where all that the degradation took is back, 0 where nothing is; None where that is
        less than 0.05; and `count` (images), `mask_count` (defective ones with a known mask)
        and, for a category, its `threshold` and the number of its `references`.

        The macro figures are means over the categories that have one. Macro recovery is that
        of the macro figures: a mean of quotients would be ruled by the smallest denominators.
        """
        categories = {}
        for name, tallies in sorted(self._tallies.items()):
            versions = {version: tally.figures() for version, tally in tallies.items()}
            categories[name] = {
                "count": len(tallies["clean"].labels),
                "mask_count": self._masked[name],
                "threshold": self._detectors[name].threshold,
                "references": self._detectors[name].references,
                **versions,
                "recovery": _recovery(versions),
            }
        macro = {
            version: {
                figure: _mean([found[version][figure] for found in categories.values()])
                for figure in FIGURES
            }
            for version in VERSIONS
        }
        counts = {
            name: sum(found[name] for found in categories.values())
            for name in ("count", "mask_count")
        }
        return {
            "macro": {**counts, **macro, "recovery": _recovery(macro)},
            "categories": categories,
        }


def detectability(
    reference: Mapping[str, Iterable[np.ndarray]],
    tests: Mapping[str, Iterable[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Fits a detector per category and measures its tests; see `Detectability.result`.

    Args:
        reference: clean photographs without defect [H, W, 3] by category, none of them tested.
        tests: by category, mappings of the arguments of `Detectability.add`.

    Raises:
        ValueError: a category of the tests has fewer than two references, or a wrong image.
    """
    detectors = {}
    for name in tests:
        try:
            detectors[name] = detect.fit(reference.get(name, ()))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    measured = Detectability(detectors)
    for name, images in tests.items():
        for image in images:
            measured.add(name, **image)
    return measured.result()


def _pairs(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.ravel(labels), np.ravel(scores)
    if labels.size != scores.size:
        raise ValueError(f"{labels.size} labels do not fit {scores.size} scores")
    if not np.isfinite(scores).all():
        raise ValueError("the scores hold values that are not finite")
    return labels, scores


def _region_weights(mask: np.ndarray) -> np.ndarray:
    """Float64 [H, W]: on each 8-connected region a constant whole number, adding up alike."""
    mask = np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 else mask
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())
    weights = np.round(_REGION / np.maximum(sizes, 1))
    weights[0] = 0.0
    return weights[regions]


def _area_under_pro(outside: np.ndarray, regions: np.ndarray, max_fpr: float) -> float:
    """From histograms over ascending scores, of pixels without defect and of region shares."""
    rate = np.concatenate([[0.0], np.cumsum(outside[::-1]) / outside.sum()])
    overlap = np.concatenate([[0.0], np.cumsum(regions[::-1]) / regions.sum()])
    inside = rate < max_fpr
    last = int(inside.sum())
    step = (max_fpr - rate[last - 1]) / (rate[last] - rate[last - 1])
    end = overlap[last - 1] + step * (overlap[last] - overlap[last - 1])
    area = np.trapezoid(np.append(overlap[inside], end), np.append(rate[inside], max_fpr))
    return float(area / max_fpr)


def _recovery(versions: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    recovered: dict[str, float | None] = {}
    for figure in RECOVERED:
        clean, degraded, restored = (versions[version][figure] for version in VERSIONS)
        recovered[figure] = None
        if None not in (clean, degraded, restored) and clean - degraded >= MIN_LOSS:
            recovered[figure] = (restored - degraded) / (clean - degraded)
    return recovered


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
