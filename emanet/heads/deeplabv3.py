"""DeepLabV3 (Chen et al., arXiv 1706.05587): atrous spatial pyramid pooling on the last map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import PooledConv, conv_bn_relu


class DeepLabV3Head(nn.Module):
    """ASPP, dropout, 1x1 classifier: the paper's head, and the EMANet paper's Table 1 (63.4 G, 15.5 M).

    Dropout is the EMA head's; the paper's multi-grid is a setting of the backbone (BackboneConfig.multi_grid).
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        width = config.aspp_channels
        self.aspp = ASPP(channels[-1], width, config.rates)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.aspp(features[-1])))


class ASPP(nn.Module):
    """Branches side by side, joined by a 1x1 convolution (section 3.3); all of them `width` wide.

    A 1x1 convolution, one 3x3 of every dilation of `rates`, and the image's average.
    """

    def __init__(self, in_channels: int, width: int, rates: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(in_channels, width, 1),
                *(conv_bn_relu(in_channels, width, dilation=rate) for rate in rates),
                PooledConv(in_channels, width),
            ]
        )
        self.project = conv_bn_relu(len(self.branches) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
