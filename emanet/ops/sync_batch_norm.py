"""BatchNorm over the batches of all ranks, on any device."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..distributed import sum_over_ranks, world_size

Module = TypeVar("Module", bound=nn.Module)


class _DifferentiableSum(torch.autograd.Function):
    """sum_over_ranks with a gradient: each rank's tensor counts in the loss of every rank."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone())


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks on any device; torch's own does not run on the CPU.

    `drop` and `act` are those of timm's BatchNormAct2d, which it can replace.
    """

    def __init__(self, of: nn.BatchNorm2d):
        super().__init__(of.num_features, of.eps, of.momentum, of.affine, of.track_running_stats)
        self.weight, self.bias = of.weight, of.bias  # the same parameters, frozen or not
        for name, buffer in of.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.drop = getattr(of, "drop", nn.Identity())
        self.act = getattr(of, "act", nn.Identity())
        self.train(of.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and world_size() > 1:
            y = self._normalise(x.double()).to(x.dtype)  # E[x^2] - E[x]^2 would cancel in float32
        else:
            y = super().forward(x)
        return self.act(self.drop(y))

    def _normalise(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        count = x.numel() / x.shape[1]
        moments = torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), x.new_tensor([count])])
        moments = _DifferentiableSum.apply(moments)
        total = moments[-1].detach()
        mean, square = (moments[:-1] / total).chunk(2)
        var = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * (total / (total - 1))).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


def sync_batch_norm(module: Module) -> Module:
    """The module with every BatchNorm2d, timm's included, replaced by one over the batches of all ranks."""
    if any(parameter.is_cuda for parameter in module.parameters()):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, SyncBatchNorm(child))
    return module
