"""Kills a training run with SIGKILL at random moments until it is done, and checks its results.

python -m tests.support.kills [--kills=20] [--seed=0]

Prints a JSON line for every kill and a summary; the exit status is 1 if any result differs from
that of an uninterrupted run. A killed run is resumed until it ends; then another one starts.
"""

import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from restore_jax.checkpoints import checkpoint
from restore_jax.learner import state
from restore_jax.parallel import device_mesh
from tests.support import checkpoints, child

ROOT = pathlib.Path(__file__).parents[2]


def start(folder, **flags):
    given = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.child", "sca_unet", str(folder), *given],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A compilation cache of their own, since a kill may interrupt a write to it.
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def wait_for_the_first_step(process, folder):
    phase = folder.with_name(f"{folder.name}.phase")
    while process.poll() is None and not phase.exists():
        time.sleep(0.01)


def kill_after(folder, delay, **flags):
    """Starts or resumes a run and kills it; returns its phase, or None if it had ended."""
    phase = folder.with_name(f"{folder.name}.phase")
    phase.unlink(missing_ok=True)
    process = start(folder, **flags)
    wait_for_the_first_step(process, folder)
    time.sleep(delay)
    process.kill()
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    assert process.returncode == -9, errors
    if list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        return "save"
    return phase.read_text() or "step"


def contents(folder, **flags):
    """Returns the results of a run: best and latest checkpoint with records, and metrics."""
    learner = state.make_learner(child.config("sca_unet", **flags))
    sharding = device_mesh.replicated(device_mesh.make_mesh(jax.devices()[:1]))
    template = state.abstract_state(learner, sharding)
    found = {"lines": (folder / "metrics.jsonl").read_text()}
    with checkpoint.open_manager(folder, read_only=True) as manager:
        for which in ("best", "latest"):
            step = checkpoint.find_step(manager, which, folder)
            found[which] = checkpoints.restore(manager, step, template)
    return found


def differences(a, b):
    """Returns the names of all results that are not bitwise equal between two runs."""
    found = [] if a["lines"] == b["lines"] else ["metrics.jsonl"]
    for which in ("best", "latest"):
        (one, record), (other, expected) = a[which], b[which]
        if record != expected:
            found.append(f"{which}: record")
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
        ):
            if np.asarray(x).tobytes() != np.asarray(y).tobytes():
                found.append(f"{which}: {jax.tree_util.keystr(path)}")
    return found


def kill_and_compare(folder, kills, seed, tell, epochs, every_steps=2):
    """Kills training `kills` times, over as many runs as needed; returns their differences."""
    flags = {"epochs": epochs, "every_steps": every_steps}
    # Time the second run, as the first one compiles.
    for name in ("compiling", "whole"):
        process = start(folder / name, **flags)
        wait_for_the_first_step(process, folder / name)
        began = time.monotonic()
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        length = time.monotonic() - began
    expected = contents(folder / "whole", **flags)
    tell({"uninterrupted_s": round(length, 2), "steps": epochs * 3})
    moments = random.Random(seed)
    found, done, runs = [], 0, 0
    while done < kills:
        run, ended = folder / f"killed-{runs}", False
        while not ended and done < kills:
            delay = moments.uniform(0, length / 2)
            phase = kill_after(run, delay, **flags)
            ended = phase is None
            if not ended:
                done += 1
                step = checkpoint.latest_step(run)
                tell({"run": runs, "after_s": round(delay, 2), "in": phase, "saved": step})
        if not ended:
            process = start(run, **flags)
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        found.append(differences(expected, contents(run, **flags)))
        tell({"run": runs, "differences": found[-1]})
        runs += 1
    return found


def main(arguments):
    flags = dict(flag.removeprefix("--").split("=") for flag in arguments)
    kills, seed = int(flags.get("kills", 20)), int(flags.get("seed", 0))
    counted = collections.Counter()

    def tell(line):
        counted.update([line["in"]] if "in" in line else [])
        print(json.dumps(line), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        found = kill_and_compare(pathlib.Path(folder), kills, seed, tell, epochs=12)
    print(json.dumps({"kills": dict(counted), "runs": len(found), "identical": not any(found)}))
    sys.exit(any(found))


if __name__ == "__main__":
    main(sys.argv[1:])
