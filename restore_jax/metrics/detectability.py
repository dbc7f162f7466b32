"""Detectability: does a defect detector still find the defects after restoration?

A detector whose parameters and threshold were fitted on clean photographs without defects
(`detect`) scores the clean, degraded and restored versions of the same test images. The
recovery, `(restored - degraded) / (clean - degraded)`, is the share of the detection
performance lost to the degradation that the restoration brings back. Such a claim is only valid
for a model that has not seen the defects in training.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import ndimage

from restore_jax.metrics import detect

MAX_FPR = 0.3
VERSIONS = ("clean", "degraded", "restored")
FIGURES = ("image_auroc", "pixel_auroc", "aupro", "f1", "hallucination_fpr")
RECOVERED = ("pixel_auroc", "aupro")

# Recovery is undefined if clean and degraded differ by less: the quotient would be unstable.
MIN_LOSS = 0.05

# Bins of the score histograms: 1024 per octave from 2^-5 to 2^11, so that scores within 0.07 %
# of each other count as equal. The bins are fixed, so that the order of images does not matter.
_BINS_PER_OCTAVE, _LOWEST, _BINS = 1024, -5, 1 << 14

# Weight of every region, divided among its pixels. Pixel weights are integers (stored as
# float64), whose sums do not depend on the order of the additions.
_REGION = float(1 << 40)


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a defective sample outscores a good one.

    Ties count one half. In [0, 1], 0.5 by chance.

    Args:
        labels: nonzero where defective, any shape.
        scores: finite numbers, one per label.

    Raises:
        ValueError: if one of the two classes is missing, sizes differ, or a score is not
            finite.
    """
    labels, scores = _flattened(np.asarray(labels) != 0, scores)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        raise ValueError("AUROC needs scores of both classes, with defect and without")
    # Imported here: the import takes most of a second, which would delay every training.
    from scipy import stats  # noqa: PLC0415

    ranks = stats.rankdata(scores)[labels].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


class Fitted(Protocol):
    """What is counted of a category's detector; `detect.Detector` describes both."""

    @property
    def threshold(self) -> float | None:
        """The score above which a pixel counts as defective; None if there is none."""

    @property
    def references(self) -> int:
        """The number of photographs that it was fitted on."""


class Scores(NamedTuple):
    """What a detector says of an image.

    Attributes:
        pixels: float [H, W], 0 or more, higher where a defect is more likely. Beyond 2^-5 and
            2^11 they count as equal.
        image: the score of the image as a whole.
    """

    pixels: np.ndarray
    image: float


@dataclasses.dataclass
class _Tally:
    """Statistics of one version of a category's images: histograms, counts, image scores."""

    labels: list[bool] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    inside: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))
    outside: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))
    regions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS))
    # Pixels above the threshold: in defects, outside of them, and of the latter on good images.
    hits: int = 0
    false_alarms: int = 0
    good_alarms: int = 0
    good_pixels: int = 0
    has_threshold: bool = False

    def add(
        self,
        found: Scores,
        weights: np.ndarray | None,
        is_good: bool,
        threshold: float | None,
    ) -> None:
        scores = found.pixels
        self.labels.append(not is_good)
        self.scores.append(found.image)
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
        self.has_threshold = True
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
        if positives and self.has_threshold:
            flagged = self.hits + self.false_alarms
            found["f1"] = float(2 * self.hits / (flagged + positives))
        if self.good_pixels:
            found["hallucination_fpr"] = self.good_alarms / self.good_pixels
        return found


def _scores(detector: detect.Detector, image: np.ndarray) -> Scores:
    pixels = detect.score(detector, image)
    return Scores(pixels, float(pixels.max()))


