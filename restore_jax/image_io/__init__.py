"""Image files: what is read from them, what is written, what is kept."""
