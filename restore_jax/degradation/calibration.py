"""Fits the law to a pair: which blur, noise and gain turned this clean photograph into that one.

All parameters of a pair are found together, by maximum likelihood. With b the blurred clean
level, a degraded level was a Gaussian around b of variance v + a b (v the Gaussian noise's, a b
the photons'), clipped to 0…255, quantised, multiplied by the gain and quantised again. Levels at
the ends count for what they say, that the value lay there or beyond (a censored, or Tobit,
likelihood): of noise of 50 grey levels and more, no level is far enough from both ends to leave
them out. Newton's method goes through the law's own kernels, from the best of a coarse grid of
each kind of blur; its Hessian gives the intervals.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from restore_jax.degradation import native_size

REACH = 48
"""How far a blur may reach that can be fitted, px."""

MIN_SIZE = 64
"""The least height and width of a photograph, px."""

# Fitted are two parameters of the blur at most; more pixels would not make them more certain
# than the law is right.
_SIDE = 416
# The levels at the ends are where values were clipped, and how they were quantised matters most.
_ENDS = 2
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
        """What 90 % of repetitions would find."""
        return self.value - _Z90 * self.error, self.value + _Z90 * self.error


@dataclasses.dataclass(frozen=True)
class PairFit:
    """What made a degraded photograph of a clean one.

    Attributes:
        kind: of blur.
        blur: its parameters by their names in the law.
        noise_sigma: standard deviation of the Gaussian noise in grey levels, per channel.
        photons: variance of the photon noise per grey level, 255 / poisson_peak; value 0: none.
        gain: per channel.
        quantise: "truncate", "round" or "none"; None where the levels do not tell.
        residual: of what is left, in units of the noise: "correlation_x" and "correlation_y"
            of neighbours, and "blocks", the standard deviation of means over 16 × 16 px in
            units of that of white noise (1 where all is explained).
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
        degraded: of the same shape, whole numbers.

    Raises:
        ValueError: for photographs in which nothing is to be seen.
    """
    window, observed = _cropped(clean, degraded)
    if min(float(np.std(image, axis=(0, 1)).max()) for image in (window, observed)) < 1:
        raise ValueError("has the same level everywhere")
    starts = _starts(window, observed)
    modes = "truncate", "round"
    noisy = jnp.asarray(window), jnp.asarray(observed)
    fits = [_Fit.begin(kind, theta, *noisy) for kind, theta in starts]
    best = min((fit.improved(*noisy) for fit in fits), key=lambda fit: fit.penalised)
    mode, is_certain, has_gain = _quantiser(degraded, best)
    fits = [best.requantised(m, has_gain, *noisy) for m in ([mode] if is_certain else modes)]
    best = min(fits, key=lambda fit: fit.loss)
    if not is_certain:
        gap = max(fit.loss for fit in fits) - best.loss
        mode = best.mode if gap > 6 else None
    best = best.simplified(*noisy)
    return best.told(mode, *noisy)


# --- Crops and starts -----------------------------------------------------------------------


def _cropped(clean: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crop with the strongest edges, and the clean one with what lies around it."""
    clean, degraded = clean.astype(np.float32), degraded.astype(np.float32)
    size = [min(_SIDE, length // 16 * 16) for length in clean.shape[:2]]
    steps = [range(0, n - s + 1, max(1, s // 2)) for n, s in zip(clean.shape, size, strict=False)]
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
    """The best of a grid for each kind of blur that may be the one.

    A candidate's transfer function is known in closed form; its residual is taken between
    spectra, where it costs a product.
    """
    inner = window[REACH:-REACH, REACH:-REACH]
    taper = np.hanning(inner.shape[0])[:, None] * np.hanning(inner.shape[1])[None, :]
    spectra = [np.fft.rfft2((i.mean(-1) - i.mean()) * taper) for i in (inner, observed)]
    clean, blurred = spectra
    fy = np.fft.fftfreq(inner.shape[0])[:, None]
    fx = np.fft.rfftfreq(inner.shape[1])[None, :]
    power, cross = np.abs(clean) ** 2, np.real(np.conj(clean) * blurred)
    # Below lie the shading and the taper, above nothing but noise.
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
            along = (np.exp(-2 * (math.pi * s * f) ** 2) for s, f in zip(theta, (fx, fy), strict=True))
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


def _latent(level: jax.Array, gain: jax.Array, truncates: jax.Array, twice: jax.Array) -> jax.Array:
    """The value before the gain that became a level, in the middle of those that do."""
    half = 0.5 * truncates
    return (level + half * twice) / gain + jnp.where(twice > 0, half, half / gain)


def _loss(
    local: jax.Array, level: jax.Array, top: jax.Array, form: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Minus the log-likelihood of one level.

    Args:
        local: blurred clean level, log of the gain, variance of the noise, photons' variance
            per level; [4].
        level: the observed one.
        top: the highest level that is taken for itself.
        form: 1 where the law truncates; 1 where it quantises twice, before and after the gain.
    """
    mean, log_gain, variance, photons = local
    gain = jnp.exp(log_gain)
    # A quantised value is uniform within its step.
    steps = form[1] / 12 + 1 / (12 * gain**2)
    deviation = jnp.sqrt(variance + photons * jnp.maximum(mean, 0.0) + steps)
    latent = functools.partial(_latent, gain=gain, truncates=form[0], twice=form[1])
    inside = 0.5 * jnp.square((latent(level) - mean) / deviation) + jnp.log(deviation) + log_gain
    low = -jax.scipy.special.log_ndtr((latent(_ENDS - 0.5) - mean) / deviation)
    high = -jax.scipy.special.log_ndtr((mean - latent(top + 0.5)) / deviation)
    return jnp.where(level < _ENDS, low, jnp.where(level > top, high, inside))


@functools.partial(jax.jit, static_argnames="kind")
def _blurred(window: jax.Array, theta: jax.Array, kind: str) -> jax.Array:
    if kind == "none":
        return window[REACH:-REACH, REACH:-REACH]
    return native_size.filtered(window, _kernel(theta, kind))


def _kernel(theta: jax.Array, kind: str) -> jax.Array:
    offsets = jnp.arange(-REACH, REACH + 1, dtype=jnp.float32)
    if kind == "gaussian":
        along_x, along_y = (native_size.gaussian_axis(offsets, theta[i], REACH) for i in (0, 1))
        return along_y[:, None] * along_x[None, :]
    if kind == "motion":
        return native_size.motion_kernel(offsets, theta[0], theta[1], 4 * REACH + 1)
    return native_size.defocus_kernel(offsets, theta[0])


@functools.partial(jax.jit, static_argnames="kind")
def _total(
    parameters: jax.Array, window: jax.Array, observed: jax.Array, top: jax.Array,
    form: tuple[jax.Array, jax.Array], kind: str,
) -> jax.Array:  # fmt: skip
    """The loss over all levels; `parameters` as `_Fit` has them."""
    count = len(PARAMETERS[kind])
    mean = _blurred(window, parameters[:count], kind)
    local = _local(parameters, mean, count)
    each = jax.vmap(jax.vmap(_loss, (0, 0, 0, None)), (0, 0, None, None))
    return jnp.sum(each(local, observed.reshape(-1, 3), top, form))


def _local(parameters: jax.Array, mean: jax.Array, count: int) -> jax.Array:
    """The arguments of `_loss` at every level, [N, 3, 4]."""
    log_gain, variance = parameters[count : count + 3], parameters[count + 3 : count + 6]
    mean = mean.reshape(-1, 3)
    fields = (mean, log_gain, variance, parameters[count + 6])
    return jnp.stack([jnp.broadcast_to(field, mean.shape) for field in fields], -1)


@functools.partial(jax.jit, static_argnames="kind")
def _curvature(
    parameters: jax.Array, window: jax.Array, observed: jax.Array, top: jax.Array,
    form: tuple[jax.Array, jax.Array], kind: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """The loss with its gradient [P] and Hessian [P, P] (the blur taken as linear)."""
    count = len(PARAMETERS[kind])
    theta = parameters[:count]
    mean = _blurred(window, theta, kind)
    slopes = jnp.zeros((*mean.shape, 0))
    if count:
        slopes = jax.jacfwd(lambda t: _blurred(window, t, kind))(theta)
    slopes = slopes.reshape(-1, 3, count)
    local, levels = _local(parameters, mean, count), observed.reshape(-1, 3)

    def over_levels(function):  # noqa: ANN001, ANN202
        each = jax.vmap(jax.vmap(function, (0, 0, 0, None)), (0, 0, None, None))
        return each(local, levels, top, form)

    value = jnp.sum(over_levels(_loss))
    first = over_levels(jax.grad(_loss))
    second = over_levels(jax.hessian(_loss))
    size = count + 7
    gradient, hessian = jnp.zeros(size), jnp.zeros((size, size))
    blur = jnp.arange(count)
    for c in range(3):
        others = jnp.array([count + c, count + 3 + c, count + 6])
        gradient = gradient.at[blur].add(slopes[:, c].T @ first[:, c, 0])
        gradient = gradient.at[others].add(jnp.sum(first[:, c, 1:], 0))
        weighted = slopes[:, c] * second[:, c, 0, 0, None]
        hessian = hessian.at[blur[:, None], blur].add(slopes[:, c].T @ weighted)
        mixed = slopes[:, c].T @ second[:, c, 0, 1:]
        hessian = hessian.at[blur[:, None], others].add(mixed)
        hessian = hessian.at[others[:, None], blur].add(mixed.T)
        hessian = hessian.at[others[:, None], others].add(jnp.sum(second[:, c, 1:, 1:], 0))
    return value, gradient, hessian


# --- Newton's method ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A state of the search.

    Attributes:
        kind: of blur.
        parameters: those of the blur, then log gain [3], variance [3], photons.
        top: the highest level that is not an end, per channel.
        mode: of quantising.
        has_gain: whether the law quantises twice.
        without_photons: holds their variance at 0.
        loss: at these parameters.
        hessian: there.
    """

    kind: str
    parameters: np.ndarray
    top: np.ndarray
    mode: str = "truncate"
    has_gain: bool = True
    without_photons: bool = False
    loss: float = math.inf
    hessian: np.ndarray | None = None

    @classmethod
    def begin(
        cls, kind: str, theta: Sequence[float], window: jax.Array, observed: jax.Array
    ) -> "_Fit":
        """Starts from a blur, by least squares of the levels over the blurred ones."""
        mean = np.asarray(_blurred(window, jnp.array(theta, jnp.float32), kind)).reshape(-1, 3)
        levels = np.asarray(observed).reshape(-1, 3)
        gain = np.sum(mean * levels, 0) / np.maximum(np.sum(mean * mean, 0), 1e-9)
        gain = np.clip(gain, 0.3, 3.0)
        variance = np.maximum(np.var(levels / gain - mean, axis=0), 0.05)
        photons = 0.1 * variance.mean() / max(float(mean.mean()), 1.0)
        parameters = np.concatenate([theta, np.log(gain), 0.9 * variance, [photons]])
        return cls(kind, parameters, levels.max(0) - _ENDS)

    @property
    def count(self) -> int:
        return len(PARAMETERS[self.kind])

    @property
    def penalised(self) -> float:
        """The loss that kinds of blur are compared by: a parameter has to be worth it."""
        return self.loss + 5.0 * self.count

    def _arguments(self, window: jax.Array, observed: jax.Array) -> tuple:
        form = (jnp.float32(self.mode == "truncate"), jnp.float32(self.has_gain))
        return window, observed, jnp.asarray(self.top, jnp.float32), form

    def _bounded(self, parameters: np.ndarray) -> np.ndarray:
        bounds = [_BOUNDS[name] for name in PARAMETERS[self.kind]]
        bounds += [(-1.2, 1.2)] * 3 + [(1e-3, 1e5)] * 3
        bounds += [(0.0, 0.0 if self.without_photons else 1e3)]
        return np.clip(parameters, *np.array(bounds).T)

    def improved(self, window: jax.Array, observed: jax.Array, rounds: int = 25) -> "_Fit":
        """Goes to the maximum of the likelihood."""
        given = self._arguments(window, observed)
        at, damping = self._bounded(self.parameters), 1e-3
        value, gradient, hessian = (np.asarray(x, float) for x in _curvature(at, *given, self.kind))
        for _ in range(rounds):
            # What stands at a bound and would go beyond it, stays.
            free = self._bounded(at - 1e-6 * np.sign(gradient)) != at
            step = np.zeros_like(at)
            block = hessian[np.ix_(free, free)]
            scale = np.maximum(np.abs(np.diag(block)), 1e-9)
            scaled = block / np.sqrt(np.outer(scale, scale))
            values, vectors = np.linalg.eigh(scaled)
            inverse = (vectors / (np.maximum(np.abs(values), 1e-6) + damping)) @ vectors.T
            step[free] = -(inverse @ (gradient[free] / np.sqrt(scale))) / np.sqrt(scale)
            step[self.count : self.count + 3] = np.clip(step[self.count : self.count + 3], -0.2, 0.2)
            new = self._bounded(at + step)
            there = float(_total(new, *given, self.kind))
            if not there < float(value):
                damping *= 10
                if damping > 1e4:
                    break
                continue
            gained = float(value) - there
            at, damping = new, max(damping / 10, 1e-6)
            value, gradient, hessian = (
                np.asarray(x, float) for x in _curvature(at, *given, self.kind)
            )
            # Beyond, float32 sums of this many levels do not tell.
            if gained < max(0.02, 2e-8 * abs(there)):
                break
        return dataclasses.replace(self, parameters=at, loss=float(value), hessian=hessian)

    def requantised(
        self, mode: str, has_gain: bool, window: jax.Array, observed: jax.Array
    ) -> "_Fit":
        """The fit under another way of quantising."""
        fit = dataclasses.replace(self, mode=mode, has_gain=has_gain)
        return fit.improved(window, observed)

    def simplified(self, window: jax.Array, observed: jax.Array) -> "_Fit":
        """Leaves photons out that are not certain, and a blur too narrow to be seen."""
        fit = self
        if fit._error(-1) * 2.5 > fit.parameters[-1]:
            fit = dataclasses.replace(fit, without_photons=True).improved(window, observed)
        if fit.kind == "gaussian" and np.all(fit.parameters[:2] < 0.3):
            fit = dataclasses.replace(fit, kind="none", parameters=fit.parameters[2:])
            fit = fit.improved(window, observed)
        return fit

    def _covariance(self) -> np.ndarray:
        assert self.hessian is not None
        free = self._bounded(self.parameters + 1e-5) != self.parameters
        free &= self._bounded(self.parameters - 1e-5) != self.parameters
        found = np.zeros_like(self.hessian)
        block = np.ix_(free, free)
        found[block] = np.linalg.pinv(self.hessian[block], hermitian=True)
        return found

    def _error(self, place: int) -> float:
        return float(np.sqrt(max(self._covariance()[place, place], 0.0)))

    def told(self, mode: str | None, window: jax.Array, observed: jax.Array) -> PairFit:
        """What was found, in the terms of the law."""
        n, at = self.count, self.parameters
        errors = np.sqrt(np.maximum(np.diag(self._covariance()), 0.0))
        blur = {
            name: Estimate(float(at[i]), float(errors[i]))
            for i, name in enumerate(PARAMETERS[self.kind])
        }
        if "motion_angle" in blur:
            angle = blur["motion_angle"]
            blur["motion_angle"] = Estimate(angle.value % 180, angle.error)
        gains, sigmas = [], []
        for c in range(3):
            gain, sigma = math.exp(at[n + c]), math.sqrt(at[n + 3 + c])
            gains.append(Estimate(gain, gain * float(errors[n + c])))
            sigmas.append(Estimate(sigma, float(errors[n + 3 + c]) / (2 * sigma)))
        return PairFit(
            self.kind, blur, tuple(sigmas), Estimate(float(at[-1]), float(errors[-1])),
            tuple(gains), mode, self._residual(window, observed),
        )  # fmt: skip

    def _residual(self, window: jax.Array, observed: jax.Array) -> dict[str, float]:
        n, at, levels = self.count, self.parameters, np.asarray(observed, float)
        mean = np.asarray(_blurred(window, jnp.asarray(at[:n], jnp.float32), self.kind), float)
        gain, variance = np.exp(at[n : n + 3]), at[n + 3 : n + 6]
        deviation = np.sqrt(variance + at[-1] * np.maximum(mean, 0) + 1 / 6)
        latent = functools.partial(
            _latent, gain=gain, truncates=float(self.mode == "truncate"),
            twice=float(self.has_gain),
        )  # fmt: skip
        low = (np.asarray(latent(_ENDS - 0.5)) - mean) / deviation
        high = (np.asarray(latent(self.top + 0.5)) - mean) / deviation
        # A level between the ends is a draw of a Gaussian cut off there.
        share = np.maximum(special.ndtr(high) - special.ndtr(low), 1e-6)
        bell_low, bell_high = (np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) for x in (low, high))
        centre = (bell_low - bell_high) / share
        spread = 1 + (low * bell_low - high * bell_high) / share - centre**2
        inside = (levels >= _ENDS) & (levels <= self.top) & (share > 0.2)
        left = ((np.asarray(latent(levels)) - mean) / deviation - centre) / np.sqrt(
            np.maximum(spread, 1e-3)
        )
        left = np.where(inside, left, 0.0)
        return _whiteness(left, inside)


def _whiteness(left: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """How far residuals [H, W, 3] are from white noise of deviation 1, see `PairFit`."""

    def correlation(axis: int) -> float:
        first, second = (np.moveaxis(left, axis, 0)[part] for part in (slice(1, None), slice(-1)))
        both = np.moveaxis(inside, axis, 0)
        pairs = max(int(np.sum(both[1:] & both[:-1])), 1)
        return float(np.sum(first * second) / pairs / max(np.sum(left**2) / max(inside.sum(), 1), 1e-9))

    height, width = (length // 16 * 16 for length in left.shape[:2])
    shape = (height // 16, 16, width // 16, 16, 3)
    sums = left[:height, :width].reshape(shape).sum((1, 3))
    counts = inside[:height, :width].reshape(shape).sum((1, 3))
    used = counts > 64
    blocks = float(np.sqrt(np.mean(sums[used] ** 2 / counts[used]))) if used.any() else 1.0
    return {"correlation_x": correlation(1), "correlation_y": correlation(0), "blocks": blocks}


# --- Quantising -----------------------------------------------------------------------------


def _quantiser(degraded: np.ndarray, fit: _Fit) -> tuple[str, bool, bool]:
    """Tells how values were quantised from the comb that a gain leaves in the levels.

    Whole numbers multiplied by a gain and quantised again leave some levels empty (gain above
    1), or fill some from two values (below 1), and which they are depends on the quantiser.

    Returns:
        "truncate", "round" or "none"; whether that is certain; and whether values were
        quantised before the gain.
    """
    gains = np.exp(fit.parameters[fit.count : fit.count + 3])
    errors = [max(4 * fit._error(fit.count + c), 2e-3) for c in range(3)]
    scores = {"truncate": 0.0, "round": 0.0}
    for c, (gain, error) in enumerate(zip(gains, errors, strict=True)):
        counts = np.bincount(degraded[..., c].astype(np.int64).ravel(), minlength=256)[:256]
        levels = np.arange(_ENDS + 1, min(int(fit.top[c]), 252))
        if len(levels) < 16:
            continue
        flat = _comb_likelihood(counts, np.ones(256), levels)
        candidates = np.clip(gain + np.arange(-error, error, 5e-4), 0.2, 5.0)
        for mode in scores:
            best = max(
                _comb_likelihood(counts, _multiplicity(value, mode), levels) for value in candidates
            )
            scores[mode] += best - flat
    mode = max(scores, key=lambda name: scores[name])
    total = float(degraded.size)
    if scores[mode] > max(30.0, 1e-4 * total) and abs(scores["truncate"] - scores["round"]) > 10:
        return mode, True, True
    off = all(abs(g - 1) > max(e, 0.015) for g, e in zip(gains, errors, strict=True))
    if off and max(scores.values()) < 10:
        return "none", True, False
    return mode, False, False


def _multiplicity(gain: float, mode: str) -> np.ndarray:
    """How many of the levels 0…255 become each of them under a gain, [256]."""
    values = np.arange(256) * gain
    found = np.floor(values) if mode == "truncate" else np.round(values)
    return np.bincount(np.clip(found, 0, 255).astype(np.int64), minlength=256)[:256]


def _comb_likelihood(counts: np.ndarray, multiplicity: np.ndarray, levels: np.ndarray) -> float:
    """The log-likelihood of a histogram that is a comb times something smooth."""
    window = np.hanning(15)
    smooth = np.convolve(counts, window, "same") / np.maximum(
        np.convolve(multiplicity, window, "same"), 1e-9
    )
    expected = (np.maximum(multiplicity, 1e-3) * np.maximum(smooth, 1e-9))[levels]
    return float(np.sum(counts[levels] * np.log(expected / expected.sum())))
