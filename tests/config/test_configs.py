"""Every experiment: it builds, trains, comes back from its checkpoint and restores any size."""

import functools
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from restore_jax import batches
from restore_jax.checkpoints import checkpoint
from restore_jax.errors import UsageError
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.metrics.cost import parameter_count
from restore_jax.parallel import device_mesh
from restore_jax.train import setup, steps
from tests.support import checkpoints, tiny

FOLDER = pathlib.Path(default.__file__).parent
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "default")
)

# Parameters of the model by the config's name, as the reports give or imply them.
TOTALS = {
    "cbam_unet": 27_949_319,  # 27,949,124 with the no-op in the place of the second head
    "gain_unet": 854_367,
    "gain_unet_native": 853_575,
    "measured_gain": 822_332,
    "general": 822_332,
    "pexels_cnn": 83_715,
    "pexels_gan": 1_379_843,
    "pexels_unet": 7_766_051,
    "rcan": 763_243,
    "sca_unet": 867_842,
    "sca_unet_released": 867_842,
    "unet_small": 430_339,
}

# So that a step is quick: the same architecture with few channels.
NARROW = {
    "cbam_unet": {"widths": (2, 4, 8), "skips": (True, False)},
    "gain_unet": {"widths": (4, 6), "blocks": 1},
    "gain_unet_native": {"widths": (4, 6), "blocks": 1},
    "measured_gain": {"widths": (4, 6), "blocks": 1},
    "general": {"widths": (4, 6), "blocks": 1},
    "pexels_cnn": {"widths": (4, 5)},
    "pexels_gan": {"widths": (2, 4)},
    "pexels_unet": {"bottleneck": 32},
    "rcan": {"width": 4, "blocks": 2},
    "sca_unet": {"widths": (2, 4)},
    "sca_unet_released": {"widths": (2, 4)},
    "unet_small": {"widths": (4, 6)},
}


def get_config(name, data="sample"):
    return importlib.import_module(f"configs.{name}").get_config(data)


def narrow(name):
    config = get_config(name)
    assert NARROW[name].keys() <= set(config.model)
    config.model.update(NARROW[name])
    config.loss.perceptual = 0.0
    return config


def test_every_experiment_is_in_the_tables():
    assert TOTALS.keys() == NARROW.keys() == set(NAMES)


@pytest.mark.parametrize("data", default.DATA)
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_takes_every_data_and_only_fields_of_the_default(name, data):
    config, base = get_config(name, data), default.get_config(data)
    assert config.name == name
    assert config.data.name == data
    assert config.data.split == "defects" or data in ("mvtec_ad", "inspection", "sample")

    def fields(tree, path=""):
        return {
            field
            for key, value in tree.items()
            for field in (
                fields(value, f"{path}{key}.")
                if isinstance(value, ConfigDict)
                else [path + key]
            )
        }

    added = {field for field in fields(config) - fields(base) if not field.startswith("model.")}
    assert not added
    json.dumps(config.to_dict(), allow_nan=False)
    loss_terms.weighted_sum(config.loss)
    with pytest.raises(UsageError, match="unknown data set"):
        get_config(name, "cats")


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_for_shots_would_learn_the_noise_of_the_targets(name):
    config = get_config(name, "shots")
    setup.check(config, device_mesh.make_mesh(jax.devices()[:1]))
    assert loss_terms.active(config.loss)


@pytest.mark.parametrize("name", NAMES)
def test_the_total_of_the_parameters_is_exact(name):
    learner = state.make_learner(get_config(name))
    shapes = state.abstract_state(learner, sharding=None)
    assert parameter_count(shapes.params) == TOTALS[name]
    if name == "pexels_gan":
        assert parameter_count(shapes.adversary.params) == 696_225
    else:
        assert shapes.adversary is None


@pytest.mark.parametrize("name", NAMES)
def test_a_step_and_its_checkpoint(name, tmp_path):
    config = narrow(name)
    learner = state.make_learner(config, steps_per_epoch=10, total_steps=100)
    before = state.create_state(learner, seed=0)
    pairs = tiny.images(2)
    pairs["has_mask"][1] = False
    pairs["mask"][1] = 0
    step = jax.jit(
        functools.partial(
            steps.train_step,
            learner=learner,
            loss_fn=loss_terms.weighted_sum(config.loss),
            seed=0,
            mask_dropout=config.train.mask_dropout,
        )
    )
    arrays, after = {key: jnp.asarray(pairs[key]) for key in batches.ARRAYS}, before
    # The first of a rising learning rate is 0, and a layer of zeros hides those before it.
    for _ in range(5):
        after, scalars = step(after, arrays)
    for key, value in scalars.items():
        assert np.isfinite(value), key
    terms = {f"loss_{term}" for term in loss_terms.active(config.loss)}
    assert terms < scalars.keys()
    changed = [
        np.any(x != y)
        for x, y in zip(
            jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True
        )
    ]
    assert np.mean(changed) > 0.8
    for leaf in jax.tree.leaves(after):
        assert np.all(np.isfinite(leaf))

    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, after, {"epoch": 1, "ssim": 0.5})
        manager.wait_until_finished()
        sharding = device_mesh.replicated(device_mesh.make_mesh(jax.devices()[:1]))
        template = state.abstract_state(state.make_learner(config), sharding)
        restored, _ = checkpoints.restore(manager, 5, template)
    assert jax.tree.structure(restored) == jax.tree.structure(after)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)

    odd = np.random.default_rng(0).random((1, 37, 53, 3), np.float32)
    image = jax.jit(learner.model.apply)(state.inference_variables(restored), odd)
    assert image.shape == (1, 37, 53, 3)
    assert image.dtype == jnp.float32
    assert np.all(np.isfinite(image))
