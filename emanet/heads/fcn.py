"""FCN head (Long et al., CVPR 2015): the baseline without attention, and the auxiliary head."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import HeadConfig
from .layers import conv_bn_relu


class FCNHead(nn.Module):
    """3x3 conv, dropout, 1x1 classifier, on the map `level`; the auxiliary head takes the one before the last (-2)."""

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig, *, level: int = -1):
        super().__init__()
        self.level = level
        self.fc0 = conv_bn_relu(channels[level], config.channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.fc0(features[self.level])))
