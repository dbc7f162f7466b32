"""How the C library's allocator treats freed memory: arrays are reallocated in every step."""

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
    """Returns whether there is an NVIDIA GPU."""
    return _NVIDIA.exists()


def keep_freed() -> bool:
    """Makes the process keep freed memory instead of returning it to the system.

    On a CPU, JAX allocates the arrays of every step anew. glibc returns blocks of that size to
    the system at once, which then has to find, clear and map all their pages again: in a
    training step of the SCA U-Net at 256×256 px, this system time was a third of the total.
    The price is that the process never shrinks below its peak size.

    Call it before JAX starts its threads: one heap (arena) serves them all, as the other
    arenas are too small for such arrays. It changes nothing without glibc, where the
    environment has its own settings (`MALLOC_…`, `GLIBC_TUNABLES`), and where there is an
    NVIDIA GPU: the arrays are then on the GPU, and the host's threads load images.

    Returns:
        Whether the settings were changed.
    """
    user_sets_it = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if not sys.platform.startswith("linux") or user_sets_it or has_gpu():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # -1 becomes the largest size_t: no limit.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)


def give_back() -> bool:
    """Returns freed memory to the system, including gaps between arrays that are in use.

    After `keep_freed`, a process whose arrays have many sizes keeps growing because its heap is
    fragmented. This call takes milliseconds, and the pages are mapped again when needed.

    Returns:
        Whether any memory was returned; False without glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    return trim is not None and trim(0) == 1
