import json
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from restore_jax import models
from restore_jax.checkpoints import weights_file
from restore_jax.errors import UsageError
from tests.support import tiny


def settings(**data):
    return ConfigDict({"model": {"name": "sca_unet", "widths": (2, 4)}, "data": data})


def random_variables(model):
    """Parameters of the right shapes; what `init` draws would take a compilation."""
    image = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0, 1, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def variables():
    return random_variables(models.create("sca_unet", widths=(2, 4)))


@pytest.fixture
def path(tmp_path, variables):
    return weights_file.save_weights(tmp_path / "m.safetensors", variables, settings())


def header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path, change):
    """Changes the header of a file, by the format's own description."""
    fields, rest = header(path)
    change(fields)
    text = json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_gives_back_model_variables_and_config(path, variables):
    model, read, config = weights_file.read_weights(path)
    assert model == models.create("sca_unet", widths=(2, 4))
    assert_equal(read["params"], variables["params"])
    assert read["batch_stats"] == {}
    assert config.model.name == "sca_unet"
    assert list(path.parent.iterdir()) == [path]


def test_the_statistics_of_batch_norm_are_kept(tmp_path):
    config = ConfigDict({"model": {"name": "pexels_cnn"}})
    model = models.from_config(ConfigDict({"dtype": "float32", "model": config.model}))
    variables = random_variables(model)
    path = weights_file.save_weights(tmp_path / "m.safetensors", variables, config)
    _, read, _ = weights_file.read_weights(path)
    assert jax.tree.leaves(read["batch_stats"])
    assert_equal(read, variables)


def test_any_reader_of_safetensors_opens_it(path, variables):
    arrays = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(
        arrays["params/down1/conv1/kernel"], variables["params"]["down1"]["conv1"]["kernel"]
    )
    metadata = header(path)[0]["__metadata__"]
    assert metadata["format"] == "restore_jax"
    assert metadata["format_version"] == "1"
    assert int(metadata["parameters"]) == sum(x.size for x in arrays.values())
    assert json.loads(metadata["config"])["model"] == {"name": "sca_unet", "widths": [2, 4]}


def test_the_whole_of_a_trainings_config_is_kept_but_its_paths(tmp_path, variables):
    config = tiny.config()
    config.model = settings().model
    config.data.root = config.data.cache_dir = config.vgg16_weights = "/home/somebody/x"
    path = weights_file.save_weights(tmp_path / "m.safetensors", variables, config)
    assert b"somebody" not in path.read_bytes()
    _, _, read = weights_file.read_weights(path)
    assert read.optimizer.learning_rate == config.optimizer.learning_rate
    assert read.data.degradation.preset == config.data.degradation.preset
    assert read.data.root == ""
    assert config.data.root == "/home/somebody/x"


@pytest.mark.parametrize(
    ("name", "marked"), [("mvtec_ad", True), ("kla", True), ("sample", False), ("pairs", False)]
)
def test_weights_of_mvtec_ad_are_marked_non_commercial(tmp_path, variables, name, marked):
    path = weights_file.save_weights(tmp_path / "m.safetensors", variables, settings(name=name))
    note = header(path)[0]["__metadata__"].get("licence", "")
    assert note.startswith("weights trained on MVTec AD: non-commercial") == marked


def test_an_explicit_licence_wins_and_notes_are_read_back(tmp_path, variables):
    notes = {"name": "mine", "purpose": "scans", "licence": "Apache-2.0"}
    path = weights_file.save_weights(
        tmp_path / "m.safetensors", variables, settings(name="kla"), metadata=notes
    )
    assert weights_file.read_notes(path) == notes
    assert header(path)[0]["__metadata__"]["format"] == "restore_jax"
    for wrong in ({"format": "x"}, {"licence": ""}, {"name": "two\nlines"}, {"name": 5}):
        with pytest.raises(UsageError, match="metadata: "):
            weights_file.save_weights(
                tmp_path / "n.safetensors", variables, settings(), metadata=wrong
            )
    assert list(tmp_path.iterdir()) == [path]


def test_half_precision_halves_the_file_and_is_read_as_float32(tmp_path):
    config = ConfigDict({"model": {"name": "pexels_cnn"}})
    variables = random_variables(models.create("pexels_cnn"))
    whole = weights_file.save_weights(tmp_path / "whole.safetensors", variables, config)
    half = weights_file.save_weights(
        tmp_path / "half.safetensors", variables, config, dtype="float16"
    )
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    _, read, _ = weights_file.read_weights(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype(np.float32)}
    assert_equal(read["batch_stats"], variables["batch_stats"])
    assert_equal(
        read["params"],
        jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), variables["params"]),
    )
    # An earlier release knows version 1 alone: it must not take this for another model's.
    assert header(half)[0]["__metadata__"]["format_version"] == "2"


