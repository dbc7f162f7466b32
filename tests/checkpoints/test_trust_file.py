import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

import restore_jax
from restore_jax import models
from restore_jax.checkpoints import trust_file, weights_file
from restore_jax.errors import UsageError
from tests.support import networks, trusting

CONFIG = ConfigDict({"model": {"name": "sca_unet", "widths": (2, 4)}})


@pytest.fixture(scope="module")
def variables():
    return networks.variables_of(models.create("sca_unet", widths=(2, 4)))


@pytest.fixture
def path(tmp_path, variables):
    return weights_file.save_weights(
        tmp_path / "m.safetensors", variables, CONFIG, metadata={"licence": "MIT"}
    )


def assert_equal(trust, other):
    assert (trust.model, trust.notes) == (other.model, other.notes)
    assert jax.tree.structure(trust.variables) == jax.tree.structure(other.variables)
    jax.tree.map(np.testing.assert_array_equal, trust.variables, other.variables)


def test_a_file_without_a_trust_map_has_none(path, variables):
    assert trust_file.of_model(path, variables) is None
    assert restore_jax.load(path).trust_map is None


def test_a_weights_file_gets_one_and_keeps_the_rest(path, tmp_path, variables):
    target = tmp_path / "both.safetensors"
    trust_file.add(path, trusting.trust_map(), target)
    assert_equal(trust_file.of_model(target, variables), trusting.trust_map())
    before, after = (weights_file.read_file(file) for file in (path, target))
    kept = {name: array for name, array in after[0].items() if name in before[0]}
    jax.tree.map(np.testing.assert_array_equal, kept, before[0])
    assert before[1].items() <= after[1].items()
    assert weights_file.read_notes(target) == {"licence": "MIT"}
    assert_equal(restore_jax.load(target).trust_map, trusting.trust_map())


def test_a_second_one_replaces_the_first(path, variables):
    for seed in (0, 1):
        trust_file.add(path, trusting.trust_map(seed), path)
    assert_equal(trust_file.of_model(path, variables), trusting.trust_map(1))


def test_that_of_a_workdir_holds_for_one_checkpoint(tmp_path, variables):
    trust_file.write_beside(tmp_path, trusting.trust_map(), variables)
    found = trust_file.of_model(tmp_path, variables)
    assert found.notes.items() >= trusting.NOTES.items()
    of_checkpoint = tmp_path / "checkpoints" / "3"
    of_checkpoint.mkdir(parents=True)
    assert trust_file.of_model(of_checkpoint, variables) is not None
    link = tmp_path / "link"
    link.symlink_to(of_checkpoint, target_is_directory=True)
    assert trust_file.of_model(link, variables) is not None
    others = jax.tree.map(lambda leaf: leaf + 1, variables)
    assert trust_file.of_model(tmp_path, others) is None


def changed(metadata, **fields):
    notes = json.loads(metadata["trust"]) | fields
    metadata["trust"] = json.dumps(notes)


def test_one_of_an_earlier_version_is_none_and_the_model_loads(path, variables):
    trust_file.add(path, trusting.trust_map(), path)
    arrays, metadata = weights_file.read_file(path)
    notes = {"width": 24, "coverage": 0.9}  # as the first version wrote them
    path.write_bytes(safetensors.numpy.save(arrays, metadata | {"trust": json.dumps(notes)}))
    assert trust_file.of_model(path, variables) is None
    restorer = restore_jax.load(path)
    with pytest.raises(
        UsageError, match="or an earlier version; make one with restore-jax trust"
    ):
        restorer(np.zeros((16, 16, 3), np.float32), trust=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays, notes: notes.pop("trust"), "damaged header"),
        (lambda arrays, notes: notes.update(trust="[]"), "damaged header"),
        (lambda arrays, notes: changed(notes, width="wide"), "damaged header"),
        (lambda arrays, notes: changed(notes, alarm=None), "damaged header"),
        (lambda arrays, notes: changed(notes, width=5), "trust: params/conv1/bias"),
        (
            lambda arrays, notes: arrays.pop("trust/calibration/levels"),
            "trust: calibration/levels is missing",
        ),
        (
            lambda arrays, notes: arrays["trust/params/output/bias"].fill(np.nan),
            "trust: params/output/bias holds values that are not finite",
        ),
    ],
)
def test_a_damaged_one_is_one_line(path, change, words, variables):
    trust_file.add(path, trusting.trust_map(), path)
    arrays, metadata = weights_file.read_file(path)
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, metadata)
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    with pytest.raises(UsageError, match=words) as error:
        trust_file.of_model(path, variables)
    assert "\n" not in str(error.value)


def test_the_restorer_still_loads_without_its_calibration(path, variables):
    trust_file.add(path, trusting.trust_map(), path)
    _, read, _ = weights_file.read_weights(path)
    jax.tree.map(np.testing.assert_array_equal, read["params"], variables["params"])
