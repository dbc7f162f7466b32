"""CBAM U-Net: a U-Net with channel attention that takes the defect mask as a fourth channel.

Source: "Image Restoration Model with Defect Preservation". 27,949,124 parameters and 38.6 GMAC
per 256×256 image without skips, 31,082,564 parameters with all four, both with the identity
mask attention of the released code. The text also describes an attention after the bottleneck;
both parameter counts exclude it, so it is an option that is off by default.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from restore_jax.models import layers, options

MASK_ATTENTIONS = ("blend", "identity")


class CBAMChannelAttention(nn.Module):
    """`x · sigmoid(mlp(global mean of x) + mlp(global maximum of x))`.

    The shared MLP has a hidden ReLU layer of 1/16 of the channels (at least one) and no biases.
    Source: the channel attention of S. Woo et al., "CBAM: Convolutional Block Attention
    Module", ECCV 2018.
    """

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        channels = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        pooled = jnp.stack([mean, jnp.max(x, axis=(1, 2)).astype(jnp.float32)], axis=1)
        hidden = nn.relu(dense(max(1, channels // 16), "squeeze")(pooled))
        gate = nn.sigmoid(jnp.sum(dense(channels, "excite")(hidden), axis=1))
        return x * gate[:, None, None]


class MaskAttention(nn.Module):
    """Maps the mask to a weight: conv3×3 1→C, ReLU, conv1×1 C→1, sigmoid."""

    features: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, mask: jax.Array) -> jax.Array:
        """[B, H, W, 1] → [B, H, W, 1] in (0, 1)."""
        x = layers.Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(mask)
        return nn.sigmoid(layers.Conv(1, (1, 1), dtype=self.dtype, name="conv2")(nn.relu(x)))


class CBAMUNet(nn.Module):
    """The CBAM U-Net with mask attention.

    The mask is unknown when restoring real images, so training should drop it now and then.
    Metrics of restorations that were given the true mask must say so.

    Attributes:
        widths: channels of the encoder stages, full resolution first, then the bottleneck's.
        skips: whether each encoder stage is concatenated in the decoder, full resolution first.
        dropout: fraction of the channels that each block drops in training.
        mask_attention: "blend": two output heads, one for defects and one for the background,
            blended by a weight w computed from the mask, as in the report's text. "identity":
            one head; the released code computes out·w + out·(1−w), which equals out for any w.
        bottleneck_attention: adds channel attention after the bottleneck.
        dtype: computation dtype; parameters and the result are float32.
    """

    takes_mask: ClassVar[bool] = True

    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    skips: Sequence[bool] = (False, False, False, False)
    dropout: float = 0.15
    mask_attention: str = "blend"
    bottleneck_attention: bool = False
    dtype: layers.Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_numbers("widths", self.widths, least=2)
        options.check_switches("skips", self.skips, count=len(self.widths) - 1)
        options.check_rate("dropout", self.dropout)
        options.check_choice("mask_attention", self.mask_attention, MASK_ATTENTIONS)
        options.check_switch("bottleneck_attention", self.bottleneck_attention)
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
            mask: [B, H, W, 1], 1 on the defect; None: unknown, equivalent to zeros.
            train: applies dropout (PRNG key "dropout") and uses batch statistics.
            valid: bool [B], the rows that count in the batch statistics; None: all. Pixels
                padded by reflection count too, so train on sizes that are a multiple of
                2^(number of poolings).

        Returns:
            [B, H, W, 3] float32, near [0, 1] but not clipped.
        """
        height, width = degraded.shape[1:3]
        if mask is None:
            mask = jnp.zeros((*degraded.shape[:3], 1), degraded.dtype)
        *stages, deepest = self.widths
        x = jnp.concatenate([degraded, mask.astype(degraded.dtype)], axis=-1)
        x = layers.pad_to_multiple(x, 2 ** len(stages)).astype(self.dtype)
        mask = x[..., 3:]

        def block(x: jax.Array, features: int, name: str) -> jax.Array:
            module = layers.BatchNormDoubleConv(
                features, use_bias=False, dropout=self.dropout, dtype=self.dtype, name=name
            )
            return module(x, train, valid)

        def attention(x: jax.Array, name: str) -> jax.Array:
            return CBAMChannelAttention(dtype=self.dtype, name=name)(x)

        encoded = []
        for stage, features in enumerate(stages, start=1):
            x = attention(block(x, features, f"down{stage}"), f"attention{stage}")
            encoded.append(x)
            x = layers.max_pool2(x)
        x = block(x, deepest, "bottleneck")
        if self.bottleneck_attention:
            x = attention(x, "bottleneck_attention")
        for stage in range(len(stages), 0, -1):
            features = stages[stage - 1]
            x = layers.TransposedConv2(features, dtype=self.dtype, name=f"double{stage}")(x)
            if self.skips[stage - 1]:
                x = jnp.concatenate([x, encoded[stage - 1]], axis=-1)
            x = block(x, features, f"up{stage}")

        def head(name: str) -> jax.Array:
            return layers.Conv(3, (1, 1), dtype=self.dtype, name=name)(x).astype(jnp.float32)

        w = MaskAttention(stages[0], dtype=self.dtype, name="mask_attention")(mask)
        if self.mask_attention == "blend":
            w = w.astype(jnp.float32)
            restored = w * head("defect_output") + (1.0 - w) * head("background_output")
        else:
            restored = head("output")
        return restored[:, :height, :width]
