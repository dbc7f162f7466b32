"""A plain encoder-decoder with one pooling and no skips, the report's baseline.

Source: Mahesh, Malapaka, Garimella and Singh, IIT Madras 2024, who call it a U-Net. 430,339
parameters and 21.73 GMAC per 256×256 image at the reported widths.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options


class SmallUNet(nn.Module):
    """Two 3×3 convolutions with ReLU, max-pool, transposed 2×2 with ReLU, 1×1 to RGB.

    Attributes:
        widths: channels of the two convolutions; the decoder has as many as the first.
        dtype: computation dtype; parameters and the result are float32.
    """

    widths: Sequence[int] = (128, 256)
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_numbers("widths", self.widths, least=2, most=2)
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
        x = layers.pad_to_multiple(degraded, 2)
        for i, features in enumerate(self.widths, start=1):
            x = nn.relu(layers.Conv(features, (3, 3), dtype=self.dtype, name=f"conv{i}")(x))
        x = layers.max_pool2(x)
        x = nn.relu(layers.TransposedConv2(self.widths[0], dtype=self.dtype, name="up")(x))
        x = layers.Conv(3, (1, 1), dtype=self.dtype, name="output")(x)
        return x[:, :height, :width].astype(jnp.float32)
