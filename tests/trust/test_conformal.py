import numpy as np
import pytest

from restore_jax.trust import conformal


@pytest.mark.parametrize("count", [9, 10, 57, 1000])
def test_the_factor_is_numpys_quantile_of_the_ratios(count):
    ratios = np.random.default_rng(count).exponential(size=count)
    with_infinity = np.append(ratios, np.inf)
    expected = np.quantile(with_infinity, 0.9, method="inverted_cdf")
    assert conformal.factor(ratios) == expected


def test_too_few_pixels_are_refused():
    with pytest.raises(ValueError, match="8 pixels are too few to calibrate 90%"):
        conformal.factor(np.ones(8))


def heteroscedastic(count, seed):
    """Errors whose scale is known, and a prediction of it that is wrong by level."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(-6, -1, count))
    errors = np.abs(scale * rng.standard_normal(count))
    return (scale**0.7).astype(np.float32), errors.astype(np.float32)


def half_widths(predicted, found):
    logs = np.log(predicted)
    return np.exp(logs + np.interp(logs, found["levels"], found["factors"]))


def test_new_pixels_are_covered_at_every_level():
    found = conformal.calibrate(*heteroscedastic(40_000, 0))
    predicted, errors = heteroscedastic(40_000, 1)
    covered = errors <= half_widths(predicted, found)
    assert covered.mean() == pytest.approx(0.9, abs=0.01)
    for part in np.array_split(np.argsort(predicted), 5):
        assert covered[part].mean() == pytest.approx(0.9, abs=0.03)


def test_a_constant_prediction_and_errors_of_zero_have_factors():
    found = conformal.calibrate(np.full(800, 0.1, np.float32), np.zeros(800, np.float32))
    assert np.isfinite(found["factors"]).all()
    assert (np.diff(found["levels"]) > 0).all()
    assert half_widths(np.array([0.1]), found)[0] < 1e-3
