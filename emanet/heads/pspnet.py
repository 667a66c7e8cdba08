"""PSPNet (Zhao et al., CVPR 2017): averages over parts of the image, in several sizes, join the last map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import PooledConv, conv_bn_relu


class PSPHead(nn.Module):
    """Pyramid pooling (section 3.2), 3x3 conv to `channels`, dropout, 1x1 classifier.

    Each of the N levels of `bins` has 1/N of the map's channels, so that together they have as many as the map. The
    paper's auxiliary loss is ModelConfig.aux_head.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        width = channels[-1] // len(config.bins)
        self.pyramid = nn.ModuleList(PooledConv(channels[-1], width, bins) for bins in config.bins)
        self.fuse = conv_bn_relu(channels[-1] + len(config.bins) * width, config.channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        x = torch.cat([x, *(level(x) for level in self.pyramid)], dim=1)
        return self.classifier(self.dropout(self.fuse(x)))
