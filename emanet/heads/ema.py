"""The paper's head: EM attention between two 3x3 convolutions, and the variants of other implementations."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from ..emau import EMAU
from .layers import conv_bn_relu


class EMAHead(nn.Module):
    """3x3 conv to `channels`, EMAU, 3x3 conv to `fc1_channels` (0: none), dropout, 1x1 classifier.

    With `concat` one more 3x3 convolution joins fc1's output and the backbone's last map, as in mmsegmentation,
    sssegmentation and PaddleSeg.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        c, c1 = config.channels, config.fc1_channels
        self.fc0 = conv_bn_relu(channels[-1], c)
        self.emau = attention_unit(config)
        self.fc1 = conv_bn_relu(c, c1) if c1 else nn.Identity()
        self.concat = conv_bn_relu(channels[-1] + (c1 or c), c1 or c) if config.concat else None
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(c1 or c, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.fc1(self.emau(self.fc0(features[-1])))
        if self.concat is not None:
            x = self.concat(torch.cat([features[-1], x], dim=1))
        return self.classifier(self.dropout(x))


def attention_unit(config: HeadConfig) -> EMAU:
    return EMAU(
        config.channels,
        config.num_bases,
        config.em_steps,
        gradient=config.gradient,
        eps=config.eps,
        bases_keep=config.bases_keep,
        renormalise=config.renormalise,
        relu_out=config.relu_out,
        backend=config.backend,
    )
