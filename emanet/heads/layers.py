"""Building blocks that several heads share."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    dilation: int = 1,
    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d,
) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, norm(out_channels), nn.ReLU(inplace=True))


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm that also trains on one value per channel, as after global pooling with a batch of one image.

    PyTorch refuses to train there, since one value has no variance; here the running statistics are used instead. In a
    run with one image per pass they keep mean 0 and variance 1, so that the layer only scales and shifts.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class PooledConv(nn.Module):
    """Average pooling to bins x bins, 1x1 conv, BatchNorm, ReLU, resized back to the map's size."""

    def __init__(self, in_channels: int, out_channels: int, bins: int = 1):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(bins)
        self.conv = conv_bn_relu(in_channels, out_channels, 1, norm=PooledBatchNorm)

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.conv(self.pool(x)), x.shape[2:])


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to (h, w) with align_corners, so that maps of an image of 8n + 1 pixels lie exactly on each other."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def last_stages(maps: Sequence) -> Sequence:
    """The last four of a backbone's maps, or of their channels, for decoders; all of them if there are fewer.

    The finest of the four has stride 4 in ResNets, ConvNeXts and MobileNets.
    """
    return maps[-4:]
