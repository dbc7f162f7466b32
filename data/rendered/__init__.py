"""Rendered photographs of surfaces and parts with defects."""
