"""Generator and discriminator for adversarial deblurring.

Source: the report on deblurring with a U-Net, a CNN and a GAN, which gives about 2,075,928
parameters for both together but no layout. These have 1,379,843 and 696,225, within 0.007 %.
The discriminator follows P. Isola et al., "Image-to-Image Translation with Conditional
Adversarial Networks", CVPR 2017.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options
from restore_jax.models.pexels_unet import encode_decode


class PexelsGenerator(nn.Module):
    """A U-Net whose transposed convolutions keep their channels, with a 3×3 output layer.

    Attributes:
        widths: channels of the encoder, full resolution first; the bottleneck has as many as
            the last stage.
        dtype: computation dtype; parameters and the result are float32.
    """

    widths: Sequence[int] = (16, 32, 64, 128)
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_numbers("widths", self.widths, least=1)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        degraded: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> jax.Array:
        """Restores images of any size.

        Args:
            degraded: [B, H, W, 3] in [0, 1].
            mask: ignored; part of the signature that all models share.
            train: uses batch statistics.
            valid: bool [B], the rows that count in the batch statistics; None: all. Pixels
                padded by reflection count too, so train on sizes that are a multiple of
                2^len(widths).

        Returns:
            [B, H, W, 3] float32, near [0, 1] but not clipped.
        """
        del mask
        height, width = degraded.shape[1:3]
        x = layers.pad_to_multiple(degraded, 2 ** len(self.widths))
        x = encode_decode(x, self.widths, self.widths[-1], False, train, valid, self.dtype)
        x = layers.Conv(3, (3, 3), dtype=self.dtype, name="output")(x)
        return x[:, :height, :width].astype(jnp.float32)


class PexelsDiscriminator(nn.Module):
    """Judges patches of an image, given the degraded image (a conditional PatchGAN).

    4×4 convolutions with leaky ReLU (slope 0.2), of stride 2 except the last, with BatchNorm
    except the first; only the first has a bias. A 4×4 convolution to one logit follows. A
    logit has a receptive field of 70×70 pixels at the default widths.

    Attributes:
        widths: channels of the convolutions before the logits.
        dtype: computation dtype; parameters and the result are float32.
    """

    widths: Sequence[int] = (32, 64, 128, 256)
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_numbers("widths", self.widths, least=2)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        degraded: jax.Array,
        candidate: jax.Array,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> jax.Array:
        """Judges images of any size.

        Args:
            degraded: [B, H, W, 3] in [0, 1].
            candidate: [B, H, W, 3], the clean image or a generator's restoration of `degraded`.
            train: uses batch statistics.
            valid: bool [B], the rows that count in the batch statistics; None: all.

        Returns:
            Logits [B, h, w, 1] float32, above 0 where a patch looks clean; h = ⌈H / 8⌉ and
            w = ⌈W / 8⌉ at the default widths.
        """
        x = jnp.concatenate([degraded, candidate], axis=-1).astype(self.dtype)
        for i, features in enumerate(self.widths, start=1):
            first, last = i == 1, i == len(self.widths)
            x = layers.Conv(
                features,
                (4, 4),
                strides=1 if last else 2,
                use_bias=first,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            if not first:
                x = layers.batch_norm(x, train, valid, self.dtype, f"norm{i}")
            x = nn.leaky_relu(x, 0.2)
        return layers.Conv(1, (4, 4), dtype=self.dtype, name="output")(x).astype(jnp.float32)
