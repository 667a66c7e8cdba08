"""Parameter groups and the poly schedule of the recipe."""

import torch
from torch import nn
from torch.optim import Optimizer

from .config import OptimConfig

FUSED = ("cpu", "cuda")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """SGD or AdamW over groups: backbone or head x weights, norms and other vectors, biases.

    Only weights decay; biases learn at bias_lr_scale, the head at head_lr_scale. Parameters without gradient are left
    out. On FUSED devices all parameters of a group are updated in one pass over memory.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0 if name.startswith("backbone.") else config.head_lr_scale
        scale *= config.bias_lr_scale if name.endswith("bias") else 1.0
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    parameters = [
        {"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()
    ]
    fused = all(p.device.type in FUSED for p in model.parameters())
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, fused=fused)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, fused=fused)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step 0 .. steps - 1: poly decay in stairs of lr_every steps, after a linear warm-up."""
    stair = step // config.lr_every * config.lr_every
    lr = config.lr * (1 - stair / steps) ** config.poly_power
    return lr * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else lr


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
