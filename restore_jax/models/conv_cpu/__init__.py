"""Convolutions that run faster on a CPU than XLA's own."""
