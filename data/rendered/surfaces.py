"""Renders undamaged surfaces as an inspection camera sees them, one function per category.

Each function draws pose, colour and lighting from its generator and returns a `Scene`. All
tones and colours are display values in [0, 1].
"""

import dataclasses

import numpy as np

from data.rendered.textures import (
    Array,
    axes,
    cells,
    colour,
    fractal_noise,
    grain,
    lighting,
    mix,
    ramp,
    rotated,
    slope,
    stroke,
    value_noise,
)

Spot = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Scene:
    """An undamaged photograph and what defects need to know about it.

    Attributes:
        image: float32 [S, S, 3], or [S, S, 1] from a greyscale camera; nominally in [0, 1].
        spots: named places for defects, each (x, y, direction in radians).
        solid: float32 [S, S, 1], fraction of each pixel covered by the part, or 1.0 everywhere.
        beneath: what is visible where material is missing, shaped like `image`; None if there
            is nothing beneath.
    """

    image: Array
    spots: dict[str, Spot]
    solid: Array | float = 1.0
    beneath: Array | None = None


def _anywhere(rng: np.random.Generator) -> Spot:
    return rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(-np.pi, np.pi)


def woven(rng: np.random.Generator, size: int) -> Scene:
    """Renders plain-woven cloth of two yarns, of uneven thickness and tone."""
    x, y = axes(size)
    threads = rng.uniform(32, 38)
    u, v = rotated(x, y, rng.uniform(-0.08, 0.08))
    u = u * (threads / 2) + 0.5 * value_noise(rng, size, 3, 3)
    v = v * (threads / 2) + 0.5 * value_noise(rng, size, 3, 3)
    u = u + 0.1 * value_noise(rng, size, 30, 30)
    v = v + 0.1 * value_noise(rng, size, 30, 30)
    i, j = np.floor(u), np.floor(v)
    across_u, across_v = u - i - 0.5, v - j - 0.5
    thick_u = 2.25 + 0.30 * value_noise(rng, size, 6, 40)
    thick_v = 2.25 + 0.30 * value_noise(rng, size, 40, 6)
    # A yarn's height is a bump across it and a wave along it, over and under the other yarns.
    height_u = 1 - (thick_u * across_u) ** 2 + 0.6 * np.sin(np.pi * (v + i))
    height_v = 1 - (thick_v * across_v) ** 2 - 0.6 * np.sin(np.pi * (u + j))
    yarn_u = 1 + 0.17 * value_noise(rng, size, 7, 40) + 0.15 * value_noise(rng, size, 40, 120)
    yarn_v = 1 + 0.17 * value_noise(rng, size, 40, 7) + 0.15 * value_noise(rng, size, 120, 40)
    over = np.clip((height_u - height_v) * 1.5 + 0.5, 0, 1)
    relief = np.clip(np.maximum(height_u, height_v), -1.0, 1.6)
    tone = mix(yarn_v * 0.86, yarn_u, over) * (0.52 + 0.36 * relief)
    tone = tone - 0.1 * mix(across_v, across_u, over) + 0.035 * grain(rng, size)
    dark = np.array([0.15, 0.14, 0.15]) + rng.uniform(-0.006, 0.006, 3)
    light = rng.uniform(0.92, 1.08) * np.array([0.70, 0.64, 0.60])
    light = light + rng.uniform(-0.01, 0.01, 3)
    image = colour(tone * 0.78, dark, light) * lighting(rng, size)
    return Scene(image, {"surface": _anywhere(rng)}, beneath=image * 0.2 + 0.01)


def _wires(offset: Array, width: float, lamp: float, size: int) -> tuple[Array, Array]:
    """Returns coverage and tone of round wires; `offset` is the distance to a wire's axis."""
    side = np.clip(offset / width, -1, 1)
    facing = np.sqrt(1 - side * side)
    glint = np.clip(0.8 * facing + lamp * side, 0, 1) ** 12
    tone = 0.12 + 0.22 * facing + 0.12 * lamp * side + 0.45 * glint
    return stroke(offset, width, size), tone


def grid(rng: np.random.Generator, size: int) -> Scene:
    """Renders a woven wire mesh in front of a pale plate, from a greyscale camera."""
    x, y = axes(size)
    count = rng.uniform(9, 11)
    pitch, width = 2 / count, rng.uniform(0.026, 0.032)
    angle = rng.uniform(0.6, 0.95)
    u = rotated(x, y, angle)[0] + 0.012 * value_noise(rng, size, 4, 4)
    v = rotated(x, y, angle + rng.uniform(1.35, 1.75))[0] + 0.012 * value_noise(rng, size, 4, 4)
    i, j = np.floor(u / pitch), np.floor(v / pitch)
    bend = rng.uniform(0.03, 0.08) * pitch
    across_u = u - (i + 0.5) * pitch + bend * np.cos(np.pi * v / pitch)
    across_v = v - (j + 0.5) * pitch + bend * np.cos(np.pi * u / pitch)
    metal = 1 + 0.1 * fractal_noise(rng, size, 16) + 0.06 * grain(rng, size)
    cover_u, tone_u = _wires(across_u, width, 0.5, size)
    cover_v, tone_v = _wires(across_v, width, -0.35, size)
    tone_u, tone_v = tone_u * metal, tone_v * metal
    shadow_u = 1 - 0.35 * ramp(2.2 * width, 0.4 * width, np.abs(across_u + 0.02))
    shadow_v = 1 - 0.35 * ramp(2.2 * width, 0.4 * width, np.abs(across_v + 0.02))
    plate = rng.uniform(0.55, 0.7) * (1 + 0.03 * fractal_noise(rng, size, 8)) * shadow_v
    without_u = mix(plate, tone_v, cover_v)
    plate = plate * shadow_u
    over = (i + j) % 2 < 1
    lower = mix(plate, np.where(over, tone_v, tone_u), np.where(over, cover_v, cover_u))
    tone = mix(lower, np.where(over, tone_u, tone_v), np.where(over, cover_u, cover_v))
    light = lighting(rng, size, 0.2)
    # A place on one of the wires of constant u, for defects of a single wire.
    wire = (np.floor(rng.uniform(-0.5, 0.5) / pitch) + 0.5) * pitch
    along = rng.uniform(-0.5, 0.5)
    place = (
        wire * np.cos(angle) - along * np.sin(angle),
        wire * np.sin(angle) + along * np.cos(angle),
        angle + np.pi / 2,
    )
    return Scene(
        tone[..., None] * light,
        {"surface": _anywhere(rng), "wire": place},
        beneath=without_u[..., None] * light,
    )


