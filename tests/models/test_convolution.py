import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from restore_jax.models import layers
from restore_jax.models.conv import convolution
from restore_jax.parallel import device_mesh
from restore_jax.train import steps
from tests.support.networks import apply, init, shapes_of, variables_of

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def small_ones_in_blocks_too(monkeypatch):
    monkeypatch.setattr(convolution, "_SMALL", 0)


@pytest.fixture
def one_device(monkeypatch):
    # The tests run with several devices, where the kernel's gradient is the library's.
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def arrays(x, kernel, dtype=np.float32):
    rng = np.random.default_rng(0)
    g = (*x[:3], kernel[3])
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in (x, kernel, g)]


def by_hand(x, g, size, dilation):
    x, g = (np.asarray(z, np.float64) for z in (x, g))
    height, width = x.shape[1:3]
    reach = [step * (side // 2) for side, step in zip(size, dilation, strict=True)]
    padded = np.pad(x, ((0, 0), *((r, r) for r in reach), (0, 0)))
    found = np.zeros((*size, x.shape[3], g.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            rows, columns = i * dilation[0], j * dilation[1]
            seen = padded[:, rows : rows + height, columns : columns + width]
            found[i, j] = np.einsum("bhwi,bhwo->io", seen, g)
    return found


@pytest.mark.parametrize(
    ("shape", "outputs", "size", "dilation"),
    [
        pytest.param((2, 16, 24, 5), 3, (3, 3), (1, 1), id="fewer outputs"),
        pytest.param((2, 16, 24, 3), 5, (3, 3), (1, 1), id="fewer inputs"),
        pytest.param((1, 16, 24, 4), 4, (3, 3), (2, 2), id="dilated"),
        pytest.param((2, 11, 13, 4), 3, (3, 3), (1, 1), id="sides that no block divides"),
        pytest.param((1, 3, 2, 4), 6, (3, 3), (2, 2), id="smaller than the kernel's reach"),
        pytest.param((1, 1, 1, 1), 1, (3, 3), (1, 1), id="one pixel"),
        pytest.param((1, 12, 10, 3), 6, (7, 7), (1, 1), id="7x7"),
        pytest.param((1, 12, 10, 3), 6, (3, 5), (2, 1), id="oblong"),
        pytest.param((2, 9, 7, 4), 6, (1, 1), (1, 1), id="1x1, fewer inputs"),
        pytest.param((2, 9, 7, 6), 4, (1, 1), (1, 1), id="1x1, fewer outputs"),
    ],
)
@pytest.mark.parametrize("values", [2**17, 600], ids=["whole rows", "narrow blocks"])
def test_kernel_gradient_is_that_of_the_definition(
    monkeypatch, shape, outputs, size, dilation, values
):
    monkeypatch.setattr(convolution, "_VALUES", values)
    x, _, g = arrays(shape, (*size, shape[3], outputs))
    found = jax.jit(lambda x, g: convolution.kernel_gradient(x, g, size, dilation))(x, g)
    expected = by_hand(x, g, size, dilation)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dilation"),
    [((2, 16, 24, 5), (2, 2)), ((1, 11, 13, 4), (2, 3)), ((1, 3, 2, 4), (3, 1))],
    ids=str,
)
def test_on_other_devices_a_dilated_kernels_gradient_is_that_of_plain_convolutions(
    one_device, shape, dilation
):
    x, kernel, g = arrays(shape, (3, 3, shape[3], 4))
    gradient = functools.partial(
        convolution.gradient_by_xla, kernel=kernel, dilation=dilation, precision=None
    )
    found = jax.jit(gradient)(x, g)
    np.testing.assert_allclose(found, by_hand(x, g, (3, 3), dilation), rtol=1e-5, atol=1e-4)

    def pulled(x, kernel, g):
        given = {"rhs_dilation": dilation, "dimension_numbers": NHWC}
        convolve = functools.partial(convolution.conv_general_dilated, **given)
        return jax.vjp(lambda k: convolve(x, k, (1, 1), "SAME"), kernel)[1](g)[0]

    program = jax.jit(pulled).trace(x, kernel, g).lower(lowering_platforms=("cuda",)).as_text()
    # One that is dilated, the other way round, would have a stride.
    assert "stablehlo.convolution" in program
    assert "stride = [" not in program.replace("stride = [1, 1]", "")


def test_gradients_of_a_layer_are_those_of_the_library_in_bfloat16_too(one_device):
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        x, kernel, g = arrays((2, 12, 20, 4), (3, 3, 4, 6), dtype)

        def gradients(convolve, x=x, kernel=kernel, g=g):
            given = {"rhs_dilation": (2, 2), "dimension_numbers": NHWC}
            function = lambda x, k: convolve(x, k, (1, 1), "SAME", **given)  # noqa: E731
            result, pull = jax.vjp(function, x, kernel)
            return result, *pull(g)

        ours = jax.jit(lambda: gradients(convolution.conv_general_dilated))()
        theirs = jax.jit(lambda: gradients(lax.conv_general_dilated))()
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype == dtype
            one, other = (np.asarray(z, np.float32) for z in (one, other))
            np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"padding": "VALID"},
        {"padding": ((1, 1), (0, 2))},
        {"feature_group_count": 2},
        {"input_dilation": 2, "padding": ((1, 1), (1, 1))},
        {"kernel_size": (4, 4)},
        {"kernel_size": (3,)},
    ],
    ids=str,
)
def test_other_convolutions_pass_through(one_device, options):
    options = {"features": 4, "kernel_size": (3, 3)} | options
    ours, theirs = layers.Conv(**options), nn.Conv(**options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8, 6)[: 2 + len(options["kernel_size"])]).astype(np.float32)
    variables = variables_of(theirs, x)

    def gradient(layer):
        return jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x) ** 2)))(variables)

    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes_of(ours, x))
    assert "custom_vjp" not in str(jax.make_jaxpr(ours.apply)(variables, x))
    jax.tree.map(np.testing.assert_array_equal, gradient(ours), gradient(theirs))


