"""The degradation law: its definition, and its draws in JAX."""
