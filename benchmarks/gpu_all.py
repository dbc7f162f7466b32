"""Runs all benchmarks that matter on a GPU machine, in one call of less than eight minutes.

    python -m benchmarks.gpu_all
    python -m benchmarks.gpu_all --minutes=7 --output=results.jsonl
    python -m benchmarks.gpu_all --list         # list the parts, in order
    python -m benchmarks.gpu_all --first=9      # continue with those that did not fit
    python -m benchmarks.gpu_all --tiny         # smoke test: the smallest part of each kind

Requires JAX, Flax, optax, dm-pix, ml-collections and absl; PyTorch for the comparison; Orbax,
tensorboard, tqdm and Matplotlib for the whole run; no TensorFlow. For a machine without access
to a package index, put missing packages into a folder:

    pip install --no-deps --target=carried dm-pix ml-collections      # with a package index
    PYTHONPATH=carried python -m benchmarks.gpu_all                   # without

One JSON line per figure (see `benchmarks.common`), the most important first. The last line
names the parts that did not fit into the time and those that failed; a failure does not stop
the others.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_NEEDED = ("jax", "flax", "optax", "dm_pix", "ml_collections", "absl")

Part = tuple[str, Callable[[], Iterator[Mapping[str, Any]]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts in order until the time is up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="start no part after that")
    parser.add_argument("--output", type=pathlib.Path, help="also write the lines here")
    parser.add_argument("--size", type=int, default=256, help="side length, px")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first part to run")
    parser.add_argument("--list", action="store_true", help="only name the parts")
    parser.add_argument("--tiny", action="store_true", help="run the smallest parts only")
    given = parser.parse_args(argv)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: not installed: {', '.join(missing)}; see --help", file=sys.stderr)
        sys.exit(2)
    planned = tiny_parts() if given.tiny else parts(given.size, given.rounds)
    if given.list:
        for number, (name, _) in enumerate(planned):
            print(number, name)
        return
    lines = []

    def emit(record: Mapping[str, Any]) -> None:
        lines.append(json.dumps(dict(record)))
        print(lines[-1], flush=True)
        if given.output:
            given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    # A later call reuses the programs compiled here.
    from restore_jax.parallel import compilation  # noqa: PLC0415

    compilation.use_cache()
    seconds = math.inf if given.tiny else 60.0 * given.minutes
    run(planned[given.first :], seconds, emit)


def run(planned: list[Part], seconds: float, emit: Callable[[Mapping[str, Any]], None]) -> None:
    """Emits the records of the parts and, at the end, what was left out or failed."""
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
            # A part that this machine cannot run must not prevent the others.
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    emit({"op": "gpu_all", "left_out": left_out, "failed": failed})


def parts(size: int, rounds: int) -> list[Part]:
    """Lists the parts, the most important first."""
    # Imported late, so that a missing module leads to a one-line message.
    from benchmarks import infer, kernels, resident, ssim, train_step  # noqa: PLC0415
    from benchmarks.common import Task  # noqa: PLC0415

    has_torch = importlib.util.find_spec("torch") is not None
    peers = ("channels_last", "compiled") if has_torch else ()
    best = peers[-1:]
    # JAX alone first: PyTorch's compiler may take longer than the whole time, and a part emits
    # nothing before all of its peers are measured.
    tasks: list[tuple[Any, Task]] = [
        (resident, Task("sca_unet", size, 64, "bfloat16", rounds)),
        (resident, Task("sca_unet", size, 8, "bfloat16", rounds)),
        (kernels, Task("sca_unet", size, 8, "bfloat16", rounds)),
        (infer, Task("sca_unet", size, 64, "bfloat16", rounds)),
        (resident, Task("sca_unet", size, 64, "bfloat16", rounds, peers)),
        (resident, Task("sca_unet", size, 8, "bfloat16", rounds, best)),
        (infer, Task("sca_unet", size, 64, "bfloat16", rounds, best)),
        (resident, Task("sca_unet", size, 256, "bfloat16", rounds)),
        (resident, Task("sca_unet", size, 64, "float32", rounds, best)),
        (train_step, Task("rcan", size, 16, "bfloat16", rounds, best)),
        (kernels, Task("rcan", size, 16, "bfloat16", rounds)),
        (kernels, Task("measured_gain", size, 8, "bfloat16", rounds)),
    ]
    # Then growth with the batch size, for JAX alone, and the remaining models.
    tasks += [
        (resident, Task("sca_unet", size, batch, "bfloat16", rounds)) for batch in (16, 32, 128)
    ]
    tasks += [(resident, Task("sca_unet", size, b, "float32", rounds)) for b in (8, 32, 256)]
    tasks += [
        (infer, Task("rcan", size, 16, "bfloat16", rounds, best)),
        (train_step, Task("rcan", size, 16, "float32", rounds, best)),
        (infer, Task("sca_unet", size, 64, "float32", rounds, best)),
        (infer, Task("sca_unet", 4 * size, 4, "bfloat16", rounds)),
        (ssim, Task("none", size, 64, "float32", rounds)),
        (ssim, Task("none", 4 * size, 4, "float32", rounds)),
    ]
    planned: list[Part] = [
        (f"{module.__name__} {task}", functools.partial(_measured, module.measure, task))
        for module, task in tasks
    ]
    # The reports' whole training comes second, and with a larger batch last.
    for place, batch in ((1, 8), (len(planned) + 1, 64)):
        task = Task("sca_unet", size, batch, "bfloat16")
        part = f"benchmarks.whole_run {task}", functools.partial(_whole_run, task)
        planned.insert(place, part)
    return planned


def _whole_run(task: Any, **options: Any) -> Iterator[Mapping[str, Any]]:
    # Imported late, since it needs more packages than the others, which run without them.
    from benchmarks import whole_run  # noqa: PLC0415

    yield from whole_run.measure(task, **options)


def tiny_parts() -> list[Part]:
    """Lists one part of each kind, small enough for a CPU."""
    from benchmarks import infer, resident, ssim  # noqa: PLC0415
    from benchmarks.common import Task  # noqa: PLC0415

    # Of two levels, as narrow as can be: at its own widths the time goes into compiling.
    task = Task("sca_unet", 16, 2, "float32", 1, fields={"model.widths": (2, 4)})
    few = {"images": 6}
    return [
        ("resident", functools.partial(_measured, resident.measure, task, **few)),
        (
            "whole_run",
            functools.partial(_whole_run, task, **few, held_out=2, epochs=3, warm=1),
        ),
        ("infer", functools.partial(_measured, infer.measure, task)),
        ("ssim", functools.partial(_measured, ssim.measure, task)),
    ]


def _measured(
    measure: Callable[..., Any], task: Any, **options: Any
) -> Iterator[Mapping[str, Any]]:
    """Yields a task's records; if `torch.compile` fails, the reason, then those without it."""
    try:
        yield from list(measure(task, **options))
    except Exception as error:
        # `torch.compile` needs a compiler, which may be missing; the other peers do not.
        if "compiled" not in task.peers:
            raise
        others = tuple(form for form in task.peers if form != "compiled")
        yield {
            "op": "not_compiled",
            "reason": f"{type(error).__name__}: {error}".splitlines()[0],
        }
        yield from measure(dataclasses.replace(task, peers=others), **options)


if __name__ == "__main__":
    main()
