import os
import pathlib
import warnings
from types import SimpleNamespace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from data import vgg16
from restore_jax.errors import UsageError
from restore_jax.losses.loss_terms import LOSSES, weighted_sum
from restore_jax.losses.perceptual import TAPS, VGG16, perceptual

VALUES = jax.jit(perceptual)
SLOPE = jax.jit(
    jax.value_and_grad(lambda r, c, params: perceptual(r, c, None, params).sum()),
)
LAYERS = [
    f"block{b}_conv{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)
]


def images(seed, batch=2, size=(16, 18)):
    rng = np.random.default_rng(seed)
    restored, clean = rng.uniform(-0.1, 1.1, (2, batch, *size, 3)).astype(np.float32)
    return restored, clean


def cache_file():
    return pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "restore_jax" / "vgg16_imagenet.npz"


def write_keras_file(path, model):
    """As Keras 1 wrote the file that is published: layers in order, names of its own."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}_{kind}_1:0" for kind in "Wb"] if layer.weights else []
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


@pytest.fixture(scope="module")
def keras_vgg16():
    """Keras's network with random parameters, of which no bias is zero."""
    model = tf.keras.applications.VGG16(weights=None, include_top=False)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            kernel, bias = (value.shape for value in layer.get_weights())
            spread = np.sqrt(2 / np.prod(kernel[:3]))
            weights = rng.normal(0, spread, kernel), rng.normal(0, 5, bias)
            layer.set_weights([value.astype(np.float32) for value in weights])
    return model


