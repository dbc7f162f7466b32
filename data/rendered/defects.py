"""Renders defects of surfaces and parts, one function per kind of defect.

Each function takes an undamaged scene, a random generator and the name of one of the scene's
spots, and returns the damaged image, of the shape of `scene.image`. Which pixels count as
defective is decided by the caller, who compares the two images.
"""

import functools

import numpy as np
from scipy import ndimage

from data.rendered.surfaces import Scene
from data.rendered.textures import (
    Array,
    axes,
    colour,
    coverage,
    grain,
    line_noise,
    lookup,
    mix,
    ramp,
    rotated,
    slope,
    stroke,
    value_noise,
)

Colour = tuple[float, float, float]


def _frame(scene: Scene, spot: str, turn: float = 0.0) -> tuple[Array, Array]:
    """Returns coordinates relative to a spot, along and across its direction plus `turn`."""
    x, y = axes(len(scene.image))
    left, top, angle = scene.spots[spot]
    return rotated(x - float(left), y - float(top), angle + turn)


def _paint(scene: Scene, image: Array, paint: Array | Colour, share: Array) -> Array:
    """Blends a colour or image over `image` with opacity `share` [S, S], on the part only."""
    paint = np.asarray(paint, np.float32)
    if image.shape[-1] == 1:
        paint = paint.mean(axis=-1, keepdims=True)
    return mix(image, paint, share[..., None] * scene.solid)


def _shade(scene: Scene, image: Array, change: Array) -> Array:
    """Scales brightness by 1 + `change` [S, S], on the part only."""
    return image * (1 + change[..., None] * scene.solid)


def _blob(
    rng: np.random.Generator, along: Array, across: Array, radius: float, ragged: float = 0.1
) -> Array:
    """Returns the approximate signed distance to an irregular blob of about `radius`."""
    stretch = rng.uniform(0.75, 1.3)
    distance = np.sqrt((along * stretch) ** 2 + (across / stretch) ** 2) - radius
    around = np.arctan2(across, along) * (0.5 / np.pi) + 0.5
    outline = 0.14 * lookup(line_noise(rng, 7, closed=True), around)
    return distance + radius * (outline + ragged * value_noise(rng, len(distance), 45, 45))


def _polygon(
    rng: np.random.Generator, along: Array, across: Array, radius: float, sides: int
) -> Array:
    """Returns the signed distance to a convex polygon, inexact only outside near corners."""
    first = rng.uniform(0, 2 * np.pi)
    planes = []
    for side in range(sides):
        angle = first + (side + rng.uniform(-0.3, 0.3)) * 2 * np.pi / sides
        planes.append(rotated(along, across, angle)[0] - radius * rng.uniform(0.65, 1))
    return functools.reduce(np.maximum, planes)


def _thinnest(size: int) -> float:
    """Returns the half width of the thinnest line, 0.7 px wide: finer ones would vanish."""
    return 0.7 / size


def _wander(rng: np.random.Generator, along: Array, length: float, bend: float) -> Array:
    """Returns the offset of a smoothly curved line at each position along it."""
    return bend * lookup(line_noise(rng, 4), along * (0.5 / length) + 0.5)


def scratch(
    scene: Scene, rng: np.random.Generator, spot: str, *, length: float = 0.4, tone: float = 0.3
) -> Array:
    """Draws one to four thin scratches side by side, 1 to 3 px wide in a 256 px image.

    `length` is the longest half length; `tone` is how much brighter (darker if negative) the
    furrow is than the surface.
    """
    size = len(scene.image)
    image = scene.image
    turn = rng.uniform(-np.pi, np.pi)
    tone = tone * rng.uniform(0.5, 1.2)
    for _ in range(rng.integers(1, 5)):
        along, across = _frame(scene, spot, turn + rng.uniform(-0.15, 0.15))
        reach = length * rng.uniform(0.5, 1)
        along = along - rng.uniform(-0.3, 0.3) * reach
        across = across - rng.uniform(-0.15, 0.15) * reach - _wander(rng, along, reach, 0.012)
        taper = np.sqrt(np.clip(1 - (along / reach) ** 2, 0, 1))
        width = max(rng.uniform(0.005, 0.012), _thinnest(size)) * taper
        # Pressure varies along a scratch, and its furrow shadows one edge.
        pressure = 0.75 + 0.3 * lookup(line_noise(rng, 12), along * (0.5 / reach) + 0.5)
        pressure = np.clip(pressure, 0.3, 1.2)
        furrow = tone * stroke(across, width, size)
        furrow = furrow - 0.4 * tone * stroke(across - max(0.016, 2 / size), 0.8 * width, size)
        image = image + (pressure * furrow)[..., None] * scene.solid
    return image


