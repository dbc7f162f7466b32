import collections
import os
import pathlib

import numpy as np
import pytest

from restore_jax.evaluation.per_image import Restored
from restore_jax.parallel import exchange
from restore_jax.report import plots


def sent(value):
    return exchange.decode(exchange.encode(value))


def test_values_come_back_with_their_types():
    value = {
        "step": 3,
        (1, "a"): [None, True, 0.1 + 0.2, "ä\udce4\n"],
        "path": pathlib.Path("a/b"),
        "nothing": ((), [], {}),
        7: {"deeper": [[1], (2, [3])]},
    }
    found = sent(value)
    assert found == value
    assert isinstance(found[1, "a"][1], bool)
    assert isinstance(found["path"], pathlib.Path)
    assert np.isnan(sent(float("nan"))) and sent(float("-inf")) == float("-inf")
    assert sent(collections.Counter("aab")) == {"a": 2, "b": 1}


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool, np.int64, "<U5"])
def test_arrays_come_back_bit_for_bit(dtype):
    for array in (np.arange(6).reshape(2, 3).astype(dtype), np.zeros((0, 4), dtype)):
        found = sent([array])[0]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()
    assert sent(np.float32(0.1)) == np.float32(0.1)
    assert sent(np.float32(0.1)).dtype == np.float32


def test_objects_of_the_project_come_back():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    picture = plots.Triplet("a", "b", pixels, pixels, pixels, pixels[..., :1], 1.5, 2.5, "x")
    found = sent([picture])[0]
    assert type(found) is plots.Triplet
    assert found.psnr == 2.5
    np.testing.assert_array_equal(found.degraded, pixels)
    image = Restored({"id": "x", "psnr": 1.0}, pixels, pixels, pixels, pixels, True, pixels)
    found = sent(image)
    assert type(found) is Restored
    assert found.row == image.row


class Stranger:
    pass


@pytest.mark.parametrize("value", [Stranger(), {1}, np.array([None]), os.getcwd, b"bytes"])
def test_nothing_else_is_sent(value):
    with pytest.raises(TypeError, match="cannot be sent"):
        exchange.encode(value)


def test_no_class_of_others_is_made():
    for module, name in (("os", "system"), ("subprocess", "Popen"), ("restore_jaxx", "a")):
        with pytest.raises(TypeError, match="cannot be received"):
            exchange._from_json(["object", module, name, ["dict", []]], None)
    with pytest.raises(TypeError, match="is not a class"):
        exchange._from_json(
            ["object", "restore_jax.parallel.exchange", "decode", ["dict", []]], None
        )
