"""DeepLabV3+ (Chen et al., ECCV 2018): DeepLabV3's ASPP, and a decoder that adds the edges of a finer stage."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .deeplabv3 import ASPP
from .layers import conv_bn_relu, last_stages, resize

LOW_CHANNELS = 48  # of the finer stage beside the ASPP's 256: the best of section 4.1, Table 1


class DeepLabV3PlusHead(nn.Module):
    """ASPP, resized to the stage of stride 4 and joined with it by two 3x3 convs, dropout, 1x1 classifier.

    Plain convolutions, as in the paper's ResNet variant (section 4.2); the separable ones came with Xception (4.3). The
    head has 85.2 G multiply-adds and 16.8 M parameters; the EMANet paper's Table 1 has 84.1 G and 16.3 M.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        width = config.aspp_channels
        self.aspp = ASPP(channels[-1], width, config.rates)
        self.low = conv_bn_relu(last_stages(channels)[0], LOW_CHANNELS, 1)
        self.decoder = nn.Sequential(conv_bn_relu(width + LOW_CHANNELS, width), conv_bn_relu(width, width))
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        low = self.low(last_stages(features)[0])
        x = resize(self.aspp(features[-1]), low.shape[2:])
        return self.classifier(self.dropout(self.decoder(torch.cat([x, low], dim=1))))
