"""The cores of a CPU as devices of JAX, so that each works on images of its own.

Light, like `host_memory`: it has to be done before JAX is used at all.
"""

import os

from restore_jax.parallel import host_memory

# Whoever sets these decides on the devices.
_DECIDED = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")


def count() -> int:
    """Counts the cores that this process may use."""
    # Not every system can tell which.
    able = getattr(os, "sched_getaffinity", None)
    return len(able(0)) if able else os.cpu_count() or 1


def prepare(in_job: bool = False) -> None:
    """Does what makes a CPU fast and has to be done before JAX is used at all.

    Args:
        in_job: whether this is one of several processes, which divide the cores among them.
    """
    host_memory.keep_freed()
    if not in_job:
        as_devices()


def as_devices() -> int:
    """Has JAX see each core that this process may use as a device.

    On a CPU, XLA gives most convolutions, loops and small pieces of work to a single core. With
    the images of a batch divided among the cores, all of them are busy all the time. To be
    called before JAX makes its devices. It changes nothing where the environment says how many
    there are (`JAX_NUM_CPU_DEVICES`, or `XLA_FLAGS`, whatever is in it), and where there is an
    NVIDIA GPU.

    Returns:
        How many devices a CPU has now, 0 where that is left to JAX.
    """
    # Imported here: this module is read before it is known whether JAX is needed.
    import jax  # noqa: PLC0415

    if any(name in os.environ for name in _DECIDED) or host_memory.has_gpu():
        return 0
    found = count()
    jax.config.update("jax_num_cpu_devices", found)
    return found
