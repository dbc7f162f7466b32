"""Fits the law to a pair: the blur, noise and gain that turned one photograph into the other.

All parameters of a pair are fitted together, by maximum likelihood. The model of a degraded
level: with b the blurred clean level, a Gaussian of mean b and variance v + a b (v from
Gaussian noise, a b from photons) is clipped to 0…255, quantised, multiplied by the gain and
quantised again. A level at either end only says that the value lay there or beyond (a censored,
or Tobit, likelihood). Such levels cannot be left out: with noise of 50 grey levels and more, no
level is far from both ends. Newton's method differentiates through the law's own kernels and
starts from the best point of a coarse grid for each kind of blur; its Hessian gives the
intervals.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from restore_jax.degradation import native_size

REACH = 48
"""The largest radius of a blur kernel that can be fitted, px."""

MIN_SIZE = 64
"""The minimum height and width of a photograph, px."""

# Side of the crop that is fitted. The blur has two parameters at most; with more pixels, their
# standard errors would be smaller than the errors of the model.
_SIDE = 416
# Levels closer than this to an end count as clipped; quantisation matters most there.
_ENDS = 2
# The second derivatives use every 13th level; 13 is prime to the widths of the crops.
_SPARSE = 13
_Z90 = 1.6449

PARAMETERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "gaussian": ("sigma_x", "sigma_y"),
    "motion": ("motion_length", "motion_angle"),
    "defocus": ("defocus_radius",),
}
"""The fields of the law that describe a kind of blur."""

_BOUNDS = {
    "sigma_x": (0.1, REACH / 3),
    "sigma_y": (0.1, REACH / 3),
    "motion_length": (0.5, 2.0 * REACH - 2),
    "motion_angle": (-math.inf, math.inf),
    "defocus_radius": (0.3, REACH - 2.0),
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 90 % confidence interval."""
        return self.value - _Z90 * self.error, self.value + _Z90 * self.error


@dataclasses.dataclass(frozen=True)
class PairFit:
    """The degradation that turned a clean photograph into its degraded one.

    Attributes:
        kind: the kind of blur.
        blur: its parameters, by their names in the law.
        noise_sigma: standard deviation of the Gaussian noise in grey levels, per channel.
        photons: variance of the photon noise per grey level, 255 / poisson_peak; 0 without
            photon noise.
        gain: the factor of each channel.
        quantise: "truncate", "round" or "none"; None if the levels do not decide it.
        residual: statistics of the residuals in units of the noise: "correlation_x" and
            "correlation_y" of neighbours, "correlation_channels" of the channels of a pixel,
            and "blocks", the standard deviation of means over 16 × 16 px relative to that of
            white noise (1 if the fit explains everything).
    """

    kind: str
    blur: Mapping[str, Estimate]
    noise_sigma: tuple[Estimate, ...]
    photons: Estimate
    gain: tuple[Estimate, ...]
    quantise: str | None
    residual: Mapping[str, float]


def fit_pair(clean: np.ndarray, degraded: np.ndarray) -> PairFit:
    """Fits the law to a pair.

    Args:
        clean: [H, W, 3] in grey levels 0…255, H and W at least `MIN_SIZE`.
        degraded: of the same shape, integer-valued.

    Raises:
        ValueError: a photograph is uniform.
    """
    window, observed = _cropped(clean, degraded)
    if min(float(np.std(image, axis=(0, 1)).max()) for image in (window, observed)) < 1:
        raise ValueError("has the same level everywhere")
    fits = [_Fit.begin(k, theta, window, observed) for k, theta in _starts(window, observed)]
    best = min((fit.improved() for fit in fits), key=lambda fit: fit.penalised)
    mode, is_certain, has_gain = _quantiser(degraded, best)
    modes = [mode] if is_certain else ["truncate", "round"]
    fits = sorted((best.requantised(m, has_gain) for m in modes), key=lambda fit: fit.loss)
    is_certain = is_certain or fits[-1].loss - fits[0].loss > 6
    return fits[0].simplified().result(fits[0].mode if is_certain else None)


# --- Crops and starts -----------------------------------------------------------------------


