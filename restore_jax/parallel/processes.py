"""Several processes as one training: what they agree on, and what each has for itself.

Every process runs the same program on its own devices, by `jax.distributed`. They all hold the
whole state; each reads the rows of a batch that its devices take (`batches.Share`), and the
first one alone writes. With one process nothing here costs anything.
"""

import atexit
import collections
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from restore_jax import batches
from restore_jax.errors import RunError, UsageError
from restore_jax.parallel import device_mesh, exchange
from restore_jax.parallel.launcher import LOST, LOST_STATUS, Job, is_supervised
from restore_jax.parallel.signals import Interrupted, Request

Value = TypeVar("Value")
Tree = TypeVar("Tree")

# How long the others may take to begin.
_START_SECONDS = 300
# Within this a process that is lost without a word (its host switched off) is missed, and all
# wait for the slowest to leave at the end. One that is killed is missed at once by its sockets.
_HEARTBEAT_SECONDS = 30
_LEAVE_SECONDS = 120
# An error that all processes find is told by each before the first to leave is missed.
_GRACE_SECONDS = 2.0

# The kinds of failure that XLA begins its messages with: those that tell of another process,
# and those that do only where its collectives (Gloo on the CPU, NCCL on GPUs) or the job's own
# service say so. It raises them as JAX's error, some as ValueError.
_GONE = re.compile(r"(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_UNCLEAR = re.compile(r"(INTERNAL|UNKNOWN|FAILED_PRECONDITION|DATA_LOSS): ")
_LOSSES = re.compile(
    r"(?<![/\w])(gloo|nccl)(?![/\w])|connection (reset|closed|refused)|socket closed|"
    r"coordination ?service|unhealthy|heartbeat",
    re.IGNORECASE,
)


@contextlib.contextmanager
def joined(job: Job | None) -> Iterator[None]:
    """Makes this process part of a job while it lasts; before anything else of JAX is used.

    Raises:
        RunError: where the others cannot be found, or one of them is lost.
    """
    if job is None:
        yield
        return
    _join(job)
    try:
        _check_devices()
        # Gloo connects at the first exchange and waits half a minute for the others there; in
        # later ones it waits as long as another one compiles.
        gather(None)
        yield
    except Interrupted:
        raise  # all of them stop, after the same step
    except BaseException as error:
        lost = _is_loss(error)
        told_by_parent = lost and is_supervised()
        status = (
            130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1)
        )
        if told_by_parent:
            status = LOST_STATUS
        # Not by way of JAX, which would wait for the others first.
        atexit.register(_leave, status, 0 if lost else _GRACE_SECONDS)
        if told_by_parent:
            raise SystemExit(status) from error
        if lost:
            raise RunError(LOST) from error
        raise


