"""Blocks that several architectures share, and the resampling they are built on.

All arrays are [B, H, W, C]. Modules take `dtype` for the arithmetic; parameters stay float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Dtype = Any

# Positions whose attention is computed at once: those of a 512×512 image after three poolings.
_MAX_QUERIES = 4096


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads height and width at the bottom and right by reflection to a multiple of `multiple`.

    Reflection, not zeros: a frame of zeros would shift the global means and the attention.
    Images smaller than the padding are reflected as often as needed.

    Args:
        x: images [B, H, W, C].
        multiple: the multiple that both sides must have.

    Returns:
        [B, H', W', C] with H' >= H and W' >= W, `x` itself where nothing is missing.
    """
    height, width = x.shape[1:3]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="reflect")


def max_pool2(x: jax.Array) -> jax.Array:
    """Halves an image of even sides by the maximum over 2×2 pixels, [B, H/2, W/2, C].

    A maximum over two reshaped axes: the gradient of `nn.max_pool` is slow, and on a GPU it has
    no deterministic form.
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _double_axis(x: jax.Array, axis: int) -> jax.Array:
    """Doubles one axis linearly, sample points at pixel centres, borders repeated."""
    size = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    even = 0.25 * before + 0.75 * x
    odd = 0.75 * x + 0.25 * after
    shape = [*x.shape[:axis], 2 * size, *x.shape[axis + 1 :]]
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def upsample2(x: jax.Array) -> jax.Array:
    """Doubles height and width bilinearly (pixel centres), [B, 2H, 2W, C].

    Equals `jax.image.resize(..., "bilinear")`, which computes the same two taps as dense
    products with [2H, H] matrices.
    """
    return _double_axis(_double_axis(x, 1), 2)


def upsample2_aligned(x: jax.Array) -> jax.Array:
    """Doubles height and width bilinearly with aligned corners, [B, 2H, 2W, C].

    The corner pixels of input and output coincide (PyTorch's `align_corners=True`), so the taps
    vary along the axis; they are applied as one product with a [2H, H] matrix per axis.
    """

    def taps(size: int) -> jax.Array:
        position = jnp.linspace(0.0, size - 1.0, 2 * size)
        distance = jnp.abs(position[:, None] - jnp.arange(size)[None, :])
        return jnp.maximum(0.0, 1.0 - distance).astype(x.dtype)

    rows, columns = taps(x.shape[1]), taps(x.shape[2])
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision="highest")
    return jnp.einsum("ow,bhwc->bhoc", columns, x, precision="highest")


class ResidualDoubleConv(nn.Module):
    """`relu(conv(relu(conv(x)))) + shortcut(x)`, 3×3 convolutions, no ReLU after the sum.

    The shortcut is a 1×1 convolution where the channel count changes, else the identity.
    Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, features]."""
        y = nn.relu(nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(x))
        y = nn.relu(nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(y))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return y + x


class SpatialChannelAttention(nn.Module):
    """`x · sigmoid(conv1×1(x)) · sigmoid(fc(relu(fc(global mean of x))))`.

    The second factor's hidden layer has 1/16 of the channels (at least one).
    Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        channels = x.shape[-1]
        spatial = nn.Conv(channels, (1, 1), dtype=self.dtype, name="spatial")(x)
        # The mean is taken in float32: over 65,536 pixels bfloat16 would lose it.
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        hidden = nn.Dense(max(1, channels // 16), dtype=self.dtype, name="squeeze")(mean)
        channel = nn.Dense(channels, dtype=self.dtype, name="excite")(nn.relu(hidden))
        return x * nn.sigmoid(spatial) * nn.sigmoid(channel)


def softmax_attention(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """`softmax(θᵀφ)·g` without scaling: the report's equation 6.

    Args:
        theta: queries [B, H, W, C].
        phi: keys [B, H, W, C].
        g: values [B, H, W, C].

    Returns:
        [B, H, W, C]; the time is quadratic in H·W, the memory linear beyond 4,096 positions.
    """
    b, h, w, c = theta.shape
    count = h * w
    query, key, value = (z.reshape(b, count, 1, c) for z in (theta, phi, g))

    def attend(query: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, scale=1.0)

    if count <= _MAX_QUERIES:
        return attend(query).reshape(b, h, w, c)
    # A native 1024×1024 photograph has 16,384 positions here: all the weights at once would
    # take a gigabyte per image, so the queries go through in blocks.
    query = jnp.pad(query, ((0, 0), (0, -count % _MAX_QUERIES), (0, 0), (0, 0)))
    blocks = query.reshape(b, -1, _MAX_QUERIES, 1, c).swapaxes(0, 1)
    attended = jax.lax.map(jax.checkpoint(attend), blocks).swapaxes(0, 1)
    return attended.reshape(b, -1, c)[:, :count].reshape(b, h, w, c)


def linear_attention_as_released(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """`θᵀφ·g / (H·W)` in the layout of the released code, which its weights rely on.

    There the [H·W, C] result is *reshaped* to [C, H, W] where a transpose was meant, which
    scatters each position's channels over the image. Without a softmax the product is
    associative, so `θ·(φᵀg)/(H·W)` gives the same in linear cost.

    Args:
        theta: queries [B, H, W, C].
        phi: keys [B, H, W, C].
        g: values [B, H, W, C].

    Returns:
        [B, H, W, C].
    """
    b, h, w, c = theta.shape
    query, key, value = (z.reshape(b, h * w, c) for z in (theta, phi, g))
    # Divided early: a sum over H·W products would leave bfloat16's useful range.
    context = jnp.einsum("bnc,bnd->bcd", key, value / (h * w))
    attended = jnp.einsum("bnc,bcd->bnd", query, context)
    return attended.reshape(b, c, h, w).transpose(0, 2, 3, 1)


class NonLocal(nn.Module):
    """`x + W(attend(θ(x), φ(x), g(x)))` with half the channels inside, all four 1×1.

    Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024, after
    X. Wang et al., "Non-local Neural Networks", CVPR 2018.

    Attributes:
        as_released: takes the attention of the released code in place of the report's.
        dtype: type of the arithmetic.
    """

    as_released: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        channels = x.shape[-1]
        theta, phi, g = (
            nn.Conv(channels // 2, (1, 1), dtype=self.dtype, name=name)(x)
            for name in ("theta", "phi", "g")
        )
        attend = linear_attention_as_released if self.as_released else softmax_attention
        y = attend(theta, phi, g)
        return x + nn.Conv(channels, (1, 1), dtype=self.dtype, name="W")(y)