def test_what_half_precision_cannot_hold_is_refused(tmp_path, variables):
    path = tmp_path / "m.safetensors"
    large = jax.tree.map(lambda x: np.full_like(x, 1e6), variables)
    with pytest.raises(UsageError, match="beyond the range of float16"):
        weights_file.save_weights(path, large, settings(), dtype="float16")
    with pytest.raises(UsageError, match="dtype: 'int8' is not one of float32, float16"):
        weights_file.save_weights(path, variables, settings(), dtype="int8")
    assert not path.exists()


def test_a_file_that_exists_is_replaced_only_when_told(path, variables):
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"m\.safetensors: exists"):
        weights_file.save_weights(path, variables, settings(name="kla"))
    assert path.read_bytes() == before
    weights_file.save_weights(path, variables, settings(name="kla"), overwrite=True)
    assert path.read_bytes() != before


def test_what_cannot_be_saved_is_refused(tmp_path, variables):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        weights_file.save_weights(tmp_path / "m.npz", variables, settings())
    with pytest.raises(UsageError, match=r"names no model \(config\.model\.name\)"):
        weights_file.save_weights(path, variables, ConfigDict({"seed": 1}))
    other = settings()
    other.model.widths = (2, 6)
    with pytest.raises(UsageError, match=r"params/.* is float32 .* and should be"):
        weights_file.save_weights(path, variables, other)
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(UsageError, match="not finite"):
        weights_file.save_weights(path, broken, settings())
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        weights_file.save_weights(tmp_path / "file" / "m.safetensors", variables, settings())
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def assert_refused(path, match):
    with pytest.raises(UsageError, match=match) as refused:
        weights_file.read_weights(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_cut_anywhere_is_refused(path):
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, 1000, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(path, "not a safetensors file, or damaged")


def test_noise_is_refused(path):
    rng = np.random.default_rng(0)
    for _ in range(20):
        path.write_bytes(rng.bytes(500))
        assert_refused(path, "not a safetensors file")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert_refused(path, "not a safetensors file")


def test_weights_of_other_programs_are_refused(path):
    safetensors.numpy.save_file({"conv.weight": np.zeros(3, np.float32)}, path)
    assert_refused(path, "not written by restore_jax")
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, path, {"format": "pt"})
    assert_refused(path, "not written by restore_jax")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("format_version", "3", "format version 3; .* install a newer one"),
        ("config", "{", "not a configuration"),
        ("config", "[1]", "not a configuration .not an object"),
        ("config", "{}", "names no model"),
        ("config", '{"model": {"name": 5}}', r"config\.model\.name: 5 is not a string"),
        ("config", '{"model": {"name": "nonsense"}}', "no model 'nonsense'"),
        ("config", '{"model": {"name": "sca_unet", "width": 3}}', "no such option"),
        ("config", '{"model": {"name": "rcan"}}', "belongs to another"),
        ("parameters", "many", "damaged header"),
        ("parameters", "7", "its header says 7"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(path, field, value, match):
    rewrite(path, lambda fields: fields["__metadata__"].update({field: value}))
    assert_refused(path, match)


@pytest.mark.parametrize("field", ["config", "parameters"])
def test_a_header_without_a_field_is_refused(path, field):
    rewrite(path, lambda fields: fields["__metadata__"].pop(field))
    assert_refused(path, f"damaged header .*{field}")


def test_arrays_that_do_not_fit_are_refused(path, variables):
    metadata = header(path)[0]["__metadata__"]
    arrays = safetensors.numpy.load_file(path)
    name = "params/down1/conv1/bias"
    for change, match in (
        ({name: np.zeros(3, np.float32)}, rf"{name} is float32 \[3\] and should be .*\[2\]"),
        ({name: np.zeros(2, np.float16)}, f"{name} is float16"),
        ({name: np.array([1, np.inf], np.float32)}, f"{name} holds values"),
        ({"params/new/bias": np.zeros(2, np.float32)}, "params/new/bias is not in this model"),
        ({"params": np.zeros(2, np.float32)}, "params"),
        ({f"{name}/deeper": np.zeros(2, np.float32)}, name),
    ):
        safetensors.numpy.save_file(arrays | change, path, metadata)
        assert_refused(path, match)
    del arrays[name]
    safetensors.numpy.save_file(arrays, path, metadata)
    assert_refused(path, f"{name} is missing")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert_refused(tmp_path / "none.safetensors", "cannot be read")
    assert_refused(tmp_path, "cannot be read")
