"""What a restoration took out of a photograph: noise alone, or detail of the object as well.

The residual is the input less the output. Where only noise was removed, it is white: its
spectrum is flat in every block. Detail that was removed leaves low frequencies, and so would
blur that was removed. The output is therefore blurred again first, by the linear filter that
takes it nearest to the input; what no filter of the output explains remains. Pure functions of
arrays in NumPy.
"""

import dataclasses

import numpy as np
from scipy import fft

BLOCK = 32
_STEP = BLOCK // 2
# Of a block's spectrum in cycles/px: what detail shows in, and what is taken for noise alone.
_LOW, _HIGH = 0.16, 0.3
# Of white noise, this share of the blocks is taken for structure.
FALSE_ALARMS = 0.001
_DEVIATIONS = 3.09  # of a normal distribution, exceeded by that share
# By so much, a law or a camera may brighten a channel.
_MOST_GAIN = 1.25
# Rounding leaves a residual of this variance at least, in grey levels.
_LEAST = 0.25
# The noise depends on the level; it is taken from at least so many blocks of similar levels.
_BLOCKS_PER_LEVEL, _LEVELS = 24, 8
# Below so many blocks, their spread cannot be told from structure.
_FEWEST = 16
# Spread of a normal distribution, from the distance of its quartile to its median.
_PER_QUARTILE = 1 / 0.6745

