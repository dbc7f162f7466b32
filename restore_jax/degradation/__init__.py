"""The degradation law: its definition, draws in JAX, estimation and the range a model knows."""
