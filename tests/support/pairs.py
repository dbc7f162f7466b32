"""Files of 16×16 image pairs, made with NumPy instead of TensorFlow."""

import numpy as np

from restore_jax.train.on_device import pairs_file
from tests.support import tiny

# The fields of the preset "kla" of data/degrade.py.
LAW = {
    "blur": ["gaussian"],
    "sigma_x": [10.0, 10.0],
    "sigma_y": [2.0, 2.0],
    "motion_length": [0.0, 0.0],
    "motion_angle": [0.0, 0.0],
    "defocus_radius": [0.0, 0.0],
    "noise_sigma": [50.0, 80.0],
    "poisson_peak": [0.0, 0.0],
    "gain": [0.9, 1.1],
    "quantise": "truncate",
}


def config(path, draws=1, **train):
    fields = tiny.config(**train)
    fields.data.image_size = 16
    fields.data.realisations = draws
    fields.data.resident = True
    fields.data.resident_file = str(path)
    return fields


def levels(array):
    return np.round(255 * array).astype(np.uint8)


def split(count, seed, draws=1):
    found = tiny.images(count, seed)
    noise = np.random.default_rng(seed + 1).normal(0, 20, (draws * count, 16, 16, 3))
    clean = levels(found["clean"])
    arrays = {
        "degraded": np.clip(np.tile(clean, (draws, 1, 1, 1)) + noise, 0, 255).astype(np.uint8),
        "clean": clean,
        "mask": found["mask"].astype(np.uint8),
        "has_mask": found["has_mask"].astype(np.uint8),
        "gain": np.ones((draws * count, 3), np.float32),
    }
    names = [list(map(str, found[name])) for name in ("id", "category", "defect_type")]
    return pairs_file.Split(*names, arrays)


def write(path, settings, count=10, held_out=6, law=LAW, symmetries="flips"):
    """Writes a pairs file that matches a configuration; returns its splits."""
    draws = settings.data.realisations
    splits = {"train": split(count, 0, max(1, draws)), "val": split(held_out, 1)}
    if not draws:
        for part in splits.values():
            part.arrays["native"] = np.full((len(part), 2), 32, np.int32)
        train = splits["train"].arrays
        train["blurred"] = train["clean"][:, ::-1]
    pairs_file.write(
        path,
        splits,
        settings=pairs_file.settings_of(settings),
        images="0" * 64,
        law=law,
        symmetries=symmetries,
        draws=draws,
    )
    return splits
