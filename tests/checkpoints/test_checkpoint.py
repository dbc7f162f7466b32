import contextlib
import errno
import gc
import json
import pathlib
import resource
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from restore_jax import files
from restore_jax.checkpoints import checkpoint, weights_file
from restore_jax.errors import RunError, UsageError
from restore_jax.learner.state import TrainState
from tests.support import checkpoints

SUMS = {"loss": 0.1 + 0.2, "count": 8.0}


def state_of(step, size=400):
    values = np.random.default_rng(step).normal(size=(size, 3)).astype(np.float32)
    params = {"conv": {"kernel": jnp.asarray(values), "bias": jnp.zeros(3)}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"mean": jnp.ones(3)},
        opt_state=optax.adam(1e-3).init(params),
        ema_params=None,
    )


def fill(folder, *ssims):
    """Saves steps 3, 6, …: validated where there is an SSIM, within an epoch where not."""
    with checkpoint.open_manager(folder) as manager:
        for number, ssim in enumerate(ssims, 1):
            figures = {"epoch": number} | ({} if ssim is None else {"ssim": ssim})
            checkpoint.save(manager, state_of(3 * number), figures, {"sums": SUMS})
            manager.wait_until_finished()
    return folder


def steps_of(folder):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return sorted(manager.all_steps())


def find(folder, which):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return checkpoint.find_step(manager, which, folder)


def read(folder, step):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return checkpoints.restore(manager, step, state_of(step))


def is_same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("whole"), 0.5, 0.9, 0.7, 0.8)


def test_the_best_is_kept_with_the_two_latest(whole):
    assert steps_of(whole) == [6, 9, 12]
    assert find(whole, "best") == 6
    assert find(whole, "latest") == 12
    assert find(whole, "9") == 9
    assert checkpoint.epochs_done(whole) == 4
    assert checkpoint.latest_step(whole) == 12
    with pytest.raises(UsageError, match=r"--checkpoint=5: not in .*best \(6\), latest \(12\)"):
        find(whole, "5")


def test_the_later_one_of_equals_is_the_best(tmp_path):
    fill(tmp_path, 0.9, 0.9, 0.1, 0.1)
    assert find(tmp_path, "best") == 6


def test_a_state_comes_back_with_its_figures_and_progress(whole):
    state, record = read(whole, 12)
    assert is_same(state, state_of(12))
    assert record == {"epoch": 4, "ssim": 0.8, "sums": SUMS}
    assert all(
        leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(state)
    )


def test_one_without_a_validation_is_the_latest_and_never_the_best(tmp_path):
    fill(tmp_path, None)
    assert find(tmp_path, "latest") == 3
    with pytest.raises(UsageError, match=r"--checkpoint=best: nothing in .* validated yet"):
        find(tmp_path, "best")
    shutil.rmtree(tmp_path / "checkpoints")
    fill(tmp_path, 0.2, None, None, None)
    assert steps_of(tmp_path) == [3, 9, 12]
    assert find(tmp_path, "best") == 3


def test_one_bit_changes_the_digest_and_so_does_a_name_or_shape():
    params = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((0, 2))}
    first = checkpoint.digests({"params": params})
    assert first == checkpoint.digests({"params": jax.tree.map(np.copy, params)})
    flipped = params["a"].copy()
    flipped.view(np.uint8)[5] ^= 1
    for other in (
        {"a": flipped, "b": params["b"]},
        {"a": params["a"].reshape(2, 3), "b": params["b"]},
        {"a": params["a"].view(np.int32), "b": params["b"]},
        {"c": params["a"], "b": params["b"]},
    ):
        assert checkpoint.digests({"params": other}) != first


DAMAGES = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a bit at the start": lambda path: flip(path, 0.0),
    "a bit in the middle": lambda path: flip(path, 0.5),
    "a bit at the end": lambda path: flip(path, 0.999),
}


def flip(path, where, bit=4):
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)


