"""Convolutions with implementations and gradients that are faster than XLA's own."""
