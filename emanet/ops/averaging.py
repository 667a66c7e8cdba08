"""What steadies the end of a training: averaged weights, and frozen BatchNorm statistics."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def average_in(averaged: nn.Module, net: nn.Module, step: int, average: float, skip: Tensor) -> None:
    """averaged = keep * averaged + (1 - keep) * net, with keep = min(average, (1 + step) / (10 + step)).

    Changes nothing if the bool scalar `skip` is true; nothing waits for its value. BatchNorm's statistics and the bases
    are averaged like the weights that they belong to; whole numbers are copied. torch's AveragedModel has neither the
    smaller `keep` of the first steps, which forgets the random start, nor a way to skip.
    """
    keep = min(average, (1 + step) / (10 + step))
    share = torch.where(skip, 0.0, 1 - keep)
    for own, new in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
        if own.is_floating_point():
            own.lerp_(new, share)
        else:
            own.copy_(new)


def freeze_bn(net: nn.Module) -> None:
    """BatchNorm uses its running statistics and leaves them as they are, until net.train(); its weights still learn."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            module.eval()
