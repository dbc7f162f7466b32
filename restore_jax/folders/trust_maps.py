"""Writes the trust maps of restored photographs."""

import pathlib
from collections.abc import Sequence

import numpy as np

from restore_jax.image_io import image_files
from restore_jax.image_io.image_files import Photograph
from restore_jax.trust import maps


def write(
    folder: pathlib.Path, relative: pathlib.Path, half_widths: Sequence[np.ndarray]
) -> None:
    """Writes the maps of a photograph.

    `NAME.heat.png` is the heat map, `NAME.half_width.png` holds the half-widths in 16 bits, see
    `trust.maps`; NAME includes the suffix of the photograph, of which there may be several. In
    the maps of further pictures of a stack, the number of the picture follows, from 2.

    Args:
        folder: the folder of the maps.
        relative: path of the restoration, relative to the output folder.
        half_widths: of each picture, float32 [H, W], 1 being white.
    """
    for number, half_width in enumerate(half_widths, start=1):
        pictures = maps.heat_map(half_width), maps.sixteen_bits(half_width)
        for path, picture in zip(paths(folder, relative, number), pictures, strict=True):
            image_files.write(path, picture, Photograph(picture))


def paths(
    folder: pathlib.Path, relative: pathlib.Path, number: int = 1
) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the paths of a picture's heat map and half-widths, as `write` names them."""
    name = relative.name if number == 1 else f"{relative.name}-{number}"
    beside = folder / relative
    return beside.with_name(f"{name}.heat.png"), beside.with_name(f"{name}.half_width.png")
