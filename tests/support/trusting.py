"""A small trust map for tests, with an output that depends on the images."""

import jax
import numpy as np
from flax import linen as nn

from restore_jax.trust.network import ErrorBar, Trust

NOTES = {"width": 4, "coverage": 0.9, "data": "tiny"}


def trust_map(seed=0):
    model = ErrorBar(width=NOTES["width"])
    image = np.zeros((1, 8, 8, 3), np.float32)
    variables = model.init(jax.random.key(seed), image, image)
    output = variables["params"]["output"]
    output["kernel"] = nn.initializers.lecun_normal()(
        jax.random.key(seed + 1), output["kernel"].shape
    )
    return Trust(model, jax.device_get(variables), dict(NOTES))
