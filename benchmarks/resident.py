"""Times training on pairs in device memory: many steps per dispatch, including their input.

    python -m benchmarks.resident
    python -m benchmarks.resident --batch=64 --dtype=bfloat16 --peers=channels_last,compiled

One JSON line per way, with `steps_per_dispatch`; `benchmarks.common` documents the keys.

    train_resident         fixed pairs, sampled and flipped within the step
    train_resident_fresh   also draws fresh noise and gain within the step
    train_step             JAX and variants of PyTorch on one fixed batch in device memory

`relative_time` is relative to "train_step" in JAX. The pixels are random; model, loss and
optimizer are those of the experiment. TensorFlow is not needed.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import common, limits, train_step
from benchmarks.common import Task
from restore_jax.degradation import definition
from restore_jax.learner import state
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh
from restore_jax.train.on_device import dataset, pairs_file, resident

IMAGES = 932
"""Number of images that the reports trained on."""


def make_pairs(size: int, images: int, held_out: int, draws: int) -> pairs_file.Pairs:
    """Makes pairs of random pixels, in the form of a file of pairs.

    Args:
        size: side length in px.
        images: number of training images.
        held_out: number of validation images.
        draws: number of fixed draws per image; 0: drawn within the step.
    """
    rng = np.random.default_rng(0)

    def split(count: int, draws: int) -> pairs_file.Split:
        # Blocks, so that there is something to restore.
        coarse = rng.integers(0, 256, (count, -(-size // 8), -(-size // 8), 3), np.uint8)
        clean = coarse.repeat(8, 1).repeat(8, 2)[:, :size, :size]
        shape = (draws * count, size, size, 3)
        noise = rng.integers(-30, 31, shape, np.int16)
        degraded = np.clip(np.tile(clean, (draws, 1, 1, 1)) + noise, 0, 255)
        mask = np.zeros((count, size, size, 1), np.uint8)
        mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
        arrays = {
            "degraded": degraded.astype(np.uint8),
            "clean": clean,
            "mask": mask,
            "has_mask": np.ones(count, np.uint8),
            "gain": np.ones((draws * count, 3), np.float32),
        }
        names = [f"a/test/b/{number:04d}" for number in range(count)]
        return pairs_file.Split(names, ["a"] * count, ["b"] * count, arrays)

    splits = {"train": split(images, max(1, draws)), "val": split(held_out, 1)}
    if not draws:
        for part in splits.values():
            part.arrays["native"] = np.full((len(part), 2), 4 * size, np.int32)
        splits["train"].arrays["blurred"] = splits["train"].arrays["clean"]
    return pairs_file.Pairs(
        path=pathlib.Path("random"),
        settings={},
        images="",
        law=dataclasses.asdict(definition.PRESETS["kla"]),
        symmetries="flips",
        draws=draws,
        splits=splits,
    )


def measure(task: Task, images: int = IMAGES) -> Iterator[dict[str, Any]]:
    """Yields the limits of the device and a record for each way."""
    config = common.make_config(task)
    count = max(1, min(config.train.log_every_steps, images // task.batch))
    calls = {"jax": _repeated(train_step.make_step(task), count)}
    if task.peers:
        # Imported on demand, since PyTorch is not a requirement.
        from benchmarks import torch_peer  # noqa: PLC0415

        calls |= {
            name: _repeated(call, count) for name, call in torch_peer.training(task).items()
        }
    for name, draws in (("train_resident", 1), ("train_resident_fresh", 0)):
        calls[name] = make_dispatch(task, make_pairs(task.size, images, 1, draws), count)
    yield common.ceilings_record(task.dtype)
    least = limits.training(state.make_learner(config).model, task.size, task.batch, task.dtype)
    for line in common.records("train_step", task, calls, least, repeats=count):
        if line["framework"] in ("train_resident", "train_resident_fresh"):
            line |= {"op": line["framework"], "framework": "jax"}
        yield line | {"steps_per_dispatch": count if line["op"] != "train_step" else 1}


def make_dispatch(task: Task, pairs: pairs_file.Pairs, count: int) -> Callable[[], Any]:
    """Returns a call that takes `count` steps in one dispatch, repeatedly in the same epoch."""
    config = common.make_config(task)
    config.data.resident = True
    config.data.augment = "flips"
    learner = state.make_learner(config)
    devices = device_mesh.fitting_devices(task.batch, config.eval.batch_size)
    mesh = device_mesh.make_mesh(devices)
    data = dataset.as_data(pairs, config)
    loss = loss_terms.weighted_sum(config.loss)
    source = resident.make_resident(config, data, learner, loss, mesh)
    assert source is not None
    now = jax.device_put(state.create_state(learner, config.seed), device_mesh.replicated(mesh))

    def call() -> Any:
        nonlocal now
        now, scalars = source.dispatch(now, source.arrays, {}, count)
        return now, scalars

    return call


def _repeated(call: Callable[[], Any], count: int) -> Callable[[], Any]:
    def calls() -> Any:
        for _ in range(count):
            found = call()
        return found

    return calls


if __name__ == "__main__":
    common.run(__doc__, measure)
