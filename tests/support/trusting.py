"""A small trust map for tests, with an output that depends on the images."""

import numpy as np

from restore_jax.trust.network import LEVELS, VERSION, ErrorBar, Trust
from tests.support import networks

NOTES = {"version": VERSION, "width": 4, "coverage": 0.9, "alarm": 0.1, "data": "tiny"}


def trust_map(seed=0):
    model = ErrorBar(width=NOTES["width"])
    image = np.zeros((1, 8, 8, 3), np.float32)
    variables = networks.variables_of(model, image, image, seed=seed)
    variables["calibration"] = {
        "levels": np.linspace(-2, 2, LEVELS, dtype=np.float32),
        "factors": np.linspace(-3, -1, LEVELS, dtype=np.float32),
    }
    return Trust(model, variables, dict(NOTES))
