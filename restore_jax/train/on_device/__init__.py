"""Training on pairs that stay in device memory."""
