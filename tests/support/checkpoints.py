"""Restores checkpoints to the devices of a single process."""

from restore_jax.checkpoints import checkpoint


def restore(manager, step, template):
    """Returns the state of a checkpoint, on the devices, and its record."""
    state, record = checkpoint.read(manager, step, template)
    return checkpoint.to_devices(state, template), record
