"""The cores of a CPU as JAX devices, so that each works on different images.

This module is light, like `host_memory`: both have to run before JAX is initialised.
"""

import os

from restore_jax.parallel import host_memory

# Where one of these is set, the user chooses the devices.
_USER_SETTINGS = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")


def count() -> int:
    """Returns the number of cores that this process may use."""
    # Not available on every system.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def prepare(in_job: bool = False) -> None:
    """Tunes the process for computing on the CPU; call it before JAX is initialised.

    Args:
        in_job: whether this is one of several processes, which divide the cores among them.
    """
    host_memory.keep_freed()
    if not in_job:
        as_devices()


def as_devices() -> int:
    """Makes JAX treat each core that this process may use as a device.

    On a CPU, XLA runs most convolutions, loops and small operations on a single core. With the
    images of a batch sharded over the cores, all of them are busy all the time. Call it before
    JAX creates its devices. It changes nothing where the environment sets
    `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS` (whatever its content), or where there is an NVIDIA
    GPU.

    Returns:
        The number of CPU devices that was set, 0 if that is left to JAX.
    """
    # Imported here: this module is loaded before it is known whether JAX is needed.
    import jax  # noqa: PLC0415

    if any(name in os.environ for name in _USER_SETTINGS) or host_memory.has_gpu():
        return 0
    found = count()
    jax.config.update("jax_num_cpu_devices", found)
    return found
