"""Inference with a trained model, on arrays and on folders, and its export."""
