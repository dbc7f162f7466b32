import math

import numpy as np
import pytest
from scipy import stats

from restore_jax.metrics import intervals

RNG = np.random.default_rng(7)
FIRST = RNG.normal(28, 3, 12)
SECOND = FIRST + RNG.gamma(1.5, 0.4, 12) - 0.2
NAMES = list("aaaaabbbbbbb")


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_mean_of_images_agrees_with_scipy(level):
    found = intervals.paired_difference(FIRST, SECOND, level=level)
    expected = stats.ttest_rel(SECOND, FIRST).confidence_interval(level)
    assert found.images == 12
    assert found.value == pytest.approx(np.mean(SECOND) - np.mean(FIRST), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_mean_of_categories_agrees_with_scipy():
    found = intervals.paired_difference(FIRST, SECOND, NAMES)
    a, b = (SECOND - FIRST)[:5], (SECOND - FIRST)[5:]
    # Half the difference between one category and the other with its sign turned.
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx((a.mean() + b.mean()) / 2, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((welch.low / 2, welch.high / 2), rel=1e-9)


def test_a_case_by_hand():
    # Differences 0, 0, 0, 4: mean 1, variance 4, of the mean 1; t(3) is 3.182 at 95 %.
    found = intervals.paired_difference([1, 2, 3, 4], [1, 2, 3, 8])
    assert found.value == 1.0
    assert (found.low, found.high) == pytest.approx((1 - 3.18245, 1 + 3.18245), abs=1e-5)


def test_the_interval_of_five_images_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        found = intervals.paired_difference(np.zeros(5), rng.normal(size=5))
        held.append(found.low <= 0 <= found.high)
    assert 0.935 <= np.mean(held) <= 0.965


def test_a_rate_is_a_quotient_of_sums():
    regions = [1, 4, 10, 0, math.nan, 5]
    before, after = [1, 2, 0, 0, 1, 5], [0, 2, 5, 0, 1, 5]
    found = intervals.paired_difference(before, after, weights=regions)
    assert found.images == 4
    assert found.value == pytest.approx((12 - 8) / 20)
    # The variance of a ratio to first order: residuals −1.2, −0.8, 3 and −1 over a mean of 5.
    residuals = np.array([-1 - 0.2, 0 - 0.8, 5 - 2.0, 0 - 1.0]) / 5
    half = stats.t.ppf(0.975, 3) * math.sqrt(np.sum(residuals**2) / 3 / 4)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-9)
    macro = intervals.paired_difference(before, after, list("aabbbb"), regions)
    assert macro.value == pytest.approx((-1 / 5 + 5 / 15) / 2)


def test_the_interval_of_a_rate_holds_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        regions = rng.integers(1, 5, 30)
        erased = rng.binomial(regions, 0.3)
        found = intervals.paired_difference(np.zeros(30), erased, weights=regions)
        held.append(found.low <= 0.3 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.97


def test_pairs_that_lack_a_figure_are_left_out():
    first = [*FIRST, 30.0, None, math.nan, math.inf]
    second = [*SECOND, None, 30.0, 30.0, 30.0]
    assert intervals.paired_difference(first, second) == intervals.paired_difference(
        FIRST, SECOND
    )
    names = [*NAMES, "c", "d", "e", "f"]
    assert intervals.paired_difference(first, second, names) == intervals.paired_difference(
        FIRST, SECOND, NAMES
    )
    assert intervals.paired_difference([None], [1.0]) == intervals.Difference(
        0, None, None, None
    )
    assert intervals.paired_difference([], []).value is None


def test_what_does_not_vary_has_an_interval_without_width():
    for names in (None, NAMES):
        same = intervals.paired_difference(FIRST, FIRST, names)
        assert same == intervals.Difference(12, 0.0, 0.0, 0.0)
    shifted = intervals.paired_difference(np.arange(12.0), np.arange(12.0) + 0.5, NAMES)
    assert shifted == intervals.Difference(12, 0.5, 0.5, 0.5)


def test_one_image_has_no_interval():
    assert intervals.paired_difference([28.0], [29.0]) == intervals.Difference(
        1, 1.0, None, None
    )
    # Nor has a macro mean with one category whose spread is not known.
    found = intervals.paired_difference(FIRST, SECOND, [*NAMES[:-1], "c"])
    assert (found.images, found.low, found.high) == (12, None, None)


def test_categories_of_one_image_count_as_one_stratum():
    first, second = [0.0] * 6, [1.0, 2.0, 4.0, 3.0, 3.0, 3.0]
    found = intervals.paired_difference(first, second, list("abcddd"))
    assert found.value == pytest.approx((1 + 2 + 4 + 3) / 4)
    # d does not vary; the others are three images with 3/4 of the mean.
    half = 0.75 * stats.t.ppf(0.975, 2) * stats.sem([1, 2, 4])
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-9)


def test_the_order_of_the_images_does_not_matter():
    found = intervals.paired_difference(FIRST, SECOND, NAMES)
    turned = [*range(5, 12), *range(5)]
    again = intervals.paired_difference(
        FIRST[turned], SECOND[turned], [NAMES[i] for i in turned]
    )
    assert (again.value, again.low, again.high) == pytest.approx(
        (found.value, found.low, found.high), rel=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "one figure per image: 1 of the first, 2 of the second"),
        (([1.0], [1.0], []), "0 categories"),
        (([1.0], [1.0], None, [1, 2]), "2 weights"),
        (([1.0], [1.0], None, None, 1.0), "level 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals.paired_difference(*arguments)
