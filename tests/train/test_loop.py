import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax import batches, models
from restore_jax.checkpoints import checkpoint, weights_file
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.learner.state import Learner, TrainState, create_state, inference_variables
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh
from restore_jax.train import loop, setup, steps
from restore_jax.train.logs import Logs
from tests.support import checkpoints, networks, programs, tiny

pytestmark = pytest.mark.usefixtures("compiled_once")


def run(config, folder, make_data=tiny.data, devices=1):
    return loop.train(config, folder, make_data, jax.devices()[:devices])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("run") / "finished"
    config = tiny.config(epochs=3)
    return config, folder, run(config, folder)


def test_a_run_leaves_what_the_layout_promises(finished):
    _, folder, state = finished
    assert int(state.step) == 9  # 3 epochs of ceil(10 / 4) steps
    names = {path.name for path in folder.iterdir()}
    assert names == {
        ".lock", "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "curves.png",
    }  # fmt: skip
    assert list((folder / "tensorboard").glob("events*"))
    records = lines(folder)
    assert [(r["epoch"], r["step"], r["split"]) for r in records] == [
        (epoch, 3 * epoch, split) for epoch in (1, 2, 3) for split in ("train", "val")
    ]
    for record in records:
        expected = {"loss", "loss_charbonnier", "loss_edge", "loss_ssim", "psnr", "ssim"}
        assert expected <= record.keys()
        total = (
            record["loss_charbonnier"] + 0.1 * record["loss_edge"] + 0.3 * record["loss_ssim"]
        )
        assert record["loss"] == pytest.approx(total, rel=1e-5)
    assert {"mae", "input_psnr", "defect_psnr", "defect_contrast"} <= records[1].keys()


def test_the_white_level_found_in_the_images_is_kept(tmp_path):
    def deep(config):
        return dataclasses.replace(tiny.data(config), white=config.data.white or 4095)

    run(tiny.config(epochs=1), tmp_path / "run", deep)
    assert workdir.read_config(tmp_path / "run").data.white == 4095
    config = tiny.config(epochs=2)
    run(config, tmp_path / "run", deep)
    assert config.data.white == 4095


def test_training_lowers_the_loss(finished):
    _, folder, _ = finished
    trained = [record["loss"] for record in lines(folder) if record["split"] == "train"]
    assert trained[-1] < trained[0]


def test_training_by_the_programs_of_users_does_the_same(finished, tmp_path):
    config, folder, _ = finished
    with programs.optimised():
        run(config, tmp_path / "run")
    for found, expected in zip(lines(tmp_path / "run"), lines(folder), strict=True):
        assert found.pop("split") == expected.pop("split")
        assert found == pytest.approx(expected, rel=1e-3)


def test_best_and_latest_are_kept_with_their_figures(finished):
    _, folder, state = finished
    ssim = {r["step"]: r["ssim"] for r in lines(folder) if r["split"] == "val"}
    best = max(ssim, key=ssim.get)
    with checkpoint.open_manager(folder, read_only=True) as manager:
        assert set(manager.all_steps()) == {best, 6, 9}
        assert checkpoint.find_step(manager, "best", folder) == best
        assert checkpoint.find_step(manager, "latest", folder) == 9
        restored, figures = checkpoints.restore(manager, 9, state)
    # The save is asynchronous and the next step donates its state: the file must hold this one.
    assert_same(restored, state)
    assert figures["epoch"] == 3
    assert figures["ssim"] == pytest.approx(ssim[9])


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    config, folder, state = finished
    before = (folder / "metrics.jsonl").read_bytes()

    def no_data(config):
        raise AssertionError("the data of a finished run are not needed")

    again = run(config, folder, no_data)
    assert "finished" in capsys.readouterr().out
    assert_same(again, state)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_cut_off_goes_on_to_the_same_bits(finished, tmp_path, capsys):
    config, folder, state = finished
    calls = []

    def cut_off(config):
        data = tiny.data(config)

        def dies(step):
            for count, batch in enumerate(data.train_batches(step), start=step):
                calls.append(count)
                if count == 7:  # in the third epoch
                    raise KeyboardInterrupt
                yield batch

        return dataclasses.replace(data, train_batches=dies)

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", cut_off)
    assert calls == list(range(8))
    resumed = run(config, tmp_path / "cut")
    assert "resuming from step 6" in capsys.readouterr().out
    assert_same(resumed, state)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (
        folder / "metrics.jsonl"
    ).read_bytes()


