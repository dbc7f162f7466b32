"""Several processes as one training: real ones, on this machine."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from PIL import Image

from configs import sca_unet
from data import pipeline
from data.sources import examples
from restore_jax import batches
from restore_jax.errors import UsageError
from restore_jax.parallel import launcher
from restore_jax.parallel import processes as hosts
from tests.support import kills

ROOT = pathlib.Path(__file__).parents[2]
# Far longer than anything takes; what hangs is ended and fails.
PATIENCE = 600


def environment():
    return os.environ | {"XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}  # one device each


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Processes:
    """Processes of one job; each one's output goes to a file."""

    def __init__(self, tmp_path, commands):
        before = len(list(tmp_path.glob("*.txt")))
        self.outputs = [tmp_path / f"{before + i}.txt" for i in range(len(commands))]
        self.running = []
        for command, output in zip(commands, self.outputs, strict=True):
            with output.open("wb") as file:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        cwd=ROOT,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment(),
                    )
                )

    def wait(self):
        """The exit statuses and the last lines."""
        end = time.monotonic() + PATIENCE
        with contextlib.ExitStack() as stack:
            for process in self.running:
                stack.callback(process.wait)  # after it was killed, so that none is left over
                stack.callback(process.kill)
            statuses = [p.wait(end - time.monotonic()) for p in self.running]
        texts = [output.read_text(errors="replace") for output in self.outputs]
        return statuses, [text.strip().splitlines()[-1:] for text in texts], texts


def children(tmp_path, count, *arguments):
    port = free_port()
    flags = [f"--port={port}", f"--processes={count}"]
    commands = [
        ["-m", "tests.support.child", *map(str, arguments), *flags, f"--process={i}"]
        for i in range(count)
    ]
    return Processes(tmp_path, commands)


def run_children(tmp_path, count, *arguments):
    statuses, _, texts = children(tmp_path, count, *arguments).wait()
    assert statuses == [0] * count, "\n".join(texts)
    return texts