def wood(rng: np.random.Generator, size: int) -> Scene:
    """Renders planed oak: growth rings in long arches, fibres, dark open pores."""
    x, y = axes(size)
    lean = x + rng.uniform(-0.12, 0.12) * y + 0.05 * value_noise(rng, size, 3, 3)
    # A plank cuts the cone of growth rings in hyperbolas, vertical far from the middle.
    middle, tip = rng.uniform(-1.5, 1.5), rng.uniform(-3, 3)
    radius = np.sqrt((lean - middle) ** 2 + (0.13 * (y - tip)) ** 2)
    phase = radius * rng.uniform(7, 11) + 0.35 * value_noise(rng, size, 2, 9)
    ring = phase - np.floor(phase)
    # Late wood darkens slowly and ends sharply.
    late = ring**2 * ramp(1.0, 0.9, ring)
    fibre = 0.5 * value_noise(rng, size, 6, 60) + 0.7 * value_noise(rng, size, 14, 125)
    streaks = value_noise(rng, size, 12, 128) + 0.5 * value_noise(rng, size, 4, 30)
    pores = ramp(1.3, 2.9, streaks + 0.9 * late)
    tone = 0.62 - 0.22 * late + 0.09 * fibre - 0.40 * pores
    tone = tone + 0.06 * value_noise(rng, size, 2, 5) + 0.03 * grain(rng, size)
    warm = np.array([0.80, 0.57, 0.36]) + rng.uniform(-0.05, 0.05) + rng.uniform(-0.02, 0.02, 3)
    image = colour(tone, (0.25, 0.13, 0.06), warm * (0.76, 0.70, 0.62), warm * 1.12)
    return Scene(image * lighting(rng, size), {"surface": _anywhere(rng)})


def tile(rng: np.random.Generator, size: int) -> Scene:
    """Renders a polished stone tile: pale ground, clustered dark grains and lighter chips."""
    dense = 0.25 * value_noise(rng, size, 12, 12)
    blots = value_noise(rng, size, 56, 56) + 0.3 * value_noise(rng, size, 100, 100)
    blots = ramp(0.75, 1.35, blots + dense)
    specks = ramp(0.9, 1.8, value_noise(rng, size, 90, 90) + dense)
    pale = ramp(0.8, 1.7, value_noise(rng, size, 50, 50))
    ground = 0.68 + 0.035 * fractal_noise(rng, size, 4) + 0.09 * pale
    depth = 0.38 + 0.09 * value_noise(rng, size, 60, 60)
    tone = ground - np.maximum(blots, 0.8 * specks) * depth + 0.022 * grain(rng, size)
    tint = np.array([0.97, 1.0, 0.98]) + rng.uniform(-0.03, 0.03, 3)
    image = colour(tone, (0.03, 0.03, 0.04), tint * 0.5, tint * 0.99)
    return Scene(image * lighting(rng, size), {"surface": _anywhere(rng)})


def leather(rng: np.random.Generator, size: int) -> Scene:
    """Renders dyed leather: pebbles separated by creases, pores, raking light."""
    x, y = axes(size)
    count = rng.uniform(20, 25)
    u, v = rotated(x, y, rng.uniform(-np.pi, np.pi))
    u = u * count + 0.6 * value_noise(rng, size, 8, 8) + 0.25 * value_noise(rng, size, 40, 40)
    v = v * count * rng.uniform(0.7, 0.9) + 0.6 * value_noise(rng, size, 8, 8)
    near, edge, kind = cells(rng, u, v)
    crease = ramp(-0.05, 0.38, edge)
    height = crease * (0.7 + 0.5 * kind) - 0.35 * near * near
    height += 0.06 * fractal_noise(rng, size, 40, 0.9)
    height = height * np.float32(size / 256)
    lamp = rng.uniform(-np.pi, np.pi)
    tone = 0.53 + rng.uniform(0.24, 0.32) * slope(height, lamp) - 0.11 * (1 - crease)
    tone = tone + 0.025 * fractal_noise(rng, size, 3) + 0.018 * grain(rng, size)
    hue = rng.uniform(0.9, 1.1) * np.array([0.50, 0.28, 0.20]) + rng.uniform(-0.015, 0.015, 3)
    image = colour(tone, (0.09, 0.04, 0.03), hue, (0.93, 0.78, 0.70))
    return Scene(
        image * lighting(rng, size, 0.2),
        {"surface": _anywhere(rng)},
        beneath=image * 0.15 + np.float32(0.04),
    )