def _join(job: Job) -> None:
    # Its handler of SIGTERM would take the place of this program's.
    jax.config.update("jax_enable_preemption_service", False)
    given = {}
    if job.coordinator is not None:
        given = {
            "coordinator_address": job.coordinator,
            "num_processes": job.count,
            "process_id": job.index,
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_LEAVE_SECONDS,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        where = job.coordinator or "what started it names"
        raise RunError(
            f"process {job.index} of {job.count} cannot join the job at {where} ({reason})"
        ) from error
    if not is_first():
        # What one process says is enough; errors go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _check_devices() -> None:
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UsageError(
            f"this process has {jax.local_device_count()} of {jax.device_count()} devices, not "
            f"its share among {jax.process_count()} processes; give each as many"
        )


def _is_loss(error: BaseException | None) -> bool:
    """Tells what JAX's runtime says of a lost process from all that others may say."""
    while error is not None:
        if isinstance(error, (UsageError, RunError, KeyboardInterrupt, SystemExit)):
            return False
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and _GONE.match(text):
            return True
        if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and (
            (_GONE.match(text) or _UNCLEAR.match(text)) and _LOSSES.search(text)
        ):
            return True
        error = error.__cause__
    return False


def _leave(status: int, after: float) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(after)
    os._exit(status)


def is_first() -> bool:
    """Tells whether this process is the one that writes and prints; the only one always is."""
    return jax.process_index() == 0


def share() -> batches.Share:
    """Returns the part of the data that this process reads."""
    return batches.Share(jax.process_index(), jax.process_count())


def gather(value: Value) -> list[Value]:
    """Returns the values that every process calls this with, in their order; all at once."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(exchange.encode(value), np.uint8)
    sizes = _gather_array(np.array([len(content)], np.int32))[:, 0]
    # Of few lengths, as every one is a program to compile.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(content)] = content
    contents = _gather_array(padded)
    return [exchange.decode(c[:n].tobytes()) for c, n in zip(contents, sizes, strict=True)]


def from_others(make: Callable[[], Value]) -> list[Value]:
    """Makes a value in every process, and returns those of the others; none has one process."""
    if jax.process_count() == 1:
        return []
    made = gather(make())
    return [value for index, value in enumerate(made) if index != jax.process_index()]


def in_order(items: list[Value], key: Callable[[Value], Any]) -> list[Value]:
    """Returns the items of all processes in the order of a key; those of one, as they are."""
    if jax.process_count() == 1:
        return items
    return sorted((item for part in gather(items) for item in part), key=key)


def _gather_array(array: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(array)).reshape(-1, *array.shape)


def on_first(function: Callable[[], Value]) -> Value:
    """Has the first process alone do something; returns its result on all.

    Args:
        function: reads or writes files; its result is small.

    Raises:
        UsageError, RunError: on all, where it raised one.
    """
    if jax.process_count() == 1:
        return function()
    result, refusal = None, None
    if is_first():
        try:
            result = function()
        except (UsageError, RunError) as error:
            refusal = isinstance(error, UsageError), str(error)
    result, refusal = gather((result, refusal))[0]
    if refusal is not None:
        of_the_user, text = refusal
        raise (UsageError if of_the_user else RunError)(text)
    return result


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts arrays, which every process has alike, on every device of a mesh."""
    sharding = device_mesh.replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def from_first(tree: Tree, template: Tree) -> Tree:
    """Sends arrays from the first process to all, bit for bit.

    Args:
        tree: the arrays, in the host's memory; what other processes give does not matter.
        template: of the same structure, whose leaves have shape and dtype.

    Returns:
        The arrays in the host's memory.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(template)
    sizes = [int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    # As bytes: a sum with the zeros of the others would make -0.0 of no sign.
    content = np.zeros(sum(sizes), np.uint8)
    if is_first():
        content = np.concatenate(
            [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(tree)]
        )
    content = np.asarray(multihost_utils.broadcast_one_to_all(content))
    parts = np.split(content, np.cumsum(sizes)[:-1])
    arrays = [
        part.view(leaf.dtype).reshape(leaf.shape)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def on_own_devices(tree: Tree, mesh: Mesh) -> tuple[Tree, Mesh]:
    """Returns replicated arrays as this process's devices hold them, and these as a mesh.

    What is computed with them involves no other process.
    """
    if jax.process_count() == 1:
        return tree, mesh
    own = device_mesh.make_mesh(mesh.local_devices)
    return jax.device_put(jax.device_get(tree), device_mesh.replicated(own)), own


def in_step(items: Iterable[Value]) -> Iterator[Value | None]:
    """Yields the items of each process until all have come to their end; None after its own.

    So all of them come here equally often, whatever is done in between.
    """
    if jax.process_count() == 1:
        yield from items
        return
    iterator = iter(items)
    while True:
        item = next(iterator, None)
        if not _gather_array(np.array([item is not None])).any():
            return
        yield item


class Stop:
    """Whether the training was asked to stop: any process by a signal, all know after a step.

    Args:
        request: of this process.
        mesh: the devices of all.
    """

    def __init__(self, request: Request, mesh: Mesh) -> None:
        self._request = request
        self._mesh = mesh
        self._pending: collections.deque[jax.Array] = collections.deque()

    def asked(self) -> signal.Signals | None:
        """Returns the signal, at once; all processes ask at the same points."""
        return self._asked(behind=0)

    def asked_lately(self) -> signal.Signals | None:
        """Returns the signal, of a step ago among several processes.

        What the others say is then here already, and no device waits for the host.
        """
        return self._asked(behind=1)

    def _asked(self, behind: int) -> signal.Signals | None:
        if jax.process_count() == 1:
            return self._request.received
        own = np.full(len(self._mesh.local_devices), self._request.received or 0, np.int32)
        split = device_mesh.split_over(self._mesh)
        self._pending.append(_highest(jax.make_array_from_process_local_data(split, own)))
        found = 0
        while len(self._pending) > behind:
            found = max(found, int(self._pending.popleft()))
        if found:
            # It is asked again where the training then ends.
            self._request.received = signal.Signals(found)
        return self._request.received if found else None


@jax.jit
def _highest(numbers: jax.Array) -> jax.Array:
    return jnp.max(numbers)
