"""Training: its setup, its steps, its loop and its logs."""
