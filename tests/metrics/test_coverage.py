import numpy as np
import pytest

from restore_jax.metrics import coverage, defects


def flat(value=0.5):
    return np.full((40, 40, 3), value)


def scene():
    """A defect that is erased, one that is kept, and a spot that is invented."""
    clean, mask = flat(), np.zeros((40, 40, 1))
    for top in (5, 20):
        clean[top : top + 4, 5:9] = 0.9
        mask[top : top + 4, 5:9] = 1
    restored = clean.copy()
    restored[5:9, 5:9] = 0.55
    restored[30:34, 30:34, 1] = 0.8
    return restored, clean, mask


def test_erased_and_invented_regions_are_labelled():
    restored, clean, mask = scene()
    erased = defects.erased_regions(restored, clean, mask)
    expected = np.zeros((40, 40), int)
    expected[5:9, 5:9] = 1
    np.testing.assert_array_equal(erased, expected)
    invented = defects.invented_regions(restored, clean, mask)
    expected = np.zeros((40, 40), int)
    expected[30:34, 30:34] = 1
    np.testing.assert_array_equal(invented, expected)
    both = coverage.wrong_regions(restored, clean, mask)
    assert [both[6, 6], both[21, 6], both[31, 31], both.max()] == [1, 0, 2, 2]


def test_small_faint_and_true_structure_is_not_invented():
    clean = flat()
    clean[10:20, 10:20] = 0.9
    restored = clean.copy()
    restored[30:32, 30:34] = 0.8  # 8 px
    restored[2:8, 30:36] = 0.55  # faint
    restored[10:20, 10:20] = 0.75  # of the object, which keeps most of its contrast
    empty = np.zeros((40, 40, 1))
    assert not defects.invented_regions(restored, clean, empty).any()


def test_pixels_are_counted_overall_and_inside_the_defects():
    restored, clean, mask = scene()
    half_width = np.full((40, 40), 0.1)
    half_width[30:34, 30:40] = 0.2  # 40 of 1600 px, with the invented spot, too narrow
    figures = coverage.trust_figures(half_width, restored, clean, mask, True, alarm=0.15)
    assert figures["trust_pixels"] == 1600
    assert figures["trust_covered"] == 1600 - 16 - 16
    assert (figures["trust_defect_pixels"], figures["trust_defect_covered"]) == (32, 16)
    assert (figures["wrong_regions"], figures["flagged_regions"]) == (2, 1)
    assert figures["flagged_by_chance"] == 1  # the erased one lies opposite
    assert (figures["alarm_pixels"], figures["alarmed_regions"]) == (40, 1)
    assert (figures["wrong_pixels"], figures["alarmed_wrong_pixels"]) == (32, 16)
    assert figures["half_width"] == pytest.approx(0.1 + 0.1 * 40 / 1600)
    unknown = coverage.trust_figures(half_width, restored, clean, mask, False, alarm=0.15)
    assert unknown["trust_defect_pixels"] == 0


def test_a_summary_divides_the_sums():
    row = dict.fromkeys(coverage.FIGURES, 0.0) | {"category": "a"}
    rows = [
        row
        | {"trust_pixels": 100.0, "trust_covered": 90.0, "half_width": 0.1}
        | {"alarm_pixels": 20.0, "wrong_pixels": 4.0, "alarmed_wrong_pixels": 3.0},
        row | {"trust_pixels": 300.0, "trust_covered": 300.0, "half_width": 0.3},
    ]
    micro = coverage.summarise_trust(rows)["micro"]
    assert micro == {
        "trust_coverage": 390 / 400,
        "trust_defect_coverage": None,
        "wrong_regions": 0,
        "flagged_share": None,
        "chance_share": None,
        "alarm_area": 20 / 400,
        "alarm_share": None,
        "alarm_pixel_share": 3 / 4,
        "half_width": pytest.approx(0.2),
    }
