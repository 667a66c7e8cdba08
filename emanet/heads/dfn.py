"""Discriminative feature network (Yu et al., CVPR 2018): coarse stages weight the channels of finer ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import PooledConv, conv_bn_relu, last_stages, resize


class DFNHead(nn.Module):
    """The smooth network (section 3.1): refine, attend, refine, on each of the last four stages; dropout, classifier.

    It starts from the average over the coarsest stage and has `channels` throughout, 512 in the paper. Left out are the
    border network and its loss (section 3.2) and the losses on the coarser stages: heads return one map of logits.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        stages, width = last_stages(channels), config.channels
        self.context = PooledConv(channels[-1], width)
        self.before = nn.ModuleList(Refinement(c, width) for c in stages)
        self.attention = nn.ModuleList(ChannelAttention(width) for _ in stages)
        self.after = nn.ModuleList(Refinement(width, width) for _ in stages)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        layers = (self.before, self.attention, self.after, last_stages(features))
        total = self.context(features[-1])
        for before, attention, after, x in reversed(list(zip(*layers, strict=True))):
            total = after(attention(before(x), resize(total, x.shape[2:])))
        return self.classifier(self.dropout(total))


class Refinement(nn.Module):
    """Refinement residual block (figure 2 B): y = conv_1x1(x); relu(y + conv(relu(BN(conv(y))))), 3x3."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.unify = nn.Conv2d(in_channels, out_channels, 1)
        second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.residual = nn.Sequential(conv_bn_relu(out_channels, out_channels), second)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unify(x)
        return torch.relu(x + self.residual(x))


class ChannelAttention(nn.Module):
    """low * sigmoid(conv(relu(conv(average of both over the image)))) + high (section 3.1, figure 2 C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(2 * channels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return low * self.gate(torch.cat([low, high], dim=1)) + high
