"""Whether photographs are like those a model was trained for."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from restore_jax.degradation import known_range
from restore_jax.degradation.calibration import Estimate
from restore_jax.degradation.known_range import KnownRange
from restore_jax.inference import pixels

# Rows of an image that are compared at once.
_ROWS = 512

# Of a good photograph: the most noise in grey levels and blur in px, and the PSNR in dB
# that the output should have to it.
_GOOD_NOISE, _GOOD_BLUR, _GOOD_CHANGE = 2.0, 1.5, 45.0
# Of a noisy photograph: the least noise in grey levels, and by how many dB the change may lie
# below that noise: at most a quarter of its standard deviation was removed.
_NOISY, _LEFT = 4.0, 12.0


@dataclasses.dataclass(frozen=True)
class Assessment:
    """How a photograph compares with those a model was trained for.

    Attributes:
        noise: estimated standard deviation per channel at the channel's mean level, in grey
            levels of 0…255; () if it cannot be estimated.
        blur: estimated standard deviations along x and y, px; None where nothing tells them.
        inside: whether no estimate lies outside of what the model knows; None if its range or
            the noise is not known.
        reasons: why it lies outside, one phrase each.
    """

    noise: tuple[Estimate, ...]
    blur: tuple[Estimate | None, Estimate | None]
    inside: bool | None
    reasons: tuple[str, ...]

    @property
    def overall_noise(self) -> float | None:
        """The root mean square of the noise over the channels."""
        if not self.noise:
            return None
        return math.sqrt(np.mean([channel.value**2 for channel in self.noise]))

    def doubt(self, change_db: float | None) -> str:
        """Says that a good photograph was changed, or the noise of a bad one left; or "".

        One that lies outside is named for that already.

        Args:
            change_db: PSNR of the output against the photograph, dB; None if not known.
        """
        noise, widths = self.overall_noise, [one.value for one in self.blur if one is not None]
        if noise is None or self.inside is False or change_db is None:
            return ""
        if noise >= _NOISY and change_db > 20 * math.log10(255 / noise) + _LEFT:
            return f"noise of {noise:.3g} grey levels, but hardly changed ({change_db:.1f} dB)"
        is_good = noise < _GOOD_NOISE and bool(widths) and max(widths) < _GOOD_BLUR
        if not is_good or change_db >= _GOOD_CHANGE:
            return ""
        return f"little noise and blur, but changed ({change_db:.1f} dB)"


def assess(
    image: np.ndarray, white: int | None, known: KnownRange | None, is_resized: bool
) -> Assessment:
    """Compares a photograph with the range of a model.

    Args:
        image: checked by `pixels.checked`, without a batch axis.
        white: white level of integers; None: the highest of their dtype.
        known: the range of the model; None: not known.
        is_resized: whether the model was trained on photographs shrunk after the degradation,
            as this one then has to be.
    """
    colours = np.atleast_3d(image)[..., :3]
    found = known_range.measure(
        colours, 255.0 / pixels.white_of(image.dtype, white), is_resized
    )
    reasons = () if known is None else known.reasons(found)
    undecided = known is None or not found.noise
    inside = False if reasons else None if undecided else True
    return Assessment(found.noise, found.blur, inside, reasons)


def change_in_db(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], white: int | None
) -> float:
    """Returns the PSNR of images against others of their shapes, in dB; inf if equal.

    Args:
        before: all pages of a file; alpha counts for nothing.
        after: the same after the restoration, of the same dtype.
        white: as for `assess`.
    """
    total, count = 0.0, 0
    for old, new in zip(before, after, strict=True):
        scale = np.float32(1 / pixels.white_of(old.dtype, white))
        for top in range(0, len(old), _ROWS):
            rows = slice(top, top + _ROWS)
            old_rows, new_rows = (
                np.atleast_3d(page[rows])[..., :3].astype(np.float32) for page in (old, new)
            )
            total += float(np.sum(np.square((new_rows - old_rows) * scale), dtype=np.float64))
            count += old_rows.size
    return math.inf if total == 0 else 10 * math.log10(count / total)
