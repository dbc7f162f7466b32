import numpy as np
import pytest

from restore_jax.errors import RunError
from restore_jax.image_io.photograph import estimated_white
from restore_jax.inference import pixels

RNG = np.random.default_rng(0)
DTYPES = ["uint8", "uint16", ">u2", "float16", "float32", "float64"]


def random_image(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.uniform(0, 1, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def plainly(image, restored, strength):
    """What becomes of an image, step by step."""
    colours = image[..., :3] if image.ndim == 3 else image[..., None]
    white = np.float32(1.0 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    before = np.clip(colours.astype(np.float32) / white, 0.0, 1.0)
    if colours.shape[-1] == 1:
        restored = restored.mean(axis=-1, keepdims=True)
    after = np.clip(restored, 0.0, 1.0)
    if strength < 1.0:
        after = after * np.float32(strength) + before * np.float32(1.0 - strength)
    after = after if image.dtype.kind == "f" else np.rint(after * white)
    expected = image.copy()
    (expected[..., :3] if image.ndim == 3 else expected[..., None])[...] = after
    return expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (40, 33, 3), (9, 7, 4)])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_rows_are_converted_as_by_one_step_after_the_other(shape, dtype, strength):
    image = random_image(shape, dtype)
    # Padded, as tiles are, and not to be written to, as arrays of JAX are not.
    padded = RNG.uniform(-0.1, 1.1, (64, 64, 3)).astype(np.float32)
    padded.flags.writeable = False
    restored = padded[: shape[0], : shape[1]]
    picture = pixels.TiledImage(image, strength)
    for top in range(0, shape[0], 16):
        picture.write(top, restored[top : top + 16])
    assert picture.result.dtype == image.dtype
    np.testing.assert_array_equal(picture.result, plainly(image, restored, strength))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_a_result_has_no_negative_zeros(shape):
    picture = pixels.TiledImage(np.ones(shape, np.float32), 1.0)
    picture.write(0, np.full((4, 4, 3), -0.0, np.float32))
    assert picture.result.tobytes() == bytes(picture.result.nbytes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_read_are_floats_of_three_channels(dtype, channels):
    image = random_image((9, 7, channels), dtype)
    picture = pixels.TiledImage(image, 1.0)
    found = picture.read(slice(2, 8), np.array([0, 1, 2, 1]))
    white = np.float32(1.0 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    expected = image[2:8, [0, 1, 2, 1], :3].astype(np.float32) / white
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (6, 4, 3)))


@pytest.mark.parametrize(
    ("highest", "white"),
    [
        *[(0, None), (7, 1023), (1023, 1023), (1024, 2047), (4095, 4095), (16383, 16383)],
        *[(16384, None), (65535, None)],
    ],
)
def test_the_white_of_a_camera_is_found_from_its_highest_level(highest, white):
    assert estimated_white(highest) == white


def test_levels_above_the_white_are_refused():
    image = np.array([[0, 5000]], np.uint16)
    with pytest.raises(ValueError, match="its levels reach 5,000, above the white 4,095"):
        pixels.checked(image, "image", white=4095)
    with pytest.raises(ValueError, match="the white level 4,095 does not fit uint8"):
        pixels.checked(image.astype(np.uint8), "image", white=4095)
    alpha = np.full((1, 2, 4), 4095, np.uint16)
    alpha[..., 3] = 65535
    assert pixels.checked(alpha, "image", white=4095) is alpha


def test_a_restoration_may_overwrite_its_image():
    array = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    kept = pixels.TiledImage(array.copy(), 0.5)
    overwritten = pixels.TiledImage(array, 0.5, in_place=True)
    rows = np.random.default_rng(1).random((20, 30, 3), np.float32)
    for picture in (kept, overwritten):
        picture.write(0, rows)
        picture.write(20, rows)
    assert overwritten.result is array
    np.testing.assert_array_equal(kept.result, array)
    with pytest.raises(RunError, match="out of memory while an image was restored"):
        overwritten.write(0, rows)


def test_an_image_that_cannot_be_written_to_is_left_alone():
    array = np.zeros((4, 5), np.uint8)
    array.flags.writeable = False
    picture = pixels.TiledImage(array, 1.0, in_place=True)
    picture.write(0, np.ones((4, 5, 3), np.float32))
    assert (picture.result == 255).all() and not array.any()
