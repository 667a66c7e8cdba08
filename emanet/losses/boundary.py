"""Cross entropy in which pixels near a border of the labels weigh more, as in U-Net (arXiv 1505.04597, eq. 1 and 2).

    loss of a pixel = w * cross entropy,  w = boundary_weight near a border, 1 elsewhere

U-Net lets w fall off smoothly with the distance to two cells. Here a pixel is near a border if the square of
2 * boundary_width + 1 pixels around it holds two different classes. Ignored pixels are no class: a thin ignored line
between two objects, as in PASCAL VOC, is a border once the square reaches across it; the edge of the padding is not.
The divisor stays that of cross entropy, so w raises the whole loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import IGNORE, LossConfig
from . import cross_entropy


def of_pixels(losses: Tensor, labels: Tensor, weights: Tensor | None, config: LossConfig) -> Tensor:
    """Cross entropy (B, H, W), 0 at ignored pixels -> (B, H, W)."""
    losses = cross_entropy.of_pixels(losses, labels, weights, config)
    return torch.where(near_border(labels, config.boundary_width), config.boundary_weight * losses, losses)


def near_border(labels: Tensor, width: int) -> Tensor:
    """labels (B, H, W) -> bool (B, H, W): whether at most `width` rows and columns away there are two classes."""
    values = labels.float()
    largest = _largest_around(values.masked_fill(labels == IGNORE, -1), width)
    smallest = -_largest_around(-values, width)  # IGNORE is above every class
    return largest > smallest


def _largest_around(values: Tensor, width: int) -> Tensor:
    side = 2 * width + 1
    rows = F.max_pool2d(values, (side, 1), stride=1, padding=(width, 0))
    return F.max_pool2d(rows, (1, side), stride=1, padding=(0, width))
