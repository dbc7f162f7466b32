"""Small photographs as arrays and files, and a round trip through reading and writing."""

import io

import numpy as np
from PIL import Image

from restore_jax.image_io import image_files
from tests.support import image_fuzz


def photo(height=9, width=13, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return image_fuzz.scale(rng.uniform(0, 1, shape), np.dtype(dtype))


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def identity(source, target, format=None):
    """Reads a file, writes it unchanged and reads the copy; returns (before, after, notes)."""
    like = image_files.read(source)
    notes = image_files.write(target, like.pixels, like, format)
    return like, image_files.read(target), notes


def save_png(path, pixels, before=(), after=(), **options):
    """Saves a PNG with extra chunks (name, content) before and after its image data."""
    file = io.BytesIO()
    if pixels.dtype == np.uint16:
        file.write(image_fuzz.encode_png(pixels, None, b"", options.get("dpi"), Image.Exif()))
    else:
        save(file, pixels, format="PNG", **options)
    encoded = file.getvalue()
    before, after = (
        b"".join(image_fuzz.chunk(*one) for one in some) for some in (before, after)
    )
    path.write_bytes(encoded[:33] + before + encoded[33:-12] + after + encoded[-12:])
    return path
