import doctest
import json
import shutil
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

import restore_jax
from restore_jax.checkpoints import checkpoint, weights_file
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.inference import ensemble, restorer
from restore_jax.inference.restorer import Restorer
from restore_jax.learner import state
from restore_jax.parallel import device_mesh
from tests.support import tiny
from tests.test_structure import ROOT

RNG = np.random.default_rng(0)


class Darker(nn.Module):
    """What it restores can be computed by hand: each channel times its own factor."""

    offset: float = 0.0

    @nn.compact
    def __call__(self, degraded):
        factors = self.param("factors", lambda key: np.array([0.5, 0.75, 1.0], np.float32))
        return degraded * factors + self.offset


FACTORS = np.array([0.5, 0.75, 1.0])


def darker(offset=0.0, config=None, **options):
    config = ConfigDict({} if config is None else config)
    variables = {"params": {"factors": FACTORS.astype(np.float32)}}
    return Restorer(Darker(offset), variables, config, **{"tile": 32} | options)


def random_image(shape, dtype):
    if np.dtype(dtype).kind == "f":
        return RNG.uniform(0, 1, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints of steps 1 and 2, of which 1 is the best; and their states."""
    folder = tmp_path_factory.mktemp("run") / "workdir"
    config = tiny.config()
    config.optimizer.ema_decay = 0.5
    workdir.claim(folder, config)
    learner = state.make_learner(config)
    template = state.abstract_state(learner, device_mesh.replicated(device_mesh.make_mesh()))

    def filled(value):
        # The average and the parameters must not be mistaken for each other.
        tree = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), template)
        return tree.replace(ema_params=jax.tree.map(lambda x: x + 0.25, tree.ema_params))

    with checkpoint.open_manager(folder) as manager:
        for step in (1, 2):
            checkpoint.save(manager, filled(step), {"ssim": 1.0 / step, "epoch": step})
    return folder


def first_parameter(loaded):
    return float(jax.tree.leaves(loaded.variables["params"])[0].ravel()[0])


# Loading.


@pytest.mark.parametrize(
    ("which", "step"), [("best", 1), ("latest", 2), ("1", 1), (1, 1), (2, 2)]
)
def test_a_workdir_gives_the_averaged_parameters_of_a_checkpoint(run, which, step, caplog):
    loaded = restore_jax.load(run, checkpoint=which)
    assert first_parameter(loaded) == step + 0.25
    assert loaded.config.name == "sca_unet"
    assert loaded.model.widths == (2, 4)
    assert loaded.options.tile == 128
    assert not caplog.records


def test_the_folder_of_a_checkpoint_is_that_checkpoint(run):
    assert first_parameter(restore_jax.load(str(run / "checkpoints" / "2"))) == 2.25
    with pytest.raises(UsageError, match="checkpoints/3: does not exist"):
        restore_jax.load(run / "checkpoints" / "3")


def test_a_config_of_an_earlier_version_is_enough(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "old")
    fields = json.loads((folder / "config.json").read_text())
    kept = {"model": fields["model"], "data": {"image_size": 0, "crop_size": 144}}
    (folder / "config.json").write_text(json.dumps(kept))
    loaded = restore_jax.load(folder)
    assert loaded.options.tile == 144
    assert first_parameter(loaded) == 1.25


def test_a_weights_file_restores_as_the_workdir_does(run, tmp_path):
    loaded = restore_jax.load(run)
    small = jax.tree.map(lambda x: 0.01 * x, loaded.variables)
    path = restore_jax.save_weights(tmp_path / "m.safetensors", small, loaded.config)
    again = restore_jax.load(path, tile=32)
    image = random_image((20, 25, 3), np.uint8)
    expected = Restorer(loaded.model, small, loaded.config, tile=32)(image)
    np.testing.assert_array_equal(again(image), expected)
    assert not np.array_equal(expected, image)


def test_what_cannot_be_loaded_is_refused_in_one_line(run, tmp_path):
    def refused(match, path, **options):
        with pytest.raises(UsageError, match=match) as error:
            restore_jax.load(path, **options)
        assert "\n" not in str(error.value)

    refused("nothing: does not exist", tmp_path / "nothing")
    refused("no config.json in it", tmp_path)
    refused("no config.json in it", run / "checkpoints")
    other = tmp_path / "model.pth"
    other.write_bytes(b"PK\x03\x04")
    refused(r"model\.pth: not a \.safetensors file", other)
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"PK\x03\x04")
    refused("not a safetensors file, or damaged", damaged)
    refused("--checkpoint=7: not in", run, checkpoint=7)
    refused("speed: no such option; there are tile", run, speed=2)
    refused("tile: 8 is too small", run, tile=8)

    folder = shutil.copytree(run, tmp_path / "copy")
    state_folder = folder / "checkpoints" / "1" / "state"
    (state_folder / "_METADATA").write_text("{")
    refused("checkpoints/1: cannot be read", folder)
    shutil.rmtree(state_folder)
    refused("checkpoints/1: cannot be read", folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["model"]["widths"] = [2, 6]
    (folder / "config.json").write_text(json.dumps(fields))
    refused("params/.* should be .* belongs to another model", folder, checkpoint="latest")
    (folder / "config.json").write_text("{}")
    refused("names no model", folder)
    shutil.rmtree(folder / "checkpoints")
    refused("no model", folder)


def test_it_works_where_tensorflow_is_not_installed(run, tmp_path):
    loaded = restore_jax.load(run)
    path = restore_jax.save_weights(tmp_path / "m.safetensors", loaded.variables, loaded.config)
    script = (
        "import sys\n"
        "sys.modules.update(tensorflow=None, tensorflow_datasets=None)\n"
        "import restore_jax\n"
        "assert 'jax' not in sys.modules\n"
        "import numpy as np\n"
        f"file = restore_jax.load({str(path)!r})\n"
        "assert 'orbax' not in sys.modules\n"
        f"run = restore_jax.load({str(run)!r})\n"
        "image = np.full((9, 7, 3), 99, np.uint8)\n"
        "assert (file(image) == run(image)).all()\n"
        "print(run(image).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("(9, 7, 3)\n", "")


def test_the_package_lists_what_it_offers():
    assert {"load", "save_weights", "Restorer"} <= set(dir(restore_jax))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = restore_jax.lod


@pytest.mark.parametrize("module", [restorer, weights_file], ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 5
    assert not result.failed


# Images of every kind.


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", ">u2"])
@pytest.mark.parametrize(
    "shape",
    [(9, 7), (9, 7, 1), (40, 33, 3), (9, 7, 4), (2, 9, 7, 1), (3, 9, 7, 3), (2, 9, 7, 4)],
)
def test_what_comes_out_is_what_went_in_restored(shape, dtype):
    image = random_image(shape, dtype)
    before = image.copy()
    restored = darker()(image)
    assert restored.shape == image.shape
    assert restored.dtype == image.dtype
    np.testing.assert_array_equal(image, before)
    values = image.astype(np.float64)
    if len(shape) > 2 and shape[-1] == 4:
        np.testing.assert_array_equal(restored[..., 3], image[..., 3])
    if len(shape) > 2 and shape[-1] > 1:
        expected, restored = values[..., :3] * FACTORS, restored[..., :3]
    else:
        expected = values * FACTORS.mean()
    # Whole numbers are rounded to the nearest, floats to what their type holds.
    atol = {"u": 0.502, "f": 1e-3 if dtype == "float16" else 1e-6}[image.dtype.kind]
    np.testing.assert_allclose(restored.astype(np.float64), expected, atol=atol)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_range_is_kept(dtype):
    image = random_image((8, 8, 3), dtype)
    highest = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    assert (darker(offset=2.0)(image) == highest).all()
    assert (darker(offset=-2.0)(image) == 0).all()


def test_floats_a_rounding_beyond_the_range_are_taken():
    image = np.array([[-1e-6, 1.0 + 1e-6]], np.float32)
    restored = darker(offset=1.0)(image)
    assert restored.max() == 1.0


def test_jax_arrays_and_views_are_images_too():
    image = random_image((12, 10, 3), np.float32)
    expected = darker()(image)
    np.testing.assert_array_equal(darker()(jax.numpy.asarray(image)), expected)
    wide = np.zeros((12, 20, 3), np.float32)[:, ::2]
    wide[:] = image
    np.testing.assert_array_equal(darker()(wide), expected)
    np.testing.assert_array_equal(darker()(image[::-1, :, ::-1][::-1, :, ::-1]), expected)


def test_lists_and_streams_mix_sizes_and_types():
    images = [
        random_image((50, 20), np.uint8),
        random_image((9, 70, 3), np.float32),
        random_image((1, 1, 4), np.uint16),
    ]
    each = [darker()(image) for image in images]
    for restored in (darker()(images), darker()(tuple(images))):
        assert isinstance(restored, list)
        for one, expected in zip(restored, each, strict=True):
            assert one.dtype == expected.dtype
            np.testing.assert_array_equal(one, expected)
    streamed = darker().restore_many(image for image in images)
    for one, expected in zip(streamed, each, strict=True):
        np.testing.assert_array_equal(one, expected)
    assert darker()([]) == []


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros(5, np.uint8), r"image: shape \[5\] is not \[H, W\] or"),
        (np.uint8(5) + np.zeros((), np.uint8), "array|shape"),
        (np.zeros((1, 2, 3, 4, 3), np.uint8), r"shape \[1, 2, 3, 4, 3\] is not"),
        (np.zeros((4, 4, 2), np.uint8), "has 2 channels"),
        (np.zeros((2, 4, 4, 5), np.uint8), "has 5 channels"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4), bool), "dtype bool is not one of uint8, uint16"),
        (np.zeros((4, 4), np.int32), "dtype int32"),
        (np.zeros((4, 4), complex), "dtype complex128"),
        (np.zeros((4, 4), object), "dtype object"),
        (np.full((4, 4), 255.0), r"in \[0, 1\], these range from 255 to 255"),
        (np.full((4, 4), -0.01), r"in \[0, 1\], these range from -0.01"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.full((4, 4), np.inf), "not finite"),
        ("photo.png", "a str is not an array"),
        (None, "a NoneType is not an array"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)], r"images\[1\]: .*2 chan"),
        ([np.zeros((1, 4, 4, 3), np.uint8)], r"images\[0\]: shape .* is not"),
        ([[0.5]], r"images\[0\]: a list is not an array"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(image, match):
    with pytest.raises(ValueError, match=match) as error:
        darker()(image)
    assert "\n" not in str(error.value)


def test_a_model_that_gives_no_numbers_is_told():
    with pytest.raises(RunError, match="not finite"):
        darker(offset=float("nan"))(np.zeros((4, 4), np.uint8))


# Options.


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
def test_strength_blends_with_the_input(dtype):
    image = random_image((40, 33, 4), dtype)
    np.testing.assert_array_equal(darker()(image, strength=0), image)
    values = image[..., :3].astype(np.float64)
    expected = 0.3 * values * FACTORS + 0.7 * values
    atol = 1e-6 if dtype == "float64" else 0.51
    restored = darker(strength=0.3)(image)
    np.testing.assert_allclose(restored[..., :3].astype(np.float64), expected, atol=atol)
    np.testing.assert_array_equal(restored[..., 3], image[..., 3])


def test_strength_blends_after_clipping():
    image = np.full((4, 4, 3), 100, np.uint8)
    assert (darker(offset=5.0, strength=0.5)(image) == 178).all()  # (100 + 255) / 2, to even


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tile": 31}, "tile: 31 is too small; it must be at least 32"),
        ({"tile": 64.0}, "tile: 64.0 is not a whole number"),
        ({"tile": True}, "tile: True is not a whole number"),
        ({"overlap": -1}, "overlap: -1 is too small"),
        ({"overlap": 17}, "overlap: 17 is more than half a tile; make it at most 16"),
        ({"batch_size": 0}, "batch_size: 0 is too small"),
        ({"strength": 1.5}, r"strength: 1.5 must lie in \[0, 1\]"),
        ({"strength": float("nan")}, "strength: nan"),
        ({"strength": "much"}, "strength: 'much'"),
        ({"self_ensemble": "some"}, "self_ensemble: 'some' is not one of none, flips, all8"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        darker(**options)
    with pytest.raises(UsageError, match=match):
        darker()(np.zeros((4, 4), np.uint8), **options)


def test_an_unknown_option_is_refused_before_any_work():
    with pytest.raises(UsageError, match="tiles: no such option; there are tile, overlap"):
        darker().restore_many([], tiles=5)


def test_other_options_share_the_model_and_a_call_can_be_ended():
    image = np.random.default_rng(0).integers(0, 256, (70, 40, 3), np.uint8)
    restorer, batches = darker(), []  # shares of the image
    other = restorer.with_options(
        batches.append, strength=0.5, tile=32, batch_size=1, white=None
    )
    np.testing.assert_array_equal(other(image), restorer(image, strength=0.5, tile=32))
    assert len(batches) == 3 * 2
    assert batches == sorted(batches)
    assert 0 == batches[0] < batches[-1] < 1
    assert restorer.options.strength == 1
    with pytest.raises(UsageError, match="strength: 2 must lie"):
        restorer.with_options(strength=2)

    def end(_):
        raise KeyError

    with pytest.raises(KeyError):
        restorer.with_options(end)(image)


@pytest.mark.parametrize(
    ("data", "tile", "batch_size"),
    [
        ({"image_size": 128, "crop_size": 256}, 128, 32),
        ({"image_size": 0, "crop_size": 512}, 512, 2),
        ({"image_size": 1024}, 1024, 1),
        ({"image_size": 64}, 128, 32),
        ({}, 256, 8),
        (None, 256, 8),
    ],
)
def test_the_tile_is_the_training_size_by_default_unless_that_is_small(data, tile, batch_size):
    options = darker(config={"data": data} if data is not None else {}, tile=None).options
    assert options.tile == tile
    assert options.cut == (tile, tile // 4, batch_size)


def test_tiles_hardly_change_what_a_local_model_gives():
    image = random_image((100, 75, 3), np.float32)
    np.testing.assert_allclose(darker()(image), darker(tile=128)(image), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_nothing_of_the_images_size_is_held_in_floats(channels):
    image = np.zeros((1500, 1500, channels), np.uint8)
    made = darker(tile=64, batch_size=4, strength=0.5)
    made(image[:100, :100])
    tracemalloc.start()
    try:
        made(image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The result, and bands of some 64 rows of float32; the whole in float32 takes 27 MB.
    assert peak < image.nbytes + 8e6


def test_memory_that_did_not_suffice_is_remembered(monkeypatch):
    made = darker(tile=64, batch_size=4)
    sizes, compiled = [], made._restore

    def scarce(batch, context):
        sizes.append(batch.shape[:2])
        if batch.size > 2 * 32 * 32 * 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return compiled(batch, context)

    monkeypatch.setattr(made, "_restore", scarce)
    image = random_image((100, 75, 3), np.float32)
    np.testing.assert_allclose(made(image), image * FACTORS, atol=1e-6)
    assert sizes[:4] == [(4, 64), (2, 64), (1, 64), (1, 32)]
    sizes.clear()
    made(image)
    assert set(sizes) == {(1, 32)}


class Lighting(nn.Module):
    """Adds a gradient to the right and a steeper one downwards, whatever the image."""

    @nn.compact
    def __call__(self, degraded):
        height, width = degraded.shape[1:3]
        down = jax.numpy.linspace(0, 0.4, height)[:, None, None]
        across = jax.numpy.linspace(0, 0.1, width)[None, :, None]
        return degraded + down + across


@pytest.mark.parametrize(
    ("self_ensemble", "expected"),
    [
        ("none", lambda y, x: 0.4 * y + 0.1 * x),
        # A gradient and its mirror image have one mean everywhere.
        ("flips", lambda y, x: 0.25 + 0 * y * x),
        ("all8", lambda y, x: 0.25 + 0 * y * x),
    ],
)
def test_an_ensemble_averages_the_views(self_ensemble, expected):
    made = Restorer(Lighting(), {}, ConfigDict(), tile=32, self_ensemble=self_ensemble)
    y, x = np.linspace(0, 1, 32)[:, None, None], np.linspace(0, 1, 32)[None, :, None]
    image = np.full((32, 32, 3), 0.1, np.float32)
    np.testing.assert_allclose(made(image), 0.1 + expected(y, x) + 0 * image, atol=1e-6)


def test_views_are_turned_back_exactly():
    batch = random_image((2, 5, 7, 3), np.float32)
    views = ensemble.symmetries("all8", {})
    seen = [ensemble._seen(batch, view) for view in views]
    assert len({view.tobytes() + bytes(str(view.shape), "ascii") for view in seen}) == 8
    for view, image in zip(views, seen, strict=True):
        np.testing.assert_array_equal(ensemble._seen(image, view, back=True), batch)
    # Independently: the eight are numpy's rotations of the image and of its mirror image.
    rotated = [
        np.rot90(start, k, axes=(1, 2))
        for start in (batch, batch[:, :, ::-1])
        for k in range(4)
    ]
    for image in seen:
        assert any(np.array_equal(image, other) for other in rotated)


@pytest.mark.parametrize(
    ("degradation", "count"),
    [
        ({}, 4),
        ({"preset": "kla"}, 4),
        ({"preset": "blind", "motion_angle": None}, 4),
        ({"blur": ["motion"], "motion_angle": [0.0, 180.0]}, 4),
        ({"blur": ["motion"], "motion_angle": [-20.0, 20.0]}, 4),
        ({"blur": ["motion"], "motion_angle": [90.0, 90.0]}, 4),
        ({"blur": ["motion"], "motion_angle": [10.0, 50.0]}, 2),
        ({"blur": ["gaussian"], "motion_angle": [10.0, 50.0]}, 4),
    ],
)
def test_flips_are_those_that_the_law_allows(degradation, count):
    views = ensemble.symmetries("flips", degradation)
    assert len(views) == count
    assert not any(transposed for transposed, *_ in views)
    if count == 2:  # a turn by 180° keeps every direction
        assert views == [(False, False, False), (False, True, True)]


def test_a_digital_gain_is_undone_if_asked_or_as_trained():
    gains = np.array([1.06, 1.0, 0.95], np.float32)
    noisy = np.clip(np.rint(RNG.normal(140, 40, (300, 300, 3))), 0, 255)
    image = np.clip(np.rint(noisy * gains), 0, 255).astype(np.uint8)
    expected = np.rint(np.clip(image / gains * FACTORS, 0, 255))
    for found in (
        darker(undo_gain=True)(image),
        darker(config={"data": {"undo_gain": True}})(image),
        darker()(image, undo_gain=True),
    ):
        assert np.abs(found - expected).max() <= 1
    as_it_is = np.rint(image * FACTORS)
    assert np.abs(darker()(image) - as_it_is).max() <= 1
    trained = darker(config={"data": {"undo_gain": True}})
    assert np.abs(trained(image, undo_gain=False) - as_it_is).max() <= 1
    with pytest.raises(UsageError, match="undo_gain: 'yes' is not True or False"):
        darker(undo_gain="yes")
