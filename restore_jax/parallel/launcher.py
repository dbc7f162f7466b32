"""A job of several processes: which of them this one is, and the parent that supervises it.

This module is light, like `flags`, and does not need JAX, which must be given the job before
it is initialised.
"""

import ctypes
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Mapping
from types import FrameType

from restore_jax.errors import UsageError

# The environment variables with a process's index and the number of processes, by launcher.
LAUNCHERS = {
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}

LOST = (
    "another process of this job has ended or cannot be reached, so this one ends too; its "
    "last output says why. Run the same commands again to resume from the latest checkpoint"
)

LOST_STATUS = 75
"""Exit status by which a supervised process tells its parent that another process is lost."""

_PR_SET_PDEATHSIG = 1
_supervised = False


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes that work together.

    Attributes:
        index: index of this process, from 0.
        count: number of processes.
        coordinator: HOST:PORT of the first process; None: JAX takes it from the launcher.
    """

    index: int
    count: int
    coordinator: str | None = None

    @property
    def shard(self) -> str:
        """The part of a folder that this process restores, in the format of `--shard`."""
        return f"{self.index + 1}/{self.count}"


def from_flags(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: bool,
    environment: Mapping[str, str] = os.environ,
) -> Job | None:
    """Returns the job that the flags of the same names specify; None if none is given.

    Raises:
        UsageError: for a wrong value or combination.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    named = [name for name, value in given.items() if value is not None]
    if distributed:
        if named:
            raise UsageError(
                f"--{named[0]}: not with --distributed, which takes it from Slurm or Open MPI"
            )
        return _from_launcher(environment)
    if not named:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        missing = next(name for name, value in given.items() if value is None)
        raise UsageError(f"--{missing}: missing; --{named[0]} needs it ({_TOGETHER})")
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", coordinator):
        raise UsageError(
            f"--coordinator={coordinator}: give HOST:PORT, the host of the first process and a "
            "free port on it"
        )
    if num_processes < 1:
        raise UsageError(f"--num_processes={num_processes}: give 1 or more")
    if not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process_id={process_id}: with --num_processes={num_processes}, give 0 to "
            f"{num_processes - 1}, a different one to each process"
        )
    return Job(process_id, num_processes, coordinator)


_TOGETHER = "--coordinator=HOST:PORT --num_processes=N --process_id=I, or --distributed alone"


def _from_launcher(environment: Mapping[str, str]) -> Job:
    for index, count in LAUNCHERS.values():
        if index in environment and count in environment:
            return Job(int(environment[index]), int(environment[count]))
    raise UsageError(
        f"--distributed: this process was not started by {' or '.join(LAUNCHERS)} (srun, "
        "mpirun); use one of these, or give --coordinator, --num_processes and --process_id"
    )


def is_supervised() -> bool:
    """Returns whether a parent process waits for this one and reports why it ended."""
    return _supervised


def supervise() -> None:
    """Forks: the child continues with the program; the parent waits and exits as it does.

    When another process is lost, JAX's client of the job calls `abort` in a thread of its own,
    so that no code in that process can inform the user. The parent, which only waits and
    forwards signals, can; and its message comes last, after everything that JAX's threads
    still print.
    """
    global _supervised  # noqa: PLW0603 - a fact of the process, found once
    child = os.fork()
    if child == 0:
        _supervised = True
        # A signal from the terminal would reach it twice: directly and from its parent.
        os.setpgid(0, 0)
        _die_with_parent()
        return

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGABRT, LOST_STATUS):
        print(f"error: {LOST}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code if code >= 0 else 128 - code)


def _die_with_parent() -> None:
    """Has this process killed when its parent dies; does nothing outside Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
