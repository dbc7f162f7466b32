"""What the C library does with memory that is freed: a step's arrays come and go."""

import ctypes
import os
import pathlib
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

_NVIDIA = pathlib.Path("/dev/nvidiactl")


def has_gpu() -> bool:
    """Tells whether there is an NVIDIA GPU."""
    return _NVIDIA.exists()


def keep_freed() -> bool:
    """Has the process keep memory that it has freed, instead of returning it to the system.

    JAX allocates the arrays of a step on a CPU anew each time. glibc returns blocks that large
    to the system at once, which then has to find, clear and map every page of them again: a
    third of the time of a training step of the SCA U-Net at 256×256 px was the system's. The
    price is that the process stays as large as it has ever been.

    To be called before JAX starts its threads: one heap serves them all, as the others are
    too small for such arrays. It changes nothing without glibc, where the environment has
    settings of its own (`MALLOC_…`, `GLIBC_TUNABLES`), and where there is an NVIDIA GPU: the
    arrays are on that one then, and the host's threads load images.

    Returns:
        Whether it was done.
    """
    has_own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if not sys.platform.startswith("linux") or has_own or has_gpu():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # All the bits of a size are what -1 stands for: no limit.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)


def give_back() -> bool:
    """Returns freed memory to the system, also what lies between arrays that are in use.

    After `keep_freed` a process whose arrays have many sizes grows for long: they break up each
    other's room. It takes milliseconds, and the pages are found again when they are needed.

    Returns:
        Whether there was any; False without glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    return trim is not None and trim(0) == 1
