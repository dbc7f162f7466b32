"""Evaluation of a model, and comparison of several."""
