import hashlib
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import restore_jax
from restore_jax import shipped, weights_file
from restore_jax.errors import UsageError
from tests import shipping

ROOT = pathlib.Path(__file__).parent.parent
MOST_BYTES = 12_000_000


@pytest.fixture
def ships(monkeypatch, tmp_path):
    return shipping.ship(monkeypatch, tmp_path / "weights")


@pytest.mark.parametrize("model", shipped.MODELS, ids=lambda model: model.name)
def test_a_shipped_model_is_what_its_row_says(model):
    content = model.path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == model.sha256
    notes = weights_file.read_notes(model.path)
    assert notes["licence"] == model.licence
    assert notes["name"] == model.name
    assert (ROOT / model.config).is_file()
    assert (ROOT / model.card).is_file()
    for text in (model.purpose, model.training_data, model.protocol):
        assert text
        assert len(text.splitlines()) == 1
    assert model.figures
    restorer = restore_jax.load(model.name)
    image = np.random.default_rng(0).random((40, 33, 3), np.float32)
    restored = restorer(image)
    assert restored.shape == image.shape
    assert np.isfinite(restored).all()
    assert not np.array_equal(restored, image)


def test_the_table_and_its_folder_hold_the_same_and_little():
    files = {path.name: path.stat().st_size for path in shipped.FOLDER.glob("*.safetensors")}
    assert sorted(files) == sorted(model.file for model in shipped.MODELS)
    assert sum(files.values()) <= MOST_BYTES
    names = shipped.models_available()
    assert len(set(names)) == len(names)


def test_the_names_are_known_without_jax():
    script = (
        "import sys, restore_jax\n"
        "print(restore_jax.models_available())\n"
        "assert not {'jax', 'numpy', 'absl'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{shipped.models_available()}\n"


def test_a_name_stands_for_its_file(ships, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert restore_jax.models_available() == [shipping.NAME]
    found = weights_file.read_model(shipping.NAME)
    expected = weights_file.read_weights(ships[0].path)
    assert found[0] == expected[0]
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    # A path that exists is what the user has at hand.
    (tmp_path / shipping.NAME).mkdir()
    with pytest.raises(UsageError, match=r"no config\.json in it"):
        restore_jax.load(shipping.NAME)


def test_an_unknown_name_is_refused_with_those_there_are(monkeypatch, tmp_path):
    shipping.ship(monkeypatch, tmp_path / "weights", "one", "two")
    assert shipped.default().name == "one"
    with pytest.raises(UsageError, match=r"^three: does not exist; .*: one, two$"):
        restore_jax.load("three")
    with pytest.raises(UsageError, match=r"^three: no model .*; there are one, two$"):
        shipped.checked("three")


def test_without_shipped_models_a_path_is_asked_for(monkeypatch):
    monkeypatch.setattr(shipped, "MODELS", ())
    with pytest.raises(UsageError, match=r"^--workdir: missing, and no model"):
        shipped.default()
    with pytest.raises(UsageError, match=r"a \.safetensors file$"):
        restore_jax.load("general")


def test_a_changed_or_missing_file_is_refused_in_one_line(ships):
    path = ships[0].path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for match in ("not the file of the shipped model 'tiny'", "cannot be read"):
        with pytest.raises(UsageError, match=match) as refused:
            restore_jax.load(shipping.NAME)
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)
        path.unlink(missing_ok=True)
