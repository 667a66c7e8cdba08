"""Non-local network (Wang et al., CVPR 2018): every pixel attends to every pixel, which EM attention makes cheap.

Shapes: B images, N = H * W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import conv_bn_relu


class NonLocalHead(nn.Module):
    """The EMA head with a non-local block in place of the EM attention unit, so that only the attention differs."""

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        c, c1 = config.channels, config.fc1_channels
        self.fc0 = conv_bn_relu(channels[-1], c)
        self.block = NonLocal(c)
        self.fc1 = conv_bn_relu(c, c1) if c1 else nn.Identity()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(c1 or c, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.fc1(self.block(self.fc0(features[-1])))))


class NonLocal(nn.Module):
    """z = x + BN(conv_out(softmax(theta(x)^T phi(x)) g(x))): the embedded Gaussian block (sections 3.2 and 3.3).

    theta, phi and g are 1x1 convolutions to half of the channels. The softmax runs over all N pixels for each of the N:
    time and memory grow with N^2. BN starts with scale 0, so that the block starts as the identity (section 4.1).
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, inner, 1)
        # A bias here would add the same value to all of a pixel's scores, and softmax would cancel it.
        self.phi = nn.Conv2d(channels, inner, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1)
        self.conv_out = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn_out = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))  # (B, inner, N)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=2)  # (B, N, N)
        gathered = (value @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.bn_out(self.conv_out(gathered))
