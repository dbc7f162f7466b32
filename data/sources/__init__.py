"""Data sets on disk: where their photographs and masks lie."""
