"""RefineNet (Lin et al., CVPR 2017): from coarse to fine, each stage refines the result of the coarser ones."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import last_stages, resize


class RefineNetHead(nn.Module):
    """A cascade over the last four stages (figure 2 C), two more residual units, dropout, 3x3 classifier.

    The coarsest stage has `channels`, the finer ones `decoder_channels`: 512 and 256 in the paper.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        stages = last_stages(channels)
        widths = [config.decoder_channels] * (len(stages) - 1) + [config.channels]
        self.reduce = nn.ModuleList(_conv(c, width) for c, width in zip(stages, widths, strict=True))
        self.blocks = nn.ModuleList(RefineBlock(*pair) for pair in zip(widths, [*widths[1:], 0], strict=True))
        self.last = nn.Sequential(ResidualUnit(widths[0]), ResidualUnit(widths[0]))
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(widths[0], classes, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        layers = (self.reduce, self.blocks, last_stages(features))
        total = None
        for reduce, block, x in reversed(list(zip(*layers, strict=True))):
            total = block(reduce(x), total)
        return self.classifier(self.dropout(self.last(total)))


class RefineBlock(nn.Module):
    """Two residual units per input, fusion of both, chained pooling, one more residual unit (section 3.2, figure 3).

    channels: of this stage's map and of the result. coarser: channels of the coarser stages' result; 0: none.
    Fusion: a 3x3 convolution of each map to `channels`, resizing and the sum; a single map needs no fusion.
    """

    def __init__(self, channels: int, coarser: int):
        super().__init__()
        self.adapt = nn.Sequential(ResidualUnit(channels), ResidualUnit(channels))
        self.fuse = None
        if coarser:
            self.adapt_coarser = nn.Sequential(ResidualUnit(coarser), ResidualUnit(coarser))
            self.fuse, self.fuse_coarser = _conv(channels, channels), _conv(coarser, channels)
        self.pool = ChainedPooling(channels)
        self.out = ResidualUnit(channels)

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        x = self.adapt(x)
        if self.fuse is not None:
            x = self.fuse(x) + resize(self.fuse_coarser(self.adapt_coarser(coarser)), x.shape[2:])
        return self.out(self.pool(x))


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, without normalisation (figure 3 B)."""

    def __init__(self, channels: int):
        super().__init__()
        self.residual = nn.Sequential(nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class ChainedPooling(nn.Module):
    """x + p_1 + p_2 with p_i = conv(max of 5x5 around each pixel of p_(i-1)) and p_0 = x, after a ReLU (figure 3 D)."""

    def __init__(self, channels: int, links: int = 2):
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, channels) for _ in range(links))

    def forward(self, x: Tensor) -> Tensor:
        x = link = x.relu()
        for conv in self.convs:
            link = conv(F.max_pool2d(link, 5, stride=1, padding=2))
            x = x + link
        return x


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)
