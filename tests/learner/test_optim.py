import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import default
from restore_jax.errors import UsageError
from restore_jax.learner import optim


def options(**changes):
    config = ConfigDict(default.get_config("sample").optimizer)
    config.update(changes)
    return config


def rates(config, steps_per_epoch, total):
    schedule = optim.make_schedule(config, steps_per_epoch, total)
    return np.array([float(schedule(step)) for step in range(total)])


def test_constant_schedule():
    np.testing.assert_allclose(rates(options(learning_rate=1e-3), 5, 10), 1e-3)


def test_cosine_schedule_by_formula():
    got = rates(options(schedule="cosine", learning_rate=2.0, final_fraction=0.1), 5, 10)
    expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10)))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_warm_restarts_grow_and_start_anew():
    config = options(
        schedule="warm_restarts", learning_rate=1.0, restart_epochs=2.0, restart_factor=2.0
    )
    got = rates(config, 3, 30)  # cycles of 6, 12 and 24 steps
    expected = np.concatenate(
        [0.5 * (1 + np.cos(np.pi * np.arange(n) / n)) for n in (6, 12, 24)]
    )
    np.testing.assert_allclose(got, expected[:30], atol=1e-6)


def test_warmup_rises_from_zero_to_the_schedule():
    got = rates(options(warmup_epochs=0.8, learning_rate=1.0), 5, 10)
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])


def first_update(config, gradient=4.0, parameter=10.0):
    optimizer = optim.make_optimizer(config, optax.constant_schedule(0.1))
    params = {"w": jnp.full((4,), parameter)}
    updates, _ = optimizer.update(
        {"w": jnp.full((4,), gradient)}, optimizer.init(params), params
    )
    return np.asarray(updates["w"])


def test_adam_takes_its_first_step_by_the_learning_rate():
    np.testing.assert_allclose(first_update(options()), -0.1, rtol=1e-5)


def test_adamw_adds_the_decay_of_the_parameters():
    updates = first_update(options(name="adamw", weight_decay=0.01))
    np.testing.assert_allclose(updates, -0.1 * (1 + 0.01 * 10.0), rtol=1e-5)


def test_clipping_limits_the_global_norm():
    optimizer = optim.make_optimizer(options(clip_norm=1.0), optax.constant_schedule(0.1))
    params = {"w": jnp.zeros(4)}
    _, state = optimizer.update({"w": jnp.full((4,), 4.0)}, optimizer.init(params), params)
    moment = optax.tree.get(state, "mu")["w"]
    np.testing.assert_allclose(moment, 0.1 * 0.5, rtol=1e-5)  # 4s of norm 8, scaled to 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"schedule": "linear"}, "schedule"),
        ({"warmup_epochs": 2.0}, "warmup_epochs"),
        ({"warmup_epochs": -1.0}, "warmup_epochs"),
        ({"final_fraction": 2.0}, "final_fraction"),
        ({"schedule": "warm_restarts", "restart_epochs": 0.0}, "restart_epochs"),
        ({"schedule": "warm_restarts", "restart_factor": 0.5}, "restart_factor"),
    ],
)
def test_wrong_schedules_name_the_field(changes, field):
    with pytest.raises(UsageError, match=rf"config\.optimizer\.{field}"):
        optim.make_schedule(options(**changes), 5, 10)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "sgd"}, "name"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_wrong_optimizers_name_the_field(changes, field):
    with pytest.raises(UsageError, match=rf"config\.optimizer\.{field}"):
        optim.make_optimizer(options(**changes))
