"""Five convolutions with BatchNorm, the baseline of the Pexels deblurring report.

Source: the report on deblurring with a U-Net, a CNN and a GAN: 83,715 parameters, 24.84 dB. The
layout was inferred from the number of parameters.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options


class PexelsCNN(nn.Module):
    """Convolutions with BatchNorm and ReLU (first 7×7, then 3×3) and a 7×7 one to RGB.

    Attributes:
        widths: channels of the convolutions before the output layer.
        dtype: computation dtype; parameters and the result are float32.
    """

    widths: Sequence[int] = (32, 64, 64, 32)
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
            valid: bool [B], the rows that count in the batch statistics; None: all.

        Returns:
            [B, H, W, 3] float32, near [0, 1] but not clipped.
        """
        del mask
        x = degraded.astype(self.dtype)
        for i, features in enumerate(self.widths, start=1):
            kernel = (7, 7) if i == 1 else (3, 3)
            x = layers.Conv(features, kernel, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(layers.batch_norm(x, train, valid, self.dtype, f"norm{i}"))
        return layers.Conv(3, (7, 7), dtype=self.dtype, name="output")(x).astype(jnp.float32)