def _cropped(clean: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the crop with the strongest edges: clean with a margin of REACH, and degraded."""
    clean, degraded = clean.astype(np.float32), degraded.astype(np.float32)
    size = [min(_SIDE, length // 16 * 16) for length in clean.shape[:2]]
    steps = [
        range(0, n - s + 1, max(1, s // 2)) for n, s in zip(clean.shape, size, strict=False)
    ]
    slope = np.zeros(clean.shape[:2])
    grey = clean.mean(-1)
    slope[:-1] += np.diff(grey, axis=0) ** 2
    slope[:, :-1] += np.diff(grey, axis=1) ** 2
    top, left = max(
        ((y, x) for y in steps[0] for x in steps[1]),
        key=lambda at: slope[at[0] : at[0] + size[0], at[1] : at[1] + size[1]].sum(),
    )
    padded = np.pad(clean, [(REACH, REACH), (REACH, REACH), (0, 0)], mode="reflect")
    window = padded[top : top + size[0] + 2 * REACH, left : left + size[1] + 2 * REACH]
    return window, degraded[top : top + size[0], left : left + size[1]]


def _starts(window: np.ndarray, observed: np.ndarray) -> list[tuple[str, tuple[float, ...]]]:
    """Returns the best point of a grid for each plausible kind of blur.

    The transfer function of each candidate is known in closed form, so that its residual is
    computed cheaply between spectra.
    """
    inner = window[REACH:-REACH, REACH:-REACH]
    taper = np.hanning(inner.shape[0])[:, None] * np.hanning(inner.shape[1])[None, :]
    spectra = [np.fft.rfft2((i.mean(-1) - i.mean()) * taper) for i in (inner, observed)]
    clean, blurred = spectra
    fy = np.fft.fftfreq(inner.shape[0])[:, None]
    fx = np.fft.rfftfreq(inner.shape[1])[None, :]
    power, cross = np.abs(clean) ** 2, np.real(np.conj(clean) * blurred)
    # The lowest frequencies hold the shading and the taper.
    used = (fx**2 + fy**2) > (2 / min(inner.shape[:2])) ** 2
    power, cross = power * used, cross * used
    widths = np.geomspace(0.3, 14, 14)
    grids: dict[str, list[tuple[float, ...]]] = {
        "none": [()],
        "gaussian": [(x, y) for x in widths for y in widths],
        "motion": [(n, d) for n in np.geomspace(1.5, 40, 14) for d in range(0, 180, 10)],
        "defocus": [(r,) for r in np.geomspace(0.7, 20, 20)],
    }

    def transfer(kind: str, theta: tuple[float, ...]) -> np.ndarray:
        if kind == "none":
            return np.ones_like(power)
        if kind == "gaussian":
            along = (
                np.exp(-2 * (math.pi * s * f) ** 2)
                for s, f in zip(theta, (fx, fy), strict=True)
            )
            return functools.reduce(np.multiply, along)
        if kind == "motion":
            turn = math.radians(theta[1])
            return np.sinc(theta[0] * (fx * math.cos(turn) - fy * math.sin(turn)))
        radius = 2 * math.pi * (theta[0] + 1e-3) * np.sqrt(fx**2 + fy**2)
        return np.where(radius > 0, 2 * special.j1(radius) / np.maximum(radius, 1e-9), 1.0)

    def explained(kind: str, theta: tuple[float, ...]) -> float:
        h = transfer(kind, theta)
        along = max(float(np.sum(cross * h)), 0.0)
        return along**2 / max(float(np.sum(power * h * h)), 1e-9)

    found = {
        kind: max(((explained(kind, t), t) for t in grid), key=lambda row: row[0])
        for kind, grid in grids.items()
    }
    best, least = max(row[0] for row in found.values()), found["none"][0]
    enough = best - 0.35 * (best - least) if best > least else least
    return [(kind, theta) for kind, (score, theta) in found.items() if score >= enough]


# --- The likelihood -------------------------------------------------------------------------


def _latent(
    level: jax.Array, gain: jax.Array, truncates: jax.Array, twice: jax.Array
) -> jax.Array:
    """Returns the centre of the values before the gain that are quantised to a level."""
    half = 0.5 * truncates
    return (level + half * twice) / gain + jnp.where(twice > 0, half, half / gain)


def _loss(
    local: jax.Array, level: jax.Array, top: jax.Array, form: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Returns the negative log-likelihood of one level.

    Args:
        local: blurred clean level, log of the gain, variance of the noise, variance of the
            photon noise per level; [4].
        level: the observed level.
        top: the highest level that does not count as clipped.
        form: 1 if the law truncates, else 0; 1 if it quantises twice, before and after the
            gain, else 0.
    """
    mean, log_gain, variance, photons = local
    gain = jnp.exp(log_gain)
    # A quantised value is uniform within its step.
    steps = form[1] / 12 + 1 / (12 * gain**2)
    deviation = jnp.sqrt(variance + photons * jnp.maximum(mean, 0.0) + steps)
    latent = functools.partial(_latent, gain=gain, truncates=form[0], twice=form[1])
    inside = (
        0.5 * jnp.square((latent(level) - mean) / deviation) + jnp.log(deviation) + log_gain
    )
    low = -jax.scipy.special.log_ndtr((latent(_ENDS - 0.5) - mean) / deviation)
    high = -jax.scipy.special.log_ndtr((mean - latent(top + 0.5)) / deviation)
    return jnp.where(level < _ENDS, low, jnp.where(level > top, high, inside))


def _kernel(theta: jax.Array, kind: str) -> jax.Array:
    offsets = jnp.arange(-REACH, REACH + 1, dtype=jnp.float32)
    if kind == "gaussian":
        along_x, along_y = (native_size.gaussian_axis(offsets, theta[i], REACH) for i in (0, 1))
        return along_y[:, None] * along_x[None, :]
    if kind == "motion":
        return native_size.motion_kernel(offsets, theta[0], theta[1], 4 * REACH + 1)
    return native_size.defocus_kernel(offsets, theta[0])


@functools.partial(jax.jit, static_argnames="kind")
def _blurred(window: jax.Array, theta: jax.Array, kind: str) -> jax.Array:
    """Blurs the clean levels, [N, 3]; `theta` [2] are the first two parameters of `_Fit`."""
    if kind == "none":
        return window[REACH:-REACH, REACH:-REACH].reshape(-1, 3)
    return native_size.filtered(window, _kernel(theta, kind)).reshape(-1, 3)


@functools.partial(jax.jit, static_argnames="kind")
def _slopes(window: jax.Array, theta: jax.Array, kind: str) -> jax.Array:
    """Returns the derivatives of `_blurred` with respect to its parameters, [N, 3, 2]."""
    return jax.jacfwd(lambda at: _blurred(window, at, kind))(theta)


def _over_levels(
    function: Callable[..., jax.Array], mean: jax.Array, parameters: jax.Array, *others: Any
) -> Any:
    """Maps `_loss`, or a derivative of it, over levels [N, 3]."""
    fields = (mean, parameters[2:5], parameters[5:8], parameters[8])
    local = jnp.stack([jnp.broadcast_to(field, mean.shape) for field in fields], -1)
    each = jax.vmap(jax.vmap(function, (0, 0, 0, None)), (0, 0, None, None))
    return each(local, *others)


@jax.jit
def _total(mean: jax.Array, parameters: jax.Array, *others: Any) -> jax.Array:
    """Sums the loss over all levels; `others` are levels [N, 3], top and form of `_loss`."""
    return jnp.sum(_over_levels(_loss, mean, parameters, *others))


@jax.jit
def _curvature(
    mean: jax.Array, slopes: jax.Array, parameters: jax.Array, levels: jax.Array, *others: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns gradient [9] and Hessian [9, 9] of `_total`, with the blur linearised."""
    first = _over_levels(jax.grad(_loss), mean, parameters, levels, *others)
    # The Hessian costs most, and a subset of the levels estimates it well enough.
    few = slice(None, None, _SPARSE)
    second = _over_levels(jax.hessian(_loss), mean[few], parameters, levels[few], *others)
    gradient, hessian = jnp.zeros(9), jnp.zeros((9, 9))
    for c in range(3):
        # The Jacobian of the arguments of `_loss` in this channel.
        chain = (
            jnp.zeros((4, 9)).at[jnp.array([1, 2, 3]), jnp.array([2 + c, 5 + c, 8])].set(1.0)
        )
        gradient += jnp.sum(first[:, c], 0) @ chain
        gradient = gradient.at[:2].add(first[:, c, 0] @ slopes[:, c])
        moved = jnp.broadcast_to(chain, (second.shape[0], 4, 9))
        moved = moved.at[:, 0, :2].set(slopes[few][:, c])
        hessian += _SPARSE * jnp.einsum("nip,nij,njq->pq", moved, second[:, c], moved)
    return gradient, hessian


# --- Newton's method ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A state of the search.

    Attributes:
        kind: the kind of blur.
        parameters: two of the blur (0 if its kind has fewer), log gain [3], variance [3],
            photons; float64 [9].
        window: the clean crop with a margin of `REACH`.
        levels: the degraded crop, [N, 3].
        top: the highest level that does not count as clipped, per channel.
        mode: how the law quantises.
        has_gain: whether the law quantises twice.
        without_photons: holds the variance of the photon noise at 0.
        loss: the loss at these parameters.
        hessian: the Hessian at these parameters.
    """

    kind: str
    parameters: np.ndarray
    window: jax.Array
    levels: jax.Array
    top: np.ndarray
    mode: str = "truncate"
    has_gain: bool = True
    without_photons: bool = False
    loss: float = math.inf
    hessian: np.ndarray | None = None

    @classmethod
    def begin(
        cls, kind: str, theta: Sequence[float], window: np.ndarray, observed: np.ndarray
    ) -> "_Fit":
        """Starts from a blur, with the gain by least squares of observed on blurred levels."""
        blur = np.array([*theta, 0.0, 0.0][:2])
        mean = np.asarray(_blurred(window, jnp.asarray(blur, jnp.float32), kind), float)
        levels = observed.reshape(-1, 3)
        gain = np.sum(mean * levels, 0) / np.maximum(np.sum(mean * mean, 0), 1e-9)
        gain = np.clip(gain, 0.3, 3.0)
        variance = np.maximum(np.var(levels / gain - mean, axis=0), 0.05)
        photons = 0.1 * variance.mean() / max(float(mean.mean()), 1.0)
        parameters = np.concatenate([blur, np.log(gain), 0.9 * variance, [photons]])
        return cls(
            kind, parameters, jnp.asarray(window), jnp.asarray(levels), levels.max(0) - _ENDS
        )

    @property
    def penalised(self) -> float:
        """The loss with a penalty per parameter, to compare kinds of blur."""
        return self.loss + 5.0 * len(PARAMETERS[self.kind])

    def _others(self) -> tuple[Any, ...]:
        form = jnp.float32(self.mode == "truncate"), jnp.float32(self.has_gain)
        return self.levels, jnp.asarray(self.top, jnp.float32), form

    def blurred(self, at: np.ndarray | None = None) -> jax.Array:
        """Returns the blurred clean levels, [N, 3]."""
        at = self.parameters if at is None else at
        return _blurred(self.window, jnp.asarray(at[:2], jnp.float32), self.kind)

    def _bounded(self, parameters: np.ndarray) -> np.ndarray:
        bounds = [_BOUNDS[name] for name in PARAMETERS[self.kind]]
        bounds += [(0.0, 0.0)] * (2 - len(bounds))
        bounds += [(-1.2, 1.2)] * 3 + [(1e-3, 1e5)] * 3
        bounds += [(0.0, 0.0 if self.without_photons else 1e3)]
        return np.clip(parameters, *np.array(bounds).T)

    def _derivatives(self, at: np.ndarray, mean: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        slopes = _slopes(self.window, jnp.asarray(at[:2], jnp.float32), self.kind)
        found = _curvature(mean, slopes, jnp.asarray(at, jnp.float32), *self._others())
        return np.asarray(found[0], float), np.asarray(found[1], float)

    def improved(self, rounds: int = 25) -> "_Fit":
        """Maximises the likelihood from here by a damped Newton method."""

        def loss_at(at: np.ndarray) -> tuple[float, jax.Array]:
            mean = self.blurred(at)
            return float(_total(mean, jnp.asarray(at, jnp.float32), *self._others())), mean

        at, damping = self._bounded(self.parameters), 1e-3
        value, mean = loss_at(at)
        gradient, hessian = self._derivatives(at, mean)
        for _ in range(rounds):
            new = self._bounded(at + self._step(at, gradient, hessian, damping))
            there, blurred = loss_at(new)
            if not there < value:
                damping *= 10
                if damping > 1e3:
                    break
                continue
            gained = value - there
            at, value, damping = new, there, max(damping / 10, 1e-6)
            gradient, hessian = self._derivatives(at, blurred)
            # Smaller gains are within the rounding of float32 sums of this many levels.
            if gained < max(0.1, 3e-8 * abs(there)):
                break
        return dataclasses.replace(self, parameters=at, loss=value, hessian=hessian)

    def _step(
        self, at: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, damping: float
    ) -> np.ndarray:
        """Returns a damped Newton step; parameters that would leave their bounds stay."""
        free = self._bounded(at - 1e-6 * np.sign(gradient)) != at
        block = hessian[np.ix_(free, free)]
        scale = np.sqrt(np.maximum(np.abs(np.diag(block)), 1e-9))
        values, vectors = np.linalg.eigh(block / np.outer(scale, scale))
        inverse = (vectors / (np.maximum(np.abs(values), 1e-6) + damping)) @ vectors.T
        step = np.zeros_like(at)
        step[free] = -(inverse @ (gradient[free] / scale)) / scale
        step[2:5] = np.clip(step[2:5], -0.2, 0.2)
        return step

    def requantised(self, mode: str, has_gain: bool) -> "_Fit":
        """Returns the fit under another way of quantising."""
        if (mode, has_gain) == (self.mode, self.has_gain):
            return self
        return dataclasses.replace(self, mode=mode, has_gain=has_gain).improved()

    def simplified(self) -> "_Fit":
        """Removes photon noise that is not significant, and a blur too narrow to matter."""
        fit = self
        if 0 < fit.parameters[8] < 2.5 * fit.errors()[8]:
            fit = dataclasses.replace(fit, without_photons=True).improved()
        if fit.kind == "gaussian" and np.all(fit.parameters[:2] < 0.3):
            fit = dataclasses.replace(fit, kind="none").improved()
        return fit

    def errors(self) -> np.ndarray:
        """Returns the standard errors of the parameters; 0 for those at a bound."""
        assert self.hessian is not None
        free = self._bounded(self.parameters + 1e-5) != self.parameters
        free &= self._bounded(self.parameters - 1e-5) != self.parameters
        block = self.hessian[np.ix_(free, free)]
        found = np.zeros(9)
        found[free] = np.sqrt(np.maximum(np.diag(np.linalg.pinv(block, hermitian=True)), 0.0))
        return found

    def result(self, quantise: str | None) -> PairFit:
        """Expresses the parameters as fields of the law."""
        at, errors = self.parameters, self.errors()
        blur = {
            name: Estimate(
                float(at[i]) % (180 if name == "motion_angle" else math.inf), errors[i]
            )
            for i, name in enumerate(PARAMETERS[self.kind])
        }
        gain, sigma = np.exp(at[2:5]), np.sqrt(at[5:8])
        return PairFit(
            self.kind,
            blur,
            tuple(map(Estimate, sigma, errors[5:8] / (2 * sigma))),
            Estimate(at[8], errors[8]),
            tuple(map(Estimate, gain, gain * errors[2:5])),
            quantise,
            self._residual(),
        )

    def _residual(self) -> dict[str, float]:
        at = self.parameters
        mean, levels = (np.asarray(x, float) for x in (self.blurred(), self.levels))
        gain, variance = np.exp(at[2:5]), at[5:8]
        deviation = np.sqrt(variance + at[8] * np.maximum(mean, 0) + 1 / 6)
        latent = functools.partial(
            _latent, gain=gain, truncates=float(self.mode == "truncate"),
            twice=float(self.has_gain),
        )  # fmt: skip
        low = (np.asarray(latent(_ENDS - 0.5)) - mean) / deviation
        high = (np.asarray(latent(self.top + 0.5)) - mean) / deviation
        # A level that is not clipped is a draw from a truncated Gaussian.
        share, centre, spread = truncated_moments(low, high)
        inside = (levels >= _ENDS) & (levels <= self.top) & (share > 0.2)
        left = ((np.asarray(latent(levels)) - mean) / deviation - centre) / np.sqrt(
            np.maximum(spread, 1e-3)
        )
        shape = (self.window.shape[0] - 2 * REACH, -1, 3)
        return _whiteness(np.where(inside, left, 0.0).reshape(shape), inside.reshape(shape))


def truncated_moments(low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Returns the moments of a standard Gaussian truncated to an interval.

    Args:
        low: lower end of the interval, a number or an array.
        high: upper end.

    Returns:
        The share of the Gaussian that lies in the interval, at least 1e-6; mean; variance.
    """
    share = np.maximum(special.ndtr(high) - special.ndtr(low), 1e-6)
    at_low, at_high = (np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) for x in (low, high))
    mean = (at_low - at_high) / share
    return share, mean, 1 + (low * at_low - high * at_high) / share - mean**2


def _whiteness(left: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Measures how far residuals [H, W, 3] are from white noise of deviation 1 (`PairFit`)."""
    variance = max(np.sum(left**2) / max(inside.sum(), 1), 1e-9)

    def correlation(apart: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> float:
        pairs = max(int(np.sum(np.logical_and(*apart(inside)))), 1)
        return float(np.sum(np.multiply(*apart(left))) / pairs / variance)

    height, width = (length // 16 * 16 for length in left.shape[:2])
    shape = (height // 16, 16, width // 16, 16, 3)
    sums = left[:height, :width].reshape(shape).sum((1, 3))
    counts = inside[:height, :width].reshape(shape).sum((1, 3))
    used = counts > 64
    blocks = float(np.sqrt(np.mean(sums[used] ** 2 / counts[used]))) if used.any() else 1.0
    return {
        "correlation_x": correlation(lambda image: (image[:, 1:], image[:, :-1])),
        "correlation_y": correlation(lambda image: (image[1:], image[:-1])),
        "correlation_channels": correlation(lambda image: (image, np.roll(image, 1, axis=-1))),
        "blocks": blocks,
    }


# --- Quantising -----------------------------------------------------------------------------


def _quantiser(degraded: np.ndarray, fit: _Fit) -> tuple[str, bool, bool]:
    """Determines how values were quantised, from the comb that a gain leaves in the levels.

    Integers multiplied by a gain and quantised again leave some levels empty (gain above 1) or
    fill some from two values (below 1). Which levels these are depends on the quantiser.

    Returns:
        "truncate", "round" or "none"; whether that is certain; and whether values were
        quantised before the gain.
    """
    gains = np.exp(fit.parameters[2:5])
    # These gains were fitted with a possibly wrong quantiser, which biases them by a per cent.
    around = np.arange(-0.025, 0.025, 2e-5)
    scores = {"truncate": 0.0, "round": 0.0}
    for c, gain in enumerate(gains):
        counts = np.bincount(degraded[..., c].astype(np.int64).ravel(), minlength=256)[:256]
        levels = np.arange(_ENDS + 1, min(int(fit.top[c]), 252))
        if len(levels) < 16:
            continue
        flat = _comb_likelihood(counts, np.ones((1, 256)), levels)[0]
        for mode in scores:
            combs = _multiplicity(gain + around, mode)
            scores[mode] += float(_comb_likelihood(counts, combs, levels).max() - flat)
    mode = max(scores, key=lambda name: scores[name])
    if scores[mode] > 30 and abs(scores["truncate"] - scores["round"]) > 10:
        return mode, True, True
    if np.all(np.abs(gains - 1) > np.maximum(4 * fit.errors()[2:5], 0.025)):
        return "none", True, False
    return mode, False, False


def _multiplicity(gains: np.ndarray, mode: str) -> np.ndarray:
    """Counts how many of the levels 0…255 become each level under gains [M]; [M, 256]."""
    values = np.arange(256) * gains[:, None]
    found = np.floor(values) if mode == "truncate" else np.round(values)
    places = np.clip(found, 0, 255).astype(np.int64) + 256 * np.arange(len(gains))[:, None]
    return np.bincount(places.ravel(), minlength=256 * len(gains)).reshape(-1, 256)


def _comb_likelihood(counts: np.ndarray, combs: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns log-likelihoods [M] of counts [256] as combs [M, 256] times a smooth curve."""
    apart = np.arange(256)[:, None] - np.arange(256)[None, :]
    weights = np.where(np.abs(apart) < 8, np.cos(np.pi * apart / 16) ** 2, 0.0)
    smooth = (counts @ weights) / np.maximum(combs @ weights, 1e-9)
    expected = (np.maximum(combs, 1e-3) * np.maximum(smooth, 1e-9))[:, levels]
    expected /= expected.sum(1, keepdims=True)
    return np.log(expected) @ counts[levels]
