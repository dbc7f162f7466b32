"""Processes, devices and cores, and the compilation for them."""