@pytest.fixture(scope="module")
def keras_file(keras_vgg16, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg16") / "vgg16_notop.h5"
    write_keras_file(path, keras_vgg16)
    yield path
    path.unlink()  # 59 MB


@pytest.fixture(scope="module")
def params(keras_file):
    return vgg16.load(str(keras_file))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keras_features(model, pictures, layers):
    outputs = [model.get_layer(name).output for name in layers]
    x = tf.keras.applications.vgg16.preprocess_input(255.0 * pictures.astype(np.float64))
    features = tf.keras.Model(model.input, outputs)(tf.constant(x, tf.float32))
    return dict(zip(layers, (f.numpy() for f in features), strict=True))


def test_features_equal_keras(keras_vgg16, params):
    # Odd sides: all but the last pooling drop a row or a column.
    _, pictures = images(0, batch=1, size=(43, 53))
    expected = keras_features(keras_vgg16, pictures, LAYERS)
    features = jax.jit(VGG16(taps=tuple(LAYERS)).apply)({"params": params}, pictures)
    assert list(features) == LAYERS
    for name in LAYERS:
        assert features[name].dtype == jnp.float32
        scale = np.abs(expected[name]).max()
        assert scale > 1
        np.testing.assert_allclose(features[name], expected[name], atol=1e-4 * scale, rtol=0)


def test_parameters_are_those_that_the_network_declares(params):
    declared = jax.eval_shape(
        VGG16(taps=("block5_conv3",)).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
    )["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), declared
    )
    assert sum(x.size for x in jax.tree.leaves(params)) == 14_714_688


def test_perceptual_is_the_relative_distance_of_the_features(keras_vgg16, params):
    restored, clean = images(1)
    of_restored, of_clean = (
        keras_features(keras_vgg16, x, ["block1_conv2", "block2_conv2", "block3_conv3"])
        for x in (restored, clean)
    )
    expected = np.zeros(2)
    for a, b in zip(of_restored.values(), of_clean.values(), strict=True):
        for i in range(2):
            expected[i] += np.mean((a[i] - b[i]) ** 2) / np.mean(b[i] ** 2) / 3
    values = VALUES(restored, clean, None, params)
    assert values.shape == (2,)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    assert LOSSES["perceptual"] is perceptual


def test_each_layer_counts_alike_whatever_its_scale(params):
    restored, clean = images(2)
    loud = {name: dict(layer) for name, layer in params.items()}
    loud["block3_conv3"] = {kind: 100 * x for kind, x in params["block3_conv3"].items()}
    np.testing.assert_allclose(
        VALUES(restored, clean, None, loud),
        VALUES(restored, clean, None, params),
        rtol=1e-4,
    )


def test_gradient_is_a_slope_and_finite_where_images_are_flat_or_equal(params):
    texture = images(3, batch=1)[0][0]
    flat = np.full_like(texture, 0.5)
    # The mean colour of ImageNet: every input of the network is zero.
    silent = np.broadcast_to(np.float32([123.68, 116.779, 103.939]) / 255, texture.shape)
    pairs = [(texture, texture), (flat, flat), (0 * flat, texture), (texture, silent)]
    restored, clean = (np.stack(x) for x in zip(*pairs, strict=True))
    _, gradient = SLOPE(restored, clean, params)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    pull = np.abs(gradient).max((1, 2, 3))
    np.testing.assert_allclose(pull[:2], 0, atol=1e-6)
    assert pull[2:].min() > 1e-4
    step = 1e-3 * gradient / pull.max()
    ahead, behind = (SLOPE(restored + s, clean, params)[0] for s in (step, -step))
    np.testing.assert_allclose(ahead - behind, 2 * np.sum(gradient * step), rtol=0.02)


def test_features_that_vanish_do_not_divide_by_zero(params):
    restored, clean = images(4, batch=4)
    value, gradient = SLOPE(restored, clean, jax.tree.map(np.zeros_like, params))
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_bfloat16_is_cast_before_any_arithmetic(params):
    restored, clean = (jnp.asarray(x, jnp.bfloat16) for x in images(5))
    values = VALUES(restored, clean, None, params)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(
        values,
        VALUES(restored.astype(jnp.float32), clean.astype(jnp.float32), None, params),
    )


def test_wrong_calls_are_refused(params):
    restored, clean = images(6)
    with pytest.raises(ValueError, match="perceptual needs the parameters of VGG16"):
        perceptual(restored, clean)
    with pytest.raises(ValueError, match=r"\(2, 3, 18, 3\) are too small"):
        perceptual(restored[:, :3], clean[:, :3], None, params)
    with pytest.raises(ValueError, match="block6_conv1"):
        jax.eval_shape(VGG16(("block1_conv1", "block6_conv1")).apply, {"params": params}, clean)


def test_weighted_sum_takes_the_parameters_as_an_argument(params):
    restored, clean = images(7)
    valid = np.array([True, False])
    loss = weighted_sum({"perceptual": 0.2, "l1": 1.0})
    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    loss_params = {"perceptual": params}
    (total, terms), gradient = program(restored, clean, None, valid, loss_params)
    expected = VALUES(restored, clean, None, params)[0]
    np.testing.assert_allclose(terms["perceptual"], expected, rtol=1e-4)
    np.testing.assert_allclose(total, 0.2 * expected + terms["l1"], rtol=1e-4)
    assert float(jnp.abs(gradient[0]).max()) > 0
    np.testing.assert_array_equal(gradient[1], 0.0)
    # 59 MB of constants would be in the text.
    assert len(program.lower(restored, clean, None, valid, loss_params).as_text()) < 200_000
    with pytest.raises(ValueError, match="perceptual needs the parameters of VGG16"):
        loss(restored, clean, None, valid)


def test_taps_are_layers_in_order():
    assert [name for name in LAYERS if name in TAPS] == list(TAPS)


def config(weight=0.2, path=""):
    return ConfigDict({"loss": {"perceptual": weight}, "vgg16_weights": path})


def test_nothing_is_loaded_where_the_loss_needs_nothing(monkeypatch):
    monkeypatch.setattr(vgg16, "load", lambda path: pytest.fail("loaded"))
    assert vgg16.load_loss_params(config(weight=0.0)) == {}
    assert vgg16.load_loss_params(ConfigDict({"loss": {"l1": 1.0}})) == {}


def test_loads_what_keras_saves(keras_vgg16, params, tmp_path):
    path = tmp_path / "saved.weights.h5"
    with warnings.catch_warnings():
        # Keras's, on writing, with NumPy 2.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        keras_vgg16.save_weights(path)
    loaded = vgg16.load_loss_params(config(path=str(path)))
    path.unlink()
    assert list(loaded) == ["perceptual"]
    jax.tree.map(np.testing.assert_array_equal, loaded["perceptual"], params)
    for name in LAYERS:
        kernel, bias = keras_vgg16.get_layer(name).get_weights()
        np.testing.assert_array_equal(params[name]["kernel"], kernel)
        np.testing.assert_array_equal(params[name]["bias"], bias)


def test_downloads_once_and_keeps_an_archive(keras_vgg16, params, monkeypatch, capsys):
    asked = []

    def download(weights, include_top):
        asked.append((weights, include_top))
        return keras_vgg16

    monkeypatch.setattr(tf.keras.applications, "VGG16", download)
    first = vgg16.load_loss_params(config())
    assert asked == [("imagenet", False)]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    again = vgg16.load_loss_params(config())
    assert len(asked) == 1
    jax.tree.map(np.testing.assert_array_equal, first, {"perceptual": params})
    jax.tree.map(np.testing.assert_array_equal, again, {"perceptual": params})
    assert list(cache_file().parent.iterdir()) == [cache_file()]
    # The archive can be taken to another machine.
    carried = vgg16.load(str(cache_file()))
    jax.tree.map(np.testing.assert_array_equal, carried, params)
    cache_file().unlink()


def test_without_a_network_the_line_says_what_to_do(tmp_path, monkeypatch):
    # Nothing listens there, and Keras has no copy in this folder.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        vgg16.load_loss_params(config())
    message = str(caught.value)
    assert "\n" not in message
    assert "refused" in message
    for words in ("config.vgg16_weights", "_notop.h5", "config.loss.perceptual=0"):
        assert words in message
    assert not cache_file().exists()


def archive_of(kernel, **bias):
    """Makes an archive of the first layer alone."""
    arrays = {"block1_conv1/kernel": np.ones(kernel)}
    arrays |= {f"block1_conv1/{name}": value for name, value in bias.items()}
    return lambda path: np.savez(path, **arrays)


def save_bare(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def write_other(path):
    """The file of a network of another shape."""
    layers = [
        SimpleNamespace(name="dense", weights=[1], get_weights=lambda: [np.ones((2, 2))] * 2)
    ]
    write_keras_file(path, SimpleNamespace(layers=layers))


KERNEL = (3, 3, 3, 64)
BAD_FILES = {
    "missing.h5": (lambda path: None, "no such file"),
    "folder.npz": (lambda path: path.mkdir(), "no such file"),
    "weights.pth": (lambda path: path.write_text("x"), "neither an .h5 nor an .npz file"),
    "text.h5": (lambda path: path.write_text("x"), "not the weights of Keras's VGG16"),
    "text.weights.h5": (lambda path: path.write_text("x"), "not the weights of Keras's VGG16"),
    "other.h5": (write_other, "not the weights of Keras's VGG16"),
    "text.npz": (lambda path: path.write_text("x"), "not a NumPy archive"),
    "empty.npz": (lambda path: path.touch(), "not a NumPy archive"),
    "cut.npz": (
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)),
        "not a NumPy archive",
    ),
    "bare.npz": (save_bare, "not a NumPy archive"),
    "lacking.npz": (archive_of(KERNEL), "has no block1_conv1/bias"),
    "short.npz": (archive_of(KERNEL, bias=np.ones(64)), "has no block1_conv2/kernel"),
    "shape.npz": (
        archive_of((64, 3, 3, 3)),
        "block1_conv1/kernel is float64 (64, 3, 3, 3), not float32 (3, 3, 3, 64)",
    ),
    "whole.npz": (
        archive_of(KERNEL, bias=np.ones(64, np.int64)),
        "block1_conv1/bias is int64 (64,), not float32 (64,)",
    ),
    "nan.npz": (
        archive_of(KERNEL, bias=np.full(64, np.nan)),
        "block1_conv1/bias holds values that are not finite",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(name, tmp_path):
    make, words = BAD_FILES[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(UsageError) as caught:
        vgg16.load(str(path))
    message = str(caught.value)
    assert message.startswith(f"config.vgg16_weights: {path}: {words}")
    assert "\n" not in message
    assert "config.loss.perceptual=0" in message


def test_spoilt_archive_in_the_cache_is_named():
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text("x")
    with pytest.raises(
        UsageError, match=r"vgg16_imagenet\.npz: not a NumPy archive.*delete it"
    ):
        vgg16.load()


def test_cache_that_cannot_be_written_is_named(tmp_path, keras_vgg16, monkeypatch):
    monkeypatch.setattr(tf.keras.applications, "VGG16", lambda **_: keras_vgg16)
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UsageError, match=r"vgg16_imagenet\.npz: .* cannot be saved there"):
        vgg16.load()