def test_lines_of_steps_to_be_taken_again_do_not_stand_twice(tmp_path):
    config = tiny.config(epochs=2)
    run(config, tmp_path / "run")
    whole = (tmp_path / "run" / "metrics.jsonl").read_text()
    # As after a crash between the record of an epoch and its checkpoint.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "epoch": 3, "split": "train", "loss": 1.0}\n{"step": 9, "ep')
    with Logs(tmp_path / "run", 6, 2, 3):
        pass
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == whole


def test_another_configuration_is_refused_before_any_data_are_made(finished):
    _, folder, _ = finished
    with pytest.raises(UsageError, match=r"config\.train\.epochs \(3, now 2\)"):
        run(tiny.config(epochs=2), folder, None)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    config = tiny.config(epochs=3)
    spoiled = functools.partial(tiny.data, spoil_at=5)
    with pytest.raises(RunError, match=r"^step 5: loss_charbonnier is nan"):
        run(config, tmp_path / "run", spoiled)
    with checkpoint.open_manager(tmp_path / "run", read_only=True) as manager:
        assert list(manager.all_steps()) == [3]
    assert int(run(config, tmp_path / "run").step) == 9


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("train", "batch_size", 6, r"config\.train\.batch_size: 6 .* take 4 or 8"),
        ("eval", "batch_size", 3, r"config\.eval\.batch_size: 3 .* take 4"),
        ("train", "epochs", 0, r"config\.train\.epochs"),
        ("eval", "every_epochs", 0, r"config\.eval\.every_epochs"),
        ("train", "log_every_steps", 0, r"config\.train\.log_every_steps"),
        ("optimizer", "name", "sgd", r"config\.optimizer\.name"),
        ("model", "variant", "new", r"config\.model\.variant"),
        ("loss", "ssim", -1.0, r"config\.loss\.ssim"),
        ("", "seed", -1, r"config\.seed: -1"),
        ("eval", "split", "test", r"config\.eval\.split: 'test'"),
        ("optimizer", "clip_norm", float("inf"), r"config\.optimizer\.clip_norm: inf is not"),
        ("optimizer", "learning_rate", float("nan"), r"learning_rate: nan is not a finite"),
        ("", "dtype", "float16", r"config\.dtype: 'float16'"),
    ],
)
def test_wrong_fields_leave_no_workdir_behind(tmp_path, section, field, value, message):
    config = tiny.config()
    (config[section] if section else config)[field] = value
    with pytest.raises(UsageError, match=message):
        run(config, tmp_path / "run", devices=4)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", -1e-3), ("warmup_epochs", -1.0), ("schedule", "linear")],
)
def test_a_wrong_schedule_is_refused_before_any_data_are_made(tmp_path, field, value):
    config = tiny.config()
    config.optimizer[field] = value
    with pytest.raises(UsageError, match=rf"config\.optimizer\.{field}"):
        loop.train(config, tmp_path / "run", lambda _: pytest.fail("data were made"))


def make_step(ema_decay=0.0, **options):
    model = models.create("sca_unet", widths=(2, 4))
    learner = Learner(model, optax.sgd(0.1), ema_decay)
    step = functools.partial(
        steps.train_step,
        learner=learner,
        loss_fn=loss_terms.weighted_sum({"charbonnier": 1.0}),
        seed=0,
        **options,
    )
    return learner, step


def test_one_step_against_a_hand_written_one():
    learner, step = make_step(ema_decay=0.5)
    before = create_state(learner, seed=3)
    batch = tiny.batch_rows(tiny.images(3), [0, 1, 2], 4)
    arrays = {name: jnp.asarray(batch[name]) for name in batches.ARRAYS}

    def loss(params):
        restored = learner.model.apply({"params": params}, arrays["degraded"][:3])
        error = restored - arrays["clean"][:3]
        return jnp.mean(jnp.sqrt(error**2 + 1e-6))

    value, gradient = jax.jit(jax.value_and_grad(loss))(before.params)
    after, scalars = jax.jit(step)(before, arrays)
    # In NumPy from here, which compiles nothing.
    before, gradient, after = jax.device_get((before, gradient, after))
    assert int(after.step) == 1
    assert float(scalars["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(scalars["count"]) == 3
    norm = np.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(gradient)))
    assert float(scalars["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradient)
    # Of the first step's parameters nine tenths, whatever the decay is later.
    averaged = jax.tree.map(lambda p, q: 0.1 * p + 0.9 * q, before.params, expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), after.params, expected
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), after.ema_params, averaged
    )


