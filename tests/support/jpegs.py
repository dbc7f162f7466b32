"""JPEGs as libjpeg writes and reads them."""

import io

import numpy as np
from PIL import Image


def by_pillow(image: np.ndarray, quality: int) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], as it is read from a JPEG of its own."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