def crack(
    scene: Scene,
    rng: np.random.Generator,
    spot: str,
    *,
    length: float = 1.2,
    tone: float = 0.04,
) -> Array:
    """Draws a jagged crack with up to two branches, at most `length` long, of grey `tone`."""
    size = len(scene.image)
    gap = lip = trunk = np.float32(0)
    turn, width = rng.uniform(-np.pi, np.pi), max(rng.uniform(0.006, 0.011), _thinnest(size))
    reach = length * rng.uniform(0.6, 1)
    along, across = _frame(scene, spot, turn)
    along = along + reach / 2
    for branch in range(rng.integers(1, 4)):
        if branch:
            fork = rng.uniform(0.25, 0.75)
            bend = rng.uniform(0.5, 1.0) * rng.choice([-1.0, 1.0])
            origin = float(lookup(trunk, np.float32(fork)))
            line = rotated(along - fork * reach, across - origin, bend)
            own_reach, own_width = reach * rng.uniform(0.25, 0.5), width * 0.75
        else:
            line, own_reach, own_width = (along, across), reach, width
        kinks = np.cumsum(rng.normal(0, 0.03 * own_reach, 14))
        path = np.interp(np.linspace(0, 13, 1024), np.arange(14), kinks - kinks[0])
        path = path.astype(np.float32)
        trunk = trunk if branch else path
        place = line[0] * (1 / own_reach)
        offset = line[1] - lookup(path, place)
        taper = np.sqrt(np.clip(1.1 * (1 - place) if branch else 4 * place * (1 - place), 0, 1))
        taper = taper * (place >= 0)
        gap = np.maximum(gap, stroke(offset, own_width * taper, size))
        lip = np.maximum(lip, stroke(offset - 2 * own_width, own_width * taper, size))
    image = _shade(scene, scene.image, 0.12 * lip)
    return _paint(scene, image, (tone, tone, tone), gap * rng.uniform(0.75, 1))


def cut(scene: Scene, rng: np.random.Generator, spot: str, *, length: float = 0.3) -> Array:
    """Draws a gaping slit: dark inside, one lip lit and the other in shade."""
    size = len(scene.image)
    along, across = _frame(scene, spot)
    reach = length * rng.uniform(0.6, 1)
    across = across - _wander(rng, along, reach, 0.03) + 0.006 * value_noise(rng, size, 60, 60)
    taper = np.clip(1 - (along / reach) ** 2, 0, 1)
    gape = rng.uniform(0.012, 0.035) * taper
    lips = np.exp(-(((np.abs(across) - gape) / 0.03) ** 2)) * np.sqrt(taper)
    image = _shade(scene, scene.image, lips * np.where(across > 0, 0.4, -0.35))
    beneath = scene.image * 0.15 if scene.beneath is None else scene.beneath
    return _paint(scene, image, beneath, stroke(across, gape, size))


def hole(
    scene: Scene,
    rng: np.random.Generator,
    spot: str,
    *,
    radius: float = 0.12,
    count: int = 1,
    fray: float = 0.0,
) -> Array:
    """Draws up to `count` dark holes with a lit far wall and a bruised rim.

    `fray` is how far vertical and horizontal threads reach into the hole, in radii.
    """
    size = len(scene.image)
    image = scene.image
    along, across = _frame(scene, spot)
    for _ in range(rng.integers(1, count + 1)):
        own = radius * rng.uniform(0.45, 1)
        distance = _blob(rng, along, across, own)
        if fray:
            threads = np.maximum(value_noise(rng, size, 9, 128), value_noise(rng, size, 128, 9))
            distance = distance + fray * own * threads
        rim = ramp(0.5 * own + 0.02, 0, distance)
        image = _shade(scene, image, -0.35 * rim * rng.uniform(0.4, 1))
        wall = np.clip(0.5 + along / own, 0, 1)[..., None]
        deep = image * (0.10 + 0.22 * wall) if scene.beneath is None else scene.beneath
        image = _paint(scene, image, deep, coverage(distance, size))
        along, across = along - rng.uniform(-0.3, 0.3), across - rng.uniform(-0.3, 0.3)
    return image


