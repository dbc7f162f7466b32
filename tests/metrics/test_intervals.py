import itertools
import math

import numpy as np
import pytest
from scipy import stats

from restore_jax.metrics import intervals

RNG = np.random.default_rng(7)
FIRST = RNG.normal(28, 3, 12)
SECOND = FIRST + RNG.gamma(1.5, 0.4, 12) - 0.2
NAMES = list("aaaaabbbbbbb")


def plain_level(sizes, variances, level=0.95):
    """The level at which plain percentiles are the bounds that `intervals` takes."""
    sizes, variances = np.array(sizes), np.array(variances)
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    wider = math.sqrt(variances.sum() / (variances * (sizes - 1) / sizes).sum())
    return 1 - 2 * stats.norm.cdf(-wider * stats.t.ppf((1 + level) / 2, freedom))


def difference_of_means(first, second, axis):
    return np.mean(second, axis) - np.mean(first, axis)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_mean_of_images_agrees_with_scipy(level):
    found = intervals.paired_difference(FIRST, SECOND, level=level, resamples=40_000)
    expected = stats.bootstrap(
        (FIRST, SECOND), difference_of_means, paired=True, method="percentile",
        confidence_level=plain_level([12], [1.0], level), n_resamples=40_000,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    low, high = expected.confidence_interval
    assert found.images == 12
    assert found.value == pytest.approx(np.mean(SECOND) - np.mean(FIRST), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_the_mean_of_categories_agrees_with_scipy():
    found = intervals.paired_difference(FIRST, SECOND, NAMES, resamples=40_000)
    groups = (SECOND - FIRST)[:5], (SECOND - FIRST)[5:]
    level = plain_level([5, 7], [np.var(group, ddof=1) / len(group) for group in groups])
    low, high = stats.bootstrap(
        groups, lambda a, b, axis: (np.mean(a, axis) + np.mean(b, axis)) / 2,
        method="percentile", confidence_level=level, n_resamples=40_000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx((groups[0].mean() + groups[1].mean()) / 2, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_a_case_by_hand():
    # Means of four draws from 0, 0, 0, 4 are numbers of fours: Binomial(4, 1/4), which is 0 in
    # 31.6 %, at most 1 in 73.8 % and at most 2 in 94.9 % of the draws. At a level of 50 %,
    # t(3) = 0.765 and sqrt(4/3)·0.765 = 0.883, beyond which lie 18.9 % of a normal law.
    tail = intervals.tail_share(np.array([1.0]), np.array([4]), 0.5)
    assert tail == pytest.approx(0.1886, abs=1e-4)
    found = intervals.paired_difference([1, 2, 3, 4], [1, 2, 3, 8], level=0.5)
    assert found == intervals.Difference(4, 1.0, 0.0, 2.0)
    # At 95 % it is 0.01 % at either end, and all four are drawn in 0.4 %.
    found = intervals.paired_difference([1, 2, 3, 4], [1, 2, 3, 8])
    assert found == intervals.Difference(4, 1.0, 0.0, 4.0)


def test_every_possible_draw_counts_alike():
    differences = np.array([0.1, -0.3, 0.9, 1.6])
    every = [np.mean(draw) for draw in itertools.product(differences, repeat=4)]
    tail = intervals.tail_share(np.array([1.0]), np.array([4]), 0.7)
    expected = np.quantile(every, [tail, 1 - tail])
    found = intervals.paired_difference(
        np.zeros(4), differences, level=0.7, resamples=200_000, seed=3
    )
    assert (found.low, found.high) == pytest.approx(expected, abs=0.03)


def test_the_interval_of_five_images_holds_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        sample = rng.normal(size=5)
        found = intervals.paired_difference(np.zeros(5), sample, resamples=1000)
        held.append(found.low <= 0 <= found.high)
    # Plain percentiles: 82 %.
    assert 0.86 <= np.mean(held) <= 0.97


def test_a_rate_is_a_quotient_of_sums():
    regions = [1, 4, 10, 0, math.nan, 5]
    before, after = [1, 2, 0, 0, 1, 5], [0, 2, 5, 0, 1, 5]
    found = intervals.paired_difference(before, after, weights=regions)
    assert found.images == 4
    assert found.value == pytest.approx((12 - 8) / 20)
    kept = [(b - a, n) for a, b, n in zip(before, after, regions, strict=True) if n and n == n]
    rates = [sum(d for d, _ in draw) / sum(n for _, n in draw)
             for draw in itertools.product(kept, repeat=4)]  # fmt: skip
    # So few images that the bounds are the ends of what can be drawn.
    assert (found.low, found.high) == (min(rates), max(rates)) == (-1.0, 0.5)
    half = intervals.paired_difference(before, after, weights=regions, level=0.5)
    tail = intervals.tail_share(np.array([1.0]), np.array([4]), 0.5)
    expected = np.quantile(rates, [tail, 1 - tail])
    assert (half.low, half.high) == pytest.approx(expected, abs=0.005)
    macro = intervals.paired_difference(before, after, list("aabbbb"), regions)
    assert macro.value == pytest.approx((-1 / 5 + 5 / 15) / 2)


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


def test_categories_of_one_image_are_drawn_together():
    first, second = [0.0] * 6, [1.0, 2.0, 4.0, 3.0, 3.0, 3.0]
    found = intervals.paired_difference(first, second, list("abcddd"))
    assert found.value == pytest.approx((1 + 2 + 4 + 3) / 4)
    # d does not vary; the others are three draws of 1, 2 and 4, in 3/4 of the mean.
    assert (found.low, found.high) == pytest.approx((1.5, 3.75))


def test_the_same_arguments_give_the_same_bounds_in_any_order_of_categories(monkeypatch):
    found = intervals.paired_difference(FIRST, SECOND, NAMES)
    assert found == intervals.paired_difference(FIRST, SECOND, NAMES)
    turned = [*range(5, 12), *range(5)]
    assert found == intervals.paired_difference(
        FIRST[turned], SECOND[turned], [NAMES[i] for i in turned]
    )
    assert found != intervals.paired_difference(FIRST, SECOND, NAMES, seed=1)
    monkeypatch.setattr(intervals, "_CHUNK", 999)
    chunked = intervals.paired_difference(FIRST, SECOND, NAMES)
    assert (chunked.low, chunked.high) == pytest.approx((found.low, found.high), abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "one figure per image: 1 of the first, 2 of the second"),
        (([1.0], [1.0], []), "0 categories"),
        (([1.0], [1.0], None, [1, 2]), "2 weights"),
        (([1.0], [1.0], None, None, 1.0), "level 1.0"),
        (([1.0], [1.0], None, None, 0.95, 0), "0 resamples"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals.paired_difference(*arguments)
