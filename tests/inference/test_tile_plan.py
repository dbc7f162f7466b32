import numpy as np
import pytest

from restore_jax.inference import tile_plan


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (32, 32, 8, [0]),
        (5, 32, 8, [0]),
        (33, 32, 8, [0, 8]),  # tile and overlap are multiples of 8
        (56, 32, 8, [0, 24]),
        (57, 32, 8, [0, 16, 32]),
        (64, 32, 0, [0, 32]),
        (1024, 256, 64, [0, 192, 384, 576, 768]),
        (1025, 256, 64, [0, 160, 320, 480, 640, 800]),
        (4096, 512, 128, [0, 352, 704, 1088, 1440, 1792, 2144, 2496, 2880, 3232, 3584]),
        (57, 33, 9, [0, 24]),
    ],
)
def test_tiles_begin_evenly_and_overlap_enough(length, tile, overlap, expected):
    assert tile_plan.starts(length, tile, overlap) == expected


def test_any_length_is_covered_with_the_overlap_asked_for():
    for length in range(33, 400):
        for tile, overlap, unit in ((32, 9, 1), (32, 8, 8), (64, 32, 16)):
            begins = tile_plan.starts(length, tile, overlap)
            assert begins[0] == 0
            assert length <= begins[-1] + tile < max(length + unit, tile + 1)
            assert not any(begin % unit for begin in begins)
            assert all(1 <= gap <= tile - overlap for gap in np.diff(begins))


def test_weights_follow_a_raised_cosine_and_sum_to_one():
    first, second = tile_plan.axis_weights([0, 4], 8)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.array([0.5, 1.5, 2.5, 3.5]) / 4)
    np.testing.assert_allclose(first, [1, 1, 1, 1, *rise[::-1]], rtol=1e-6)
    np.testing.assert_allclose(second, [*rise, 1, 1, 1, 1], rtol=1e-6)
    for length in (33, 40, 57, 100, 131):
        begins = tile_plan.starts(length, 32, 12)
        total = np.zeros(begins[-1] + 32)
        for begin, row in zip(begins, tile_plan.axis_weights(begins, 32), strict=True):
            assert (row > 0).all()
            total[begin : begin + 32] += row
        np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_tiles_that_do_not_overlap_are_put_side_by_side():
    np.testing.assert_array_equal(tile_plan.axis_weights([0, 8], 8), np.ones((2, 8)))


@pytest.mark.parametrize(("length", "padded"), [(5, 9), (3, 32), (2, 7), (7, 7), (40, 64)])
def test_padding_reflects_as_numpy_does(length, padded):
    expected = np.pad(np.arange(length), (0, padded - length), mode="reflect")
    np.testing.assert_array_equal(tile_plan.reflected(length, padded), expected)


def test_a_single_pixel_is_repeated():
    np.testing.assert_array_equal(tile_plan.reflected(1, 4), [0, 0, 0, 0])
