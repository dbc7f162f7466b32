"""U-Net with BatchNorm for deblurring, trained at 128×128 on photographs from Pexels.

Source: the report on deblurring with a U-Net, a CNN and a GAN. 7,766,051 parameters with a
bottleneck of 512 channels (reported 30.85 dB / 0.9229), 31,043,651 with 1024 (30.90 / 0.9261).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options


def encode_decode(
    x: jax.Array,
    widths: Sequence[int],
    bottleneck: int,
    halve: bool,
    train: bool,
    valid: jax.Array | None,
    dtype: layers.Dtype,
) -> jax.Array:
    """Applies a U-Net up to its output layer; call it in a compact method.

    Args:
        x: images [B, H, W, C], both sides a multiple of 2^len(widths).
        widths: channels of the encoder, full resolution first.
        bottleneck: channels of the bottleneck.
        halve: whether a transposed convolution reduces the channels to those of its stage, or
            keeps the number of its input.
        train: uses batch statistics.
        valid: see `layers.batch_norm`.
        dtype: computation dtype.

    Returns:
        [B, H, W, widths[0]].
    """

    def block(x: jax.Array, features: int, name: str) -> jax.Array:
        return layers.BatchNormDoubleConv(features, dtype=dtype, name=name)(x, train, valid)

    x = x.astype(dtype)
    skips = []
    for stage, features in enumerate(widths, start=1):
        x = block(x, features, f"down{stage}")
        skips.append(x)
        x = layers.max_pool2(x)
    x = block(x, bottleneck, "bottleneck")
    for stage in range(len(widths), 0, -1):
        features = widths[stage - 1]
        doubled = features if halve else x.shape[-1]
        x = layers.TransposedConv2(doubled, dtype=dtype, name=f"double{stage}")(x)
        x = jnp.concatenate([x, skips[stage - 1]], axis=-1)
        x = block(x, features, f"up{stage}")
    return x


class PexelsUNet(nn.Module):
    """The U-Net: four poolings, skips concatenated, a 1×1 output layer.

    Attributes:
        bottleneck: channels of the bottleneck, a multiple of 16; each stage above has half the
            channels of the one below.
        dtype: computation dtype; parameters and the result are float32.
    """

    bottleneck: int = 512
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_number("bottleneck", self.bottleneck, multiple=16)
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
                padded by reflection count too, so train on sizes that are a multiple of 16.

        Returns:
            [B, H, W, 3] float32, near [0, 1] but not clipped.
        """
        del mask
        height, width = degraded.shape[1:3]
        widths = [self.bottleneck // divisor for divisor in (16, 8, 4, 2)]
        x = layers.pad_to_multiple(degraded, 2 ** len(widths))
        x = encode_decode(x, widths, self.bottleneck, True, train, valid, self.dtype)
        x = layers.Conv(3, (1, 1), dtype=self.dtype, name="output")(x)
        return x[:, :height, :width].astype(jnp.float32)
