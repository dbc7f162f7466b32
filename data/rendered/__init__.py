"""Procedurally rendered photographs of surfaces and parts with defects."""