def stain(
    scene: Scene,
    rng: np.random.Generator,
    spot: str,
    *,
    hue: Colour,
    radius: float = 0.18,
    soft: float = 0.03,
    rim: float = 0.2,
) -> Array:
    """Draws a translucent stain: the surface times `hue`, denser by `rim` along its border."""
    along, across = _frame(scene, spot)
    distance = _blob(rng, along, across, radius * rng.uniform(0.6, 1.1), 0.12)
    share = ramp(soft, -soft, distance) * rng.uniform(0.45, 1)
    patchy = 1 + 0.12 * value_noise(rng, len(share), 9, 9)
    border = rim * np.exp(-(((distance + 1.5 * soft) / 0.02) ** 2))
    share = np.clip(share * (patchy + border), 0, 1.2)
    return _paint(scene, scene.image, scene.image * np.asarray(hue, np.float32), share)


def discolour(
    scene: Scene, rng: np.random.Generator, spot: str, *, radius: float = 0.2
) -> Array:
    """Draws annealing colours of overheated steel: straw, brown, then blue in the middle."""
    along, across = _frame(scene, spot)
    radius = radius * rng.uniform(0.6, 1.1)
    distance = _blob(rng, along, across, radius, 0.08) / radius
    hues = ((1, 0.96, 0.85), (0.98, 0.84, 0.58), (0.88, 0.66, 0.52), (0.72, 0.66, 0.82))
    heat = np.clip(0.2 - distance, 0, 1) * rng.uniform(0.7, 1.2)
    share = ramp(0.25, -0.1, distance) * rng.uniform(0.75, 1.1)
    return _paint(scene, scene.image, scene.image * colour(heat, *hues), share)


def loose_thread(scene: Scene, rng: np.random.Generator, spot: str, *, hue: Colour) -> Array:
    """Draws a stray twisted thread lying on the surface, with its shadow."""
    size = len(scene.image)
    along, across = _frame(scene, spot)
    reach = rng.uniform(0.3, 0.6)
    across = across - _wander(rng, along, reach, 0.09)
    width = rng.uniform(0.011, 0.018)
    ends = coverage(np.abs(along) - reach, size)
    shadow = ramp(2.2 * width, 0.4 * width, np.abs(across - 0.02)) * ends
    image = _shade(scene, scene.image, -0.4 * shadow)
    side = np.clip(across / width, -1, 1)
    twist = np.sin(along * (3 / width) + 1.5 * side)
    tone = 0.65 + 0.35 * np.sqrt(1 - side * side) - 0.2 * side + 0.13 * twist
    tone = tone * (1 + 0.05 * grain(rng, size))
    thread = tone[..., None] * np.asarray(hue, np.float32)
    return _paint(scene, image, thread, stroke(across, width, size) * ends)


def fold(scene: Scene, rng: np.random.Generator, spot: str) -> Array:
    """Draws a soft crease: a ridge with a lit and a dark flank, worn pale along its top."""
    size = len(scene.image)
    along, across = _frame(scene, spot)
    reach = rng.uniform(0.3, 0.6)
    across = across - _wander(rng, along, reach, 0.05)
    taper = np.clip(1 - (along / reach) ** 2, 0, 1)
    slant = across / rng.uniform(0.025, 0.04)
    relief = 1.5 * slant * np.exp(-slant * slant) * taper
    worn = stroke(across, 0.012 * taper, size) * (0.5 + 0.25 * value_noise(rng, size, 70, 70))
    return _shade(scene, scene.image, rng.uniform(0.3, 0.5) * relief + 0.4 * worn)


def dents(scene: Scene, rng: np.random.Generator, spot: str, *, radius: float = 0.05) -> Array:
    """Draws one to three dents: small pits with a lit far wall and a bulging rim."""
    image = scene.image
    along, across = _frame(scene, spot)
    for _ in range(rng.integers(1, 4)):
        own = radius * rng.uniform(0.6, 1.2)
        distance = _blob(rng, along, across, own, 0.08)
        pit = ramp(0.4 * own, -0.6 * own, distance)
        wall = np.clip(along / own, -1, 1)
        bulge = np.exp(-(((distance - 0.5 * own) / (0.4 * own)) ** 2))
        image = _shade(scene, image, (0.55 * wall - 0.45) * pit - 0.25 * wall * bulge)
        along, across = along - rng.uniform(-0.25, 0.25), across - rng.uniform(-0.25, 0.25)
    return image


