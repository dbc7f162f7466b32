"""Shows where the time of a training step goes on a GPU: its kernels, as the profiler saw them.

    python -m benchmarks.kernels --batch=8 --dtype=bfloat16
    python -m benchmarks.kernels --model=rcan --batch=8 --dtype=bfloat16

The first JSON line is the step's, with the keys of `benchmarks.common` and

    kernel_ms    time of all its kernels, ms per step
    launches     number of its kernels
    busy         share of the step in which a kernel runs; what is missing is spent on launching

One line follows for each of the 40 kernels that take the most time: its name, the operation of
XLA's program that it belongs to, launches and ms per step. Needs a GPU and nothing else on it:
the times of kernels that another process interrupts are too long.
"""

import collections
import gzip
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from benchmarks import common, train_step
from benchmarks.common import Task
from restore_jax.errors import UsageError

_STEPS, _SHOWN = 10, 40


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Yields the record of a step, then those of its kernels.

    Raises:
        UsageError: there is no GPU.
    """
    if jax.default_backend() != "gpu":
        raise UsageError(f"benchmarks.kernels: needs a GPU; this is a {jax.default_backend()}")
    step = train_step.make_step(task)
    (line,) = common.records("train_step", task, {"jax": step})
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready([step() for _ in range(_STEPS)][-1])
        found = kernels(read_events(pathlib.Path(folder)))
    yield from records(line, found, task.batch)


def records(
    line: Mapping[str, Any], found: Mapping[tuple[str, str], tuple[int, float]], batch: int
) -> Iterator[dict[str, Any]]:
    """Yields the lines for the kernels of `_STEPS` steps, after that of the step itself."""
    took = sum(milliseconds for _, milliseconds in found.values()) / _STEPS
    yield {
        **line,
        "kernel_ms": round(took, 4),
        "launches": round(sum(count for count, _ in found.values()) / _STEPS),
        "busy": round(took / (batch * line["ms_per_image"]), 3),
    }
    by_time = sorted(found.items(), key=lambda entry: -entry[1][1])
    for (name, operation), (count, milliseconds) in by_time[:_SHOWN]:
        yield {
            "op": "kernel",
            "name": name,
            "operation": operation,
            "launches": round(count / _STEPS, 1),
            "ms": round(milliseconds / _STEPS, 4),
        }


def read_events(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the events that `jax.profiler.trace` has written, in Chrome's trace format."""
    return [
        event
        for path in sorted(folder.rglob("*.trace.json.gz"))
        for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    ]


def kernels(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, float]]:
    """Adds up the kernels among a trace's events: those of the streams of a GPU.

    Returns:
        By name of the kernel and of XLA's operation: number of launches and ms.
    """
    names: dict[tuple[str, Any, Any], str] = {}
    complete = []
    for event in events:
        if event.get("ph") == "M":
            thread = event.get("tid") if event["name"] == "thread_name" else None
            names[event["name"], event["pid"], thread] = event.get("args", {}).get("name", "")
        elif event.get("ph") == "X":
            complete.append(event)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in complete:
        device = names.get(("process_name", event["pid"], None), "")
        stream = names.get(("thread_name", event["pid"], event["tid"]), "")
        if "GPU" in device and "Stream" in stream:
            key = event["name"], str(event.get("args", {}).get("hlo_op", ""))
            counts[key] += 1
            times[key] += event["dur"] / 1e3
    return {key: (counts[key], times[key]) for key in counts}


if __name__ == "__main__":
    common.run(__doc__, measure)
