"""SCA U-Net: a residual U-Net with spatial-channel and non-local attention.

Source: Sarvesan and Mendhe, "Image Denoising and Deblurring", IIT Madras 2024. 867,842
parameters and 3.390 GMAC per 256×256 image at the reported widths.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options

VARIANTS = ("report", "released")


class SCAUNet(nn.Module):
    """The SCA U-Net, as described in the report or as in its released code.

    Attributes:
        widths: channels of the encoder stages, full resolution first; the bottleneck has as
            many as the last stage.
        variant: "report" (softmax attention, bilinear upsampling by pixel centres) or
            "released" (unnormalised attention with the released code's layout, aligned
            corners), which the published weights need.
        dtype: computation dtype; parameters and the result are float32.
    """

    widths: Sequence[int] = (16, 32, 64, 128)
    variant: str = "report"
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        # Even, because the non-local block works on half of the channels.
        options.check_numbers("widths", self.widths, least=2, multiple=2)
        options.check_choice("variant", self.variant, VARIANTS)
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
            train: ignored; the model has no dropout and no running statistics.
            valid: ignored; the rows of a batch are independent.

        Returns:
            [B, H, W, 3] float32, near [0, 1] but not clipped.
        """
        del mask, train, valid
        height, width = degraded.shape[1:3]
        released = self.variant == "released"
        upsample = layers.upsample2_aligned if released else layers.upsample2

        def block(features: int, name: str) -> layers.ResidualDoubleConv:
            return layers.ResidualDoubleConv(features, dtype=self.dtype, name=name)

        def attention(name: str) -> layers.SpatialChannelAttention:
            return layers.SpatialChannelAttention(dtype=self.dtype, name=name)

        padded = layers.pad_to_multiple(degraded, 2 ** (len(self.widths) - 1))
        x = padded.astype(self.dtype)
        skips = []
        for stage, features in enumerate(self.widths[:-1], start=1):
            x = block(features, f"down{stage}")(x)
            skips.append(attention(f"attention{stage}")(x))
            x = layers.max_pool2(x)

        deepest = len(self.widths)
        x = block(self.widths[-1], f"down{deepest}")(x)
        x = attention(f"attention{deepest}")(x)
        x = block(self.widths[-1], "bottleneck")(x)
        x = layers.NonLocal(released, dtype=self.dtype, name="non_local")(x)

        for stage in range(deepest - 1, 0, -1):
            x = jnp.concatenate([upsample(x), skips[stage - 1]], axis=-1)
            x = block(self.widths[stage - 1], f"up{stage}")(x)
        residual = layers.Conv(3, (1, 1), dtype=self.dtype, name="output")(x)
        restored = padded.astype(jnp.float32) + residual.astype(jnp.float32)
        return restored[:, :height, :width]