def bent(
    scene: Scene,
    rng: np.random.Generator,
    spot: str,
    *,
    radius: float,
    push: float,
    sideways: bool = False,
    sheen: float = 0.0,
) -> Array:
    """Displaces the surroundings of a spot by about `push`, against its direction or sideways.

    `sheen` brightens them, as bent metal catches the light.
    """
    size = len(scene.image)
    along, across = _frame(scene, spot)
    radius = radius * rng.uniform(0.85, 1.15)
    share = np.clip(1 - (along * along + across * across) / radius**2, 0, None) ** 2
    rows, columns = (slice(int(k.min()), int(k.max()) + 1) for k in np.nonzero(share))
    share = share[rows, columns]
    push = push * rng.uniform(0.75, 1.2) * size / 2
    direction = scene.spots[spot][2] + (rng.choice([-1.0, 1.0]) * np.pi / 2 if sideways else 0)
    origin = np.mgrid[rows, columns].astype(np.float32)
    origin[0] += share * float(push * np.sin(direction))
    origin[1] += share * float(push * np.cos(direction))

    def moved(layer: Array) -> Array:
        return ndimage.map_coordinates(layer, origin, order=1, mode="nearest")

    image = scene.image.copy()
    for channel in range(image.shape[-1]):
        image[rows, columns, channel] = moved(scene.image[..., channel])
    if sheen:
        tilt = sheen * share * (0.7 + 0.3 * value_noise(rng, size, 20, 20)[rows, columns])
        part = scene.solid if isinstance(scene.solid, float) else moved(scene.solid[..., 0])
        image[rows, columns] *= (1 + tilt * part)[..., None]
    return image


def broken_wire(scene: Scene, rng: np.random.Generator, spot: str) -> Array:
    """Removes a stretch of wire between torn ends, so that `scene.beneath` is visible."""
    along, across = _frame(scene, spot)
    size = len(scene.image)
    torn = np.abs(along) + rng.uniform(-0.5, 0.5) * across - rng.uniform(0.14, 0.4)
    share = coverage(torn + 0.01 * value_noise(rng, size, 60, 60), size)
    return _paint(scene, scene.image, scene.beneath, share * (np.abs(across) < 0.075))


def chip(
    scene: Scene,
    rng: np.random.Generator,
    spot: str,
    *,
    radius: float = 0.14,
    tone: float = 0.45,
) -> Array:
    """Breaks out a piece: a polygon of rough, shell-like facets of mean grey `tone`."""
    size = len(scene.image)
    along, across = _frame(scene, spot)
    distance = _polygon(rng, along, across, radius * rng.uniform(0.6, 1.1), rng.integers(5, 8))
    distance = distance + 0.008 * value_noise(rng, size, 40, 40)
    facets = np.float32(tone)
    for _ in range(4):
        # A fracture surface consists of a few planes of uniform brightness, with ripples.
        plane, _ = rotated(along, across, rng.uniform(-np.pi, np.pi))
        beyond = coverage(radius * rng.uniform(-0.4, 0.4) - plane, size)
        facets = facets + 0.35 * tone * rng.uniform(-1, 1) * beyond
    ripple = np.sin(np.hypot(along - radius, across) * rng.uniform(60, 110))
    facets = np.clip(facets, 0.5 * tone, 1.35 * tone)
    rough = facets * (1 + 0.06 * ripple + 0.15 * value_noise(rng, size, 60, 60))
    rough = rough * (1 + 0.06 * value_noise(rng, size, 110, 110) + 0.05 * grain(rng, size))
    rough = rough[..., None] * np.ones(3, np.float32)
    image = _paint(scene, scene.image, rough, coverage(distance, size))
    edge = ramp(0.022, 0, np.abs(distance))
    return _shade(scene, image, edge * np.clip(along / radius, -0.5, 0.4))


def deposit(
    scene: Scene,
    rng: np.random.Generator,
    spot: str,
    *,
    hue: Colour,
    radius: float = 0.10,
    opacity: float = 0.85,
) -> Array:
    """Draws foreign matter: a lumpy drop or crumb of colour `hue`, with its shadow."""
    size = len(scene.image)
    along, across = _frame(scene, spot)
    distance = _blob(rng, along, across, radius * rng.uniform(0.5, 1.1), 0.2)
    height = np.sqrt(np.clip(-distance, 0, None)) + 0.04 * value_noise(rng, size, 30, 30)
    relief = slope(height, rng.uniform(-np.pi, np.pi)) * np.float32(size / 256)
    shadow = ramp(0.05, 0, distance)
    image = _shade(scene, scene.image, -0.3 * shadow)
    tone = np.clip(0.75 + 6 * relief + 0.05 * grain(rng, size), 0.15, 1.5)
    lump = tone[..., None] * np.asarray(hue, np.float32)
    return _paint(scene, image, lump, opacity * coverage(distance, size))
