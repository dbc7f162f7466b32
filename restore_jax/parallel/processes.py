"""Several processes as one training or evaluation: joining a job, and communication in it.

Every process runs the same program on its own devices, connected by `jax.distributed`. The
state is replicated; each process reads the rows of a batch that its devices take
(`batches.Share`), and only the first one writes files. With one process nothing here has a
cost.
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
from restore_jax.errors import RunError, UsageError, one_line
from restore_jax.parallel import device_mesh, exchange
from restore_jax.parallel.launcher import LOST, LOST_STATUS, Job, is_supervised
from restore_jax.parallel.signals import Interrupted, Request

Value = TypeVar("Value")
Tree = TypeVar("Tree")

# How long the other processes may take to start.
_START_SECONDS = 300
# After this time, a process that vanished silently (its host was switched off) is declared
# lost. One that is killed is noticed at once, because its sockets are closed.
_HEARTBEAT_SECONDS = 30
# How long all wait for the slowest at the end.
_LEAVE_SECONDS = 120
# A process that fails stays this long, so that where all find the same error, each can report
# it before the first to exit is noticed as lost.
_GRACE_SECONDS = 2.0

# The status codes that XLA's error messages begin with: those that always mean that another
# process is lost, and those that mean it only if the message comes from the collectives (Gloo
# on the CPU, NCCL on GPUs) or the coordination service. JAX raises most as JaxRuntimeError,
# some as ValueError.
_GONE = re.compile(r"(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_UNCLEAR = re.compile(r"(INTERNAL|UNKNOWN|FAILED_PRECONDITION|DATA_LOSS): ")
_CONNECTION = re.compile(
    r"(?<![/\w])(gloo|nccl)(?![/\w])|connection (reset|closed|refused)|socket closed|"
    r"coordination ?service|unhealthy|heartbeat",
    re.IGNORECASE,
)


@contextlib.contextmanager
def joined(job: Job | None) -> Iterator[None]:
    """Makes this process part of a job; enter it before JAX is used for anything else.

    Raises:
        RunError: if the other processes cannot be reached, or one of them is lost.
    """
    if job is None:
        yield
        return
    _join(job)
    try:
        _check_devices()
        # Gloo connects in the first collective and waits only 30 s for the others there; later
        # collectives wait as long as another process compiles.
        gather(None)
        yield
    except Interrupted:
        raise  # all processes stop after the same step
    except BaseException as error:
        lost = _is_loss(error)
        reported_by_parent = lost and is_supervised()
        status = (
            130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1)
        )
        if reported_by_parent:
            status = LOST_STATUS
        # Exits without JAX's shutdown, which would first wait for the other processes.
        atexit.register(_leave, status, 0 if lost else _GRACE_SECONDS)
        if reported_by_parent:
            raise SystemExit(status) from error
        if lost:
            raise RunError(LOST) from error
        raise


def _join(job: Job) -> None:
    # Its SIGTERM handler would replace that of this program.
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
        where = job.coordinator or "the address given by its launcher"
        raise RunError(
            f"process {job.index} of {job.count} cannot join the job at {where} "
            f"({one_line(error)})"
        ) from error
    if not is_first():
        # The output of one process is enough; errors go to stderr.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _check_devices() -> None:
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UsageError(
            f"this process has {jax.local_device_count()} of {jax.device_count()} devices, not "
            f"an equal share for {jax.process_count()} processes; give each the same number"
        )


def _is_loss(error: BaseException | None) -> bool:
    """Returns whether an error, or a cause of it, is JAX's report of a lost process."""
    while error is not None:
        if isinstance(error, (UsageError, RunError, KeyboardInterrupt, SystemExit)):
            return False
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and _GONE.match(text):
            return True
        if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and (
            (_GONE.match(text) or _UNCLEAR.match(text)) and _CONNECTION.search(text)
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
    """Returns whether this is the process that writes and prints (always, if it is alone)."""
    return jax.process_index() == 0


def share() -> batches.Share:
    """Returns the part of the data that this process reads."""
    return batches.Share(jax.process_index(), jax.process_count())


def gather(value: Value) -> list[Value]:
    """Returns the values that all processes pass, in order of the process index.

    A collective operation: every process has to call it.
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(exchange.encode(value), np.uint8)
    sizes = _gather_array(np.array([len(content)], np.int32))[:, 0]
    # Padded to a power of two, because each length needs its own compiled program.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(content)] = content
    contents = _gather_array(padded)
    return [exchange.decode(c[:n].tobytes()) for c, n in zip(contents, sizes, strict=True)]


def from_others(make: Callable[[], Value]) -> list[Value]:
    """Makes a value in every process and returns those of the others ([] with one process)."""
    if jax.process_count() == 1:
        return []
    made = gather(make())
    return [value for index, value in enumerate(made) if index != jax.process_index()]


def gather_sorted(items: list[Value], key: Callable[[Value], Any]) -> list[Value]:
    """Returns the items of all processes, sorted by a key; with one process, `items` as is."""
    if jax.process_count() == 1:
        return items
    return sorted((item for part in gather(items) for item in part), key=key)


def _gather_array(array: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(array)).reshape(-1, *array.shape)


def on_first(function: Callable[[], Value]) -> Value:
    """Calls a function only in the first process and returns its result in all.

    Args:
        function: reads or writes files; its result is small.

    Raises:
        UsageError, RunError: in all processes, if the function raised it.
    """
    if jax.process_count() == 1:
        return function()
    result, failure = None, None
    if is_first():
        try:
            result = function()
        except (UsageError, RunError) as error:
            failure = isinstance(error, UsageError), str(error)
    result, failure = gather((result, failure))[0]
    if failure is not None:
        is_usage_error, text = failure
        raise (UsageError if is_usage_error else RunError)(text)
    return result


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Replicates arrays, which are the same in all processes, over the devices of a mesh."""
    sharding = device_mesh.replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def broadcast(tree: Tree, template: Tree) -> Tree:
    """Sends arrays from the first process to all, bit for bit.

    Args:
        tree: the arrays, in host memory; ignored in all processes but the first.
        template: a tree of the same structure whose leaves have a shape and a dtype.

    Returns:
        The arrays, in host memory.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(template)
    sizes = [int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    # As bytes: the broadcast adds zeros of the other processes, which turns -0.0 into 0.0.
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
    """Returns replicated arrays on a mesh of only this process's devices, and that mesh.

    Computations with them involve no other process.
    """
    if jax.process_count() == 1:
        return tree, mesh
    own = device_mesh.make_mesh(mesh.local_devices)
    return jax.device_put(jax.device_get(tree), device_mesh.replicated(own)), own


def in_lockstep(items: Iterable[Value]) -> Iterator[Value | None]:
    """Yields this process's items, then None until the items of all processes are exhausted.

    All processes thus run the same number of iterations, so that their body may contain
    collective operations.
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
    """Shares requests to stop: a signal to any process stops all after the same step.

    Args:
        request: the request to this process.
        mesh: the devices of all processes.
    """

    def __init__(self, request: Request, mesh: Mesh) -> None:
        self._request = request
        self._mesh = mesh
        self._pending: collections.deque[jax.Array] = collections.deque()

    def requested(self) -> signal.Signals | None:
        """Returns the signal that any process received; all have to call this together."""
        return self._poll(lag=0)

    def requested_before(self) -> signal.Signals | None:
        """Returns the signal that any process had received at the previous call.

        With one process, the signal received by now. With several, the result of the previous
        call is already there, so that no device waits for the host.
        """
        return self._poll(lag=1)

    def _poll(self, lag: int) -> signal.Signals | None:
        if jax.process_count() == 1:
            return self._request.received
        own = np.full(len(self._mesh.local_devices), self._request.received or 0, np.int32)
        split = device_mesh.split_over(self._mesh)
        self._pending.append(_highest(jax.make_array_from_process_local_data(split, own)))
        found = 0
        while len(self._pending) > lag:
            found = max(found, int(self._pending.popleft()))
        if found:
            # Kept, because it is polled again when the training then ends.
            self._request.received = signal.Signals(found)
        return self._request.received if found else None


@jax.jit
def _highest(numbers: jax.Array) -> jax.Array:
    return jnp.max(numbers)
