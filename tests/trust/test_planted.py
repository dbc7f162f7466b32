"""Defects that are planted for the error bar to learn from."""

import numpy as np
import pytest

from restore_jax.trust import planted

SHAPE = (64, 96)


@pytest.fixture(scope="module")
def planted_crops():
    random = np.random.default_rng(0)
    crop = planted.Crop(*(random.uniform(0.3, 0.7, (*SHAPE, 3)).astype(np.float32),) * 3)
    return crop, {
        kind: [planted.plant(crop, kind, random) for _ in range(20)] for kind in planted.KINDS
    }


def test_a_defect_is_a_bounded_shape_of_one_colour():
    random = np.random.default_rng(0)
    for _ in range(30):
        colours, inside = planted.defect(*SHAPE, random)
        assert colours.shape == (*SHAPE, 3)
        assert inside.shape == (*SHAPE, 1)
        assert inside.min() >= 0
        assert inside.max() <= 1
        contrast = np.abs(colours).max()
        assert contrast <= 0.5
        core = colours[inside[..., 0] == 1]
        np.testing.assert_array_equal(core, core[:1].repeat(len(core), axis=0))
        assert (inside > 0).mean() < 0.5


def test_an_erased_defect_is_in_the_photograph_and_not_in_the_restoration(planted_crops):
    crop, found = planted_crops
    for one in found["erased"]:
        np.testing.assert_array_equal(one.restored, crop.restored)
        in_clean, trace = one.clean - crop.clean, one.degraded - crop.degraded
        assert np.abs(in_clean).max() > 0.02
        assert np.abs(trace).max() <= np.abs(in_clean).max() + 1e-6
        # Blurred, it is spread, but not weakened.
        assert trace.sum() == pytest.approx(in_clean.sum(), rel=0.05, abs=0.5)


def test_invented_and_smoothed_regions_are_in_the_restoration_alone(planted_crops):
    crop, found = planted_crops
    for one in found["invented"] + found["smoothed"]:
        np.testing.assert_array_equal(one.degraded, crop.degraded)
        np.testing.assert_array_equal(one.clean, crop.clean)
        assert not np.array_equal(one.restored, crop.restored)
    changes = [np.abs(one.restored - crop.restored) for one in found["invented"]]
    assert max(change.max() for change in changes) > 0.2
    # Noise of this range has a spread of 0.115, and its mean over some pixels none.
    for one in found["smoothed"]:
        inside = np.abs(one.restored - crop.restored).max(axis=-1) > 0.17
        assert not inside.any() or one.restored[inside].std() < 0.06
