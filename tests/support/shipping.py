"""Replaces the table of shipped models by one of tiny models."""

import hashlib

import jax
import numpy as np
from ml_collections import ConfigDict

from restore_jax import models, shipped
from restore_jax.checkpoints import weights_file

NAME = "tiny"
LICENCE = "Apache-2.0"
CONFIG = {
    "name": "pexels_cnn",
    "dtype": "float32",
    "model": {"name": "pexels_cnn", "widths": [2]},
    "data": {"name": "sample", "split": "defects", "image_size": 32},
}


def variables(seed=0):
    model = models.create("pexels_cnn", widths=(2,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.uniform(-0.5, 0.5, x.shape).astype(np.float32), shapes)
    # Variances are not negative.
    return drawn | {"batch_stats": jax.tree.map(np.abs, drawn["batch_stats"])}


def write(path, seed=0, **notes):
    """Writes a weights file like the shipped ones."""
    return weights_file.save_weights(
        path, variables(seed), ConfigDict(CONFIG), dtype="float16", metadata=notes
    )


def row(path, **changes):
    fields = {
        "name": path.stem,
        "purpose": "for tests",
        "config": "configs/pexels_cnn.py",
        "training_data": "nothing",
        "licence": LICENCE,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "protocol": "none",
        "figures": {"psnr": 20.0},
    }
    return shipped.Shipped(**fields | changes)


def ship(monkeypatch, folder, *names):
    """Replaces the shipped models and their files by tiny models of these names."""
    folder.mkdir(exist_ok=True)
    rows = []
    for seed, name in enumerate(names or (NAME,)):
        path = write(folder / f"{name}.safetensors", seed, name=name, licence=LICENCE)
        rows.append(row(path))
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(shipped, "MODELS", tuple(rows))
    return tuple(rows)