def run_alone(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.child", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(one, other):
    assert [sorted(record) for record in one] == [sorted(record) for record in other]
    for a, b in zip(one, other, strict=True):
        for name, value in a.items():
            if isinstance(value, float):
                # The norm of what is left to learn is the first to show how sums were rounded.
                near = 1e-4 if name == "grad_norm" else 1e-5
                assert b[name] == pytest.approx(value, rel=near, abs=1e-7), name
            else:
                assert b[name] == value, name


def assert_same_run(expected, folder, **fields):
    assert_close(records(expected), records(folder))
    one, other = kills.contents(expected, **fields), kills.contents(folder, **fields)
    for which in ("best", "latest"):
        assert one[which][1]["epoch"] == other[which][1]["epoch"]
        leaves = jax.tree_util.tree_leaves_with_path(one[which][0])
        for (path, a), b in zip(leaves, jax.tree.leaves(other[which][0]), strict=True):
            # The bias of φ shifts all scores of a softmax alike: its gradient is nothing but
            # rounding, which Adam scales up.
            if "['phi']['bias']" not in jax.tree_util.keystr(path):
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def whole(shared):
    """Three epochs of three steps in one process."""
    run_alone("sca_unet", shared / "whole", "--epochs=3")
    return shared / "whole"


@pytest.fixture(scope="module")
def two(shared):
    """The same in two."""
    texts = run_children(shared, 2, "sca_unet", shared / "two", "--epochs=3")
    assert "tiny: 10 images to train on" in texts[0]
    assert "tiny" not in texts[1]
    return shared / "two"


@pytest.mark.slow
def test_two_processes_train_as_one_does(shared, whole, two):
    assert_same_run(whole, two, epochs=3)
    assert "finished" in run_children(shared, 2, "sca_unet", two, "--epochs=3")[0]


@pytest.mark.slow
def test_four_processes_train_as_one_does_with_batchnorm_and_a_discriminator(shared):
    names = ("sca_unet", "pexels_gan")
    flags = ("--batch_size=8", "--epochs=2")
    run_alone(*itertools.chain(*((n, shared / f"one-{n}") for n in names)), *flags)
    run_children(
        shared, 4, *itertools.chain(*((n, shared / f"four-{n}") for n in names)), *flags
    )
    for name in names:
        one, four = records(shared / f"one-{name}"), records(shared / f"four-{name}")
        if name != "sca_unet":  # running means amplify rounding, see docs/reliability.md
            one, four = ([r for r in of if r["split"] == "train"] for of in (one, four))
        assert_close(one, four)


def wait_for(condition, processes):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        assert [p.poll() for p in processes.running] == [None] * len(processes.running)
        time.sleep(0.05)


def has_saved(folder):
    return lambda: any(p.name.isdecimal() for p in (folder / "checkpoints").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_and_a_restart_goes_on(shared, victim):
    folder = shared / f"died-{victim}"
    arguments = ("sca_unet", folder, "--every_steps=2")
    processes = children(shared, 2, *arguments, "--epochs=2000")
    wait_for(has_saved(folder), processes)
    time.sleep(0.5)
    processes.running[victim].kill()
    statuses, last, texts = processes.wait()
    assert statuses[victim] == -9
    assert statuses[1 - victim] == 1, texts[1 - victim]
    assert last[1 - victim] == [f"error: {launcher.LOST}"]
    assert "Traceback" not in texts[1 - victim]
    steps = (p.name for p in (folder / "checkpoints").iterdir())
    saved = max(int(name) for name in steps if name.isdecimal())
    processes = children(shared, 2, *arguments, "--epochs=2000")
    going_on = re.compile(r"going on from step (\d+)")
    wait_for(lambda: going_on.search(processes.outputs[0].read_text()), processes)
    assert int(going_on.search(processes.outputs[0].read_text())[1]) == saved
    for process in processes.running:
        process.send_signal(signal.SIGTERM)
    processes.wait()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(shared):
    folder, asked = shared / "stopped", 1
    arguments = ("sca_unet", folder, "--every_steps=2", "--epochs=400")
    processes = children(shared, 2, *arguments)
    wait_for(has_saved(folder), processes)
    processes.running[asked].send_signal(signal.SIGTERM)
    statuses, last, texts = processes.wait()
    assert statuses == [143, 143], "\n".join(texts)
    step = int(re.search(r"stopped by SIGTERM after step (\d+),", last[0][0])[1])
    assert last[0] == last[1]
    assert (folder / "checkpoints" / str(step)).is_dir()
    assert ("SIGTERM: finishing the step" in texts[asked]) and (
        "SIGTERM: finishing the step" not in texts[1 - asked]
    )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(shared, whole, two):
    for before, count in ((two, 1), (whole, 2)):
        folder = shared / f"on-{count}"
        shutil.copytree(before, folder)
        shutil.rmtree(folder / "checkpoints" / "9")
        arguments = ("sca_unet", folder, "--epochs=3", "--every_steps=2")
        if count == 1:
            run_alone(*arguments)
        else:
            assert "going on from step 6" in run_children(shared, count, *arguments)[0]
        assert_same_run(whole, folder, epochs=3)


@pytest.mark.slow
def test_refusals_are_one_line_on_every_process(shared, whole):
    for arguments, words in (
        (
            ("sca_unet", shared / "odd", "--batch_size=5"),
            "2 devices of 2 processes; take 4 or 6",
        ),
        (("sca_unet", whole, "--epochs=2"), "config.train.epochs (3, now 2)"),
    ):
        statuses, last, texts = children(shared, 2, *arguments).wait()
        assert statuses == [2, 2], "\n".join(texts)
        for line in last:
            assert line[0].startswith("error: ")
            assert words in line[0]
        assert not any("Traceback" in text for text in texts)


# The command line.

TINY = (
    "--config=configs/sca_unet.py:sample",
    "--config.train.epochs=2",
    "--config.data.image_size=32",
    "--config.data.sample_size=48",
    "--config.data.sample_count=2",
    "--config.model.widths=(2, 4)",
    "--config.eval.pictures=2",
)


def launch(tmp_path, *flags):
    done = Processes(tmp_path, [[str(ROOT / "launch.py"), *flags]])
    statuses, _, texts = done.wait()
    return statuses[0], texts[0]


def launch_job(tmp_path, count, *flags):
    port = free_port()
    common = [str(ROOT / "launch.py"), f"--coordinator=localhost:{port}"]
    return Processes(
        tmp_path,
        [
            [*common, f"--num_processes={count}", f"--process_id={i}", *flags]
            for i in range(count)
        ],
    ).wait()


def flattened(tree, path=""):
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from flattened(value, f"{path}/{name}")
    else:
        yield path, tree


@pytest.mark.slow
def test_two_processes_do_from_the_command_line_what_one_does(shared):
    for folder, count in ((shared / "cli-1", 1), (shared / "cli-2", 2)):
        flags = (*TINY, f"--workdir={folder}")
        statuses, _, texts = (
            launch_job(shared, count, *flags)
            if count > 1
            else Processes(shared, [[str(ROOT / "launch.py"), *flags]]).wait()
        )
        assert statuses == [0] * count, "\n".join(texts)
        assert "mean of images" in texts[0]
    assert_close(records(shared / "cli-1"), records(shared / "cli-2"))
    one, two = (shared / name / "evaluation" / "sample-best" for name in ("cli-1", "cli-2"))
    compare_evaluations(one, two)
    # The evaluation alone, of another split.
    flags = ("--mode=evaluate", *TINY, "--config.eval.split=all")
    status, text = launch(shared, *flags, f"--workdir={shared / 'cli-1'}")
    assert status == 0, text
    statuses, _, texts = launch_job(shared, 2, *flags, f"--workdir={shared / 'cli-2'}")
    assert statuses == [0, 0], "\n".join(texts)
    compare_evaluations(one.with_name("sample_all-best"), two.with_name("sample_all-best"))
    # Each restores its own part, and twice as often is no more.
    inputs = shared / "in"
    inputs.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(inputs / f"{i}.png")
    flags = (
        "--mode=restore",
        f"--workdir={shared / 'cli-2'}",
        f"--input={inputs}",
        f"--output={shared / 'out'}",
    )
    for expected in (("restored", 5), ("skipped", 5)):
        statuses, _, texts = launch_job(shared, 2, *flags)
        assert statuses == [0, 0], "\n".join(texts)
        counted = re.findall(rf"(\d+)(?: images?)? {expected[0]}", "\n".join(texts))
        assert sum(map(int, counted)) == expected[1]
    assert sorted(p.name for p in (shared / "out").iterdir()) == [f"{i}.png" for i in range(5)]


def compare_evaluations(one, two):
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (one, two))
    first, second = dict(flattened(first)), dict(flattened(second))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, float):
            # A quotient of differences of which the lower may be 0.05.
            tolerance = 1e-4 if "/recovery/" in name else 1e-5
            assert second[name] == pytest.approx(value, rel=1e-5, abs=tolerance), name
        else:
            assert second[name] == value, name
    rows = [(path / "images.csv").read_text().splitlines() for path in (one, two)]
    assert [row.split(",")[0] for row in rows[0]] == [row.split(",")[0] for row in rows[1]]
    pictures = [np.asarray(Image.open(path / "triplets.png"), int) for path in (one, two)]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # a grey level, by rounding