def files_of(folder, step):
    return sorted(
        path for path in (folder / f"checkpoints/{step}").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_to_any_file_goes_unseen_or_gives_another_state(whole, tmp_path, damage):
    expected = read(whole, 12)
    seen = {}
    for number, path in enumerate(files_of(whole, 12)):
        # Each at another place: what was read of one is not read again.
        copy = tmp_path / f"run-{number}"
        shutil.copytree(whole, copy)
        name = path.relative_to(whole)
        DAMAGES[damage](copy / name)
        try:
            found = read(copy, 12)
        except checkpoint.Damaged as error:
            assert str(error).count("\n") == 0
            assert f"{copy}/checkpoints/12: the checkpoint is damaged" in str(error)
            seen[name] = True
        else:
            # Such as a file that only says when the checkpoint was made.
            assert is_same(found[0], expected[0])
            assert found[1] == expected[1]
            seen[name] = False
    # Elsewhere a file has bits of no consequence, and some files are of none at all.
    assert seen[pathlib.Path("checkpoints/12/metrics/metrics")]
    if "bit" not in damage:
        assert seen[max(seen, key=lambda name: (whole / name).stat().st_size)]
        assert seen[pathlib.Path("checkpoints/12/state/_METADATA")]
        assert seen[pathlib.Path("checkpoints/12/state/manifest.ocdbt")]


def test_bits_that_the_file_format_does_not_protect_are_seen(whole, tmp_path):
    reasons = []
    for number, where in enumerate(np.linspace(0.2, 0.8, 6)):
        copy = tmp_path / f"run-{number}"
        shutil.copytree(whole, copy)
        flip(max(files_of(copy, 12), key=lambda path: path.stat().st_size), where, number % 8)
        with pytest.raises(checkpoint.Damaged) as damaged:
            read(copy, 12)
        reasons.append(damaged.value.reason)
    assert any("params" in reason and reason.endswith("changed") for reason in reasons)


def test_a_record_that_still_reads_but_was_changed_is_seen(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run/checkpoints/12/metrics/metrics"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"ssim": 0.81}))
    with pytest.raises(checkpoint.Damaged, match="its record changed"):
        read(tmp_path / "run", 12)


def test_a_part_can_be_checked_alone(whole):
    with checkpoint.open_manager(whole, read_only=True) as manager:
        record = manager.metrics(12)
    params = jax.tree.map(np.array, state_of(12).params)
    assert checkpoint.changed_parts(record, {"params": params}) == []
    params["conv"]["kernel"][0, 0] += 1e-3
    parts = {"params": params, "batch_stats": state_of(12).batch_stats}
    assert checkpoint.changed_parts(record, parts) == ["params"]
    assert checkpoint.changed_parts({"epoch": 4}, parts) == []


def test_arrays_of_another_checkpoint_are_seen(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    shutil.rmtree(folder / "12/state")
    shutil.copytree(folder / "9/state", folder / "12/state")
    with pytest.raises(checkpoint.Damaged, match=r"its step, .*changed"):
        read(tmp_path / "run", 12)


def test_the_newest_that_is_whole_is_found_and_the_damaged_ones_are_named(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    state, record, damaged = checkpoint.newest_intact(folder, state_of(0))
    assert (int(state.step), record["epoch"], damaged) == (12, 4, [])
    flip(max(files_of(folder, 12), key=lambda path: path.stat().st_size), 0.5)
    state, record, damaged = checkpoint.newest_intact(folder, state_of(0))
    assert (int(state.step), record["epoch"]) == (9, 3)
    assert [error.folder.name for error in damaged] == ["12"]
    (folder / "checkpoints/6/metrics/metrics").write_text("")
    damaged = checkpoint.newest_intact(folder, state_of(0))[2]
    assert [error.folder.name for error in damaged] == ["12"]
    assert find(folder, "best") == 12  # by a record that nobody has looked behind yet
    shutil.rmtree(folder / "checkpoints/9/state")
    with pytest.raises(
        RunError, match=r"none of its checkpoints can be read \(12: .*; 9: .*6:"
    ):
        checkpoint.newest_intact(folder, state_of(0))
    assert steps_of(folder) == [6, 9, 12]


def test_a_damaged_best_is_named_too(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    flip(max(files_of(tmp_path / "run", 6), key=lambda path: path.stat().st_size), 0.5)
    state, _, damaged = checkpoint.newest_intact(tmp_path / "run", state_of(0))
    assert int(state.step) == 12
    assert [error.folder.name for error in damaged] == ["6"]


def test_nothing_is_no_damage(tmp_path):
    assert checkpoint.newest_intact(tmp_path, state_of(0)) == (None, {}, [])
    (tmp_path / "checkpoints").mkdir()
    assert checkpoint.newest_intact(tmp_path, state_of(0)) == (None, {}, [])
    assert checkpoint.epochs_done(tmp_path) == 0


def test_one_that_vanishes_is_not_called_damaged(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with checkpoint.open_manager(tmp_path / "run", read_only=True) as manager:
        shutil.rmtree(tmp_path / "run/checkpoints/12")
        with pytest.raises(FileNotFoundError):
            checkpoints.restore(manager, 12, state_of(12))


def test_checkpoints_of_before_the_digests_are_still_read(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run/checkpoints/12/metrics/metrics"
    path.write_text('{"epoch": 4, "ssim": 0.8}')
    state, record = read(tmp_path / "run", 12)
    assert is_same(state, state_of(12))
    assert record == {"epoch": 4, "ssim": 0.8}


def test_a_step_can_be_saved_once_more(tmp_path):
    fill(tmp_path, 0.5, None)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.remove_existing(manager, tmp_path, 6)
        assert not list(tmp_path.glob(".tmp*"))
        checkpoint.save(manager, state_of(6), {"epoch": 2, "ssim": 0.6})
    assert steps_of(tmp_path) == [3, 6]
    assert find(tmp_path, "best") == 6


def test_a_save_that_fails_is_one_line_and_leaves_the_earlier_ones(tmp_path, caplog):
    fill(tmp_path, 0.5, 0.6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = flax.core.copy(state_of(9).params)
    big["conv"]["kernel"] = jnp.asarray(
        np.random.default_rng(0).normal(size=(300_000,)).astype(np.float32)
    )
    state = state_of(9).replace(params=big)
    manager = checkpoint.open_manager(tmp_path)
    try:
        # As with a quota: no file may grow beyond so many bytes.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(RunError, match=r"no checkpoint can be written \(.*") as failed:
            checkpoint.save(manager, state, {"epoch": 3, "ssim": 0.9})
            manager.wait_until_finished()
        with contextlib.suppress(RunError):
            manager.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # Orbax leaves what it had not written yet unfinished.
    gc.collect()
    assert str(failed.value).count("\n") == 0
    assert "Traceback" not in caplog.text
    assert steps_of(tmp_path) == [3, 6]
    assert is_same(read(tmp_path, 6)[0], state_of(6))
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, state, {"epoch": 3, "ssim": 0.9})
    assert steps_of(tmp_path) == [6, 9]


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    fill(tmp_path, 0.5)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_050_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (
        checkpoint.open_manager(tmp_path) as manager,
        pytest.raises(RunError, match=r"no checkpoint can be written \(1025 KiB free, "),
    ):
        checkpoint.save(manager, state_of(6), {"epoch": 2, "ssim": 0.6})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


# Characters that Orbax, TensorStore and the shell read something into.
@pytest.mark.parametrize(
    "name", ["line [3]", "a]b", "[!x]", "was?", "*", "a\\b", "gs:", "a\udce4", "é %20 #1"]
)
def test_a_folder_of_any_name_keeps_its_checkpoints(tmp_path, name):
    folder = fill(tmp_path / name / "run", 0.5, 0.9)
    state, record = read(folder, 6)
    assert is_same(state, state_of(6))
    assert record["ssim"] == 0.9
    assert [path.name for path in tmp_path.iterdir()] == [name]
    kernel = weights_file._read_parts(files.plain_path(folder) / "checkpoints/6/state")[
        "params"
    ]
    assert is_same(kernel, state_of(6).params)
    # What is found damaged has to be found by the user as well.
    (folder / "checkpoints/6/metrics/metrics").write_text("{")
    with pytest.raises(checkpoint.Damaged) as damaged:
        read(folder, 6)
    assert damaged.value.folder == folder / "checkpoints/6"


def test_a_relative_folder_in_one_of_such_a_name_as_well(tmp_path, monkeypatch):
    (tmp_path / "[a]").mkdir()
    monkeypatch.chdir(tmp_path / "[a]")
    folder = fill(pathlib.Path("run"), 0.5)
    assert is_same(read(folder, 3)[0], state_of(3))


def test_the_first_checkpoint_that_cannot_be_read_back_ends_the_run(tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def lose(self, step, *args, **kwargs):
        done = save(self, step, *args, **kwargs)
        self.wait_until_finished()
        if step > 3:
            (tmp_path / f"checkpoints/{step}/state/manifest.ocdbt").unlink()
        return done

    monkeypatch.setattr(ocp.CheckpointManager, "save", lose)
    fill(tmp_path, 0.5, 0.9)  # only the first one is looked at
    with (
        checkpoint.open_manager(tmp_path) as manager,
        pytest.raises(RunError, match=r"checkpoints/9: was just written and cannot be read"),
    ):
        checkpoint.save(manager, state_of(9), {"epoch": 3})


def failing(times, error):
    """Fails so many times before it does what is asked for."""
    left = [times]

    def wrap(function):
        def maybe(*args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise error
            return function(*args, **kwargs)

        return maybe

    return wrap


EIO = OSError(errno.EIO, "Input/output error")
# As TensorStore says it.
TS_EIO = ValueError("UNKNOWN: Error reading local file: Failed to read [OS error 5: EIO Input]")


@pytest.mark.parametrize("error", [EIO, TS_EIO], ids=["OSError", "TensorStore"])
@pytest.mark.parametrize("name", ["restore", "metrics"])
def test_a_passing_failure_of_the_disk_costs_nothing(whole, tmp_path, monkeypatch, name, error):
    if name == "metrics" and error is TS_EIO:
        pytest.skip("Orbax reads the record itself")
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "_RETRY_PAUSES", (0.0, 0.0))
    method = getattr(ocp.CheckpointManager, name)
    monkeypatch.setattr(ocp.CheckpointManager, name, failing(2, error)(method))
    state, record, damaged = checkpoint.newest_intact(tmp_path / "run", state_of(12))
    assert is_same(state, state_of(12))
    assert record["ssim"] == 0.8
    assert damaged == []
    assert find(tmp_path / "run", "best") == 6


@pytest.mark.parametrize("error", [EIO, TS_EIO], ids=["OSError", "TensorStore"])
def test_a_lasting_failure_of_the_disk_is_no_damage(whole, tmp_path, monkeypatch, error):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "_RETRY_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(
        ocp.CheckpointManager, "restore", failing(99, error)(ocp.CheckpointManager.restore)
    )
    with pytest.raises(
        RunError, match=r"12: cannot be read \(Input/output error\); everything"
    ):
        checkpoint.newest_intact(tmp_path / "run", state_of(12))
    assert steps_of(tmp_path / "run") == [6, 9, 12]


@pytest.mark.skipif(not pathlib.Path("/proc/self/mem").exists(), reason="needs Linux")
@pytest.mark.parametrize("file", ["state/_METADATA", "metrics/metrics", "state/manifest.ocdbt"])
def test_a_file_that_the_disk_does_not_give_is_no_damage(whole, tmp_path, monkeypatch, file):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "_RETRY_PAUSES", (0.0, 0.0))
    path = tmp_path / "run/checkpoints/12" / file
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading at its start is an input/output error
    with pytest.raises(RunError, match=r"12: cannot be read \(Input/output error\)"):
        checkpoint.newest_intact(tmp_path / "run", state_of(12))
    assert path.is_symlink()


def test_a_checkpoint_removed_while_they_are_listed_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    failures = iter([FileNotFoundError(), FileNotFoundError()])
    made = checkpoint.Manager.__init__

    def removed(self, *given, **options):
        if (failure := next(failures, None)) is not None:
            raise failure
        made(self, *given, **options)

    monkeypatch.setattr(checkpoint.Manager, "__init__", removed)
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert manager.latest_step() is None
    failures = iter([FileNotFoundError("gone")])
    with pytest.raises(FileNotFoundError, match="gone"):
        checkpoint.open_manager(tmp_path)
