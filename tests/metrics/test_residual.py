"""What the residual of a restoration shows, on images whose truth is known."""

import numpy as np
import pytest
from scipy import ndimage

from restore_jax.metrics import residual

SIGMA = 20.0


def surface(seed=0, side=192, channels=3):
    """A smooth object, as a model would restore it, in grey levels."""
    draws = np.random.default_rng(seed).normal(size=(side, side, channels))
    smooth = ndimage.gaussian_filter(draws, (12, 12, 0))
    return 128 + 25 * smooth / smooth.std()


def noisy(image, seed=1, sigma=SIGMA):
    return image + np.random.default_rng(seed).normal(0, sigma, image.shape)


def test_of_white_noise_few_blocks_are_taken_for_detail():
    found = [residual.judge(noisy(surface(s), s), surface(s), SIGMA) for s in range(12)]
    # A thousandth, of 1452 blocks that overlap by half.
    assert np.mean([one.structure for one in found]) < 4 * residual.FALSE_ALARMS
    assert np.abs([one.correlation for one in found]).max() < 0.03


def test_noise_that_is_clipped_is_no_detail():
    ramp = np.broadcast_to(np.linspace(5, 250, 192)[:, None, None], (192, 192, 3))
    found = [
        residual.judge(np.clip(np.round(noisy(ramp, s, 60)), 0, 255), ramp, 60.0)
        for s in range(5)
    ]
    assert np.mean([one.structure for one in found]) < 0.005


@pytest.mark.parametrize("channels", [1, 3])
def test_an_erased_scratch_shows_where_it_was(channels):
    clean = surface(channels=channels)
    scratched = clean.copy()
    scratched[100:103, 40:140] -= 50
    before = noisy(scratched)
    kept, erased = (residual.judge(before, after, SIGMA) for after in (scratched, clean))
    assert kept.structure < 0.01 < erased.structure
    rows, columns = np.nonzero(erased.deviations > 4)
    assert set(rows) <= {4, 5, 6} and len(columns) >= 3  # blocks that begin at 64, 80, 96


def test_texture_that_is_removed_everywhere_correlates():
    clean = surface()
    texture = ndimage.gaussian_filter(
        np.random.default_rng(5).normal(size=clean.shape), (1.5, 1.5, 0)
    )
    before = noisy(clean + 15 * texture / texture.std())
    assert residual.judge(before, clean, SIGMA).correlation > 0.1


def test_edges_that_are_sharpened_are_no_detail():
    clean = surface()
    clean[60:130, 60:130] += 60
    before = noisy(ndimage.gaussian_filter(clean, (2, 2, 0)), sigma=5.0)
    seen = residual.judge(before, clean, 5.0)
    # Taken as it is, with nothing to explain the edges by, the residual would show them.
    plain = residual.judge(128 + before - clean, np.full_like(clean, 128.0), 5.0)
    assert seen.structure < 0.02 < 0.08 < plain.structure


@pytest.mark.parametrize("gain", [0.85, 1.15])
def test_a_gain_that_was_undone_is_no_detail(gain):
    clean = surface()
    seen = residual.judge(noisy(clean * gain, sigma=5.0), clean, 5.0)
    assert seen.structure < 0.02 and seen.correlation < 0.05


def test_grey_stored_as_colour_is_judged_as_grey():
    clean = surface(channels=1)
    before = noisy(clean)
    grey = residual.judge(before, clean, SIGMA)
    colour = residual.judge(np.repeat(before, 3, -1), np.repeat(clean, 3, -1), SIGMA)
    np.testing.assert_allclose(colour.deviations, grey.deviations, atol=0.05)


def test_what_noise_hides_of_the_detail_is_that_of_the_wiener_filter():
    """For an object of white spectrum, the error is s·n / (s + n) wherever it is."""
    clean = noisy(np.full((192, 192, 1), 128.0), 3, 10.0)
    seen = residual.judge(noisy(clean), clean, SIGMA)
    power = np.random.default_rng(0).exponential(100.0, 100_000)  # of one frequency
    assert seen.unexplained == pytest.approx(np.mean(power * 400 / (power + 400)), rel=0.03)


def test_an_image_that_was_left_alone_has_no_residual():
    image = np.round(noisy(surface()))
    seen = residual.judge(image, image, SIGMA)
    assert (seen.structure, seen.unexplained) == (0, 0)
    assert seen.correlation == pytest.approx(0, abs=1e-9)


def test_an_image_of_few_blocks_tells_nothing():
    assert residual.judge(np.zeros((40, 200, 3)), np.zeros((40, 200, 3)), 5.0) is None
    assert residual.judge(np.zeros((20, 20, 3)), np.zeros((20, 20, 3)), 5.0) is None
