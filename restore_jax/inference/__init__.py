"""Use of a trained model: on arrays, on folders, exported."""