def test_a_layer_has_the_parameters_and_the_results_of_flax():
    x = arrays((2, 9, 8, 3), (3, 3, 3, 5))[0]
    ours, theirs = layers.Conv(5, (3, 3)), nn.Conv(5, (3, 3))
    variables = [init(layer, x) for layer in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *variables)
    results = [apply(layer, v, x) for layer, v in zip((ours, theirs), variables, strict=True)]
    np.testing.assert_allclose(*results, atol=2e-6)


def test_other_devices_get_the_program_of_the_library(one_device):
    x, kernel, g = arrays((1, 8, 8, 2), (3, 3, 2, 4))

    def gradient(x, kernel, g):
        def convolve(k):
            return convolution.conv_general_dilated(
                x, k, (1, 1), "SAME", dimension_numbers=NHWC
            )

        return jax.vjp(convolve, kernel)[1](g)[0]

    for platform, loops in (("cpu", True), ("cuda", False), ("tpu", False)):
        traced = jax.jit(gradient).trace(x, kernel, g)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in program) == loops, platform


def divided(f, mesh):
    """Compiles what takes a batch and a kernel for a batch that is divided."""
    split, whole = device_mesh.split_over(mesh), device_mesh.replicated(mesh)
    return jax.jit(steps.with_mesh(mesh, f), in_shardings=(split, whole, split))


@pytest.mark.parametrize("in_blocks", [True, False], ids=["in blocks", "small"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_each_device_sums_over_its_own_images(devices, in_blocks, monkeypatch):
    if not in_blocks:
        monkeypatch.undo()
    x, kernel, g = arrays((4, 9, 12, 5), (3, 3, 5, 6))
    mesh = device_mesh.make_mesh(jax.devices()[:devices])

    def gradient(x, kernel, g):
        convolve = layers.Conv(6, (3, 3), use_bias=False)
        return jax.vjp(lambda k: convolve.apply({"params": {"kernel": k}}, x), kernel)[1](g)[0]

    program = divided(gradient, mesh).lower(x, kernel, g)
    assert ("stablehlo.while" in program.as_text()) == in_blocks
    compiled = program.compile()
    # Nothing is gathered: a device never has the whole batch.
    assert "all-gather" not in compiled.as_text()
    found = divided(gradient, mesh)(x, kernel, g)
    np.testing.assert_allclose(found, by_hand(x, g, (3, 3), (1, 1)), rtol=1e-5, atol=1e-5)


def test_several_devices_that_are_not_known_get_the_program_of_the_library():
    x, kernel, g = arrays((1, 8, 8, 2), (3, 3, 2, 4))
    layer = layers.Conv(4, (3, 3), use_bias=False)

    def gradient(kernel):
        return jax.vjp(lambda k: layer.apply({"params": {"kernel": k}}, x), kernel)[1](g)

    assert jax.device_count() > 1
    assert "stablehlo.while" not in jax.jit(gradient).lower(kernel).as_text()
