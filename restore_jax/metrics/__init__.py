"""Figures of restored images, of detectors on them, and of a model's cost."""
