import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from restore_jax import batches, models
from restore_jax.errors import UsageError
from restore_jax.learner import adversarial, state
from restore_jax.losses import loss_terms
from restore_jax.train import loop, steps
from tests.support import tiny
from tests.support.networks import apply

update = jax.jit(adversarial.update, static_argnums=0)
fooling_loss = jax.jit(adversarial.fooling_loss, static_argnums=0)


@pytest.fixture(scope="module")
def adversary():
    judge = models.create("pexels_discriminator", widths=(2, 4))
    return adversarial.Adversary(judge, optax.sgd(0.1), weight=0.5)


@pytest.fixture(scope="module")
def first(adversary):
    return jax.jit(adversarial.create, static_argnums=0)(adversary, jax.random.key(0))


def arrays(rows=(0, 1, 2), size=4):
    batch = tiny.batch_rows(tiny.images(4), list(rows), size)
    return {name: jnp.asarray(batch[name]) for name in batches.ARRAYS}


def judged(adversary, first, batch, candidate):
    """Logits of the valid rows alone."""
    rows = batch["valid"]
    logits, _ = jax.jit(
        functools.partial(adversary.discriminator.apply, train=True, mutable=["batch_stats"])
    )(
        {"params": first.params, "batch_stats": first.batch_stats},
        batch["degraded"][rows],
        candidate[rows],
    )
    return np.asarray(logits, np.float64)


def test_the_losses_are_those_of_the_paper(adversary, first):
    batch = arrays()
    restored = batch["degraded"] * 0.9
    fake = judged(adversary, first, batch, restored)
    real = judged(adversary, first, batch, batch["clean"])
    expected = np.mean(-np.log(1 / (1 + np.exp(-fake))))
    found = fooling_loss(adversary, first, batch, restored)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    after, loss = update(adversary, first, batch, restored)
    by_hand = -np.mean(np.log(1 / (1 + np.exp(-real)))) - np.mean(
        np.log(1 - 1 / (1 + np.exp(-fake)))
    )
    assert float(loss) == pytest.approx(by_hand / 2, rel=1e-4)
    again = update(adversary, after, batch, restored)[1]
    assert float(again) < float(loss)
    stats = jax.tree.leaves(after.batch_stats)
    assert any(
        np.any(a != b) for a, b in zip(stats, jax.tree.leaves(first.batch_stats), strict=True)
    )


def test_one_that_guesses_loses_ln_2(adversary, first):
    params = dict(first.params)
    params["output"] = jax.tree.map(jnp.zeros_like, params["output"])
    blind = first.replace(params=params)
    batch = arrays()
    assert float(update(adversary, blind, batch, batch["clean"])[1]) == pytest.approx(
        math.log(2), rel=1e-6
    )


def test_no_gradient_of_the_discriminator_reaches_the_restoration(adversary, first):
    batch = arrays()

    def loss(restored):
        return update(adversary, first, batch, restored)[1]

    assert not np.any(jax.grad(loss)(batch["degraded"]))
    gradient = jax.grad(lambda restored: fooling_loss(adversary, first, batch, restored))(
        batch["degraded"]
    )
    assert np.any(gradient[:3])
    assert not np.any(gradient[3])  # a row that only fills up the batch


def test_a_step_trains_both_against_what_the_other_was(adversary):
    model = models.create("sca_unet", widths=(2, 4))
    learner = state.Learner(model, optax.sgd(0.1), 0.0, adversary)
    before = state.create_state(learner, seed=1)
    batch = arrays()
    step = functools.partial(
        steps.train_step, learner=learner, loss_fn=loss_terms.weighted_sum({"l1": 2.0}), seed=0
    )
    after, scalars = jax.jit(step)(before, batch)
    restored = apply(model, {"params": before.params}, batch["degraded"])
    fooling = fooling_loss(adversary, before.adversary, batch, restored)
    expected, loss = update(adversary, before.adversary, batch, restored)
    assert float(scalars["loss_adversarial"]) == pytest.approx(float(fooling), rel=1e-4)
    assert float(scalars["loss_discriminator"]) == pytest.approx(float(loss), rel=1e-4)
    total = 2.0 * float(scalars["loss_l1"]) + 0.5 * float(fooling)
    assert float(scalars["loss"]) == pytest.approx(total, rel=1e-5)
    for x, y in zip(jax.tree.leaves(after.adversary), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert any(
        np.any(x != y)
        for x, y in zip(
            jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True
        )
    )


def gan(**train_fields):
    config = tiny.config(**train_fields)
    config.adversarial.weight = 0.5
    return config


@pytest.mark.slow
def test_a_run_resumes_with_its_discriminator_in_the_same_bits(tmp_path, compiled_once):
    devices = jax.devices()[:2]
    straight = loop.train(gan(epochs=2), tmp_path / "a", tiny.data, devices)

    def cut_off(config):
        data = tiny.data(config)

        def train_batches(step):
            for count, batch in enumerate(data.train_batches(step)):
                if step == 0 and count == 4:
                    raise KeyboardInterrupt
                yield batch

        return batches.Data(
            data.name, data.counts, data.train_images, train_batches, data.eval_batches
        )

    with pytest.raises(KeyboardInterrupt):
        loop.train(gan(epochs=2), tmp_path / "b", cut_off, devices)
    resumed = loop.train(gan(epochs=2), tmp_path / "b", tiny.data, devices)
    for x, y in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (tmp_path / "a/metrics.jsonl").read_text() == (
        tmp_path / "b/metrics.jsonl"
    ).read_text()
    record = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[0])
    assert {"loss_adversarial", "loss_discriminator"} < record.keys()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight", -1.0, r"config\.adversarial\.weight: -1.0"),
        ("learning_rate", 0.0, r"config\.adversarial\.learning_rate"),
        ("discriminator", "sca_unet", r"config\.adversarial\.discriminator: 'sca_unet'"),
    ],
)
def test_wrong_fields_are_refused(field, value, message):
    config = gan()
    config.adversarial[field] = value
    with pytest.raises(UsageError, match=message):
        state.make_learner(config)
