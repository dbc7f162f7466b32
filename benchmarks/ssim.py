"""Times the structural similarity (SSIM) of a batch of pairs, and its gradient.

    python -m benchmarks.ssim --size=1024 --batch=1

One JSON line each for "ssim" and "ssim_gradient"; `benchmarks.common` documents the keys.
"dm_pix" is that library's implementation, whose window is a convolution. There is no model, and
`dtype` is always float32, as in training and evaluation. TensorFlow is not needed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp

from benchmarks import common, limits
from benchmarks.common import Task
from restore_jax.metrics import fidelity


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the limits of the device and the records of both, by both implementations."""
    task = dataclasses.replace(task, model="none", dtype="float32")
    batch = common.make_batch(task)
    pair = batch["degraded"], batch["clean"]
    forms = {"jax": fidelity.ssim, "dm_pix": dm_pix.ssim}
    yield common.ceilings_record(task.dtype)
    least = limits.similarity(task.size)
    values = {name: jax.jit(form) for name, form in forms.items()}
    calls = {name: lambda f=value: f(*pair) for name, value in values.items()}
    yield from common.records("ssim", task, calls, least)
    gradients = {
        name: jax.jit(jax.grad(lambda a, b, f=form: jnp.mean(f(a, b))))
        for name, form in forms.items()
    }
    calls = {name: lambda f=gradient: f(*pair) for name, gradient in gradients.items()}
    yield from common.records("ssim_gradient", task, calls)


if __name__ == "__main__":
    common.run(__doc__, measure)
