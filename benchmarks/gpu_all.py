"""Measures everything worth measuring on a GPU machine in one call of under eight minutes.

    python -m benchmarks.gpu_all
    python -m benchmarks.gpu_all --minutes=7 --output=results.jsonl

It needs JAX, Flax, optax, dm-pix, ml-collections and absl, and for the comparison PyTorch; no
TensorFlow. A machine that cannot reach a package index can be given what it lacks as a folder:

    pip install --no-deps --target=carried dm-pix ml-collections      # where there is an index
    PYTHONPATH=carried python -m benchmarks.gpu_all                   # where there is none

One JSON line per figure (see `benchmarks.common`), the most important first. What does not fit
into the time is named in the last line, and so is what failed, which stops nothing else.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_NEEDED = ("jax", "flax", "optax", "dm_pix", "ml_collections", "absl")

Part = tuple[str, Callable[[], Iterator[Mapping[str, Any]]]]


def main() -> None:
    """Runs the parts in order while there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="starts nothing after that")
    parser.add_argument("--output", type=pathlib.Path, help="a file for the lines, too")
    parser.add_argument("--size", type=int, default=256, help="side of the images, px")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: not installed: {', '.join(missing)}; see --help", file=sys.stderr)
        sys.exit(2)
    lines = []

    def emit(record: Mapping[str, Any]) -> None:
        lines.append(json.dumps(dict(record)))
        print(lines[-1], flush=True)
        if given.output:
            given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    run(parts(given.size, given.rounds), 60.0 * given.minutes, emit)


def run(planned: list[Part], seconds: float, emit: Callable[[Mapping[str, Any]], None]) -> None:
    """Emits the records of the parts, and at last what was left out or failed."""
    end = time.monotonic() + seconds
    left_out, failed = [], {}
    for name, measure in planned:
        if time.monotonic() > end:
            left_out.append(name)
            continue
        try:
            for record in measure():
                emit(record)
        except Exception as error:
            # A form that one machine cannot run must not cost the other figures.
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    emit({"op": "gpu_all", "left_out": left_out, "failed": failed})


def parts(size: int, rounds: int) -> list[Part]:
    """Lists what is measured, the most important first."""
    # Only now: a machine that lacks a module shall get one line.
    from benchmarks import infer, ssim, train_step  # noqa: PLC0415
    from benchmarks.common import Task  # noqa: PLC0415

    has_torch = importlib.util.find_spec("torch") is not None
    peers = ("channels_last", "compiled") if has_torch else ()
    tasks = []
    # Against the peer first, then how cost grows with the batch, JAX alone.
    for model, batch in (("sca_unet", 64), ("rcan", 16)):
        for dtype in ("bfloat16", "float32"):
            tasks.append((train_step, Task(model, size, batch, dtype, rounds, peers)))
            tasks.append((infer, Task(model, size, batch, dtype, rounds, peers)))
    tasks += [
        (train_step, Task("sca_unet", size, batch, "bfloat16", rounds)) for batch in (8, 256)
    ]
    tasks.append((train_step, Task("sca_unet", size, 8, "bfloat16", rounds, peers)))
    tasks.append((infer, Task("sca_unet", 4 * size, 4, "bfloat16", rounds)))
    tasks.append((ssim, Task("none", size, 64, "float32", rounds)))
    tasks.append((ssim, Task("none", 4 * size, 4, "float32", rounds)))
    return [
        (f"{module.__name__} {task}", functools.partial(_measured, module.measure, task))
        for module, task in tasks
    ]


def _measured(measure: Callable[[Any], Any], task: Any) -> Iterator[Mapping[str, Any]]:
    """Yields a task's records; without `torch.compile` where that fails, and the reason."""
    try:
        yield from list(measure(task))
    except Exception as error:
        # It needs a compiler, which a machine may lack; the other figures need none.
        if "compiled" not in task.peers:
            raise
        others = tuple(form for form in task.peers if form != "compiled")
        yield {
            "op": "not_compiled",
            "reason": f"{type(error).__name__}: {error}".splitlines()[0],
        }
        yield from measure(dataclasses.replace(task, peers=others))


if __name__ == "__main__":
    main()
