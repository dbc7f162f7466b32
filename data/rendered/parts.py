"""Renders undamaged parts as an inspection camera sees them, one function per category.

Like `surfaces`, but the objects have an outline and a background around it.
"""

import functools

import numpy as np
from scipy import ndimage

from data.rendered.surfaces import Scene, Spot
from data.rendered.textures import (
    axes,
    colour,
    coverage,
    fractal_noise,
    grain,
    lighting,
    line_noise,
    lookup,
    mix,
    ramp,
    rotated,
    slope,
    stroke,
    value_noise,
)


def _on_circle(rng: np.random.Generator, left: float, top: float, radius: float) -> Spot:
    angle = rng.uniform(-np.pi, np.pi)
    return left + radius * np.cos(angle), top + radius * np.sin(angle), angle


def metal_part(rng: np.random.Generator, size: int) -> Scene:
    """Renders a turned flange nut on a dark mat, lit from one side."""
    x, y = axes(size)
    scale = rng.uniform(0.92, 1.04)
    left, top = rng.uniform(-0.05, 0.05, 2).tolist()
    x, y = (x - left) / scale, (y - top) / scale
    spin, lamp = rng.uniform(-np.pi, np.pi), rng.uniform(-np.pi, np.pi)
    radius = np.sqrt(x * x + y * y)
    angle = np.arctan2(y, x)
    towards = np.cos(angle - lamp)
    flats = (np.abs(rotated(x, y, spin + k * np.pi / 3)[0]) for k in range(3))
    hexagon = functools.reduce(np.maximum, flats)
    flange, bore = coverage(radius - 0.84, size), coverage(radius - 0.30, size)
    head = coverage(np.maximum(hexagon - 0.52, radius - 0.585), size)
    # Tool marks: rings that vary little along their circumference.
    turn = (angle + np.pi) * (40 / (2 * np.pi))
    table = rng.standard_normal((42, 180), dtype=np.float32)
    table[40:] = table[:2]
    place = np.stack([turn, radius * 150])
    marks = ndimage.map_coordinates(table, place, order=1, mode="nearest")
    sheen = np.cos(2 * (angle - lamp) + 0.5 * towards)
    rough = fractal_noise(rng, size, 24, 0.9)
    cone = 0.43 + 0.17 * towards + 0.10 * sheen + 0.07 * marks + 0.03 * rough
    cone = cone * (1 - 0.55 * ramp(0.10, 0.0, hexagon - 0.52) * (0.55 - 0.45 * towards))
    cone = cone + 0.30 * stroke(radius - 0.825, 0.012, size) * (0.4 + 0.6 * towards)
    face = 0.58 + 0.10 * sheen + 0.045 * marks + 0.055 * rough
    chamfer = ramp(0.53, 0.57, radius)
    face = mix(face, 0.50 + 0.28 * towards + 0.05 * rough, chamfer)
    face = face + 0.25 * stroke(hexagon - 0.51, 0.010, size) * (0.3 + 0.7 * towards)
    collar = ramp(0.385, 0.37, radius)
    face = mix(face, 0.40 - 0.24 * towards + 0.06 * marks, collar)
    helix = np.sin(radius * 230 + angle)
    threads = 0.20 - 0.13 * towards + 0.12 * helix * ramp(0.30, 0.27, radius)
    hole = mix(0.035, threads, ramp(0.195, 0.225, radius))
    tone = mix(mix(cone, face, head), hole, bore) * (1 + 0.03 * grain(rng, size))
    tint = np.array([0.94, 1.0, 0.95]) + rng.uniform(-0.05, 0.05, 3)
    metal = colour(tone * rng.uniform(0.85, 1.05), (0.015, 0.015, 0.02), tint * 0.48, tint)
    mat = 0.10 + 0.006 * fractal_noise(rng, size, 60, 1.2)
    mat = mat * (1 - 0.5 * ramp(1.0, 0.84, radius + 0.08 * towards))
    image = mix(colour(mat, (0, 0, 0), (0.48, 0.48, 0.54)), metal, flange[..., None])
    return Scene(
        image * lighting(rng, size, 0.1),
        {
            "face": _on_circle(rng, left, top, scale * rng.uniform(0.42, 0.74)),
            "rim": _on_circle(rng, left, top, scale * 0.80),
        },
        solid=(flange - bore)[..., None],
    )


