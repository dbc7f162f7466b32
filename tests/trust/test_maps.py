import matplotlib
import numpy as np
from matplotlib import colors

from restore_jax.trust import maps


def test_the_colours_are_nine_of_inferno():
    expected = matplotlib.colormaps["inferno"](np.linspace(0, 1, 9))
    assert tuple(map(colors.to_hex, expected)) == maps.COLOURS


def test_each_doubling_of_the_half_width_is_the_next_colour():
    half_width = 0.5 / 255 * 2.0 ** np.arange(9)[None]
    expected = [[round(255 * part) for part in colors.to_rgb(c)] for c in maps.COLOURS]
    shown = maps.heat_map(half_width)
    assert shown.dtype == np.uint8
    assert np.abs(shown[0].astype(int) - expected).max() <= 3  # 256 colours
    ends = maps.heat_map(np.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(ends[0], shown[0, [0, -1]])


def test_sixteen_bits_are_256ths_of_a_grey_level():
    half_width = np.array([[0.0, 1 / 255, 10.25 / 255, 1.0, 2.0]])
    assert maps.sixteen_bits(half_width).tolist() == [[0, 256, 2624, 65280, 65280]]
    assert maps.sixteen_bits(half_width).dtype == np.uint16
