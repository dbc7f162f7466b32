"""Resizing, against Pillow and NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data import resize
from restore_jax.errors import UsageError


def picture(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "size"), [((90, 90), 32), ((64, 64), 32), ((70, 101), 24), ((20, 20), 32)]
)
def test_bilinear_is_pillows(shape, size):
    image = picture(*shape).astype(np.uint8)
    expected = np.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR), float
    )
    got = resize.resize(image, size, "bilinear")
    assert got.dtype == tf.float32
    assert np.abs(got - expected).max() <= 1


def area_weights(length, size):
    """Row i: the share of each pixel in new pixel i, by the overlap of intervals."""
    edges = np.arange(size + 1) * length / size
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(overlap, 0) * size / length


def test_area_is_the_mean_of_blocks():
    image = picture(24, 24)
    expected = image.reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize.resize(image, 8, "area"), expected, atol=1e-3)


@pytest.mark.parametrize(("shape", "size"), [((90, 90), 32), ((50, 37), 21), ((5, 7), 12)])
def test_area_shares_a_pixel_between_the_cells_it_lies_in(shape, size):
    image = picture(*shape)
    rows, columns = area_weights(shape[0], size), area_weights(shape[1], size)
    expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns)
    np.testing.assert_allclose(resize.resize(image, size, "area"), expected, atol=2e-3)


@pytest.mark.parametrize("method", ["bilinear", "area"])
def test_resizing_knows_its_shape_while_tracing_and_keeps_one_size(method):
    traced = tf.function(
        lambda image: resize.resize(image, 16, method),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
    )
    assert traced.get_concrete_function().output_shapes.as_list() == [16, 16, 3]
    image = picture(16, 16).astype(np.uint8)
    np.testing.assert_allclose(traced(image), image, atol=1e-4)
    np.testing.assert_allclose(resize.resize(image, 16, method), image, atol=1e-4)


@pytest.mark.parametrize("method", ["bilinear", "area"])
def test_resizing_does_not_leave_the_range_of_the_image(method):
    image = np.full((1000, 900, 3), 255, np.uint8)
    image[:100] = 0
    got = resize.resize(image, 256, method).numpy()
    assert got.min() == 0
    assert got.max() == 255


def test_an_unknown_resize_is_named():
    with pytest.raises(UsageError, match=r"^config\.data\.resize: 'cubic' is unknown; choose"):
        resize.resize(picture(4, 4), 2, "cubic")


@pytest.mark.parametrize(
    ("shape", "size"), [((100, 100), 8), ((90, 70), 32), ((1000, 1000), 256), ((10, 10), 24)]
)
def test_no_defect_of_one_pixel_vanishes(shape, size):
    rng = np.random.default_rng(size)
    for _ in range(12):
        y, x = (int(rng.integers(length)) for length in shape)
        mask = np.zeros((*shape, 1), np.uint8)
        mask[y, x] = 255
        got = resize.resize_mask(mask, size).numpy()
        # Python's whole numbers: new pixel i spans i·length … (i+1)·length in units of 1/size.
        rows, columns = (
            [i * length < (at + 1) * size and at * size < (i + 1) * length for i in range(size)]
            for at, length in ((y, shape[0]), (x, shape[1]))
        )
        np.testing.assert_array_equal(got[..., 0], np.outer(rows, columns))
        assert got.sum() >= 1


def test_a_mask_is_where_its_area_average_is_above_zero():
    mask = (np.random.default_rng(3).random((60, 45, 1)) < 0.02).astype(np.uint8) * 255
    share = np.einsum(
        "ih,hw,jw->ij", area_weights(60, 13), mask[..., 0] / 255, area_weights(45, 13)
    )
    got = resize.resize_mask(mask, 13).numpy()
    assert got.shape == (13, 13, 1)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[..., 0], share > 1e-9)
    assert 0 < got.mean() < 1


def test_an_empty_mask_stays_empty_and_a_mask_of_the_same_size_itself():
    assert not resize.resize_mask(np.zeros((30, 30, 1), np.uint8), 7).numpy().any()
    mask = np.random.default_rng(1).integers(0, 2, (9, 9, 1)).astype(np.uint8)
    np.testing.assert_array_equal(resize.resize_mask(mask, 9), mask)


@pytest.mark.parametrize("shape", [(60, 60), (75, 52)])
def test_shrinking_averages_the_photograph_and_keeps_the_defect(shape):
    photograph = picture(*shape).astype(np.uint8)
    mask = np.zeros((*shape, 1), np.uint8)
    mask[31, 20] = 1
    sizes = set()
    for number in range(20):
        small, defect = resize.shrink(
            photograph, mask, (1.0, 3.0), 24, tf.constant([1, number])
        )
        sizes.add(size := small.shape[:2])
        assert min(size) >= 24 and size[0] <= shape[0] and size[1] <= shape[1]
        rows, columns = (area_weights(*pair) for pair in zip(shape, size, strict=True))
        expected = np.einsum("ih,hwc,jw->ijc", rows, photograph, columns)
        assert np.abs(small.numpy() - expected).max() <= 0.51
        covered = (rows[:, 31, None] > 1e-9) & (columns[None, :, 20] > 1e-9)
        np.testing.assert_array_equal(defect[..., 0], covered)
    assert len(sizes) > 10


def test_shrinking_leaves_what_is_small_already_and_what_it_is_told_to():
    photograph, mask = picture(20, 30).astype(np.uint8), np.ones((20, 30, 1), np.uint8)
    small, _ = resize.shrink(photograph, mask, (2.0, 2.0), 24, tf.constant([0, 0]))
    assert small.shape == (20, 24, 3)
    same, defect = resize.shrink(photograph, mask, (1.0, 1.0), 8, tf.constant([0, 0]))
    np.testing.assert_array_equal(same, photograph)
    np.testing.assert_array_equal(defect, mask)