@pytest.mark.slow
def test_a_run_with_an_average_validates_and_saves_it(tmp_path):
    config = tiny.config(epochs=1)
    config.optimizer.ema_decay = 0.9
    config.optimizer.name = "adamw"
    config.optimizer.clip_norm = 1.0
    config.dtype = "bfloat16"
    state = run(config, tmp_path / "run", devices=2)
    assert state.ema_params is not None
    with checkpoint.open_manager(tmp_path / "run", read_only=True) as manager:
        restored, _ = checkpoints.restore(manager, 3, state)
    assert_same(restored.ema_params, state.ema_params)


def falling_ssim(monkeypatch, best_epoch):
    """The validation's SSIM rises to an epoch and falls from then on."""
    validate = loop._validate
    epochs = iter(range(1, 100))

    def rigged(run, at):
        metrics, warning = validate(run, at)
        return metrics | {"ssim": 0.9 - 0.01 * abs(next(epochs) - best_epoch)}, warning

    monkeypatch.setattr(loop, "_validate", rigged)


def test_a_run_that_gains_no_more_stops_early(tmp_path, monkeypatch, capsys):
    falling_ssim(monkeypatch, best_epoch=2)
    config = tiny.config(epochs=9, early_stopping_patience=3)
    after = run(config, tmp_path / "run")
    assert int(after.step) == 5 * 3
    assert [r["epoch"] for r in lines(tmp_path / "run") if r["split"] == "val"] == [
        1,
        2,
        3,
        4,
        5,
    ]
    run(config, tmp_path / "run")
    assert "finished, the SSIM has not risen for 3 epochs" in capsys.readouterr().out


def test_the_mask_is_hidden_from_the_model_at_random():
    class Shows(nn.Module):
        """Restores the mask it is shown."""

        @nn.compact
        def __call__(self, degraded, mask=None, train=False, valid=None):
            scale = self.param("scale", nn.initializers.ones, ())
            return jnp.broadcast_to(mask * scale, degraded.shape)

    seen = []

    def loss_fn(restored, clean, mask, valid, loss_params):
        jax.debug.callback(lambda r: seen.append(np.asarray(r).any(axis=(1, 2, 3))), restored)
        return jnp.sum(restored), {}

    learner = Learner(Shows(), optax.sgd(0.1))
    batch = tiny.batch_rows(tiny.images(16), range(16), 16)
    arrays = {name: jnp.asarray(batch[name]) for name in batches.ARRAYS}
    for share, least, most in ((0.0, 64, 64), (0.5, 20, 44), (1.0, 0, 0)):
        seen.clear()
        current = create_state_of(learner, arrays)
        step = functools.partial(
            steps.train_step, learner=learner, loss_fn=loss_fn, seed=0, mask_dropout=share
        )
        step = jax.jit(step)
        for _ in range(4):
            current, _ = step(current, arrays)
        jax.effects_barrier()
        assert least <= sum(shown.sum() for shown in seen) <= most
        # Where they are drawn, each step has others.
        assert len({tuple(shown) for shown in seen}) == (4 if share == 0.5 else 1)


def create_state_of(learner, arrays):
    params = networks.init(learner.model, arrays["degraded"], arrays["mask"])["params"]
    return TrainState(jnp.int32(0), params, {}, learner.optimizer.init(params), None)


def test_a_validation_that_is_not_finite_names_its_step_and_term(tmp_path):
    def spoiled(config):
        data = tiny.data(config)

        def eval_batches(split):
            for batch in data.eval_batches(split):
                yield batch | {"degraded": np.full_like(batch["degraded"], np.inf)}

        return dataclasses.replace(data, eval_batches=eval_batches)

    with pytest.raises(RunError, match=r"^step 3: validation loss_charbonnier is nan"):
        run(tiny.config(), tmp_path / "run", spoiled)


