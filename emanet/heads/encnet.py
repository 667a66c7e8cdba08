"""EncNet (Zhang et al., CVPR 2018): a summary of the image by codewords decides which channels matter.

Shapes: B images, C channels, N = H * W pixels, K codewords.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .layers import conv_bn_relu

CODEWORDS = 32  # K of section 4.1


class EncNetHead(nn.Module):
    """3x3 conv to `channels`, context encoding, dropout, 1x1 classifier.

    The semantic-encoding loss, by which the paper also learns which classes are in the image, is left out: heads
    return logits only. The paper's auxiliary loss is ModelConfig.aux_head.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        self.fc0 = conv_bn_relu(channels[-1], config.channels)
        self.context = ContextEncoding(config.channels, CODEWORDS)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.dropout(self.context(self.fc0(features[-1]))))


class ContextEncoding(nn.Module):
    """y = relu(x + x * gates) with gates = sigmoid(W e), and e the mean over the codewords of relu(BN(e_k)).

    Section 3.1 has a sum instead of the mean, and y = x * gates; the mean and the residual are from the released code.
    """

    def __init__(self, channels: int, codewords: int):
        super().__init__()
        self.reduce = conv_bn_relu(channels, channels, 1)
        self.encoding = Encoding(channels, codewords)
        self.norm = nn.BatchNorm2d(codewords)
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        encoded_BKC = self.encoding(self.reduce(x).flatten(2))
        context_BC = self.norm(encoded_BKC.unsqueeze(3)).relu().mean(dim=(1, 3))
        gates = self.gate(context_BC).sigmoid()[:, :, None, None]
        return torch.relu(x + x * gates)


class Encoding(nn.Module):
    """The residuals of all pixels to each codeword, weighted and summed (section 3.1, equation 1).

    e_k = sum_n w_nk (x_n - d_k) with w_n = softmax over k of -s_k |x_n - d_k|^2. The codewords d_k and the smoothing
    factors s_k are learned; they start uniform in +-1 / sqrt(K C) and [0, 1], as in the released code.
    """

    def __init__(self, channels: int, codewords: int):
        super().__init__()
        bound = (codewords * channels) ** -0.5
        self.codewords_KC = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.smoothing_K = nn.Parameter(torch.rand(codewords))

    def forward(self, x_BCN: Tensor) -> Tensor:
        """(B, C, N) -> (B, K, C) in float32, also under autocast: squared distances lose too much in half precision."""
        with torch.autocast(x_BCN.device.type, enabled=False):
            x, d = x_BCN.to(torch.promote_types(x_BCN.dtype, torch.float32)), self.codewords_KC
            # |x - d|^2 multiplied out, so that no tensor of B N K C values is made.
            distances_BNK = x.square().sum(1)[:, :, None] - 2 * (x.transpose(1, 2) @ d.t()) + d.square().sum(1)
            weights_BNK = torch.softmax(-self.smoothing_K * distances_BNK, dim=2)
            return weights_BNK.transpose(1, 2) @ x.transpose(1, 2) - weights_BNK.sum(1)[:, :, None] * d