class Detectability:
    """Accumulates detectability over images passed one at a time, in any order.

    Needs 1.2 MB of histograms per category, plus one score per image and version.

    Args:
        detectors: one per category, from `detect.fit_features`, or whatever `score` takes.
        score: scores an image [H, W, 3] by a detector.
    """

    def __init__(
        self,
        detectors: Mapping[str, Fitted],
        score: Callable[[Any, np.ndarray], Scores] = _scores,
    ) -> None:
        self._detectors = dict(detectors)
        self._score = score
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
            category: a category that has a detector.
            clean: float [H, W, 3] in [0, 1].
            degraded: the same shape.
            restored: the same shape; clipped here.
            mask: [H, W] or [H, W, 1], nonzero on the defect; ignored for good images.
            has_mask: false if the mask is not known. Such an image only counts for the image
                AUROC, as does a defective one whose mask is empty.
            is_good: true for an image without defects.

        Raises:
            ValueError: if the category has no detector, shapes do not fit, or values are not
                finite.
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
        # All versions are scored before any is counted: a rejected image changes nothing.
        found = {version: self._score(detector, image) for version, image in versions}
        self._masked[category] += weights is not None and not is_good
        for version, scores in found.items():
            self._tallies[category][version].add(scores, weights, is_good, detector.threshold)

    def counts(self) -> dict[str, Any]:
        """Returns the statistics so far, to be passed to `add_counts` in another process."""
        return {"tallies": self._tallies, "masked": self._masked}

    def add_counts(self, counts: Mapping[str, Any]) -> None:
        """Adds the statistics of another process, from other images and the same detectors."""
        for name, tallies in counts["tallies"].items():
            self._masked[name] += counts["masked"][name]
            for version, tally in tallies.items():
                self._tallies[name][version].add_counts(tally)

    def result(self) -> dict[str, Any]:
        """Returns the figures so far, JSON-serialisable: None where undefined, no NaN.

        Returns:
            `{"macro": M, "categories": {name: M}}`, categories in alphabetical order. M has,
            under each of "clean", "degraded" and "restored",

            - image_auroc: AUROC of the image scores; None without images of both classes;
            - pixel_auroc: AUROC over the pixels of all images with a known mask, including good
              images;
            - aupro: area under the per-region overlap curve up to a false-positive rate of
              30 %, divided by that rate, as defined for MVTec AD (Bergmann et al. 2021): the
              flagged share of each 8-connected defect region, averaged over the regions,
              against the flagged share of the pixels without defects;
            - f1: F1 score of the pixels by the threshold frozen on the clean references;
            - hallucination_fpr: the share of pixels above it on good images; both None if there
              were too few references for a threshold.

            "recovery" has, for pixel_auroc and aupro, (restored - degraded) / (clean -
            degraded): 1 if all of the loss by the degradation is recovered, 0 if none is; None
            if that loss is less than 0.05. There are also `count` (images), `mask_count`
            (defective images with a known mask) and, for a category, `threshold` and the number
            of `references`.

            Macro figures are means over the categories that have one. Macro recovery is
            computed from the macro figures: a mean of quotients would be dominated by the
            smallest denominators.
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


def _flattened(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flattens labels and scores; checks that they fit and that all scores are finite."""
    labels, scores = np.ravel(labels), np.ravel(scores)
    if labels.size != scores.size:
        raise ValueError(f"{labels.size} labels do not fit {scores.size} scores")
    if not np.isfinite(scores).all():
        raise ValueError("the scores contain values that are not finite")
    return labels, scores


def _region_weights(mask: np.ndarray) -> np.ndarray:
    """Returns float64 [H, W] integer weights: constant on each 8-connected region, 0 outside.

    The weights of every region sum to `_REGION`, up to rounding.
    """
    mask = np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 else mask
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())
    weights = np.round(_REGION / np.maximum(sizes, 1))
    weights[0] = 0.0
    return weights[regions]


def _area_under_pro(outside: np.ndarray, regions: np.ndarray, max_fpr: float) -> float:
    """Computes AUPRO from histograms over ascending scores.

    Args:
        outside: number of pixels without defects in each bin.
        regions: sum of the region weights in each bin.
        max_fpr: the false-positive rate to integrate to.
    """
    rate = np.concatenate([[0.0], np.cumsum(outside[::-1]) / outside.sum()])
    overlap = np.concatenate([[0.0], np.cumsum(regions[::-1]) / regions.sum()])
    inside = rate < max_fpr
    last = int(inside.sum())
    step = (max_fpr - rate[last - 1]) / (rate[last] - rate[last - 1])
    end = overlap[last - 1] + step * (overlap[last] - overlap[last - 1])
    area = np.trapezoid(np.append(overlap[inside], end), np.append(rate[inside], max_fpr))
    return float(area / max_fpr)


def recovery(
    clean: float | None, degraded: float | None, restored: float | None
) -> float | None:
    """Returns the share of a figure's loss by the degradation that the restoration recovers.

    None if a figure is, or if the loss is below `MIN_LOSS`.
    """
    if clean is None or degraded is None or restored is None or clean - degraded < MIN_LOSS:
        return None
    return (restored - degraded) / (clean - degraded)


def _recovery(versions: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    return {
        figure: recovery(*(versions[version][figure] for version in VERSIONS))
        for figure in RECOVERED
    }


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
