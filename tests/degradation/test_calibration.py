"""Fitting the law: what the host's pipeline draws is found again."""

import numpy as np
import pytest
import tensorflow as tf

from data import degrade
from data.rendered import sample
from restore_jax.degradation import calibration, fitted_law
from restore_jax.degradation.calibration import PARAMETERS, Estimate
from restore_jax.degradation.definition import PRESETS, Law


def fixed(value):
    return (float(value), float(value))


def drawn_law(number):
    """A law of fixed widths and noise, of a kind of blur that goes round with the number."""
    rng = np.random.default_rng(number)

    def between(low, high):
        return fixed(np.exp(rng.uniform(np.log(low), np.log(high))))

    return Law(
        blur=(("gaussian", "motion", "defocus")[number % 3],),
        sigma_x=between(0.6, 8),
        sigma_y=between(0.6, 8),
        motion_length=between(3, 20),
        motion_angle=between(5, 175),
        defocus_radius=between(1, 7),
        noise_sigma=between(1.5, 30),
        poisson_peak=between(50, 1500) if number % 2 else (0.0, 0.0),
        gain=(0.9, 1.1),
        quantise=("truncate", "round")[number // 2 % 2],
    )


def pair_of(law, number, size, category=None):
    """A rendered photograph, its degraded one, and the gains and deviations of the channels."""
    category = category or list(sample.CATEGORIES)[number % len(sample.CATEGORIES)]
    clean, _ = sample.render(category, "good", number, size)
    seed = degrade.draw_seed(0, tf.constant(str(number)), tf.constant(0))
    degraded = degrade.degrade(tf.constant(clean), law, seed).numpy()
    streams = {name: degrade._fold_in(seed, i) for i, name in enumerate(degrade._STREAMS)}
    gain = degrade._uniform(law.gain, streams["gain"], (3,)).numpy()
    sigma = degrade._uniform(
        law.noise_sigma, degrade._fold_in(streams["noise"], 0), (3,)
    ).numpy()
    return clean.astype(np.float32), degraded, gain, sigma


def check(fit, law, gain, sigma, clean):
    """Within 5 % and 3 %, or where that is less than chance allows, 3 standard errors."""
    assert fit.kind == law.blur[0]
    for name in PARAMETERS[fit.kind]:
        found, true = fit.blur[name], getattr(law, name)[0]
        if name == "motion_angle":
            away, allowed = abs((found.value - true + 90) % 180 - 90), 2.0
        else:
            away, allowed = abs(found.value - true), 0.05 * true
        assert away < max(allowed, 3 * found.error), (name, found, true)
    photons = 255 / law.poisson_peak[0] if law.poisson_peak[0] else 0.0
    for c, level in enumerate(clean.reshape(-1, 3).mean(0)):
        assert fit.gain[c].value == pytest.approx(gain[c], rel=0.05)
        found = np.sqrt(fit.noise_sigma[c].value ** 2 + fit.photons.value * level)
        assert found == pytest.approx(np.sqrt(sigma[c] ** 2 + photons * level), rel=0.03)
    assert fit.quantise == law.quantise
    assert abs(fit.residual["correlation_x"]) < 0.05
    assert abs(fit.residual["correlation_y"]) < 0.05


@pytest.mark.parametrize("number", [1, 2, 3])
def test_finds_the_law_of_a_small_pair(number):
    law = drawn_law(number)
    clean, degraded, gain, sigma = pair_of(law, number, 192)
    check(calibration.fit_pair(clean, degraded), law, gain, sigma, clean)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_finds_twenty_laws(number):
    law = drawn_law(number)
    clean, degraded, gain, sigma = pair_of(law, number, 512)
    check(calibration.fit_pair(clean, degraded), law, gain, sigma, clean)


@pytest.mark.slow
def test_finds_the_kla_law_again():
    fits, gains, sigmas = [], [], []
    for number in range(8):
        clean, degraded, gain, sigma = pair_of(PRESETS["kla"], number, 512)
        fits.append(calibration.fit_pair(clean, degraded))
        gains.append(gain)
        sigmas.append(sigma)
    found = fitted_law.of_pairs(fits)
    assert found.law["blur"] == ("gaussian",)
    for name, true in (("sigma_x", 10.0), ("sigma_y", 2.0)):
        low, high = found.law[name]
        assert low == high == pytest.approx(true, rel=0.05)
    # Of 24 draws each from U(50, 80) and U(0.9, 1.1), the least and the largest.
    for name, drawn, within in (("noise_sigma", sigmas, 0.03), ("gain", gains, 0.05)):
        assert found.law[name] == pytest.approx((np.min(drawn), np.max(drawn)), rel=within)
    assert found.law["quantise"] == "truncate"
    assert found.law["poisson_peak"] == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["grey", "demosaiced"])
def test_finds_the_kind_of_noise(kind):
    law = Law(noise=(kind,), noise_sigma=(12.0, 12.0), quantise="round")
    pairs = [pair_of(law, number, 192)[:2] for number in (4, 5)]
    found = fitted_law.of_pairs([calibration.fit_pair(*pair) for pair in pairs])
    assert found.law["noise"] == (kind,)
    assert found.law["noise_sigma"] == pytest.approx((12, 12), rel=0.04)
    curve = fitted_law.noise_curve(found.law, np.array([100.0]))[0]
    assert curve == pytest.approx(12 if kind == "grey" else 12 * 0.764, rel=0.04)


def test_nothing_to_see_is_told():
    flat = np.full((96, 96, 3), 100.0, np.float32)
    with pytest.raises(ValueError, match="same level everywhere"):
        calibration.fit_pair(flat, flat)


def fit_of(kind="gaussian", noise=5.0, quantise="round", **blur):
    """A fit with small errors, as if it had been found."""
    usual = {
        "gaussian": {"sigma_x": 2.0, "sigma_y": 1.0},
        "motion": {"motion_length": 5.0, "motion_angle": 179.8},
    }
    return calibration.PairFit(
        kind,
        {name: Estimate(value, 0.001) for name, value in (usual[kind] | blur).items()},
        (Estimate(noise, 0.01),) * 3,
        Estimate(0.0, 0.0),
        (Estimate(1.001, 0.001),) * 3,
        quantise,
        dict.fromkeys(("correlation_x", "correlation_y", "correlation_channels"), 0.0)
        | {"blocks": 1.0},
    )


def test_ranges_are_fixed_where_pairs_agree_and_spread_where_not():
    agreeing = fitted_law.of_pairs([fit_of(noise=5.0), fit_of(noise=5.01)]).law
    assert agreeing["noise_sigma"] == pytest.approx((5.005, 5.005), abs=1e-3)
    assert agreeing["gain"] == (1.0, 1.0)
    assert agreeing["quantise"] == "round"
    found = fitted_law.of_pairs([fit_of(sigma_x=2.0), fit_of(sigma_x=4.0, quantise="truncate")])
    assert found.law["sigma_x"] == (2.0, 4.0)
    low, high = found.intervals["sigma_x"]
    assert low < 2 and high > 4
    assert found.law["quantise"] is None
    assert "differ" in found.unknown["quantise"]


def test_directions_meet_after_half_a_turn_and_kinds_keep_their_shares():
    other = fit_of("motion", motion_angle=0.2)
    found = fitted_law.of_pairs([fit_of("motion"), other, fit_of(), fit_of("motion")]).law
    assert found["blur"] == ("gaussian", "motion", "motion", "motion")
    low, high = found["motion_angle"]
    assert low == high == pytest.approx(179.93, abs=0.1)
