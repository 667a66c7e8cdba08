"""Online hard example mining (arXiv 1604.03540) over pixels: the mean cross entropy of the hard ones.

A pixel is hard if the probability of its class is at most ohem_threshold, or if its loss is among the
ohem_min_kept * images largest of the pass. With class weights, pixels are chosen without and averaged with them.
"""

import math

import torch
from torch import Tensor

from ..config import IGNORE, LossConfig


def of_pass(losses: Tensor, labels: Tensor, weights: Tensor | None, config: LossConfig) -> Tensor:
    """Cross entropy (B, H, W), 0 at ignored pixels -> scalar mean over the hard pixels of these B images.

    Which pixels are hard depends on the images that are seen together. So over ranks and accumulated passes the loss
    is the mean of each pass's mean, by the passes' parts of the divisor: not that of one large pass. With class
    weights and average `valid`, the mean is by weight.
    """
    valid = labels != IGNORE
    images, losses = len(labels), losses[valid]
    if not len(losses):
        return losses.sum()
    kept = min(len(losses), config.ohem_min_kept * images)
    hardest = losses.detach().topk(kept).values[-1] if kept else losses.new_tensor(math.inf)
    keep = ~(losses < hardest.clamp_max(-math.log(config.ohem_threshold)))  # a NaN is kept, to be seen
    if weights is None:
        return losses[keep].sum() / keep.sum().clamp_min(1)
    weights = weights[valid]
    amount = weights[keep].sum() if config.average == "valid" else keep.sum()
    return (losses * weights)[keep].sum() / torch.where(amount > 0, amount, 1)
