"""Checkpoints and weights files: writing, checking, reading and importing them."""
