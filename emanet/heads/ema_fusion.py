"""EM attention for small networks: on three stages joined at stride 8, with details from the stage of stride 4.

Hamburger (Geng et al., ICLR 2021) and SegNeXt (Guo et al., NeurIPS 2022) join stages like this around another
attention. The backbone needs no dilation: output stride 32 is the fastest.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HeadConfig
from .ema import attention_unit
from .layers import conv_bn_relu, last_stages


class EMAFusionHead(nn.Module):
    """The last three stages joined in `channels`, EMAU, a detail path at stride 4, dropout, 1x1 classifier.

    The detail path joins EMAU's output with the stage before, in `fc1_channels`, and a 3x3 convolution follows. With
    fc1_channels = 0 there is no such path, and the logits have stride 8.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        c, c1 = config.channels, config.fc1_channels
        self.join = Join(channels[-3:], c)
        self.emau = attention_unit(config)
        self.detail = Join([last_stages(channels)[0], c], c1) if c1 else None
        self.fc1 = conv_bn_relu(c1, c1) if c1 else nn.Identity()
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(c1 or c, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = self.emau(self.join(features[-3:]))
        if self.detail is not None:
            x = self.detail([last_stages(features)[0], x])
        return self.classifier(self.dropout(self.fc1(x)))


class Join(nn.Module):
    """A 1x1 convolution and BatchNorm for each map, their sum at the size of the finest, ReLU.

    Convolution and BatchNorm come before upsampling, where the maps are small.
    """

    def __init__(self, channels: Sequence[int], out_channels: int):
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)) for c in channels
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps: (B, channels[i], H_i, W_i), fine to coarse -> (B, out_channels, H_0, W_0)."""
        *finer, (project, x) = zip(self.project, maps, strict=True)
        total = project(x)
        for project, x in reversed(finer):
            total = project(x) + upsample(total, x.shape[2:])
        return total.relu()


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a map to the size (h, w) of the next finer one: unchanged, or doubled and cut off at the right and bottom.

    Always by a factor of 2, so the maps line up in the same way at every image size. `layers.resize` stretches corner
    to corner, which does that only for images of 8n + 1 pixels: crops of 320 and images of 480 would differ.
    """
    if x.shape[2:] == tuple(size):
        return x
    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))  # a slice would fix the sizes in torch.export
