"""The two released networks in PyTorch, written from their published descriptions.

Sarvesan and Mendhe (SCA U-Net) and Mahesh, Malapaka, Garimella and Singh (RCAN), IIT Madras
2024; the tensors are named as in the published files.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DoubleConv(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
        )
        self.residual_conv = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x):
        return self.conv_block(x) + self.residual_conv(x)


def channel_attention(c, hidden):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, c, 1),
        nn.Sigmoid(),
    )  # fmt: skip


class SpatialChannelAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.spatial_attention = nn.Conv2d(c, c, 1)
        self.channel_attention = channel_attention(c, c // 16)

    def forward(self, x):
        return x * torch.sigmoid(self.spatial_attention(x)) * self.channel_attention(x)


class NonLocal(nn.Module):
    def __init__(self, c, released):
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(c, c // 2, 1) for _ in range(3))
        self.W = nn.Conv2d(c // 2, c, 1)
        self.released = released

    def forward(self, x):
        b, _, h, w = x.shape
        theta, phi, g = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        scores = theta.transpose(1, 2) @ phi  # [B, HW, HW]
        if self.released:
            y = (scores / (h * w)) @ g.transpose(1, 2)
            y = y.reshape(b, -1, h, w)  # where a transpose was meant
        else:
            y = torch.softmax(scores, -1) @ g.transpose(1, 2)
            y = y.transpose(1, 2).reshape(b, -1, h, w)
        return x + self.W(y)


class SCAUNet(nn.Module):
    def __init__(self, released, widths=(16, 32, 64, 128)):
        super().__init__()
        a, b, c, d = widths
        self.dconv_down1, self.dconv_down2 = DoubleConv(3, a), DoubleConv(a, b)
        self.dconv_down3, self.dconv_down4 = DoubleConv(b, c), DoubleConv(c, d)
        self.dconv_bottleneck = DoubleConv(d, d)
        self.dconv_up3, self.dconv_up2 = DoubleConv(d + c, c), DoubleConv(c + b, b)
        self.dconv_up1 = DoubleConv(b + a, a)
        for i, width in enumerate(widths, start=1):
            setattr(self, f"att{i}", SpatialChannelAttention(width))
        self.nl_block = NonLocal(d, released)
        self.conv_last = nn.Conv2d(a, 3, 1)
        self.released = released

    def up(self, x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.released)

    def forward(self, x):
        s1 = self.dconv_down1(x)
        s2 = self.dconv_down2(F.max_pool2d(s1, 2))
        s3 = self.dconv_down3(F.max_pool2d(s2, 2))
        y = self.att4(self.dconv_down4(F.max_pool2d(s3, 2)))
        y = self.nl_block(self.dconv_bottleneck(y))
        y = self.dconv_up3(torch.cat([self.up(y), self.att3(s3)], 1))
        y = self.dconv_up2(torch.cat([self.up(y), self.att2(s2)], 1))
        y = self.dconv_up1(torch.cat([self.up(y), self.att1(s1)], 1))
        return x + self.conv_last(y)


class RCAB(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=2, dilation=2)
        self.conv2 = nn.Conv2d(c, c, 3, padding=2, dilation=2)
        self.channel_attention = channel_attention(c, max(1, c // 16))

    def forward(self, x):
        y = self.conv2(torch.relu(self.conv1(x)))
        return x + y * self.channel_attention(y)


class RCAN(nn.Module):
    def __init__(self, width=64, blocks=10):
        super().__init__()
        self.initial_conv = nn.Conv2d(3, width, 7, padding=3)
        self.res_blocks = nn.ModuleList(RCAB(width) for _ in range(blocks))
        self.final_conv = nn.Conv2d(width, 3, 7, padding=3)

    def forward(self, x):
        x = self.initial_conv(x)
        for block in self.res_blocks:
            x = block(x)
        return self.final_conv(x)
