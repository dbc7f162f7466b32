"""The devices as a mesh of one axis, and the way of a batch and of a state onto them."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from restore_jax import batches
from restore_jax.batches import ARRAYS, CONTEXT
from restore_jax.errors import UsageError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one axis, "data", over the devices (all there are, if None)."""
    devices = jax.devices() if devices is None else devices
    # Some releases of JAX default to explicit axes, others to automatic ones.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def fitting_devices(*batch_sizes: int) -> list[jax.Device]:
    """Returns the devices that batches of some sizes are divided among.

    All there are, but of the cores of a CPU only as many as divide the batches: how many cores
    a machine has is no reason to refuse a batch.
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
    """Returns the sharding of a batch: its first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Checks that every device gets as many images.

    Args:
        batch_size: images of a batch over all devices.
        mesh: the devices.
        field: the config field to name.

    Raises:
        UsageError: with the nearest sizes that divide.
    """
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below, above = batch_size // devices * devices, (batch_size // devices + 1) * devices
        fitting = f"{below} or {above}" if below > 0 else f"{above}"
        raise UsageError(
            f"{field}: {batch_size} images do not divide among {devices} devices"
            f"{_of_processes()}; take {fitting}"
        )


def _of_processes() -> str:
    return f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""


def to_devices(batch: batches.Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch's arrays on the devices, the images divided among them.

    Those that are on the devices already stay as they are.
    Of several processes, each puts its own rows on its own devices.
    """
    sharding = split_over(mesh)
    return {
        name: batch[name]
        if isinstance(batch[name], jax.Array)
        else jax.make_array_from_process_local_data(sharding, batch[name])
        for name in (*ARRAYS, *([CONTEXT] if CONTEXT in batch else []))
    }
