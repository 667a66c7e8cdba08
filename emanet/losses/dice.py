"""The Dice loss of V-Net (arXiv 1606.04797, section 3), of each class that an image has.

    loss of a class = 1 - 2 * sum(p * g) / (sum(p^2) + sum(g^2))

Sums are over the image's labelled pixels, p is the softmax probability of the class, g is 1 where it is the label and
0 elsewhere. Of a class that an image does not have, the fraction is 0 whatever is predicted and has no gradient, so an
image's loss is the mean over the classes that it has. Class weights do not enter.
"""

import torch
from torch import Tensor

from ..config import IGNORE, LossConfig


def of_images(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """logits (B, classes, H, W), labels (B, H, W) int64 -> (B,), each in [0, 1]; 0 for an image without labels.

    Images do not depend on each other: over ranks and accumulated passes the mean is that of one large pass.
    """
    ignored = labels == IGNORE
    p = logits.softmax(1).masked_fill(ignored[:, None], 0)
    index = labels.masked_fill(ignored, 0)
    own = p.gather(1, index[:, None])  # of each pixel's label
    zeros = torch.zeros(logits.shape[:2], dtype=torch.float64, device=logits.device)
    overlap = zeros.scatter_add(1, index.flatten(1), own.flatten(1).double()).to(p.dtype)
    pixels = zeros.scatter_add(1, index.flatten(1), (~ignored).flatten(1).double()).to(p.dtype)  # sum(g^2)
    has = pixels > 0
    sizes = (p.square().sum((2, 3)) + pixels).where(has, 1)
    losses = (1 - 2 * overlap / sizes).where(has, 0)
    return losses.sum(1) / has.sum(1).clamp_min(1)
