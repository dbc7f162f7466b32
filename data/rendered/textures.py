"""Pieces that procedural photographs are made of: noise, cells, anti-aliased shapes, light.

All arrays are float32. Positions run over [-1, 1] from edge to edge, x to the right and y
downwards, so lengths are in half image widths and a scene looks the same at every size.
Distances are signed: negative inside a shape.
"""

import functools

import numpy as np

Array = np.ndarray


@functools.lru_cache(maxsize=8)
def axes(size: int) -> tuple[Array, Array]:
    """Returns pixel centres as x [1, size] and y [size, 1], to be broadcast."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    line.flags.writeable = False
    return line[None, :], line[:, None]


def turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Returns coordinates along and across a direction `angle` radians from the x axis."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def cover(distance: Array, size: int) -> Array:
    """Share of each pixel inside a shape: the shape's edge drawn anti-aliased."""
    return np.clip(0.5 - distance * np.float32(size / 2), 0, 1)


def stroke(offset: Array, half_width: Array | float, size: int) -> Array:
    """Share of each pixel covered by a line, exact for lines thinner than a pixel too."""
    return cover(np.abs(offset) - half_width, size) - cover(np.abs(offset) + half_width, size)


def ramp(low: float, high: float, value: Array) -> Array:
    """Smooth step from 0 at `low` to 1 at `high` (`low` may be the larger one)."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Array | float, second: Array | float, share: Array) -> Array:
    """`first` where `share` is 0, `second` where it is 1."""
    return first + (second - first) * share


def colour(value: Array, *stops: tuple[float, float, float]) -> Array:
    """Maps a tone in [0, 1] ([H, W]) to [H, W, 3] through evenly spaced colour stops."""
    table = np.asarray(stops, np.float32)
    knots = np.linspace(0, 1, len(stops))
    fine = np.linspace(0, 1, 512)
    ramps = np.stack([np.interp(fine, knots, table[:, c]) for c in range(3)], axis=-1)
    return lookup(ramps.astype(np.float32), value)


def lookup(table: Array, position: Array) -> Array:
    """Reads `table` at `position`, where 0 is its first and 1 its last entry (nearest)."""
    index = (position * (len(table) - 1) + 0.5).astype(np.int32)
    return table.take(index, axis=0, mode="clip")


@functools.lru_cache(maxsize=256)
def _spline(size: int, cells: int) -> tuple[Array, Array]:
    """Cubic B-spline taps: lattice rows [4, size] and weights [4, size, 1] of unit energy.

    Unit energy turns white noise on the lattice into noise of variance 1 at every pixel.
    """
    position = (np.arange(size) + 0.5) * (cells / size)
    first = np.minimum(position.astype(int), cells - 1)
    t = position - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]
    )
    weights /= np.sqrt(np.sum(weights**2, axis=0))
    return first + np.arange(4)[:, None], weights[..., None].astype(np.float32)


def _upsample(lattice: Array, size: int) -> Array:
    """Interpolates the rows of `lattice` [cells + 3, N] to [size, N].

    Four taps rather than a product of matrices: as quick, and BLAS would add in an order of its
    own, so that no two machines agreed to the last bit.
    """
    rows, weights = _spline(size, len(lattice) - 3)
    total = lattice[rows[0]] * weights[0]
    for tap in (1, 2, 3):
        total += lattice[rows[tap]] * weights[tap]
    return total


def value_noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> Array:
    """Smooth noise [size, size] of mean 0 and variance 1 with `rows` × `columns` cells.

    Unequal counts give streaks: few rows and many columns are upright fibres.
    """
    lattice = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32)
    return _upsample(np.ascontiguousarray(_upsample(lattice.T, size).T), size)


def fractal_noise(rng: np.random.Generator, size: int, cells: int, gain: float = 0.6) -> Array:
    """Octaves of value noise from `cells` cells up to 2 pixels a cell; variance 1.

    The octaves come from a generator of their own: their number grows with the size, and what
    is drawn after them must not.
    """
    own = np.random.default_rng(int(rng.integers(2**32)))
    total = value_noise(own, size, cells, cells)
    energy, weight = 1.0, 1.0
    while cells * 4 <= size:
        cells, weight = cells * 2, weight * gain
        total += weight * value_noise(own, size, cells, cells)
        energy += weight**2
    return total * np.float32(energy**-0.5)


def line_noise(rng: np.random.Generator, cells: int, closed: bool = False) -> Array:
    """Smooth one-dimensional noise as a table [1024] for `lookup`; `closed` joins its ends."""
    lattice = rng.standard_normal(cells + 3, dtype=np.float32)
    if closed:
        lattice[cells:] = lattice[:3]
    return _upsample(lattice[:, None], 1024)[:, 0]


def grain(rng: np.random.Generator, size: int) -> Array:
    """White noise [size, size], one draw a pixel: detail at the limit of the resolution."""
    own = np.random.default_rng(int(rng.integers(2**32)))
    return own.standard_normal((size, size), dtype=np.float32)


# Cells repeat after this many, far outside any picture.
_TABLE = 64


def cells(rng: np.random.Generator, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Cells around jittered lattice points (Worley noise), one point a unit square of (u, v).

    Returns:
        The distance to the nearest point, by how much the second nearest is farther (0 on the
        border between cells), and one random number in [0, 1) a cell; all [H, W].
    """
    first_column, first_row = np.floor(u), np.floor(v)
    across, down = u - first_column, v - first_row
    table = rng.random((3, _TABLE * _TABLE), dtype=np.float32)
    # Both wrap around the table; its side is a power of two.
    columns = [(first_column.astype(np.int32) + k) & (_TABLE - 1) for k in (-1, 0, 1)]
    rows = [((first_row.astype(np.int32) + k) & (_TABLE - 1)) * _TABLE for k in (-1, 0, 1)]
    nearest = np.full(u.shape, np.inf, np.float32)
    second = nearest.copy()
    owner = np.zeros(u.shape, np.int32)
    for row in range(3):
        for column in range(3):
            index = rows[row] + columns[column]
            distance = (table[0].take(index) + (column - 1 - across)) ** 2
            distance += (table[1].take(index) + (row - 1 - down)) ** 2
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.copyto(owner, index, where=distance < nearest)
            np.minimum(nearest, distance, out=nearest)
    nearest = np.sqrt(nearest)
    return nearest, np.sqrt(second) - nearest, table[2].take(owner)


def slope(height: Array, angle: float) -> Array:
    """How much `height` rises per pixel towards `angle`: shades a relief lit from there."""
    right = np.empty_like(height)
    right[:, 1:] = height[:, 1:] - height[:, :-1]
    right[:, 0] = right[:, 1]
    down = np.empty_like(height)
    down[1:] = height[1:] - height[:-1]
    down[0] = down[1]
    return right * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))


def lighting(rng: np.random.Generator, size: int, strength: float = 0.12) -> Array:
    """Uneven light [size, size, 1] around 1: a lamp to one side, vignetting, exposure."""
    x, y = axes(size)
    along, _ = turned(x, y, rng.uniform(-np.pi, np.pi))
    level = rng.uniform(0.94, 1.06)
    fall = (
        1
        + rng.uniform(0.3, 1) * strength * along
        - rng.uniform(0.3, 0.8) * strength * (x * x + y * y)
    )
    return (level * fall)[..., None]