_fy, _fx = np.fft.fftfreq(BLOCK)[:, None], np.fft.rfftfreq(BLOCK)[None, :]
_FREQUENCY = np.hypot(_fy, _fx)
# A column of rfft2 stands for two columns of the whole spectrum, except the first and the last.
_WEIGHT = np.where((_fx == 0) | (_fx == 0.5), 1.0, 2.0) * np.ones_like(_FREQUENCY)
_IS_LOW = (_FREQUENCY > 1.5 / BLOCK) & (_FREQUENCY <= _LOW)
_IS_HIGH = _FREQUENCY > _HIGH
_TAPER = np.hanning(BLOCK + 2)[1:-1, None] * np.hanning(BLOCK + 2)[None, 1:-1]
_TAPER = (_TAPER / np.sqrt(np.mean(_TAPER**2))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Residual:
    """What the residual of a photograph shows.

    Attributes:
        correlation: of neighbouring pixels, the mean over both axes; 0 for white noise.
        structure: share of the blocks that show detail; `FALSE_ALARMS` for white noise.
        deviations: by how many standard deviations each block does, [rows, columns].
        unexplained: mean error per pixel of the best linear estimate of the output's detail
            in the noise, block by block, grey levels².
    """

    correlation: float
    structure: float
    deviations: np.ndarray
    unexplained: float


def judge(before: np.ndarray, after: np.ndarray, noise: float) -> Residual | None:
    """Examines what a restoration took out of a photograph.

    Args:
        before: [H, W, C] in grey levels 0…255.
        after: its restoration, of the same shape.
        noise: standard deviation of the input's noise, grey levels.

    Returns:
        None for an image of too few blocks (below about 80 px each way).
    """
    shape = tuple((length - BLOCK) // _STEP + 1 for length in before.shape[:2])
    if min(shape) < 1 or np.prod(shape) < _FEWEST:
        return None
    before, after = _distinct(before.astype(np.float32), after.astype(np.float32))
    levels = _blocks(after).mean((-2, -1))
    of_before, of_after = (_spectra(image) for image in (before, after))
    power = np.abs(of_after) ** 2
    unexplained = _wiener(power, min(noise**2, 2 * float(np.mean((before - after) ** 2))))
    # The input may be brighter than the output, by a gain that the model has undone.
    gain = np.clip(before.mean((0, 1)) / np.maximum(after.mean((0, 1)), 1.0), 1.0, _MOST_GAIN)
    of_after, power = of_after * gain[:, None, None], power * gain[:, None, None] ** 2
    explained = _filtered(after * gain, _filter(of_before, of_after, power))
    residual = np.abs(_spectra(before - explained)) ** 2
    deviations = _deviations(residual, levels)
    return Residual(
        _correlation(residual),
        float(np.mean(deviations > _DEVIATIONS)),
        deviations.reshape(shape),
        unexplained,
    )


def _distinct(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out channels that repeat the first, as those of a grey image stored as RGB do."""
    if all(np.array_equal(before[..., 0], before[..., c]) for c in range(before.shape[2])):
        return before[..., :1], after.mean(-1, keepdims=True)
    return before, after


def _blocks(image: np.ndarray) -> np.ndarray:
    """The half overlapping blocks of an image [H, W, C] as [N, C, BLOCK, BLOCK]."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (BLOCK, BLOCK), (0, 1))
    return windows[::_STEP, ::_STEP].reshape(-1, image.shape[2], BLOCK, BLOCK)


def _spectra(image: np.ndarray) -> np.ndarray:
    """The spectra of an image's blocks, [N, C, BLOCK, BLOCK / 2 + 1].

    White noise of variance v has the power v. A block's mean is left out: a gain, shading and
    clipped noise change it.
    """
    blocks = _blocks(image)
    tapered = (blocks - blocks.mean((-2, -1), keepdims=True)) * _TAPER
    return fft.rfft2(tapered) / BLOCK


def _mean(power: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of a power [..., frequencies] over some frequencies of the whole spectrum."""
    return power[..., where] @ (_WEIGHT[where] / _WEIGHT[where].sum())


def _wiener(power: np.ndarray, variance: float) -> float:
    left = power * variance / (power + variance + 1e-9)
    return float(np.mean(_mean(left, np.ones_like(_IS_LOW))))


def _filter(of_before: np.ndarray, of_after: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The low-pass filter without a shift that takes the output nearest to the input.

    At most 1, so that detail that the output has too little of is not added to it.
    """
    shared = (of_before * of_after.conj()).real.sum((0, 1))
    found = np.clip(shared / (power.sum((0, 1)) + 1e-9), 0.0, 1.0)
    found[0, 0] = 1.0
    return found


def _filtered(image: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    """Applies a filter to an image [H, W, C], which is continued by reflection."""
    kernel = np.fft.fftshift(np.fft.irfft2(transfer, (BLOCK, BLOCK)))[1:, 1:].astype(np.float32)
    margin = BLOCK // 2 - 1
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect")
    height, width = padded.shape[:2]
    size = [fft.next_fast_len(length, real=True) for length in (height, width)]
    of_kernel = fft.rfft2(kernel, size)[..., None]
    convolved = fft.irfft2(fft.rfft2(padded, size, axes=(0, 1)) * of_kernel, size, axes=(0, 1))
    # Where the kernel lies within the image.
    return convolved[len(kernel) - 1 : height, len(kernel) - 1 : width]


def _deviations(power: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How far the low frequencies of each block stand out of the noise, [N].

    Args:
        power: of the residual, [N, C, frequencies].
        levels: mean level of each block, [N, C].
    """
    high = np.maximum(_mean(power, _IS_HIGH), _LEAST)
    noise = np.stack(
        [_by_level(high[:, c], levels[:, c]) for c in range(levels.shape[1])], axis=1
    )
    excess = np.log(np.mean(_mean(power, _IS_LOW) / noise, axis=1) + 1e-3)
    # The noise of a camera is not quite white. Its blocks tell what is usual: those below the
    # median, since detail only adds.
    median, quartile = np.quantile(excess, [0.5, 0.25])
    spread = max(_PER_QUARTILE * (median - quartile), 1e-3)
    # Residuals below a rounding step are nothing, however they are spread.
    return np.where(excess > 0, (excess - max(median, -1.0)) / spread, 0.0)


def _by_level(high: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The noise of the blocks of similar levels, for each block."""
    groups = np.array_split(
        np.argsort(levels, kind="stable"),
        max(1, min(_LEVELS, len(levels) // _BLOCKS_PER_LEVEL)),
    )
    places = [levels[members].mean() for members in groups]
    return np.interp(levels, places, [np.median(high[members]) for members in groups])


def _correlation(power: np.ndarray) -> float:
    """The correlation of neighbours, from the mean power (Wiener and Khinchin)."""
    mean = power.mean((0, 1)) * _WEIGHT
    along = (np.cos(2 * np.pi * _fy) + np.cos(2 * np.pi * _fx)) / 2
    # Of a residual below a rounding step, next to nothing.
    return float((mean * along).sum() / max(mean.sum(), _LEAST * _WEIGHT.sum()))
