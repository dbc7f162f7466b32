"""RCAN-like network: dilated residual blocks with channel attention at full resolution.

Source: Mahesh, Malapaka, Garimella and Singh, IIT Madras 2024, after Y. Zhang et al., "Image
Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018. 763,243
parameters, 49.55 GMAC per 256×256 image and, apart from the global means of the attention, a
receptive field of 93×93 pixels at the reported size.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options


class RCAB(nn.Module):
    """`x + attention(conv(relu(conv(x))))`, 3×3 with dilation 2, as wide as the input."""

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""

        def conv(name: str) -> nn.Conv:
            return layers.Conv(
                x.shape[-1], (3, 3), kernel_dilation=(2, 2), dtype=self.dtype, name=name
            )

        y = conv("conv2")(nn.relu(conv("conv1")(x)))
        return x + layers.ChannelAttention(dtype=self.dtype, name="attention")(y)


class RCAN(nn.Module):
    """The RCAN-like network: conv7×7, the residual blocks, conv7×7.

    Attributes:
        width: channels of all layers.
        blocks: number of residual blocks.
        global_residual: adds the input to the output, which the report's listing does not.
        dtype: computation dtype; parameters and the result are float32.
    """

    width: int = 64
    blocks: int = 10
    global_residual: bool = False
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_number("width", self.width)
        options.check_number("blocks", self.blocks)
        options.check_switch("global_residual", self.global_residual)
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
        x = layers.Conv(self.width, (7, 7), dtype=self.dtype, name="input")(degraded)
        for block in range(1, self.blocks + 1):
            x = RCAB(dtype=self.dtype, name=f"block{block}")(x)
        restored = layers.Conv(3, (7, 7), dtype=self.dtype, name="output")(x).astype(
            jnp.float32
        )
        return restored + degraded if self.global_residual else restored
