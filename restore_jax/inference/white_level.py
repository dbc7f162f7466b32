"""The white level that photographs are restored with, and their pixels for a screen."""

import dataclasses

import numpy as np

from restore_jax.image_io.image_files import Photograph
from restore_jax.image_io.photograph import estimated_white
from restore_jax.inference import pixels
from restore_jax.inference.restorer import Restorer


def trained_white(restorer: Restorer) -> int:
    """Returns the white level of a model's training; 0 if unknown."""
    return (restorer.config.get("data") or {}).get("white") or 0


def with_white(photograph: Photograph, white: int | None, trained: int = 0) -> Photograph:
    """Sets the white level of a 16-bit photograph, with a note if nothing states it.

    Args:
        photograph: the photograph.
        white: as for `folders.run.restore_files`.
        trained: the level of the model's training; 0 if unknown.
    """
    stated = photograph.white
    if photograph.pixels.dtype != np.uint16:
        return photograph
    if white is not None:
        return dataclasses.replace(photograph, white=white)
    highest = max(int(plane.max()) for plane in photograph.planes)
    if stated is not None and highest <= stated:
        return photograph
    found = trained if 0 < trained >= highest else estimated_white(highest)
    if found is None:
        return dataclasses.replace(photograph, white=None)
    why = f"no level is above {highest:,}"
    if found == trained:
        why = "the model was trained with it"
    note = (
        f"{found:,} ({found.bit_length()} bits) is taken for white: {why}; --white sets another"
    )
    return dataclasses.replace(photograph, white=found, notes=(*photograph.notes, note))


def to_bytes(image: np.ndarray, white: int | None) -> np.ndarray:
    """Converts pixels to uint8 for a screen; `white` as in `Photograph`."""
    if image.dtype == np.uint8 and white is None:
        return image
    scale = 255.0 / pixels.white_of(image.dtype, white)
    return np.round(image.astype(np.float32) * scale).astype(np.uint8)
