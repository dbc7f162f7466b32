"""Computes detection metrics directly, as a reference for the incremental ones."""

import numpy as np
from scipy import ndimage

from restore_jax.metrics import detect, detectability

MAX_FPR = detectability.MAX_FPR


def fit(images):
    """Fits a detector on images instead of on their features."""
    return detect.fit_features([detect.features(image) for image in images])


def f1_at(threshold, labels, scores):
    """Returns the F1 score of the scores above a threshold, `2 TP / (2 TP + FP + FN)`."""
    labels, scores = np.asarray(labels) != 0, np.asarray(scores)
    flagged = scores > threshold
    return float(2 * (flagged & labels).sum() / (int(flagged.sum()) + int(labels.sum())))


def aupro(maps, masks, max_fpr=MAX_FPR):
    """Returns the area under the per-region overlap curve, with every score as threshold."""
    scores = np.concatenate([np.ravel(scores) for scores in maps])
    shares, outside = [], []
    for mask in masks:
        flat = np.reshape(mask, np.shape(mask)[:2])
        regions, _ = ndimage.label(flat, np.ones((3, 3)))
        sizes = np.maximum(np.bincount(regions.ravel()), 1)
        share = np.where(regions > 0, 1 / sizes[regions], 0)
        shares.append(np.ravel(share))
        outside.append(np.ravel(regions == 0))
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of equal scores
    overlap = np.cumsum(np.concatenate(shares)[order])[last]
    rate = np.cumsum(np.concatenate(outside)[order])[last]
    overlap, rate = overlap / overlap[-1], rate / rate[-1]
    overlap, rate = np.append(0, overlap), np.append(0, rate)
    end = np.interp(max_fpr, rate, overlap)
    # The curve may jump at the limit itself; values reached there do not count.
    inside = rate < max_fpr
    area = np.trapezoid(np.append(overlap[inside], end), np.append(rate[inside], max_fpr))
    return float(area / max_fpr)


def measure(reference, tests):
    """Fits a detector per category and returns its figures on the test images."""
    detectors = {name: fit(reference[name]) for name in tests}
    measured = detectability.Detectability(detectors)
    for name, images in tests.items():
        for image in images:
            measured.add(name, **image)
    return measured.result()
