"""Building blocks of procedural photographs: noise, cells, anti-aliased shapes, lighting.

All arrays are float32. Coordinates span [-1, 1] from edge to edge, x to the right and y
downwards, so that lengths are in half image widths and a scene looks the same at every size.
Distances are signed: negative inside a shape.
"""

import functools

import numpy as np

Array = np.ndarray


@functools.lru_cache(maxsize=8)
def axes(size: int) -> tuple[Array, Array]:
    """Returns the pixel centres as x [1, size] and y [size, 1], for broadcasting."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    line.flags.writeable = False
    return line[None, :], line[:, None]


def rotated(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Returns coordinates along and across a direction `angle` radians from the x axis."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def coverage(distance: Array, size: int) -> Array:
    """Returns the fraction of each pixel inside a shape, given the signed distance to it."""
    return np.clip(0.5 - distance * np.float32(size / 2), 0, 1)


def stroke(offset: Array, half_width: Array | float, size: int) -> Array:
    """Returns the fraction of each pixel covered by a line, exact even for sub-pixel widths."""
    return coverage(np.abs(offset) - half_width, size) - coverage(
        np.abs(offset) + half_width, size
    )


def ramp(low: float, high: float, value: Array) -> Array:
    """Returns a smooth step from 0 at `low` to 1 at `high` (`low` may be the larger one)."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Array | float, second: Array | float, share: Array) -> Array:
    """Interpolates linearly from `first` (`share` 0) to `second` (`share` 1)."""
    return first + (second - first) * share


def colour(value: Array, *stops: tuple[float, float, float]) -> Array:
    """Maps tones in [0, 1], [H, W], to colours [H, W, 3] through evenly spaced colour stops."""
    table = np.asarray(stops, np.float32)
    knots = np.linspace(0, 1, len(stops))
    fine = np.linspace(0, 1, 512)
    ramps = np.stack([np.interp(fine, knots, table[:, c]) for c in range(3)], axis=-1)
    return lookup(ramps.astype(np.float32), value)


def lookup(table: Array, position: Array) -> Array:
    """Looks up the nearest entry of `table`; position 0 is its first entry, 1 its last."""
    index = (position * (len(table) - 1) + 0.5).astype(np.int32)
    return table.take(index, axis=0, mode="clip")


@functools.lru_cache(maxsize=256)
def _spline(size: int, cells: int) -> tuple[Array, Array]:
    """Returns cubic B-spline taps: lattice rows [4, size] and weights [4, size, 1].

    The squared weights sum to one, so that white noise on the lattice becomes noise of variance
    1 at every pixel.
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

    Four taps are as fast as a matrix product, whose order of summation in BLAS differs between
    machines and with it the last bits of the result.
    """
    rows, weights = _spline(size, len(lattice) - 3)
    total = lattice[rows[0]] * weights[0]
    for tap in (1, 2, 3):
        total += lattice[rows[tap]] * weights[tap]
    return total


def value_noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> Array:
    """Returns smooth noise [size, size] of mean 0 and variance 1 with `rows` × `columns` cells.

    Unequal numbers give streaks: few rows and many columns make vertical fibres.
    """
    lattice = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32)
    return _upsample(np.ascontiguousarray(_upsample(lattice.T, size).T), size)


def fractal_noise(rng: np.random.Generator, size: int, cells: int, gain: float = 0.6) -> Array:
    """Returns octaves of value noise, from `cells` cells up to 2 pixels per cell; variance 1.

    The octaves use a generator of their own: their number grows with the size, and draws from
    `rng` after this call must not depend on the size.
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
    """Returns smooth 1-D noise as a table [1024] for `lookup`; `closed` makes it periodic."""
    lattice = rng.standard_normal(cells + 3, dtype=np.float32)
    if closed:
        lattice[cells:] = lattice[:3]
    return _upsample(lattice[:, None], 1024)[:, 0]


def grain(rng: np.random.Generator, size: int) -> Array:
    """Returns white noise [size, size], drawn per pixel: detail at the resolution limit."""
    own = np.random.default_rng(int(rng.integers(2**32)))
    return own.standard_normal((size, size), dtype=np.float32)


# Period of the cells, larger than any image; a power of two.
_TABLE = 64


def cells(rng: np.random.Generator, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Returns Worley noise: cells around random points, one per unit square of (u, v).

    Returns:
        The distance to the nearest point, how much farther the second nearest point is (0 on
        the border between cells), and one random number in [0, 1) per cell; all [H, W].
    """
    first_column, first_row = np.floor(u), np.floor(v)
    across, down = u - first_column, v - first_row
    table = rng.random((3, _TABLE * _TABLE), dtype=np.float32)
    # Indices wrap around the table by a bit mask, since its side is a power of two.
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
    """Returns the rise of `height` per pixel towards `angle`: shading for light from there."""
    right = np.empty_like(height)
    right[:, 1:] = height[:, 1:] - height[:, :-1]
    right[:, 0] = right[:, 1]
    down = np.empty_like(height)
    down[1:] = height[1:] - height[:-1]
    down[0] = down[1]
    return right * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle))


def lighting(rng: np.random.Generator, size: int, strength: float = 0.12) -> Array:
    """Returns uneven light [size, size, 1] around 1: lamp at one side, vignetting, exposure."""
    x, y = axes(size)
    along, _ = rotated(x, y, rng.uniform(-np.pi, np.pi))
    level = rng.uniform(0.94, 1.06)
    fall = (
        1
        + rng.uniform(0.3, 1) * strength * along
        - rng.uniform(0.3, 0.8) * strength * (x * x + y * y)
    )
    return (level * fall)[..., None]