def test_images_refused_when_they_are_read_leave_no_workdir(tmp_path):
    def refusing(config):
        def train_batches(step):
            raise UsageError("config.data.crop_size: 64 is larger than a")
            yield

        return dataclasses.replace(tiny.data(config), train_batches=train_batches)

    with pytest.raises(UsageError, match="crop_size"):
        run(tiny.config(), tmp_path / "run", refusing)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_images_it_began_with(tmp_path):
    def stops(config):
        data = tiny.data(config)

        def train_batches(step):
            for count, batch in enumerate(data.train_batches(step)):
                if count == 4:
                    raise KeyboardInterrupt
                yield batch

        return dataclasses.replace(data, train_batches=train_batches)

    with pytest.raises(KeyboardInterrupt):
        run(tiny.config(), tmp_path / "run", stops)
    with pytest.raises(
        UsageError, match=r"a different number of images than tiny has now \(14\)"
    ):
        run(tiny.config(), tmp_path / "run", functools.partial(tiny.data, count=14))


def test_a_step_gives_its_old_state_away():
    learner, step = make_step()
    before = create_state(learner, seed=3)
    batch = tiny.batch_rows(tiny.images(4), [0, 1, 2, 3], 4)
    jax.jit(step, donate_argnums=0)(before, {name: batch[name] for name in batches.ARRAYS})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


def test_sizes_that_do_not_divide_are_refused_with_those_that_do():
    mesh = device_mesh.make_mesh(jax.devices()[:4])
    device_mesh.check_batch_size(8, mesh, "config.train.batch_size")
    with pytest.raises(UsageError, match=r"4 devices; take 4$"):
        device_mesh.check_batch_size(2, mesh, "config.train.batch_size")


def test_the_average_forgets_what_was_drawn_and_keeps_its_decay():
    learner, step = make_step(ema_decay=0.5)
    batch = tiny.batch_rows(tiny.images(3), [0, 1, 2], 4)
    arrays = {name: jnp.asarray(batch[name]) for name in batches.ARRAYS}
    state = create_state(learner, seed=3).replace(step=jnp.int32(1000))
    state = state.replace(ema_params=jax.tree.map(jnp.zeros_like, state.params))
    after, _ = jax.jit(step)(state, arrays)
    halves = jax.tree.map(lambda p: 0.5 * p, after.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), after.ema_params, halves
    )