# From the centre outwards: radius (1 is the outer edge of the glass), red, green, blue.
_BOTTLE_RINGS = np.array(
    [
        [0.00, 0.085, 0.078, 0.085],
        [0.17, 0.075, 0.070, 0.078],
        [0.20, 0.100, 0.092, 0.095],
        [0.23, 0.055, 0.050, 0.060],
        [0.47, 0.050, 0.045, 0.055],
        [0.50, 0.120, 0.115, 0.130],
        [0.515, 0.21, 0.20, 0.21],
        [0.53, 0.095, 0.10, 0.11],
        [0.60, 0.15, 0.15, 0.165],
        [0.63, 0.10, 0.095, 0.10],
        [0.655, 0.17, 0.115, 0.085],
        [0.67, 0.28, 0.17, 0.10],
        [0.69, 0.13, 0.12, 0.13],
        [0.74, 0.25, 0.245, 0.27],
        [0.79, 0.17, 0.165, 0.185],
        [0.815, 0.30, 0.30, 0.335],
        [0.84, 0.12, 0.115, 0.13],
        [0.92, 0.20, 0.195, 0.22],
        [0.965, 0.13, 0.13, 0.15],
        [0.99, 0.38, 0.39, 0.42],
        [1.01, 0.87, 0.88, 0.88],
        [1.05, 0.935, 0.94, 0.94],
        [1.60, 0.955, 0.955, 0.95],
    ]
)


def bottle_mouth(rng: np.random.Generator, size: int) -> Scene:
    """Renders the mouth of an amber bottle from above, on a light table: concentric rings."""
    x, y = axes(size)
    scale = rng.uniform(0.86, 0.92)
    left, top = rng.uniform(-0.03, 0.03, 2).tolist()
    x, y = (x - left) / scale, (y - top) / scale
    # The camera is never exactly above the axis, so deeper parts are displaced.
    lean = rng.uniform(-0.06, 0.06, 2).tolist()
    depth = np.clip(1 - np.sqrt(x * x + y * y), 0, 1)
    dx, dy = x - lean[0] * depth, y - lean[1] * depth
    radius = np.sqrt(dx * dx + dy * dy)
    around = np.arctan2(dy, dx) * (0.5 / np.pi) + 0.5
    fine = np.linspace(0, 1.6, 2048)
    rings, *channels = _BOTTLE_RINGS.T
    profile = np.stack([np.interp(fine, rings, channel) for channel in channels], axis=-1)
    ripple = np.interp(fine, np.linspace(0, 1.6, 1024), 0.07 * line_noise(rng, 260))
    ripple = 1 + ripple * (fine < 0.98) * (fine > 0.48)
    body = lookup((profile * ripple[:, None]).astype(np.float32), radius * (1 / 1.6))
    # Reflections: an amber line inside the rim, lamps on its rounded top.
    amber = ramp(0.2, 1.6, lookup(line_noise(rng, 11, closed=True), around))
    amber = (0.25 + 0.75 * amber) * ramp(0.014, 0.002, np.abs(radius - 0.668))
    lamps = ramp(0.6, 1.9, lookup(line_noise(rng, 9, closed=True), around))
    rim = lamps * ramp(0.03, 0.0, np.abs(radius - 0.735 - 0.02 * lamps))
    wall = ramp(0.4, 1.8, lookup(line_noise(rng, 23, closed=True), around)) * ramp(
        0.02, 0.0, np.abs(radius - 0.585)
    )
    glass = ramp(1.02, 0.97, radius)
    flow = value_noise(rng, size, 60, 60) + 0.8 * grain(rng, size)
    tone = (1 + 0.05 * flow * glass)[..., None] * body
    tone = tone + amber[..., None] * np.array([0.62, 0.36, 0.16], np.float32)
    tone = tone + (0.34 * rim + 0.22 * wall)[..., None] * np.array([1, 0.98, 0.94], np.float32)
    return Scene(
        tone * lighting(rng, size, 0.03),
        {
            "rim": _on_circle(rng, left, top, scale * rng.uniform(0.60, 0.78)),
            "inside": _on_circle(rng, left, top, scale * rng.uniform(0.1, 0.5)),
        },
        solid=ramp(1.0, 0.96, radius)[..., None],
    )


