"""Data sets on disk: finding and reading their photographs and masks."""