def test_the_average_has_the_statistics_that_belong_to_it(tmp_path):
    model = models.create("cbam_unet", widths=(2, 4), skips=(True,))
    learner = Learner(model, optax.sgd(0.1), 0.5)
    state = create_state(learner, seed=3).replace(step=jnp.int32(1000))
    batch = tiny.batch_rows(tiny.images(3, size=32), [0, 1, 2], 4)
    arrays = {name: jnp.asarray(batch[name]) for name in batches.ARRAYS}
    step = functools.partial(
        steps.train_step,
        learner=learner,
        loss_fn=loss_terms.weighted_sum({"charbonnier": 1.0}),
        seed=0,
    )
    before = jax.device_get(state.batch_stats)
    after, _ = jax.jit(step)(state, arrays)
    expected = jax.tree.map(lambda a, b: 0.5 * (a + b), before, after.batch_stats)
    found = inference_variables(after)["batch_stats"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, after, {"epoch": 1, "ssim": 0.5})
    parts = weights_file._read_parts(tmp_path / "checkpoints/1001/state")
    assert set(parts) == {"ema_params", "ema_batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, parts["ema_batch_stats"], found)


def test_a_training_starts_from_the_parameters_it_is_given(finished, tmp_path):
    _, folder, state = finished
    config = tiny.config(epochs=1)
    config.init_from = str(folder)
    config.optimizer.learning_rate = 1e-12
    config.optimizer.ema_decay = 0.5
    found = run(config, tmp_path / "next")
    assert int(found.step) == 3
    with checkpoint.open_manager(folder, read_only=True) as manager:
        step = checkpoint.find_step(manager, "best", folder)
        best, _ = checkpoints.restore(manager, step, state)
    for params in (found.params, found.ema_params):
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(best.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)


def test_parameters_of_another_width_or_model_are_refused_by_name(finished, tmp_path):
    _, folder, _ = finished
    config = tiny.config(epochs=1)
    config.init_from = str(folder)
    config.model.widths = (2, 6)
    with pytest.raises(UsageError, match=r"config\.init_from=.*: params/.* should be float32"):
        run(config, tmp_path / "next")
    config.init_from = str(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"^config\.init_from: "):
        run(config, tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_a_run_that_went_on_does_not_start_anew(tmp_path, finished):
    _, folder, _ = finished
    config = tiny.config(epochs=1)
    config.init_from = str(folder)
    before = run(config, tmp_path / "next")
    # Where it began is of no importance any more.
    assert_same(before, run(config, tmp_path / "next"))


def with_identity(names="a", sizes="b", weights=0.0):
    """Tiny data that say what they are, and a fixed parameter."""

    def make(settings):
        return dataclasses.replace(
            tiny.data(settings),
            identity={"names": names, "sizes": sizes},
            load_loss_params=lambda: {
                "perceptual": {"kernel": np.full(3, weights, np.float32)}
            },
        )

    return make


def test_a_run_goes_on_with_its_own_images_and_fixed_parameters_alone(tmp_path):
    folder = tmp_path / "run"
    run(tiny.config(epochs=3), folder, with_identity())
    before = steps_in(folder)
    shutil.rmtree(folder / "checkpoints/9")
    for others, told in (
        (
            {"names": "x"},
            r"other images than tiny has now \(their names differ",
        ),
        ({"sizes": "x"}, "their sizes differ"),
        (
            {"weights": 1.0},
            r"other weights for config\.loss\.perceptual than",
        ),
    ):
        with pytest.raises(UsageError, match=told):
            run(tiny.config(epochs=3), folder, with_identity(**others))
    assert steps_in(folder) == before - {9}
    run(tiny.config(epochs=3), folder, with_identity())
    assert steps_in(folder) == before


def test_a_run_of_before_the_identities_goes_on(tmp_path):
    folder = tmp_path / "run"
    run(tiny.config(epochs=2), folder)  # of data that tell nothing
    shutil.rmtree(folder / "checkpoints/6")
    run(tiny.config(epochs=2), folder, with_identity())
    assert 6 in steps_in(folder)


def steps_in(folder):
    return {int(path.name) for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    "schedule", ["constant", pytest.param("cosine", marks=pytest.mark.slow)]
)
def test_a_run_may_be_made_longer(tmp_path, capsys, schedule):
    def config(epochs):
        fields = tiny.config(epochs=epochs)
        fields.optimizer.update(schedule=schedule, learning_rate=1e-3, final_fraction=0.0)
        return fields

    run(config(2), tmp_path / "run")
    longer = run(config(3), tmp_path / "run")
    out = capsys.readouterr().out
    assert "run: started with 2 epochs, continues to 3" in out
    # A cosine over 9 steps stands at a quarter of its height after 6, that over 6 at its foot.
    assert ("now spans 3 epochs: 0.00025 from here, not 0;" in out) == (schedule == "cosine")
    assert workdir.read_config(tmp_path / "run").train.epochs == 3
    assert int(longer.step) == 9
    straight = run(config(3), tmp_path / "straight")
    same = [
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(longer), jax.tree.leaves(straight), strict=True)
    ]
    assert all(same) == (schedule == "constant")
    # Refused, it is left as it is.
    with pytest.raises(UsageError, match="a different number of images"):
        run(config(4), tmp_path / "run", functools.partial(tiny.data, count=14))
    assert workdir.read_config(tmp_path / "run").train.epochs == 3


def test_a_network_that_tells_the_gain_is_not_shown_other_colours(tmp_path):
    config = tiny.config()
    config.model = ConfigDict({"name": "gain_unet", "gain": True})
    config.data.recolour = True
    with pytest.raises(UsageError, match=r"^config\.data\.recolour: .* config\.model\.gain$"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["loss.ssim", "loss.perceptual", "adversarial.weight"])
def test_what_would_learn_the_noise_of_the_targets_is_refused(tmp_path, name):
    config = tiny.config()
    config.data.name = "shots"
    config.loss.ssim = 0.0
    setup.check(config, device_mesh.make_mesh(jax.devices()[:1]))
    section, _, field = name.partition(".")
    config[section][field] = 0.3
    with pytest.raises(UsageError, match=rf"^config\.{name}: 0\.3 needs clean targets"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
