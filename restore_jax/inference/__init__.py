"""Inference with a trained model, on arrays, and its export."""
