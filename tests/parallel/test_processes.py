"""Several processes as one training: real ones, on this machine.

Processes cost most of their time to start, so each job does several things, and the run of one
process that it is compared with is this one.
"""

import contextlib
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
from unittest import mock

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from PIL import Image

import launch
from restore_jax.cli import commands, flags
from restore_jax.parallel import device_mesh, launcher
from restore_jax.parallel import processes as hosts
from tests.support import child, command_line, kills
from tests.support.command_line import TINY

ROOT = pathlib.Path(__file__).parents[2]
# Far longer than anything takes; what hangs is ended and fails.
PATIENCE = 600


class Job:
    """Two processes that work together; each one's output goes to a file of the folder."""

    def __init__(self, folder, command, flag_names, arguments):
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = found.getsockname()[1]
        number = len(list(folder.glob("*.txt")))
        self.outputs = [folder / f"{number + index}.txt" for index in range(2)]
        self.running = []
        for index, output in enumerate(self.outputs):
            given = zip(flag_names, (port, 2, index), strict=True)
            with output.open("wb") as file:
                self.running.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, *command, *map(str, arguments)),
                            *(flag + str(value) for flag, value in given),
                        ],
                        cwd=ROOT,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        # A device each.
                        env=os.environ | {"XLA_FLAGS": "", "OMP_NUM_THREADS": "1"},
                    )
                )

    def wait(self):
        """The exit statuses, the last lines and all that was said."""
        end = time.monotonic() + PATIENCE
        with contextlib.ExitStack() as stack:
            for process in self.running:
                stack.callback(process.wait)  # after it was killed, so that none is left over
                stack.callback(process.kill)
            statuses = [p.wait(end - time.monotonic()) for p in self.running]
        texts = [output.read_text(errors="replace") for output in self.outputs]
        return statuses, [(text.strip().splitlines() or [""])[-1] for text in texts], texts

    def wait_for(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            assert [process.poll() for process in self.running] == [None, None]
            time.sleep(0.05)


def train(folder, *arguments):
    """Starts `tests.support.child` in two processes."""
    names = ("--port=", "--processes=", "--process=")
    return Job(folder, ("-m", "tests.support.child"), names, arguments)


def launched(folder, *arguments):
    """What comes of launch.py in two processes."""
    names = ("--coordinator=localhost:", "--num_processes=", "--process_id=")
    statuses, _, texts = Job(folder, [ROOT / "launch.py"], names, arguments).wait()
    assert statuses == [0, 0], "\n".join(texts)
    return texts


def in_this_process(*arguments):
    """Does what launch.py does, alone and on one device."""
    alone = mock.patch.object(device_mesh, "fitting_devices", lambda *_: jax.devices()[:1])
    with command_line.parsed(*arguments), alone:
        commands.run(flags.MODE.value, commands.Flags(**flags.given()), launch.make_data)


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


# Training.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of three epochs of three steps each, in one process and in two."""
    folder = tmp_path_factory.mktemp("trained")
    names = ("sca_unet", "pexels_gan")  # the second one has BatchNorm and a discriminator
    one, two = (
        [part for name in names for part in (name, folder / f"{count}-{name}")]
        for count in ("one", "two")
    )
    child.run(list(map(str, one)), {"epochs": "3"})
    statuses, _, texts = train(folder, *two, "--epochs=3").wait()
    assert statuses == [0, 0], "\n".join(texts)
    return folder, texts


@pytest.mark.slow
@pytest.mark.xdist_group("two_processes")
def test_two_processes_train_as_one_does(trained):
    folder, texts = trained
    assert_same_run(folder / "one-sca_unet", folder / "two-sca_unet", epochs=3)
    assert "tiny: 10 images to train on" in texts[0]
    assert "tiny" not in texts[1]


@pytest.mark.slow
@pytest.mark.xdist_group("two_processes")
def test_two_processes_train_as_one_does_with_batchnorm_and_a_discriminator(trained):
    folder, _ = trained
    one, two = (
        # The running means amplify rounding, see docs/reliability.md.
        [line for line in records(folder / f"{count}-pexels_gan") if line["split"] == "train"]
        for count in ("one", "two")
    )
    # Later, pooling may pick the other of two pixels that differ by rounding alone.
    assert_close(one[:2], two[:2])


@pytest.mark.slow
@pytest.mark.xdist_group("two_processes")
def test_runs_go_on_with_another_number_of_processes_and_refusals_are_told_by_all(trained):
    folder, _ = trained
    for count in ("one", "two"):
        shutil.copytree(folder / f"{count}-sca_unet", folder / f"on-from-{count}")
        shutil.rmtree(folder / f"on-from-{count}" / "checkpoints" / "9")
    child.run(["sca_unet", str(folder / "on-from-two")], {"epochs": "3", "every_steps": "2"})
    runs = (
        *("sca_unet", folder / "two-sca_unet"),
        *("sca_unet", folder / "on-from-one"),
        *("pexels_gan", folder / "one-sca_unet"),  # what the first process alone reads
    )
    statuses, last, texts = train(folder, *runs, "--epochs=3", "--every_steps=2").wait()
    assert "finished" in texts[0]
    assert "resuming from step 6" in texts[0]
    for count in ("one", "two"):
        assert_same_run(folder / "one-sca_unet", folder / f"on-from-{count}", epochs=3)
    assert statuses == [2, 2], "\n".join(texts)
    assert last[0] == last[1]
    assert last[0].startswith("error: ") and "config.name" in last[0]
    assert not any("Traceback" in text for text in texts)


@pytest.mark.slow
def test_a_job_that_loses_a_process_ends_and_goes_on_and_a_signal_to_one_stops_all(tmp_path):
    folder = tmp_path / "run"

    def saved():
        steps = (path.name for path in (folder / "checkpoints").glob("*"))
        return max((int(name) for name in steps if name.isdecimal()), default=0)

    def begin():
        """Has a job go on from the latest checkpoint until there is another."""
        before = saved()
        job = train(tmp_path, "sca_unet", folder, "--every_steps=2", "--epochs=2000")
        job.wait_for(lambda: saved() > before)
        going_on = re.search(r"resuming from step (\d+)", job.outputs[0].read_text())
        assert (int(going_on[1]) if going_on else 0) == before
        return job

    # The first one is the job's coordinator, too.
    for victim in (0, 1):
        job = begin()
        time.sleep(0.5)
        job.running[victim].kill()
        statuses, last, texts = job.wait()
        assert statuses[victim] == -9
        assert statuses[1 - victim] == 1, texts[1 - victim]
        assert last[1 - victim] == f"error: {launcher.LOST}"
        assert "Traceback" not in texts[1 - victim]
    job, asked = begin(), 1
    job.running[asked].send_signal(signal.SIGTERM)
    statuses, last, texts = job.wait()
    assert statuses == [143, 143], "\n".join(texts)
    assert last[0] == last[1]
    step = int(re.search(r"stopped by SIGTERM after step (\d+),", last[0])[1])
    assert step == saved()
    assert "SIGTERM: finishing the step" in texts[asked]
    assert "SIGTERM: finishing the step" not in texts[1 - asked]


# The command line.


@pytest.mark.slow
def test_two_processes_do_from_the_command_line_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    in_this_process(*TINY, f"--workdir={one}")
    assert "mean of images" in launched(tmp_path, *TINY, f"--workdir={two}")[0]
    assert_close(records(one), records(two))
    compare_evaluations(*(folder / "evaluation" / "sample-best" for folder in (one, two)))
    # The evaluation alone, of another split.
    evaluate = ("--mode=evaluate", *TINY, "--config.eval.split=all")
    in_this_process(*evaluate, f"--workdir={one}")
    launched(tmp_path, *evaluate, f"--workdir={two}")
    compare_evaluations(*(folder / "evaluation" / "sample_all-best" for folder in (one, two)))


def flattened(tree, path=""):
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from flattened(value, f"{path}/{name}")
    else:
        yield path, tree


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
