"""Parameter groups and the schedules of the learning rate."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from .backbones import Backbone, stages
from .config import OptimConfig
from .errors import InputError
from .model import EMANet

FUSED = ("cpu", "cuda")


def build_optimizer(model: EMANet, config: OptimConfig) -> Optimizer:
    """SGD or AdamW over groups: stages of the backbone or head x weights, norms and other vectors, biases.

    Only weights decay; biases learn at bias_lr_scale, the head at head_lr_scale, the backbone's stages as layer_decay
    says. Parameters without gradient are left out. On FUSED devices all parameters of a group are updated in one pass
    over memory. Raises InputError if layer_decay is on and the backbone's stages are not known.
    """
    depth = _scale_by_depth(model.backbone, config.layer_decay) if config.layer_decay != 1 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = depth.get(parameter, 1.0) if name.startswith("backbone.") else config.head_lr_scale
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


def _scale_by_depth(backbone: Backbone, layer_decay: float) -> dict[nn.Parameter, float]:
    """By how much each parameter of the backbone learns slower than those of its last stage."""
    by_stage = stages(backbone)
    if by_stage is None:
        raise InputError(
            f"optim.layer_decay is {layer_decay:g}, but this backbone does not say where its stages end; leave it at 1"
        )
    return {p: layer_decay**after for after, members in enumerate(by_stage[::-1]) for p in members}


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step 0 .. steps - 1: in stairs of lr_every steps, after a linear warm-up.

    poly as in the paper; cosine is SGDR's without restarts (Loshchilov & Hutter, arXiv 1608.03983, equation 5).
    """
    stair = step // config.lr_every * config.lr_every
    if config.schedule == "cosine":
        lr = config.lr * (1 + math.cos(math.pi * stair / steps)) / 2
    else:
        lr = config.lr * (1 - stair / steps) ** config.poly_power
    return lr * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else lr


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
