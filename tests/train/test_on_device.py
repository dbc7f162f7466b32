import collections
import functools
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from restore_jax import batches, models
from restore_jax.errors import RunError, UsageError
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh, signals
from restore_jax.report import plots
from restore_jax.train import loop, steps
from restore_jax.train.on_device import (
    dataset,
    pairs_file,
    resident,
    sampler,
    whole_images,
)
from tests.support import pairs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


def made(folder, draws=1, augment="none", **train_fields):
    """A configuration and its data."""
    path = folder / f"{draws}.safetensors"
    config = pairs.config(path, draws, **train_fields)
    config.data.augment = augment
    if not path.exists():
        pairs.write(path, config)
    return config, dataset.as_data(pairs_file.read(path), config)


def drawn(folder, count, step=0, seed=0, **options):
    config, data = made(folder, **options)
    config.seed = seed
    return list(itertools.islice(data.train_batches(step), count))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("draws", [1, 2])
def test_an_epoch_has_every_pair_once_with_its_very_pixels(folder, draws):
    _, data = made(folder, draws)
    stored = data.pairs.splits["train"]
    count = -(-10 * draws // 4)
    found = drawn(folder, count, draws=draws)
    seen = collections.Counter()
    for batch in found:
        for i in np.flatnonzero(batch["valid"]):
            image = stored.ids.index(batch["id"][i])
            for name in ("clean", "mask"):
                scale = 255 if name == "clean" else 1
                np.testing.assert_array_equal(
                    batch[name][i],
                    stored.arrays[name][image].astype(np.float32) / np.float32(scale),
                )
            matches = [
                row
                for row in range(image, 10 * draws, 10)
                if np.array_equal(
                    batch["degraded"][i],
                    stored.arrays["degraded"][row].astype(np.float32) / np.float32(255),
                )
            ]
            seen.update(matches)
            assert batch["category"][i] == stored.categories[image]
            assert batch["has_mask"][i]
    assert seen == collections.Counter(range(10 * draws))
    assert [batch["valid"].sum() for batch in found[:-1]] == [4] * (count - 1)
    assert all(batch["clean"].dtype == np.float32 for batch in found)


@pytest.mark.parametrize("draws", [0, 1])
def test_a_batch_depends_on_the_seed_and_the_step_alone(folder, draws):
    options = {"draws": draws, "augment": "flips"}
    first, again = drawn(folder, 7, **options), drawn(folder, 3, step=4, **options)
    for a, b in zip(first[4:], again, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    # The next epoch has another order, and so has another seed.
    assert [list(b["id"]) for b in first[:3]] != [list(b["id"]) for b in first[3:6]]
    other = drawn(folder, 3, seed=1, **options)
    assert [list(b["id"]) for b in first[:3]] != [list(b["id"]) for b in other]


def test_levels_become_floats_as_on_the_host():
    levels = np.arange(256, dtype=np.uint8)
    host = levels.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(jax.jit(whole_images.as_floats)(levels), host)


@pytest.mark.parametrize(("augment", "kinds"), [("none", 1), ("flips", 4), ("all8", 8)])
def test_flips_are_of_the_pair_and_each_as_frequent(folder, augment, kinds):
    config, data = made(folder, augment="none")
    config.data.augment = augment
    stored = data.pairs.splits["train"].arrays
    seen = collections.Counter()
    turned = [
        lambda x, k=k, t=t: np.rot90(x.swapaxes(0, 1) if t else x, k)
        for k in range(4)
        for t in (0, 1)
    ]
    for batch in itertools.islice(sampler.host_batches(data.pairs, config, 0), 60):
        for i in np.flatnonzero(batch["valid"]):
            image = data.pairs.splits["train"].ids.index(batch["id"][i])
            (kind,) = (
                number
                for number, turn in enumerate(turned)
                if np.array_equal(
                    turn(stored["clean"][image]), np.round(255 * batch["clean"][i])
                )
            )
            seen[kind] += 1
            for name, scale in (("degraded", 255), ("mask", 1)):
                found = np.round(scale * batch[name][i])
                np.testing.assert_array_equal(turned[kind](stored[name][image]), found)
    assert len(seen) == kinds
    assert min(seen.values()) > 0.5 * 200 / kinds


def test_fresh_noise_differs_between_epochs_and_starts_from_the_blurred_image(folder):
    found = drawn(folder, 6, draws=0)
    by_id = collections.defaultdict(list)
    for batch in found:
        for i in np.flatnonzero(batch["valid"]):
            by_id[batch["id"][i]].append(batch["degraded"][i])
    _, data = made(folder, draws=0)
    train_split = data.pairs.splits["train"]
    for image_id, (first, second) in by_id.items():
        assert np.abs(first - second).mean() > 0.01
        blurred = train_split.arrays["blurred"][train_split.ids.index(image_id)] / 255
        clean = train_split.arrays["clean"][train_split.ids.index(image_id)] / 255
        assert np.abs(first - blurred).mean() < np.abs(first - clean).mean()


def test_the_law_of_the_file_decides_over_flips(folder):
    config, data = made(folder)
    for augment, message in (("all8", "use flips"), ("twice", "not one of")):
        config.data.augment = augment
        with pytest.raises(UsageError, match=rf"^config\.data\.augment: .*{message}"):
            dataset.as_data(data.pairs, config)


def test_validation_on_the_devices_is_that_of_the_host(folder):
    config, data = made(folder)
    learner = state.make_learner(config)
    mesh = device_mesh.make_mesh(jax.devices()[:4])
    held = resident.make_resident(config, data, learner, None, mesh)
    both = zip(held.validation_batches(), data.eval_batches("val"), strict=True)
    ids = []
    for device, host in both:
        assert isinstance(device["degraded"], jax.Array)
        put = device_mesh.to_devices(device, mesh)
        for name in batches.ARRAYS:
            np.testing.assert_array_equal(put[name], host[name])
            assert len(put[name].sharding.device_set) == 4
        assert list(device["id"]) == list(host["id"])
        ids += list(host["id"][host["valid"]])
    assert ids == data.pairs.splits["val"].ids


def taken(config, data, devices, counts, compile_form=resident.compile_single):
    """Trains for so many steps by dispatch; returns the state and each step's scalars."""
    mesh = device_mesh.make_mesh(jax.devices()[:devices])
    learner, loss = state.make_learner(config), loss_terms.weighted_sum(config.loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "compile_dispatch", compile_form)
        held = resident.make_resident(config, data, learner, loss, mesh)
    now = jax.device_put(state.create_state(learner, 0), device_mesh.replicated(mesh))
    scalars = []
    for count in counts:
        now, found = held.dispatch(now, held.arrays, {}, count)
        scalars += resident._by_step(jax.device_get(found))
    return jax.device_get(now), scalars


def assert_close(a, b):
    """The tolerance between programs that round differently, after a few steps of Adam."""
    for one, other in zip(a[1], b[1], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4),
        a[0].params,
        b[0].params,
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_scan_has_the_same_bits_however_steps_are_divided(folder, devices):
    config, data = made(folder, draws=0, augment="flips")
    whole = taken(config, data, devices, [3, 3], resident.compile_scan)
    cut = taken(config, data, devices, [1, 2, 2, 1], resident.compile_scan)
    assert_same(whole[0], cut[0])
    assert whole[1] == cut[1]
    assert_close(whole, taken(config, data, devices, [6]))


def test_steps_are_those_of_the_plain_loop_on_the_same_batches(folder):
    config, data = made(folder, draws=0, augment="flips")
    mesh = device_mesh.make_mesh(jax.devices()[:1])
    learner, loss = state.make_learner(config), loss_terms.weighted_sum(config.loss)
    step = steps.compile_step(config, learner, loss, mesh)
    now = jax.device_put(state.create_state(learner, 0), device_mesh.replicated(mesh))
    scalars = []
    for batch in itertools.islice(data.train_batches(0), 6):
        now, found = step(now, device_mesh.to_devices(batch, mesh), {})
        scalars.append({name: float(value) for name, value in found.items()})
    assert_close((now, scalars), taken(config, data, 1, [1, 3, 2]))


def test_several_devices_train_as_one(folder):
    config, data = made(folder, draws=0, augment="flips")
    assert_close(taken(config, data, 1, [3]), taken(config, data, 4, [3]))


def test_a_cpu_dispatches_step_by_step_and_others_a_log_interval():
    config = pairs.config("x", log_every_steps=20)
    assert resident.longest_dispatch(config, 117, "cpu") == 1
    assert resident.longest_dispatch(config, 117, "gpu") == 20
    assert resident.longest_dispatch(config, 13, "gpu") == 13
    config.train.steps_per_dispatch = 7
    assert resident.longest_dispatch(config, 117, "cpu") == 7


@pytest.mark.parametrize("every", [0, 1, 4, 7, 100])
@pytest.mark.parametrize(("epoch", "longest"), [(117, 20), (20, 20), (3, 3), (10, 4), (5, 1)])
def test_dispatches_reach_every_stop_and_take_few_programs(epoch, longest, every):
    counts, reached = set(), [0]
    while reached[-1] < 4 * epoch:
        step = reached[-1]
        end = (step // epoch + 1) * epoch
        stop = min(end, (step // every + 1) * every) if every else end
        count = resident.next_dispatch(step, stop, end, epoch, longest)
        assert 1 <= count <= min(longest, stop - step)
        counts.add(count)
        reached.append(step + count)
    stops = {*range(0, 4 * epoch + 1, epoch), *range(0, 4 * epoch + 1, every or epoch)}
    assert stops <= set(reached)
    assert counts <= {longest, epoch % longest, 1}


_COMPILED = {}


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    """Compiles the programs of a configuration once, and draws no curves."""
    compile_dispatch = resident.compile_dispatch

    def compiled(config, draws, learner, loss_fn, mesh):
        key = (config.loss.to_json(), config.train.epochs, draws, mesh)
        if key not in _COMPILED:
            _COMPILED[key] = compile_dispatch(config, draws, learner, loss_fn, mesh)
        return _COMPILED[key]

    monkeypatch.setattr(resident, "compile_dispatch", compiled)
    monkeypatch.setattr(plots, "draw_curves", lambda records, path: path.write_bytes(b""))


def run(config, data, workdir, devices=1):
    return loop.train(config, workdir, lambda _: data, jax.devices()[:devices])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    config, data = made(folder, draws=0, augment="flips", epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_curves", lambda records, path: path.write_bytes(b""))
        return workdir, run(config, data, workdir)


def test_a_run_leaves_the_same_lines_as_any(whole):
    workdir, after = whole
    assert int(after.step) == 6
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["step"], r["split"]) for r in lines] == [
        (1, 3, "train"), (1, 3, "val"), (2, 6, "train"), (2, 6, "val"),
    ]  # fmt: skip
    assert lines[1]["count"] == 6 and lines[0]["loss"] > 0


@pytest.mark.parametrize(
    ("cut", "dispatch", "then", "every"),
    [(2, 1, 3, 2), (1, 2, 1, 0)],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    folder, whole, tmp_path, monkeypatch, capsys, cut, dispatch, then, every
):
    config, data = made(folder, draws=0, augment="flips", epochs=2, steps_per_dispatch=dispatch)
    config.checkpoint.every_steps = every
    make = resident.make_resident

    def stopping(*arguments):
        held = make(*arguments)
        calls = itertools.count(1)

        def take(*values):
            if next(calls) == cut:
                os.kill(os.getpid(), signal.SIGTERM)
            return held.dispatch(*values)

        return resident.dataclasses.replace(held, dispatch=take)

    with monkeypatch.context() as patch:
        patch.setattr(resident, "make_resident", stopping)
        with pytest.raises(signals.Interrupted, match="stopped by SIGTERM after step"):
            run(config, data, tmp_path / "run")
    config.train.steps_per_dispatch = then
    after = run(config, data, tmp_path / "run")
    assert "resuming from step" in capsys.readouterr().out
    assert_same(after, whole[1])
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert lines == (whole[0] / "metrics.jsonl").read_bytes()


def test_a_step_that_is_not_finite_is_named(folder, tmp_path, monkeypatch):
    config, data = made(folder, draws=0, augment="flips", epochs=2)
    make = resident.make_resident

    def spoiled(*arguments):
        held = make(*arguments)

        def take(now, *values):
            number = np.asarray(now.step)
            now, scalars = held.dispatch(now, *values)
            spoilt = jnp.where(number + jnp.arange(len(scalars["loss"])) == 4, jnp.nan, 0.0)
            return now, scalars | {"loss_ssim": scalars["loss_ssim"] + spoilt}

        return resident.dataclasses.replace(held, dispatch=take)

    monkeypatch.setattr(resident, "make_resident", spoiled)
    with pytest.raises(RunError, match=r"^step 5: loss_ssim is nan"):
        run(config, data, tmp_path / "run")


def test_what_cannot_be_is_refused_before_anything_is_written(folder, tmp_path, monkeypatch):
    config, data = made(folder)

    def refused(match, data=data):
        with pytest.raises(UsageError, match=match):
            run(config, data, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        refused(r"^config\.data\.resident: supports one process, not 2")
    with monkeypatch.context() as patch:
        patch.setattr(resident, "_capacity", lambda device: 20_000)
        refused(r"^config\.data\.resident: the pairs take 0\.0 GB and the device has 0\.0 GB")
    without = resident.dataclasses.replace(data, pairs=None)
    refused(r"^config\.data\.resident: sample has no file of pairs", without)
    config.train.steps_per_dispatch = -1
    refused(r"^config\.train\.steps_per_dispatch: -1 is negative")


@pytest.mark.slow
def test_a_machine_without_tensorflow_trains_validates_and_evaluates(folder, tmp_path):
    config, _ = made(folder, draws=0)
    script = (
        "import sys\n"
        "sys.modules.update(tensorflow=None, tensorflow_datasets=None)\n"
        "import runpy\n"
        "runpy.run_path('launch.py', run_name='__main__')"
    )
    options = {
        "config": "configs/sca_unet.py:sample",
        "workdir": tmp_path / "run",
        "config.model.widths": "(2, 4)",
        "config.train.epochs": 1,
        "config.data.image_size": 16,
        "config.data.realisations": 0,
        "config.data.resident": True,
        "config.data.resident_file": config.data.resident_file,
    }

    def launched(changed):
        flags = [f"--{name}={value}" for name, value in (options | changed).items()]
        return subprocess.run(
            [sys.executable, "-c", script, *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = launched({})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "evaluation" / "sample-best" / "metrics.json").exists()
    for field, value, message in (
        ("image_size", 32, "config.data.image_size is 32, but the file was made with 16"),
        ("resident_file", "", "needs TensorFlow ("),
    ):
        changed = {f"config.data.{field}": value, "workdir": tmp_path / "other"}
        done = launched(changed)
        assert done.returncode == 2
        assert message in done.stderr and done.stderr.startswith("error: ")
        assert done.stderr.strip().count("\n") == 0
        assert not (tmp_path / "other").exists()


def test_the_gain_that_was_drawn_is_undone(folder):
    path = folder / "gain.safetensors"
    config = pairs.config(path, draws=0)
    config.data.undo_gain = True
    flat = pairs.LAW | {"noise_sigma": [0.0, 0.0], "quantise": "none"}
    pairs.write(path, config, law=flat)
    data = dataset.as_data(pairs_file.read(path), config)
    batch = next(data.train_batches(0))
    assert batch["gain"].shape == (len(batch["id"]), 3)
    assert 0.9 <= batch["gain"].min() < batch["gain"].max() <= 1.1
    blurred = data.pairs.splits["train"].arrays["blurred"] / 255
    for number, image_id in enumerate(batch["id"]):
        expected = blurred[data.pairs.splits["train"].ids.index(image_id)]
        found = models.input_of(batch)[number]
        dim = expected < 0.9  # where no gain clips
        # Half a level of rounding, divided by the gain.
        np.testing.assert_allclose(found[dim], expected[dim], atol=0.6 / 255)
    with pytest.raises(UsageError, match="undo_gain is None, but the file was made with True"):
        plain = config.copy_and_resolve_references()
        plain.data.undo_gain = False
        dataset.make_data(plain, lambda: None)
