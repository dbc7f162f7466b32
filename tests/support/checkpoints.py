"""Checkpoints on the devices of a single process."""

from restore_jax.checkpoints import checkpoint


def restore(manager, step, template):
    """Reads a checkpoint and puts its state on the devices; returns it with its record."""
    state, record = checkpoint.read(manager, step, template)
    return checkpoint.to_devices(state, template), record
