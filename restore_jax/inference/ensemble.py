"""Self-ensemble: averages the restorations of an image's flips and rotations."""

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

    "flips" are those that turn a degraded image into one that the degradation law of the
    training could also have produced. An anisotropic blur with axes along rows and columns is
    unchanged by flips, but not by rotations by 90°. If motion blur has a range of angles that
    is not symmetric under flips, the image is only rotated by 180°.

    Args:
        ensemble: "none", "flips" or "all8" (all flips and rotations by 90°, for any law).
        degradation: `config.data.degradation`; {} where it is unknown.
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
    """Restores a batch [B, h, w, 3] in each view, undoes the views and averages the results.

    The whole photographs of the images, `context` [B, h', w', 3], are put into the same view.
    """

    def seen_in(view: Symmetry, images: np.ndarray | None) -> np.ndarray | None:
        return None if images is None else np.ascontiguousarray(_seen(images, view))

    restored = [apply(seen_in(view, batch), seen_in(view, context)) for view in views]
    if len(views) == 1:  # the unchanged image, still being computed asynchronously
        return restored[0]
    total = np.zeros_like(batch)
    for view, seen in zip(views, restored, strict=True):
        total += _seen(np.asarray(seen), view, back=True)
    return total / np.float32(len(views))


def _seen(batch: np.ndarray, view: Symmetry, back: bool = False) -> np.ndarray:
    """Transposes and flips a batch [B, h, w, 3] into a view, or back in reverse order."""
    transposed, *reversed_axes = view
    if transposed and not back:
        batch = batch.swapaxes(1, 2)
    axes = [axis for axis, reverse in zip((1, 2), reversed_axes, strict=True) if reverse]
    batch = np.flip(batch, axes)
    return batch.swapaxes(1, 2) if transposed and back else batch