JOB = ("--coordinator=localhost:1", "--num_processes=2", "--process_id=0")
TRAIN = ("--config=configs/sca_unet.py:sample",)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*TRAIN, *JOB[:2]), ["--process_id: missing", "--coordinator needs it"]),
        ((*TRAIN, *JOB[1:]), ["--coordinator: missing"]),
        ((*TRAIN, "--process_id=0"), ["--coordinator: missing"]),
        ((*TRAIN, *JOB, "--process_id=2"), ["--process_id=2", "give 0 to 1"]),
        ((*TRAIN, *JOB, "--num_processes=0"), ["--num_processes=0"]),
        ((*TRAIN, *JOB, "--coordinator=localhost"), ["HOST:PORT"]),
        ((*TRAIN, *JOB, "--distributed"), ["--coordinator: not with --distributed"]),
        ((*TRAIN, "--distributed"), ["--distributed", "srun"]),
        (("--mode=compare", "--workdir=w", *JOB), ["--mode=compare runs in one process"]),
        (("--mode=export", "--workdir=w", "--output=o", *JOB), ["runs in one process"]),
        (("--mode=evaluate", "--workdir=w", "--watch", *JOB), ["--watch: not with"]),
        (("--mode=evaluate", "--workdir=w", "--write_tree", *JOB), ["--write_tree: not with"]),
        (
            ("--mode=restore", "--workdir=w", "--input=i", "--output=o", "--shard=1/2", *JOB),
            ["--shard: not with --coordinator"],
        ),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line_and_status_2(tmp_path, flags, words):
    status, text = launch(tmp_path, *flags)
    assert status == 2, text
    (line,) = text.strip().splitlines()
    for word in words:
        assert word in line


