import collections

import jax
import numpy as np
import pytest

from restore_jax import models
from restore_jax.errors import RunError
from restore_jax.inference import tile_plan, tiling
from restore_jax.inference.tiling import Sizes
from tests.support import networks

RNG = np.random.default_rng(0)


class Memory:
    """A picture of float32, and what was done to it."""

    context = None

    def __init__(self, image, label=None):
        self.image = image.astype(np.float32)
        self.height, self.width = image.shape[:2]
        self.result = np.full(image.shape, np.nan, np.float32)
        self.label = label
        self.heights = []

    def read(self, rows, columns):
        return self.image[rows][:, columns]

    def write(self, top, rows):
        self.result[top : top + len(rows)] = rows
        self.heights.append(len(rows))


def restore(image, apply, tile=32, overlap=8, batch_size=4):
    (picture,) = tiling.restore([Memory(image)], apply, Sizes(tile, overlap, batch_size))
    return picture.result


def identity(batch, context=None):
    return batch


def out_of_memory():
    return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")


@pytest.fixture(scope="module")
def pooled():
    """A tiny random network with global pooling and non-local attention."""
    model = models.create("sca_unet", widths=(2, 4))
    variables = networks.init(model, np.zeros((1, 32, 32, 3), np.float32))
    return lambda batch, context=None: np.asarray(networks.apply(model, variables, batch))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 70), (31, 33), (32, 32), (100, 20), (65, 129), (200, 97)]
)
@pytest.mark.parametrize("overlap", [0, 5, 16])
def test_a_model_that_does_nothing_leaves_the_image(shape, overlap):
    image = RNG.uniform(0, 1, (*shape, 3)).astype(np.float32)
    np.testing.assert_allclose(restore(image, identity, overlap=overlap), image, atol=1e-6)


def test_blending_equals_a_weighted_mean_over_the_whole_image():
    """Against the plain way: all tiles in two full-size float64 accumulators."""
    image = RNG.uniform(0, 1, (75, 110, 3)).astype(np.float32)

    def model(batch, context=None):
        return batch**2 + batch.mean(axis=(1, 2), keepdims=True)

    tops, lefts = tile_plan.starts(75, 32, 16), tile_plan.starts(110, 32, 16)
    beyond = [(0, tops[-1] + 32 - 75), (0, lefts[-1] + 32 - 110), (0, 0)]
    padded = np.pad(image, beyond, "reflect")
    total, weight = np.zeros(padded.shape), np.zeros((*padded.shape[:2], 1))

    def window(index, begins):
        """The raised cosine towards each neighbour, before any normalisation."""
        values, x = np.ones(32), np.arange(32) + 0.5
        if index:
            shared = begins[index - 1] + 32 - begins[index]
            values *= np.where(x < shared, 0.5 - 0.5 * np.cos(np.pi * x / shared), 1)
        if index + 1 < len(begins):
            shared = begins[index] + 32 - begins[index + 1]
            left = 32 - x
            values *= np.where(left < shared, 0.5 - 0.5 * np.cos(np.pi * left / shared), 1)
        return values

    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            where = slice(top, top + 32), slice(left, left + 32)
            w = np.outer(window(i, tops), window(j, lefts))[..., None]
            total[where] += w * model(padded[where][None].astype(np.float64))[0]
            weight[where] += w
    expected = (total / weight)[:75, :110]
    np.testing.assert_allclose(restore(image, model, overlap=16), expected, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(1, 1), (20, 31), (32, 32), (32, 70), (61, 20), (75, 110), (130, 64)]
)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_results_are_those_of_a_plain_loop_to_the_bit(shape, batch_size):
    image = RNG.uniform(0, 1, (*shape, 3)).astype(np.float32)
    cut = tile_plan.plan(*shape, 32, 8)

    def model(batch, context=None):
        return batch * np.float32(1.3) - np.float32(0.2)

    padding = [
        (0, max(0, begins[-1] + side - length))
        for begins, side, length in zip((cut.tops, cut.lefts), cut.shape, shape, strict=True)
    ]
    padded = np.pad(image, [*padding, (0, 0)], "reflect" if min(shape) > 1 else "edge")
    total = np.zeros_like(padded)
    for top, down in zip(cut.tops, cut.weights[0], strict=True):
        for left, across in zip(cut.lefts, cut.weights[1], strict=True):
            where = slice(top, top + cut.tile_height), slice(left, left + cut.tile_width)
            total[where] += model(padded[where]) * down[:, None, None] * across[:, None]
    restored = restore(image, model, batch_size=batch_size)
    np.testing.assert_array_equal(restored, total[: shape[0], : shape[1]])


