"""A job of several processes: which of them this one is, and the parent that sees it end.

Light, like `flags`: none of it needs JAX, which has to be told of the job before it starts.
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

# What starts processes together, by the variables that hold a process's index and their number.
LAUNCHERS = {
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}

LOST = (
    "another process of this job has ended or cannot be reached, so this one ends too; what it "
    "said last tells why. The same commands go on from the latest checkpoint"
)

LOST_STATUS = 75
"""A supervised process's exit status by which its parent knows that another one is lost."""

_PR_SET_PDEATHSIG = 1
_supervised = False


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes that work together.

    Attributes:
        index: of this process, from 0.
        count: of them all.
        coordinator: HOST:PORT of the first one; None: JAX asks what started them.
    """

    index: int
    count: int
    coordinator: str | None = None

    @property
    def shard(self) -> str:
        """The part of a folder that this process restores, as `--shard` has it."""
        return f"{self.index + 1}/{self.count}"


def from_flags(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: bool,
    environment: Mapping[str, str] = os.environ,
) -> Job | None:
    """Returns the job that the flags of those names ask for; None without them.

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
                f"--{named[0]}: not with --distributed, which asks Slurm or Open MPI"
            )
        return _from_launcher(environment)
    if not named:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        missing = next(name for name, value in given.items() if value is None)
        raise UsageError(f"--{missing}: missing; --{named[0]} needs it ({_TOGETHER})")
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", coordinator):
        raise UsageError(
            f"--coordinator={coordinator}: give HOST:PORT, the first process's host and a free "
            "port of it"
        )
    if num_processes < 1:
        raise UsageError(f"--num_processes={num_processes}: give 1 or more")
    if not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process_id={process_id}: with --num_processes={num_processes}, give 0 to "
            f"{num_processes - 1}, another one to each process"
        )
    return Job(process_id, num_processes, coordinator)


_TOGETHER = "--coordinator=HOST:PORT --num_processes=N --process_id=I, or --distributed alone"


def _from_launcher(environment: Mapping[str, str]) -> Job:
    for index, count in LAUNCHERS.values():
        if index in environment and count in environment:
            return Job(int(environment[index]), int(environment[count]))
    raise UsageError(
        f"--distributed: this process was started by none of {', '.join(LAUNCHERS)} (srun, "
        "mpirun); start it so, or give --coordinator, --num_processes and --process_id"
    )


def is_supervised() -> bool:
    """Tells whether a parent waits for this process, and says why it ended."""
    return _supervised


def supervise() -> None:
    """Lets a child go on with the program, and ends as it does.

    JAX's client of a job ends its process from a thread of its own, by `abort`, when another
    process is lost: no code in that process can tell the user. Its parent, which does nothing
    but wait and pass signals on, can; and it is the last to speak, after all that JAX's threads
    still say while the process ends by itself.
    """
    global _supervised  # noqa: PLW0603 - a fact of the process, found once
    child = os.fork()
    if child == 0:
        _supervised = True
        # A signal from the terminal would reach it twice: by itself and from its parent.
        os.setpgid(0, 0)
        _end_with_parent()
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGABRT, LOST_STATUS):
        print(f"error: {LOST}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code if code >= 0 else 128 - code)


def _end_with_parent() -> None:
    """Has this process killed when its parent is; left alone where the system cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
