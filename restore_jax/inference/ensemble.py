"""Self-ensemble: the mean of the restorations of an image's flips and rotations."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from restore_jax.inference.tiling import Apply

ENSEMBLES = ("none", "flips", "all8")

# (transposed, rows reversed, columns reversed), in this order.
Symmetry = tuple[bool, bool, bool]


def symmetries(ensemble: str, degradation: Mapping[str, Any]) -> list[Symmetry]:
    """Returns the views of an image that are restored and averaged.

    "flips" takes those that turn a degraded image into one that the law of the training could
    have made as well. A blur with axes along rows and columns, however unequal, stays what it
    is when flipped, but not when rotated by 90°. Motion is flipped only where its range of
    angles is its own mirror image, else the image is only turned by 180°.

    Args:
        ensemble: "none", "flips" or "all8" (flips and rotations by 90°, whatever the law).
        degradation: `config.data.degradation`; {} where it is not known.
    """
    whole = (False, False, False)
    if ensemble == "none":
        return [whole]
    flips = [whole, (False, True, False), (False, False, True), (False, True, True)]
    if ensemble == "all8":
        return flips + [(True, *flip[1:]) for flip in flips]
    low, high = degradation.get("motion_angle") or (0.0, 180.0)
    moves = "motion" in (degradation.get("blur") or ("motion",))
    if moves and high - low < 180.0 and (low + high) % 180.0:
        return [flips[0], flips[3]]
    return flips


def mean_over(
    views: Sequence[Symmetry],
    apply: Apply,
    batch: np.ndarray,
    context: np.ndarray | None = None,
) -> np.ndarray | jax.Array:
    """Restores a batch [B, h, w, 3] in each view, turns the results back and averages them.

    What the images are parts of, `context` [B, h', w', 3], is seen in the same view.
    """

    def seen_in(view: Symmetry, images: np.ndarray | None) -> np.ndarray | None:
        return None if images is None else np.ascontiguousarray(_seen(images, view))

    restored = [apply(seen_in(view, batch), seen_in(view, context)) for view in views]
    if len(views) == 1:  # the image as it is, which nobody needs to wait for here
        return restored[0]
    total = np.zeros_like(batch)
    for view, seen in zip(views, restored, strict=True):
        total += _seen(np.asarray(seen), view, back=True)
    return total / np.float32(len(views))


def _seen(batch: np.ndarray, view: Symmetry, back: bool = False) -> np.ndarray:
    """Flips a batch [B, h, w, 3] into a view of it; or back, in the reverse order."""
    transposed, *reversed_axes = view
    if transposed and not back:
        batch = batch.swapaxes(1, 2)
    axes = [axis for axis, reverse in zip((1, 2), reversed_axes, strict=True) if reverse]
    batch = np.flip(batch, axes)
    return batch.swapaxes(1, 2) if transposed and back else batch
