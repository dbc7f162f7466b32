import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from restore_jax import models
from restore_jax.metrics import cost
from tests.support.networks import variables_of


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), array(1, 32, 32, 3))


@functools.cache
def gmac(name, size=256, **options):
    model = models.create(name, **options)
    return cost.model_macs(model, shapes_of(model), size, size) / 1e9


def test_the_sca_u_net_costs_what_its_layers_add_up_to():
    # Kernel elements of each stage, times its pixels.
    def block(a, b):
        return 9 * a * b + 9 * b * b + (a * b if a != b else 0)

    def gate(c):
        return c * c

    full, half, quarter, eighth = 256**2, 128**2, 64**2, 32**2
    layers = (
        full * (block(3, 16) + gate(16) + block(48, 16) + 16 * 3)
        + half * (block(16, 32) + gate(32) + block(96, 32))
        + quarter * (block(32, 64) + gate(64) + block(192, 64))
        + eighth * (block(64, 128) + gate(128) + block(128, 128) + 4 * 128 * 64)
        + sum(2 * c * (c // 16) for c in (16, 32, 64, 128))
    )
    attention = 2 * eighth**2 * 64
    assert gmac("sca_unet") * 1e9 == layers + attention
    assert round(gmac("sca_unet"), 3) == 3.390
    # Linear attention, and matrices that resize count for nothing.
    released = layers + 2 * eighth * 64 * 64
    assert gmac("sca_unet", variant="released") * 1e9 == released


@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [("rcan", 49.55, 2), ("unet_small", 21.73, 2), ("cbam_unet", 38.6, 1)],
)
def test_the_published_figures_come_out(name, published, digits):
    assert round(gmac(name), digits) == published


def test_sides_that_do_not_divide_cost_their_padding():
    assert gmac("sca_unet", 50) == gmac("sca_unet", 56)


# (module, side, its multiply-accumulates for a [1, side, side, 6] image)
LAYERS = {
    "convolution": (nn.Conv(5, (3, 3)), 8, 64 * 9 * 6 * 5),
    "no padding": (nn.Conv(5, (3, 3), padding="VALID"), 8, 36 * 9 * 6 * 5),
    "strides": (nn.Conv(5, (3, 3), strides=2), 8, 16 * 9 * 6 * 5),
    "dilation": (nn.Conv(5, (3, 3), kernel_dilation=2), 8, 64 * 9 * 6 * 5),
    "groups": (nn.Conv(4, (3, 3), feature_group_count=2), 8, 64 * 9 * 3 * 4),
    "depthwise": (nn.Conv(6, (3, 3), feature_group_count=6), 8, 64 * 9 * 6),
    "transposed 2x2": (nn.ConvTranspose(5, (2, 2), strides=(2, 2)), 8, 64 * 4 * 6 * 5),
    "transposed 4x4": (nn.ConvTranspose(5, (4, 4), strides=(2, 2)), 8, 64 * 16 * 6 * 5),
    "dense": (nn.Dense(7), 8, 64 * 6 * 7),
    "remat": (nn.remat(nn.Conv)(5, (1, 1)), 4, 16 * 6 * 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, side, expected = LAYERS[name]
    image = array(1, side, side, 6)
    variables = jax.eval_shape(layer.init, jax.random.key(0), image)
    assert cost.count_macs(layer.apply, variables, image) == expected
    several = array(3, side, side, 6)
    assert cost.count_macs(layer.apply, variables, several) == 3 * expected


def test_batched_products_and_their_calls():
    def attend(query, key, value):
        return jax.nn.dot_product_attention(query, key, value)

    part = array(2, 10, 3, 4)  # batch, positions, heads, channels
    expected = 2 * 2 * 3 * 10 * 10 * 4
    assert cost.count_macs(attend, part, part, part) == expected
    assert cost.count_macs(jax.jit(jax.checkpoint(attend)), part, part, part) == expected

    @jax.custom_jvp
    def product(x):
        return x @ x

    product.defjvp(lambda primals, tangents: (product(*primals), tangents[0]))
    assert cost.count_macs(product, array(5, 5)) == 125


def test_fixed_matrices_do_not_count():
    def resize(x):
        return jax.image.resize(x, (1, 20, 30, 3), "bilinear")

    assert cost.count_macs(resize, array(1, 10, 10, 3)) == 0
    fixed = np.ones((10, 10), np.float32)
    assert cost.count_macs(lambda x: fixed @ (jnp.eye(10) @ x), array(10, 10)) == 0
    assert cost.count_macs(lambda x: (fixed + x) @ x, array(10, 10)) == 1000


def test_loops_count_as_often_as_they_run():
    def chain(weights, x):
        return lax.scan(lambda x, w: (w @ x, None), x, weights)

    assert cost.count_macs(chain, array(7, 4, 4), array(4, 5)) == 7 * 4 * 4 * 5
    mapped = functools.partial(lax.map, lambda x: x @ x)
    assert cost.count_macs(mapped, array(6, 4, 4)) == 6 * 64

    def grows(x):
        # The carry is a constant at first, and depends on the input from the second turn on.
        return lax.fori_loop(0, 3, lambda _, state: (state[0] @ x, state[1]), (jnp.eye(4), x))

    assert cost.count_macs(grows, array(4, 4)) == 3 * 64


def test_the_dearest_branch_counts():
    def choose(which, x):
        return lax.cond(which, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert cost.count_macs(choose, jax.ShapeDtypeStruct((), bool), array(4, 4)) == 128


def test_what_a_platform_does_in_its_own_way_does_not_count():
    def product(x):
        return lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert cost.count_macs(product, array(4, 4)) == 64


def test_a_loop_of_unknown_length_is_refused():
    def until(x):
        return lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="inside of while cannot be counted"):
        cost.count_macs(until, array(4, 4))
    halving = functools.partial(lax.while_loop, lambda x: x.sum() > 1, lambda x: x / 2)
    assert cost.count_macs(lambda x: halving(x) @ x, array(4, 4)) == 64


def test_times_are_taken_in_turns_after_a_warm_up(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        # Each call takes longer than the one before it.
        order.append(name)
        clock[0] += seconds * len(order)
        return jnp.zeros(1)

    times = cost.interleaved_times(
        {name: functools.partial(call, name, s) for name, s in [("a", 1), ("b", 0), ("c", 2)]},
        rounds=4,
    )
    assert "".join(order) == "abcabc" + "abc" + "bca" + "cab" + "abc"
    assert times == {"a": [7, 12, 14, 16], "b": [0, 0, 0, 0], "c": [18, 22, 26, 36]}
    with pytest.raises(ValueError, match="1 or more"):
        cost.interleaved_times({}, 0)


def test_the_cost_of_models_side_by_side():
    class Layer(nn.Module):
        features: int

        @nn.compact
        def __call__(self, degraded):
            return nn.Conv(3, (1, 1))(nn.Conv(self.features, (3, 3))(degraded))

    images = jnp.zeros((4, 12, 16, 3))
    made = {name: Layer(f) for name, f in (("small", 2), ("large", 8))}
    with_variables = {
        name: (model, variables_of(model, images)) for name, model in made.items()
    }
    costs = cost.measure(with_variables, images, rounds=3)
    assert list(costs) == ["small", "large"]
    for name, features in (("small", 2), ("large", 8)):
        found = costs[name]
        assert found.parameters == 27 * features + features + 3 * features + 3
        assert found.gmac == pytest.approx(12 * 16 * (27 + 3) * features / 1e9)
        assert 0 < found.ms_low <= found.ms_per_image <= found.ms_high
