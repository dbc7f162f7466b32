"""States and weights as files: written, checked, read, imported."""
