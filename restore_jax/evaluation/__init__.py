"""Evaluation of one model, and comparison of several."""
