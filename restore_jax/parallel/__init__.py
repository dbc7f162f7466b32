"""Parallel execution: processes, devices and CPU cores, and the compilation cache."""