def screw(rng: np.random.Generator, size: int) -> Scene:
    """Renders a countersunk wood screw lying on a pale plate, from a greyscale camera."""
    x, y = axes(size)
    angle = rng.uniform(-np.pi, np.pi)
    scale = rng.uniform(0.9, 1.05)
    left, top = rng.uniform(-0.06, 0.06, 2).tolist()
    along, across = rotated((x - left) / scale, (y - top) / scale, angle)
    # Half width along the axis: head, cone, shank, thread core, tip.
    fine = np.linspace(-1.5, 1.5, 1024)
    knots = [-0.80, -0.75, -0.58, -0.52, 0.50, 0.72, 0.82]
    outline = np.interp(fine, knots, [0.19, 0.20, 0.085, 0.078, 0.066, 0.03, 0])
    core = lookup(outline.astype(np.float32), along / 3 + 0.5)
    side = np.clip(across / np.maximum(core, 0.02), -1, 1)
    # The helix advances by half a pitch from one side of the screw to the other.
    pitch = rng.uniform(0.092, 0.105)
    helix = along / pitch + 0.25 * side
    crest = 1 - 2 * np.abs(helix - np.floor(helix) - 0.5)
    crest = ramp(0.35, 1.0, crest) * ramp(-0.10, -0.02, along) * ramp(0.80, 0.62, along)
    width = core + 0.042 * crest
    outside = np.maximum(np.abs(across) - width, np.abs(along) - 0.8)
    steep = np.hypot(slope(outside, 0), slope(outside, np.pi / 2)) * np.float32(size / 2)
    body = coverage(outside / np.maximum(steep, 0.5), size)
    lamp = float(np.sin(rng.uniform(-np.pi, np.pi)))
    round_ = np.clip(across / np.maximum(width, 0.02), -1, 1)
    facing = np.sqrt(1 - round_ * round_)
    lit = 0.20 + 0.20 * facing + 0.16 * lamp * round_
    lit = lit + 0.33 * np.clip(facing * 0.85 + 0.5 * lamp * round_, 0, 1) ** 10
    threaded = ramp(-0.10, -0.04, along)
    flank = slope(crest, angle) * np.float32(size / 256)
    lit = lit + threaded * (0.55 * flank - 0.12 * (1 - crest)) * (0.4 + 0.6 * facing)
    lit = lit - 0.10 * stroke(along + 0.75, 0.008, size) + 0.10 * ramp(-0.74, -0.76, along)
    lit = lit + 0.05 * fractal_noise(rng, size, 20, 0.7) + 0.02 * grain(rng, size)
    plate = rng.uniform(0.68, 0.78) + 0.006 * fractal_noise(rng, size, 16, 1.0)
    fall_x, fall_y = rotated(np.float32(0.05), np.float32(0.03), angle)
    away = np.clip(np.abs(across - fall_y) - core, 0, 1) ** 2
    away = np.sqrt(away + np.clip(np.abs(along - fall_x) - 0.77, 0, 1) ** 2)
    plate = plate * (1 - 0.32 * ramp(0.13, 0, away))
    tone = mix(plate, lit, body)

    def at(t: float, s: float) -> Spot:
        return (
            left + scale * (t * np.cos(angle) - s * np.sin(angle)),
            top + scale * (t * np.sin(angle) + s * np.cos(angle)),
            angle,
        )

    return Scene(
        tone[..., None] * lighting(rng, size, 0.15),
        {
            "head": at(rng.uniform(-0.72, -0.62), rng.uniform(-0.06, 0.06)),
            "shank": at(rng.uniform(-0.45, -0.2), rng.uniform(-0.02, 0.02)),
            "thread": at(rng.uniform(0.05, 0.45), 0.085 * rng.choice([-1.0, 1.0])),
            "tip": at(0.68, 0.0),
        },
        solid=body[..., None],
    )
