"""The `sample` data: procedural inspection photographs with true defect masks.

They are rendered on demand and need no download, so that a fresh machine can train and show
results within minutes. There are eight categories of surfaces and parts, each with its typical
defects. Two of them (`grid`, `screw`) simulate greyscale cameras and have three equal channels.
"""

import functools
import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from data.rendered import defects, parts, surfaces
from restore_jax.errors import UsageError

GOOD = "good"
MIN_SIZE = 32

# A pixel is defective if any channel changed by more than this, in grey levels.
_THRESHOLD = 5

_Defect = Callable[[surfaces.Scene, np.random.Generator], np.ndarray]


def _at(spot: str, shape: Callable[..., np.ndarray], **options: object) -> _Defect:
    return functools.partial(shape, spot=spot, **options)


_RECIPES: dict[str, tuple[Callable[[np.random.Generator, int], surfaces.Scene], dict]] = {
    "bottle_mouth": (
        parts.bottle_mouth,
        {
            "chip": _at("rim", defects.chip, radius=0.17, tone=0.42),
            "contamination": _at("inside", defects.deposit, hue=(0.62, 0.58, 0.5)),
            "crack": _at("rim", defects.crack, length=0.7, tone=0.62),
        },
    ),
    "grid": (
        surfaces.grid,
        {
            "bent": _at("surface", defects.bent, radius=0.26, push=0.07),
            "broken": _at("wire", defects.broken_wire),
            "contamination": _at(
                "surface", defects.deposit, hue=(0.6, 0.6, 0.6), radius=0.14, opacity=0.75
            ),
        },
    ),
    "leather": (
        surfaces.leather,
        {
            "cut": _at("surface", defects.cut),
            "fold": _at("surface", defects.fold),
            "poke": _at("surface", defects.dents, radius=0.06),
            "stain": _at("surface", defects.stain, hue=(0.55, 0.75, 1.05), radius=0.13),
        },
    ),
    "metal_part": (
        parts.metal_part,
        {
            "bent": _at("rim", defects.bent, radius=0.32, push=0.10, sheen=-0.5),
            "discolour": _at("face", defects.discolour, radius=0.24),
            "scratch": _at("face", defects.scratch, tone=0.28),
        },
    ),
    "screw": (
        parts.screw,
        {
            "bent": _at("tip", defects.bent, radius=0.28, push=0.09, sideways=True),
            "scratch": _at("head", defects.scratch, length=0.2, tone=0.35),
            "thread": _at(
                "thread", defects.bent, radius=0.14, push=0.05, sideways=True, sheen=0.8
            ),
        },
    ),
    "tile": (
        surfaces.tile,
        {
            "chip": _at("surface", defects.chip, radius=0.2, tone=0.5),
            "crack": _at("surface", defects.crack, length=1.7),
            "oil": _at(
                "surface", defects.stain, hue=(0.78, 0.72, 0.5), radius=0.24, soft=0.012
            ),
        },
    ),
    "wood": (
        surfaces.wood,
        {
            "hole": _at("surface", defects.hole, radius=0.09, count=3),
            "liquid": _at("surface", defects.stain, hue=(0.72, 0.66, 0.62), soft=0.015),
            "scratch": _at("surface", defects.scratch, tone=0.24),
        },
    ),
    "woven": (
        surfaces.woven,
        {
            "cut": _at("surface", defects.cut),
            "hole": _at("surface", defects.hole, radius=0.14, fray=0.35),
            "stain": _at("surface", defects.stain, hue=(0.52, 0.48, 0.44), radius=0.17),
            "thread": _at("surface", defects.loose_thread, hue=(0.75, 0.70, 0.66)),
        },
    ),
}

CATEGORIES: dict[str, tuple[str, ...]] = {
    category: tuple(sorted(recipe[1])) for category, recipe in _RECIPES.items()
}


def _quantise(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return np.clip(image * 255 + (noise + 0.5), 0, 255.5).astype(np.uint8)


def _changed(damaged: np.ndarray, undamaged: np.ndarray) -> np.ndarray:
    """Returns the mask [S, S] of visible changes, without isolated pixels and pinholes."""
    change = np.abs(np.clip(damaged, 0, 1) - np.clip(undamaged, 0, 1)) > _THRESHOLD / 255
    mask = functools.reduce(np.logical_or, np.moveaxis(change, -1, 0))
    neighbours = ndimage.uniform_filter(mask.astype(np.float32), 3, mode="constant") * 9
    return np.where(mask, neighbours > 1.5, neighbours > 5.5)


def _render_pair(
    category: str, defect_type: str, index: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the image, its mask and the image without the defect."""
    if category not in _RECIPES:
        raise UsageError(
            f"sample category {category!r}: unknown, use one of {', '.join(CATEGORIES)}"
        )
    surface, shapes = _RECIPES[category]
    if defect_type != GOOD and defect_type not in shapes:
        raise UsageError(
            f"sample defect type {defect_type!r}: unknown for {category}, "
            f"use one of {', '.join((*CATEGORIES[category], GOOD))}"
        )
    if size < MIN_SIZE:
        raise UsageError(f"sample image size {size}: too small, use {MIN_SIZE} or more")
    if index < 0 or seed < 0:
        raise UsageError(f"sample index {index}, seed {seed}: use 0 or more for both")
    name = zlib.crc32(f"{category}/{defect_type}".encode())
    rng = np.random.default_rng([seed, name, index])
    scene = surface(rng, size)
    damaged = scene.image if defect_type == GOOD else shapes[defect_type](scene, rng)
    sensor = rng.uniform(0.8, 1.8)
    noise = sensor * rng.standard_normal(scene.image.shape, dtype=np.float32)
    mask = _changed(damaged, scene.image)
    undamaged = _quantise(scene.image, noise)
    image = undamaged.copy()
    image[mask] = _quantise(damaged[mask], noise[mask])
    if image.shape[-1] == 1:
        image, undamaged = (np.repeat(grey, 3, axis=-1) for grey in (image, undamaged))
    return image, mask[..., None].astype(np.uint8), undamaged


def render(
    category: str, defect_type: str, index: int, size: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Renders one photograph and its mask, deterministically from the arguments.

    Every (category, defect type, index, seed) shows a different object. The size changes the
    resolution, not the scene.

    Args:
        category: a key of `CATEGORIES`.
        defect_type: one of that category's defect types, or "good".
        index: number of the object, 0 or more.
        size: height and width in px, at least 32.
        seed: 0 or more.

    Returns:
        The image, uint8 [size, size, 3], and the mask, uint8 [size, size, 1] in {0, 1}: 1 where
        the defect visibly changes the undamaged image. All other pixels are those of the
        undamaged image.

    Raises:
        UsageError: an argument is unknown or out of range.
    """
    image, mask, _ = _render_pair(category, defect_type, index, size, seed)
    return image, mask


def listing(per_type: int) -> list[tuple[str, str, int]]:
    """Lists all (category, defect type, index), sorted.

    Args:
        per_type: images per category and defect type, "good" included; at least 1.

    Raises:
        UsageError: `per_type` is below 1.
    """
    if per_type < 1:
        raise UsageError(f"sample images per defect type {per_type}: use 1 or more")
    return sorted(
        (category, defect_type, index)
        for category, types in CATEGORIES.items()
        for defect_type in (*types, GOOD)
        for index in range(per_type)
    )
