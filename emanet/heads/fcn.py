"""FCN head (Long et al., CVPR 2015): the plain network that attention is compared with, and the auxiliary head."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import HeadConfig
from .layers import conv_bn_relu


class FCNHead(nn.Module):
    """3x3 conv and classifier, without attention; on the stage before the last it is the auxiliary head."""

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig, *, level: int = -1):
        super().__init__()
        self.level = level
        self.fc0 = conv_bn_relu(channels[level], config.channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.fc0(features[self.level])))
