"""Perceptual loss: how far apart two images are in the features of VGG16.

VGG16 after Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015, as Keras Applications has it; its parameters are an argument everywhere, so
that a jitted step neither trains them nor holds them as constants.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.metrics.fidelity import check_images, check_mask
from restore_jax.models.layers import max_pool2

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of the 3×3 convolutions of each block; blocks halve the image between."""

TAPS = ("block1_conv2", "block2_conv2", "block3_conv3")
"""The layers compared, relu1_2, relu2_2 and relu3_3 in the notation of Johnson et al. 2016."""

# Mean of ImageNet's photographs in grey levels, BGR: the weights are of a Caffe model.
_MEAN_BGR = (103.939, 116.779, 123.68)

# Features under a grey level in the root mean square carry no picture to compare with.
_MIN_ENERGY = 1.0


def preprocess(images: jax.Array) -> jax.Array:
    """Turns RGB images `[B, H, W, 3]` on the scale 0 to 1 into VGG16's input, float32.

    That is BGR in grey levels of 255, less the mean of ImageNet per channel: `preprocess_input`
    of `keras.applications.vgg16`. Nothing is clipped.
    """
    return 255.0 * images[..., ::-1].astype(jnp.float32) - jnp.array(_MEAN_BGR, jnp.float32)


class VGG16(nn.Module):
    """The convolutions of VGG16, up to the last layer that is asked for.

    Layers have Keras's names, `block1_conv1` to `block5_conv3`; parameters of layers beyond the
    last tap are not used and may be given.

    Attributes:
        taps: names of the layers whose features are returned.
    """

    taps: tuple[str, ...] = TAPS

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns features after the ReLU by layer.

        Args:
            images: RGB `[B, H, W, 3]`, on the scale 0 to 1, any floating dtype.

        Returns:
            By the names in `taps`, `[B, H / 2^(b-1), W / 2^(b-1), C]` float32 for a layer of
            block b, sides rounded down.

        Raises:
            ValueError: a tap that VGG16 does not have, or images that its poolings leave
                nothing of.
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
    """Relative squared distance of VGG16 features, `[B]`, 0 at equality.

    `mean over the layers of mean((F(restored) - F(clean))²) / mean(F(clean)²)`, the inner means
    over an image's positions and channels; the layers are `TAPS`. It is the feature
    reconstruction loss of Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style
    Transfer and Super-Resolution", 2016, which divides the squared distance by the layer's size
    alone. That has the scale of VGG16's features, which is of grey levels, not of 0 to 1, and
    another in every layer: one layer would decide alone, and outweigh the other terms of a
    loss. Divided by the clean image's own mean square (held at 1 grey level² or more) each
    layer counts alike, and 1 is the distance of a restoration without any features. Float32
    convolutions may use TF32 on a GPU, as in the model: a feature wrong by 1e-3 of itself adds
    1e-6.

    Args:
        restored: `[B, H, W, 3]` on the scale 0 to 1, any floating dtype, H and W at least 4.
        clean: the same shape.
        mask: not used.
        params: of `VGG16`: `{"block1_conv1": {"kernel", "bias"}, …}`, as `data.vgg16` loads
            them.

    Raises:
        ValueError: no parameters, besides the shapes.
    """
    check_images(restored, clean)
    if mask is not None:
        check_mask(restored, mask)
    if params is None:
        raise ValueError("the loss term perceptual needs the parameters of VGG16")
    # Apart, not as one batch: the clean images need no gradient, which costs as much again.
    of_restored, of_clean = (VGG16().apply({"params": params}, x) for x in (restored, clean))

    def mean_square(features: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(features), axis=(1, 2, 3))

    distances = [
        mean_square(of_restored[tap] - of_clean[tap])
        / jnp.maximum(mean_square(of_clean[tap]), _MIN_ENERGY)
        for tap in TAPS
    ]
    return jnp.mean(jnp.stack(distances), axis=0)