def test_rows_are_handed_on_once_and_in_order():
    (picture,) = tiling.restore([Memory(np.zeros((100, 40, 3)))], identity, Sizes(32, 8, 4))
    assert sum(picture.heights) == 100
    assert max(picture.heights) <= 32
    assert len(picture.heights) == len(tile_plan.starts(100, 32, 8))


SIZE, TILE, FRAME = 192, 64, 12


def at_borders_and_elsewhere(line_values, overlap):
    """The largest of values between neighbouring lines: where a tile begins or ends; elsewhere.

    The image's own frame is left out: there a network sees zeros, and does as it likes.
    """
    begins = tile_plan.starts(SIZE, TILE, overlap)
    edges = {x - 1 for x in begins[1:]} | {x + TILE - 1 for x in begins[:-1]}
    near = {x + d for x in edges for d in (-1, 0, 1)}
    inside = range(FRAME, len(line_values) - FRAME)
    return (
        max(line_values[x] for x in inside if x in near),
        max(line_values[x] for x in inside if x not in near),
    )


def jumps(result, axis):
    """The largest jump of any pixel between neighbouring lines across an axis."""
    inner = np.moveaxis(np.diff(result, axis=axis), axis, 0)[:, FRAME:-FRAME]
    return np.abs(inner).max(axis=(1, 2))


def steps(result, axis):
    """By how much whole lines differ from their neighbours; what a seam in a texture is."""
    inner = np.moveaxis(np.diff(result, axis=axis), axis, 0)[:, FRAME:-FRAME]
    return np.abs(inner.mean(axis=1)).max(axis=1)


def ramp():
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return np.stack([x, y, (x + y) / 2], axis=-1).astype(np.float32)


