import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from restore_jax.metrics import gaussian_window


# 42 - 10 is the height of a tile of the products; the other sides end within one.
@pytest.mark.parametrize("size", [(42, 37), (11, 30), (60, 11)])
@pytest.mark.parametrize("form", ["by_products", "by_shifts", "gaussian_window"])
def test_each_form_is_the_filter_of_scipy(size, form):
    images = np.random.default_rng(0).random((2, *size, 3)).astype(np.float32)
    # Its radius is rounded: 3.33 standard deviations are 5 px.
    blurred = ndimage.gaussian_filter(images, (0, 1.5, 1.5, 0), truncate=3.33)
    found = jax.jit(getattr(gaussian_window, form))(images)
    np.testing.assert_allclose(found, blurred[:, 5:-5, 5:-5], atol=1e-6)


def test_other_devices_get_the_sum_of_shifted_images():
    images = jnp.zeros((1, 20, 20, 3))
    traced = jax.jit(jax.grad(lambda x: gaussian_window.gaussian_window(x).sum())).trace(images)
    for platform, products in (("cpu", True), ("cuda", False), ("tpu", False)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("dot_general" in program) == products, platform
