"""Perceptual loss: the distance of two images in the feature space of VGG16.

VGG16 is that of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015, as in Keras Applications. Its parameters are always passed as an argument,
so that a jitted step neither trains them nor embeds them as constants.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.metrics.fidelity import check_images, check_mask
from restore_jax.models.layers import max_pool2

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of the 3×3 convolutions of each block; 2×2 pooling between blocks."""

TAPS = ("block1_conv2", "block2_conv2", "block3_conv3")
"""The layers compared, relu1_2, relu2_2 and relu3_3 in the notation of Johnson et al. 2016."""

# Mean of ImageNet's photographs in grey levels; BGR, since the weights come from a Caffe model.
_MEAN_BGR = (103.939, 116.779, 123.68)

# Features with a root mean square below one grey level carry no content to compare with.
_MIN_ENERGY = 1.0


def preprocess(images: jax.Array) -> jax.Array:
    """Converts RGB images `[B, H, W, 3]` on the scale 0 to 1 into VGG16's input, float32.

    The input is BGR on the scale 0 to 255, minus the ImageNet mean per channel, as by
    `preprocess_input` of `keras.applications.vgg16`. Nothing is clipped.
    """
    return 255.0 * images[..., ::-1].astype(jnp.float32) - jnp.array(_MEAN_BGR, jnp.float32)


class VGG16(nn.Module):
    """The convolutional layers of VGG16, up to the last one requested.

    Layers have Keras's names, `block1_conv1` to `block5_conv3`; parameters of layers beyond the
    last tap may be passed and are ignored.

    Attributes:
        taps: names of the layers whose features are returned.
    """

    taps: tuple[str, ...] = TAPS

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the features of each tapped layer, after its ReLU.

        Args:
            images: RGB `[B, H, W, 3]`, on the scale 0 to 1, any floating dtype.

        Returns:
            By the names in `taps`, `[B, H / 2^(b-1), W / 2^(b-1), C]` float32 for a layer of
            block b, sides rounded down.

        Raises:
            ValueError: if VGG16 has no layer of a name in `taps`, or the images are so small
                that pooling leaves nothing of them.
        """
        x, found = preprocess(images), {}
        for block, (channels, count) in enumerate(BLOCKS, start=1):
            if block > 1:
                height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
                x = max_pool2(x[:, :height, :width])
            if not x.size:
                raise ValueError(
                    f"images of shape {images.shape} are too small for VGG16 to {self.taps[-1]}"
                )
            for number in range(1, count + 1):
                name = f"block{block}_conv{number}"
                x = nn.relu(nn.Conv(channels, (3, 3), name=name)(x))
                if name in self.taps:
                    found[name] = x
                if len(found) == len(self.taps):
                    return found
        raise ValueError(f"VGG16 has no layers {sorted(set(self.taps) - set(found))}")


def perceptual(
    restored: jax.Array,
    clean: jax.Array,
    mask: jax.Array | None = None,
    params: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Relative squared distance of VGG16 features, `[B]`, 0 for equal images.

    The mean over the layers in `TAPS` of `mean((F(restored) - F(clean))²) / mean(F(clean)²)`,
    the inner means over an image's positions and channels.

    This is the feature reconstruction loss of Johnson, Alahi and Fei-Fei, "Perceptual Losses
    for Real-Time Style Transfer and Super-Resolution", 2016, with a different normalisation.
    They divide the squared distance by the layer's size only, which leaves it on the scale of
    VGG16's features: that of grey levels, not of 0 to 1, and different in every layer. One
    layer would then dominate the rest, and the other terms of the loss. Divided by the mean
    square of the clean image's features (clamped to 1 grey level² or more), each layer counts
    alike, and a restoration without any features has a distance of 1.

    Float32 convolutions may use TF32 on a GPU, as in the model: a relative feature error of
    1e-3 adds 1e-6.

    Args:
        restored: `[B, H, W, 3]` on the scale 0 to 1, any floating dtype, H and W at least 4.
        clean: the same shape.
        mask: ignored.
        params: parameters of `VGG16`: `{"block1_conv1": {"kernel", "bias"}, …}`, as loaded by
            `data.vgg16`.

    Raises:
        ValueError: if shapes or types do not fit, or `params` is None.
    """
    check_images(restored, clean)
    if mask is not None:
        check_mask(restored, mask)
    if params is None:
        raise ValueError("the loss term perceptual needs the parameters of VGG16")
    # Two passes, not one batch: the clean images need no gradient, which would cost as much
    # again.
    of_restored, of_clean = (VGG16().apply({"params": params}, x) for x in (restored, clean))

    def mean_square(features: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(features), axis=(1, 2, 3))

    distances = [
        mean_square(of_restored[tap] - of_clean[tap])
        / jnp.maximum(mean_square(of_clean[tap]), _MIN_ENERGY)
        for tap in TAPS
    ]
    return jnp.mean(jnp.stack(distances), axis=0)