def texture():
    noise = np.random.default_rng(1).uniform(0, 1, (SIZE + 2, SIZE + 2, 3))
    smooth = (noise[2:, 2:] + noise[1:-1, 1:-1] + noise[:-2, :-2]) / 3
    # Regions of different means, so that what is pooled differs from tile to tile.
    shade = np.sin(np.arange(SIZE) / 17)[:, None, None] + np.cos(np.arange(SIZE) / 23)[:, None]
    return np.clip(0.5 * smooth + 0.25 + 0.1 * shade, 0, 1).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("image", "measure"),
    [(ramp(), jumps), (texture(), jumps), (texture(), steps)],
    ids=["ramp-jumps", "texture-jumps", "texture-steps"],
)
def test_no_seam_shows(pooled, image, measure, axis):
    blended = measure(restore(image, pooled, TILE, TILE // 4, batch_size=1), axis)
    at_borders, elsewhere = at_borders_and_elsewhere(blended, TILE // 4)
    assert at_borders <= 1.02 * elsewhere
    # Nor is it larger than anywhere in an image that was restored in one piece.
    whole = measure(pooled(image[None])[0], axis)[FRAME:-FRAME].max()
    assert at_borders <= whole


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("image", "measure"), [(ramp(), jumps), (texture(), steps)])
def test_a_seam_is_seen_by_these_measures(pooled, image, measure, axis):
    side_by_side = measure(restore(image, pooled, TILE, 0, batch_size=1), axis)
    at_borders, _ = at_borders_and_elsewhere(side_by_side, 0)
    assert at_borders > 2 * measure(pooled(image[None])[0], axis)[FRAME:-FRAME].max()


def test_a_jump_between_tiles_becomes_a_smooth_slope():
    """Tiles that differ by 1 pass into one another no steeper than a raised cosine."""
    values = iter([0.0, 1.0])
    result = restore(
        np.zeros((32, 48, 3)),
        lambda batch, context=None: np.full_like(batch, next(values)),
        batch_size=1,
    )
    assert result[:, 0].max() == 0
    assert result[:, -1].min() == 1
    assert np.diff(result, axis=1).max() <= np.pi / 2 / 16 + 1e-6
    assert np.diff(result, axis=1).min() >= 0


def test_few_shapes_serve_all_sizes():
    seen = collections.Counter()

    def apply(batch, context=None):
        seen[batch.shape] += 1
        return batch

    sizes = [(h, w) for h in (1, 20, 33, 64, 65, 200) for w in (5, 31, 32, 70, 128)]
    images = [RNG.uniform(0, 1, (*size, 3)) for size in sizes]
    pictures = [Memory(image, i) for i, image in enumerate(images)]
    done = list(tiling.restore(pictures, apply, Sizes(64, 16, 8)))
    assert [picture.label for picture in done] == list(range(len(images)))
    for picture, image in zip(done, images, strict=True):
        np.testing.assert_allclose(picture.result, image, atol=1e-6)
    assert {shape[1:] for shape in seen} <= {(h, w, 3) for h in (32, 64) for w in (32, 64)}
    assert {shape[0] for shape in seen} <= {1, 2, 4, 8}


def test_batches_are_filled_across_images():
    batches = []

    def apply(batch, context=None):
        batches.append(len(batch))
        return batch

    pictures = [Memory(np.zeros((20, 20, 3))) for _ in range(10)]
    assert len(list(tiling.restore(pictures, apply, Sizes(32, 8, 4)))) == 10
    assert batches == [4, 4, 2]


def launched_for(shapes, batch_size, tile=64):
    """The sizes of the batches by which images are restored, and the most tiles of a model."""
    launched = []

    def apply(batch, context=None):
        launched.append(len(batch))
        return batch

    pictures = (Memory(np.zeros((*shape, 3))) for shape in shapes)
    for picture in tiling.restore(pictures, apply, Sizes(tile, 8, batch_size)):
        assert (picture.result == 0).all()
    return launched


@pytest.mark.parametrize("batch_size", [1, 7, 8, 17, 20, 31, 32, 64])
def test_batches_are_full_whatever_their_size(batch_size):
    assert launched_for([(20, 20)] * 4 * batch_size, batch_size) == [batch_size] * 4


@pytest.mark.parametrize("batch_size", [8, 20, 32])
@pytest.mark.parametrize("shapes", [[(20, 20), (20, 40)], [(20, 20), (20, 20), (40, 20)]])
def test_batches_are_full_where_shapes_take_turns(batch_size, shapes):
    images = 12 * batch_size
    launched = launched_for(shapes * (images // len(shapes)), batch_size)
    assert launched == [batch_size] * (images // batch_size)


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [
        (56, 8, [8] * 7),
        (57, 8, [8] * 8),  # the seven that are added are an eighth of those before
        (49, 8, [8] * 6 + [1]),
        (2, 8, [2]),
        (11, 8, [8, 4]),
        (25, 20, [20, 8]),
        (39, 20, [20, 20]),  # of 19: the next power of two is more than fits
    ],
)
def test_a_rest_is_padded_to_a_power_of_two_or_to_a_full_batch(images, batch_size, expected):
    assert launched_for([(20, 20)] * images, batch_size) == expected


def test_images_are_taken_in_only_as_needed():
    taken = []

    def pictures():
        for i in range(100):
            taken.append(i)
            yield Memory(np.zeros((20, 20, 3)))

    results = tiling.restore(pictures(), identity, Sizes(32, 8, 4))
    assert not taken
    next(results)
    assert len(taken) == 8  # one batch to hand back, and one for the device meanwhile


@pytest.mark.parametrize(("batch_size", "expected"), [(4, 32), (8, 32), (20, 80), (64, 256)])
def test_a_shape_that_is_rare_does_not_wait_for_ever(batch_size, expected):
    taken = []

    def pictures():
        for i in range(300):
            taken.append(i)
            yield Memory(np.zeros((20, 20 if i else 40, 3)))

    next(tiling.restore(pictures(), identity, Sizes(64, 8, batch_size)))
    assert len(taken) == expected


def test_a_large_image_does_not_wait_for_others(monkeypatch):
    monkeypatch.setattr(tiling, "_MAX_PIXELS_WAITING", 1000)
    taken = []

    def pictures():
        for i in range(3):
            taken.append(i)
            yield Memory(np.zeros((40, 40, 3)))

    next(tiling.restore(pictures(), identity, Sizes(64, 8, 8)))
    assert taken == [0]


def test_out_of_memory_halves_the_batch_and_goes_on():
    image = RNG.uniform(0, 1, (100, 100, 3)).astype(np.float32)
    seen = []

    def apply(batch, context=None):
        seen.append(len(batch))
        if len(batch) > 2:
            raise out_of_memory()
        return batch

    sizes = Sizes(32, 8, 8)
    (picture,) = tiling.restore([Memory(image)], apply, sizes)
    np.testing.assert_allclose(picture.result, image, atol=1e-6)
    assert seen[:3] == [8, 4, 2]
    assert max(seen[2:]) == 2
    assert (sizes.tile, sizes.overlap, sizes.batch_size) == (32, 8, 2)


class Late:
    """A result that is waited for when it is read, as those of a device."""

    def __init__(self, batch, events, most=99):
        self.batch, self.events, self.most = batch, events, most
        events.append("sent")

    def __array__(self, dtype=None, copy=None):
        self.events.append("landed")
        if len(self.batch) > self.most:
            raise out_of_memory()
        return self.batch


def test_the_next_batch_is_sent_before_one_is_waited_for():
    image = RNG.uniform(0, 1, (32, 32 * 7, 3)).astype(np.float32)
    events = []
    sizes = Sizes(32, 0, 2)
    (picture,) = tiling.restore(
        [Memory(image)], lambda batch, context=None: Late(batch, events), sizes
    )
    np.testing.assert_array_equal(picture.result, image)
    assert events == ["sent", *["sent", "landed"] * 3, "landed"]


@pytest.mark.parametrize("batch_size", [1, 8, 20, 32, 64])
def test_the_device_has_a_batch_while_images_are_written_and_taken_in(batch_size):
    events, batches = [], 5

    class Written(Memory):
        def write(self, top, rows):
            events.append("written")
            super().write(top, rows)

    def pictures():
        for i in range(batches * batch_size):
            events.append("taken")
            yield Written(np.full((20, 20, 3), i))

    results = tiling.restore(
        pictures(),
        lambda batch, context=None: Late(batch + 0.5, events),
        Sizes(32, 8, batch_size),
    )
    for i, picture in enumerate(results):
        events.append("handed back")
        assert (picture.result == i + 0.5).all()
    taken = ["taken"] * batch_size
    returned = ["landed", *["written"] * batch_size]
    handed = ["handed back"] * batch_size
    between = [*handed, *taken, "sent", *returned]
    assert events == [
        *taken, "sent", *taken, "sent", *returned, *between * (batches - 2),
        *handed, *returned, *handed,
    ]  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 8, 32])
@pytest.mark.parametrize("rare", [False, True])
def test_few_images_are_held_at_a_time(batch_size, rare, monkeypatch):
    held, most = 0, 0

    def pictures():
        nonlocal held, most
        for i in range(300):
            held += 1
            most = max(most, held)
            yield Memory(np.zeros((20, 40 if rare and i % 70 == 0 else 20, 3)))

    def hold():
        nonlocal held, most
        held = most = 0
        for _ in tiling.restore(pictures(), identity, Sizes(64, 8, batch_size)):
            held -= 1
        return most

    assert hold() <= (max(32, 4 * batch_size) if rare else 2 * batch_size)
    # Nor are they many where they are large.
    monkeypatch.setattr(tiling, "_MAX_PIXELS_WAITING", 10 * 20 * 20)
    assert hold() <= 10


def test_memory_that_proves_too_small_later_halves_the_batch_and_loses_nothing():
    images = [RNG.uniform(0, 1, (100, 90 + 40 * i, 3)).astype(np.float32) for i in range(3)]
    events = []
    sizes = Sizes(32, 8, 8)
    pictures = tiling.restore(
        [Memory(image) for image in images],
        lambda batch, context=None: Late(batch, events, 2),
        sizes,
    )
    for picture, image in zip(pictures, images, strict=True):
        np.testing.assert_allclose(picture.result, image, atol=1e-6)
    assert sizes.batch_size == 2


def test_out_of_memory_of_one_tile_halves_the_tile_and_begins_anew():
    images = [
        RNG.uniform(0, 1, size).astype(np.float32) for size in ((20, 20, 3), (300, 200, 3))
    ]
    calls = collections.Counter()

    def apply(batch, context=None):
        calls[batch.shape[1:3]] += 1
        # It sufficed for a while, then something else took the memory.
        if batch.shape[1] == 128 and calls[128, 128] > 3:
            raise out_of_memory()
        return batch

    sizes = Sizes(128, 32, 1)
    pictures = list(tiling.restore([Memory(image) for image in images], apply, sizes))
    for picture, image in zip(pictures, images, strict=True):
        np.testing.assert_allclose(picture.result, image, atol=1e-6)
    assert calls[128, 128] == 4
    assert (sizes.tile, sizes.overlap, sizes.batch_size) == (64, 16, 1)


def test_out_of_memory_of_the_smallest_tile_is_told():
    def apply(batch, context=None):
        raise out_of_memory()

    with pytest.raises(RunError, match="out of memory for one tile of 32×32 px"):
        restore(np.zeros((100, 100, 3)), apply)


def test_the_hosts_memory_counts_too_and_other_errors_pass():
    seen = []

    def scarce(batch, context=None):
        seen.append(len(batch))
        if len(batch) > 1:
            raise MemoryError
        return batch

    restore(np.zeros((100, 100, 3)), scarce)
    assert seen[:3] == [4, 2, 1]

    def broken(batch, context=None):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        restore(np.zeros((100, 100, 3)), broken)


def test_a_tile_sees_blocks_of_pixels_as_the_whole_image_does():
    """A network that works on blocks gives each pixel what it gives in one piece."""

    def blocky(batch, context=None):
        b, h, w, c = batch.shape
        blocks = batch.reshape(b, h // 32, 32, w // 32, 32, c)
        return np.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(
            batch.shape
        )

    image = RNG.uniform(0, 1, (544, 672, 3)).astype(np.float32)
    tiled = restore(image, blocky, tile=128, overlap=32)
    np.testing.assert_allclose(tiled, blocky(image[None])[0], atol=1e-6)
