"""PSANet (Zhao et al., ECCV 2018): every pixel predicts how much it takes from, and gives to, each offset around it.

Shapes: B images, N = H * W pixels of the halved map, O offsets of the window.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import PooledBatchNorm, conv_bn_relu, resize


class PSAHead(nn.Module):
    """Point-wise spatial attention beside the last map, 3x3 conv to `channels`, dropout, 1x1 classifier.

    The layout of the released code, with attention on a map of half the size: 97.4 G multiply-adds, 27.9 M parameters.
    The EMANet paper's Table 1 has 56.3 G and 18.5 M, which is what remains if the 3x3 convolution saw the channels of
    one map instead of two and the two products of the attention were not counted.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        self.attention = PointwiseAttention(channels[-1], config.channels, config.window)
        self.fuse = conv_bn_relu(2 * channels[-1], config.channels)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        return self.classifier(self.dropout(self.fuse(torch.cat([x, self.attention(x)], dim=1))))


class PointwiseAttention(nn.Module):
    """Both branches, collect and distribute (section 3), joined by a 1x1 convolution.

    Target t gets sum_s a[s, t] x_s. In `collect` t itself predicts a[s, t]; in `distribute` the source s does. For
    window (h, w) a pixel predicts (2h - 1)(2w - 1) values, one for each offset of less than h rows and w columns. Any
    image size works: pixels farther apart have weight 0, and offsets that leave the image are not used. As in the
    released code the weights of a target are a softmax over its sources; the paper divides by N instead.
    """

    def __init__(self, in_channels: int, width: int, window: tuple[int, int]):
        super().__init__()
        self.window = window
        self.collect_reduce, self.distribute_reduce = (conv_bn_relu(in_channels, width, 1) for _ in range(2))
        self.collect_map, self.distribute_map = (_offset_map(width, window) for _ in range(2))
        self.project = conv_bn_relu(2 * width, in_channels, 1, norm=PooledBatchNorm)

    def forward(self, x: Tensor) -> Tensor:
        half = [(side + 1) // 2 for side in x.shape[2:]]
        index, reached = offsets(half, self.window, x.device)
        targets = resize(self.collect_reduce(x), half)
        sources = resize(self.distribute_reduce(x), half)
        collected = collect(targets, self.collect_map(targets), index, reached)
        distributed = distribute(sources, self.distribute_map(sources), index, reached)
        return resize(self.project(torch.cat([collected, distributed], dim=1)), x.shape[2:])


def _offset_map(width: int, window: tuple[int, int]) -> nn.Sequential:
    h, w = window
    predict = nn.Conv2d(width, (2 * h - 1) * (2 * w - 1), 1, bias=False)
    return nn.Sequential(conv_bn_relu(width, width, 1, norm=PooledBatchNorm), predict)


def offsets(size: Sequence[int], window: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For pixels p and q of a map (row by row): the index in the window of the offset p - q, and whether it is inside.

    Returns index, (N, N) int64 [p, q] in [0, O), and reached, (N, N) bool.
    """
    rows, columns = (torch.arange(side, device=device) for side in size)
    y, x = (grid.flatten() for grid in torch.meshgrid(rows, columns, indexing="ij"))
    dy, dx = y[:, None] - y, x[:, None] - x
    h, w = window
    reached = (dy.abs() < h) & (dx.abs() < w)
    index = (dy + h - 1) * (2 * w - 1) + dx + w - 1
    return torch.where(reached, index, 0), reached


def collect(x: Tensor, predicted: Tensor, index: Tensor, reached: Tensor) -> Tensor:
    """x (B, C, H, W) gathered by what each target predicts, (B, O, H, W): a[s, t] is its value for s - t."""
    scores = predicted.flatten(2).gather(1, index.expand(x.shape[0], -1, -1))  # (B, sources, targets)
    weights = scores.masked_fill(~reached, -torch.inf).softmax(dim=1)
    return (x.flatten(2) @ weights).unflatten(2, x.shape[2:])


def distribute(x: Tensor, predicted: Tensor, index: Tensor, reached: Tensor) -> Tensor:
    """x (B, C, H, W) gathered by what each source predicts, (B, O, H, W): a[s, t] is its value for t - s."""
    scores = predicted.flatten(2).gather(1, index.expand(x.shape[0], -1, -1))  # (B, targets, sources)
    weights = scores.masked_fill(~reached, -torch.inf).softmax(dim=2)
    return (x.flatten(2) @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
