"""A device mesh with one axis, and how a batch is sharded and a state replicated over it."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from restore_jax import batches
from restore_jax.batches import ARRAYS, CONTEXT, GAIN
from restore_jax.errors import UsageError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis, "data", over the devices (None: all devices)."""
    devices = jax.devices() if devices is None else devices
    # Some releases of JAX default to explicit axes, others to automatic ones.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def fitting_devices(*batch_sizes: int) -> list[jax.Device]:
    """Returns the devices that batches of given sizes are sharded over.

    All devices, except that on a CPU only as many cores are used as divide the batch sizes: a
    batch should not be refused because of the number of cores of a machine.
    """
    devices = jax.devices()
    if devices[0].platform != "cpu" or jax.process_count() > 1:
        return devices
    fitting = [
        count
        for count in range(1, len(devices) + 1)
        if all(size % count == 0 for size in batch_sizes)
    ]
    return devices[: max(fitting)]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Checks that every device gets the same number of images.

    Args:
        batch_size: images per batch over all devices.
        mesh: the devices.
        field: the config field to name in the error message.

    Raises:
        UsageError: with the nearest batch sizes that work.
    """
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below, above = batch_size // devices * devices, (batch_size // devices + 1) * devices
        fitting = f"{below} or {above}" if below > 0 else f"{above}"
        raise UsageError(
            f"{field}: {batch_size} images cannot be divided equally among {devices} devices"
            f"{_of_processes()}; take {fitting}"
        )


def _of_processes() -> str:
    return f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""


def to_devices(batch: batches.Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch's arrays on the devices, sharded over the images.

    Arrays that are already on the devices stay as they are. With several processes, each puts
    its own rows on its own devices.
    """
    sharding = split_over(mesh)
    return {
        name: batch[name]
        if isinstance(batch[name], jax.Array)
        else jax.make_array_from_process_local_data(sharding, batch[name])
        for name in (*ARRAYS, *(extra for extra in (CONTEXT, GAIN) if extra in batch))
    }
