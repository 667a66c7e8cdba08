"""Heads: feature maps in, logits of the same stride out. A new one is a small file and a line of HEADS.

Every head is called with the backbone's list of maps, (B, C_i, H_i, W_i) from fine to coarse, and returns
(B, classes, H, W). `Head(channels, classes, config)` gets the C_i. Its last layer is `classifier`: that name is left
out when weights go to a model of other classes.
"""

from collections.abc import Sequence

from torch import nn

from ..config import HeadConfig
from ..errors import InputError, suggest
from .ema import EMAHead
from .fcn import FCNHead

HEADS = {"ema": EMAHead, "fcn": FCNHead}


def build(config: HeadConfig, channels: Sequence[int], classes: int) -> nn.Module:
    if config.name not in HEADS:
        raise InputError(f"no head {config.name!r}{suggest(config.name, HEADS)}")
    return HEADS[config.name](channels, classes, config)