def test_the_launcher_tells_which_process_this_is():
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
    found = launcher.from_flags(None, None, None, True, slurm)
    assert (found.index, found.count, found.coordinator, found.shard) == (2, 4, None, "3/4")
    mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    assert launcher.from_flags(None, None, None, True, mpi).shard == "1/2"
    # Not by the variables alone: a batch script has them too.
    assert launcher.from_flags(None, None, None, False, slurm) is None
    with pytest.raises(UsageError, match="not started by Slurm or Open MPI"):
        launcher.from_flags(None, None, None, True, {})


# The data.


def settings(**data):
    config = sca_unet.get_config("sample")
    config.data.update({"sample_size": 48, "sample_count": 2, "image_size": 32, **data})
    config.data.augment = "flips"
    config.train.batch_size = config.eval.batch_size = 12
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [{}, {"realisations": 3}, {"realisations": 0}, {"image_size": 0, "crop_size": 16}],
    ids=str,
)
def test_the_rows_of_all_processes_are_the_batches_of_one(data):
    config = settings(**data)

    def taken(share):  # from within an epoch into the one after the next
        made = pipeline.make_data(config, share)
        return list(itertools.islice(made.train_batches(2), 8))

    whole = taken(batches.Share())
    parts = [taken(batches.Share(i, 2)) for i in range(2)]
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            both = np.concatenate([part[step][name] for part in parts])
            if value.dtype == np.float32:
                np.testing.assert_allclose(both, value, rtol=0, atol=1e-7)
            else:
                np.testing.assert_array_equal(both, value)


def test_each_process_reads_its_own_share_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 6)):
        (tmp_path / part).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{i:02d}.png")
    config = settings(sample_size=64)
    config.data.update({"name": "clean", "root": str(tmp_path), "image_size": 16})
    config.train.batch_size = config.eval.batch_size = 4
    read = []
    original = examples._read
    monkeypatch.setattr(
        examples, "_read", lambda e, *rest: read.append(e.id) or original(e, *rest)
    )
    seen, evaluated = [], []
    for index in range(2):
        made = pipeline.make_data(config, batches.Share(index, 2))
        read.clear()
        epoch = list(itertools.islice(made.train_batches(0), 4))
        # The set is prefetched by one epoch at most.
        assert len(epoch[0]["id"]) == 2
        trained = [name for batch in epoch for name in batch["id"]]
        assert sorted(read) == sorted(trained)
        seen += trained
        read.clear()
        for batch in made.eval_batches("val"):
            evaluated += batch["id"][batch["valid"]].tolist()
        assert len(read) == 3
    assert sorted(seen) == [f"train/{i:02d}" for i in range(16)]
    assert sorted(evaluated) == [f"val/{i:02d}" for i in range(6)]


def test_a_share_is_a_block_of_every_batch():
    assert batches.Share().rows(8) == slice(0, 8)
    assert [batches.Share(i, 4).rows(8) for i in (0, 3)] == [slice(0, 2), slice(6, 8)]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
        (JaxRuntimeError("UNKNOWN: Gloo AllReduce failed: Connection closed by peer"), True),
        (
            ValueError("UNKNOWN: Gloo all-reduce failed: [gloo/tcp/pair.cc] Connection closed"),
            True,
        ),
        (ValueError("UNAVAILABLE: Error reading local file: Busy"), False),
        (JaxRuntimeError("INTERNAL: NCCL operation ncclGroupEnd() failed"), True),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory; see /data/nccl/gloo"), False),
        (JaxRuntimeError("INTERNAL: cannot read /data/nccl/x"), False),
        (OSError(11, "Resource temporarily unavailable", "x"), False),
        (BlockingIOError(11, "Resource temporarily unavailable"), False),
        (FileNotFoundError(2, "No such file or directory", "/data/nccl/run"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (ValueError("unavailable: heartbeat"), False),
    ],
    ids=str,
)
def test_a_lost_process_is_told_by_what_raised(error, lost):
    assert hosts._is_loss(error) == lost
    wrapped = RuntimeError("it failed")
    wrapped.__cause__ = error
    assert hosts._is_loss(wrapped) == lost
