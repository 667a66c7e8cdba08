"""Heads: feature maps in, logits of the same stride out. A new one is a class and a line of HEADS.

Every head is called with the backbone's list of maps, (B, C_i, H_i, W_i) from fine to coarse, and returns
(B, classes, H, W). `head(channels, classes, config)` gets the C_i.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .config import HeadConfig
from .emau import EMAU
from .errors import InputError, suggest


class EMAHead(nn.Module):
    """3x3 conv to C, EMAU, 3x3 conv to fc1_channels (or none), dropout, 1x1 classifier."""

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        c, c1 = config.channels, config.fc1_channels
        self.fc0 = conv_bn_relu(channels[-1], c)
        self.emau = EMAU(
            c, config.num_bases, config.em_steps, bases_keep=config.bases_keep, renormalise=config.renormalise
        )
        self.fc1 = conv_bn_relu(c, c1) if c1 else nn.Identity()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(c1 or c, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.emau(self.fc0(features[-1]))
        return self.classifier(self.dropout(self.fc1(x)))


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


HEADS = {"ema": EMAHead, "fcn": FCNHead}


def build(config: HeadConfig, channels: Sequence[int], classes: int) -> nn.Module:
    if config.name not in HEADS:
        raise InputError(f"no head {config.name!r}{suggest(config.name, HEADS)}")
    return HEADS[config.name](channels, classes, config)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
