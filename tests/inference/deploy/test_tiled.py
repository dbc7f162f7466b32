import json

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")

from restore_jax import batches  # noqa: E402
from restore_jax.inference import pixels, tiling  # noqa: E402
from restore_jax.inference.deploy import onnx_graph, tiled  # noqa: E402
from tests.inference.deploy import graphs  # noqa: E402


def pack(folder, with_context, overlap=16):
    content = graphs.telling_of_tiles(with_context).SerializeToString()
    (folder / "restorer.onnx").write_bytes(content)
    fields = {
        "models": [{"file": "restorer.onnx"}],
        "tile": 64,
        "overlap": overlap,
        "multiple_of": 32,
    }
    (folder / "manifest.json").write_text(json.dumps(fields))
    return onnx_graph.session(content)


def by_the_library(session, photograph, with_context, white=None, gain=None, cut=(64, 16)):
    """Restores with the library's tiles and an exported model."""

    def apply(tiles, contexts):
        inputs = {"degraded": tiles} | ({"context": contexts} if with_context else {})
        return session.run(None, inputs)[0]

    side = batches.CONTEXT_SIZE if with_context else None
    gain = None if gain is None else np.asarray(gain, np.float32)
    picture = pixels.TiledImage(photograph, 1.0, side, white, gain=gain)
    (done,) = tiling.restore([picture], apply, tiling.Sizes(*cut, 4))
    return done.result


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (31, 33, 3), (64, 65, 3), (150, 100, 3), (200, 40), (97, 161)]
)
def test_it_restores_as_the_library_does(tmp_path, shape, with_context):
    session = pack(tmp_path, with_context)
    photograph = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    expected = by_the_library(session, photograph, with_context)
    found = tiled.Restorer(folder=tmp_path)(photograph)
    assert found.shape == shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
    # Rounding differs where a value lies between two levels, which is rare.
    assert (found != expected).mean() < 0.001
    assert found.std() > 5 or found.size == 3


@pytest.mark.parametrize(
    ("dtype", "white", "levels"), [("uint16", None, 65535), ("uint16", 4095, 4095)]
)
def test_levels_beyond_8_bits_are_kept(tmp_path, dtype, white, levels):
    session = pack(tmp_path, True)
    rng = np.random.default_rng(3)
    photograph = rng.integers(0, levels + 1, (70, 90, 3)).astype(dtype)
    expected = by_the_library(session, photograph, True, white)
    found = tiled.Restorer(folder=tmp_path)(photograph, white)
    assert np.abs(found.astype(int) - expected).max() <= 1 + levels // 65535
    assert found.dtype == np.uint16


def test_a_gain_is_undone_before_anything_else(tmp_path):
    session = pack(tmp_path, True)
    photograph = np.random.default_rng(4).random((70, 40, 3), np.float32)
    gain = (0.9, 1.0, 1.1)
    expected = by_the_library(session, photograph, True, gain=gain)
    found = tiled.Restorer(folder=tmp_path)(photograph, gain=gain)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - tiled.Restorer(folder=tmp_path)(photograph)).max() > 0.01


def test_other_tiles_may_be_chosen(tmp_path):
    session = pack(tmp_path, False)
    photograph = np.random.default_rng(5).random((100, 90, 3), np.float32)
    expected = by_the_library(session, photograph, False, cut=(32, 4))
    found = tiled.Restorer(folder=tmp_path, tile=32, overlap=4)(photograph)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_overlap_is_the_packs_or_a_quarter_of_another_tile(tmp_path):
    pack(tmp_path, False, overlap=24)
    assert tiled.Restorer(folder=tmp_path).overlap == 24
    assert tiled.Restorer(folder=tmp_path, tile=32).overlap == 8
    assert tiled.Restorer(folder=tmp_path, overlap=0).overlap == 0


def test_a_file_for_one_size_is_refused(tmp_path):
    pack(tmp_path, False)
    proto = graphs.telling_of_tiles(False)
    for place in (proto.graph.input[0], proto.graph.output[0]):
        for side in (1, 2):
            place.type.tensor_type.shape.dim[side].dim_value = 8
    (tmp_path / "restorer_8x8.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="takes images of one size"):
        tiled.Restorer("restorer_8x8.onnx", tmp_path)
