import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from jax import lax

from restore_jax.models import layers
from restore_jax.models.conv import convolution, winograd
from restore_jax.parallel import device_mesh


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(winograd, "_MIN_MACS", 0)


def arrays(x, kernel):
    rng = np.random.default_rng(0)
    return rng.normal(size=x), rng.normal(size=kernel) / np.sqrt(np.prod(kernel[:3]))


def by_tensorflow(x, kernel, dilation):
    """The convolution in float64."""
    return tf.nn.conv2d(x, kernel, 1, "SAME", dilations=dilation).numpy()


def convolve(x, kernel, dilation):
    return convolution.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize(
    ("shape", "outputs", "dilation"),
    [
        pytest.param((2, 16, 12, 32), 32, (1, 1), id="whole groups"),
        pytest.param((1, 16, 12, 40), 33, (2, 2), id="dilated"),
        pytest.param((1, 17, 5, 33), 32, (1, 1), id="a row of a last group"),
        pytest.param((1, 27, 7, 32), 36, (3, 2), id="dilated, and rows missing"),
        pytest.param((1, 8, 1, 32), 32, (1, 1), id="one column"),
    ],
)
def test_results_are_those_of_the_definition(shape, outputs, dilation):
    x, kernel = arrays(shape, (3, 3, shape[3], outputs))
    single = [jnp.asarray(z, jnp.float32) for z in (x, kernel)]
    assert winograd.is_faster(*single, dilation)
    expected = by_tensorflow(x, kernel, dilation)
    found = jax.jit(winograd.convolve, static_argnums=2)(*single, dilation)
    np.testing.assert_allclose(found, expected, atol=5e-6 * np.abs(expected).max())


def test_gradients_are_those_of_the_plain_convolution():
    channels, outputs = 32, 40
    x, kernel = (
        jnp.asarray(z, jnp.float32)
        for z in arrays((2, 12, 8, channels), (3, 3, channels, outputs))
    )
    g = jnp.cos(jnp.arange(2 * 12 * 8 * outputs, dtype=jnp.float32)).reshape(2, 12, 8, outputs)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(f):
        return jax.jit(lambda: jax.vjp(f, x, kernel)[1](g))()

    ours = gradients(lambda x, kernel: convolve(x, kernel, (1, 1)))
    for found, expected in zip(ours, gradients(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6 * np.abs(expected).max())


def test_other_devices_get_the_plain_convolution():
    single = [jnp.asarray(z, jnp.float32) for z in arrays((1, 8, 8, 32), (3, 3, 32, 32))]
    traced = jax.jit(convolve, static_argnums=2).trace(*single, (1, 1))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("stablehlo.convolution") == 1


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        pytest.param((1, 16, 16, 32), (3, 3, 32, 16), jnp.float32, id="few outputs"),
        pytest.param((1, 7, 16, 32), (3, 3, 32, 32), jnp.float32, id="few rows"),
        pytest.param((1, 16, 16, 32), (5, 3, 32, 32), jnp.float32, id="another kernel"),
        pytest.param((1, 16, 16, 32), (3, 3, 32, 32), jnp.bfloat16, id="few digits"),
    ],
)
def test_it_is_not_taken_where_it_does_not_pay(shape, kernel, dtype):
    assert not winograd.is_faster(jnp.zeros(shape, dtype), jnp.zeros(kernel, dtype), (1, 1))


def test_it_is_taken_only_where_much_is_multiplied(monkeypatch):
    monkeypatch.undo()
    kernel = jnp.zeros((3, 3, 48, 48))
    assert winograd.is_faster(jnp.zeros((1, 128, 128, 48)), kernel, (1, 1))
    assert not winograd.is_faster(jnp.zeros((8, 64, 64, 48)), kernel, (1, 1))


def test_rows_that_are_divided_give_the_same():
    """As where the cores share a single image."""
    x, kernel = (jnp.asarray(z, jnp.float32) for z in arrays((1, 32, 8, 32), (3, 3, 32, 32)))
    mesh = device_mesh.make_mesh(jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    layer = layers.Conv(32, (3, 3), use_bias=False)
    program = jax.jit(
        lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x),
        in_shardings=(split, device_mesh.replicated(mesh)),
        out_shardings=split,
    )
    # Only the rows at the seam are exchanged.
    assert "all-gather" not in program.lower(x, kernel).compile().as_text()
    expected = by_tensorflow(*(np.asarray(z, np.float64) for z in (x, kernel)), (1, 1))
    np.testing.assert_allclose(program(x, kernel), expected, atol=5e-6 * np.abs(expected).max())
