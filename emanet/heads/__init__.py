"""Heads: feature maps in, low-resolution logits out. A new one is a small file and a line of HEADS.

Every head is called with the backbone's list of maps, (B, C_i, H_i, W_i) from fine to coarse, and returns
(B, classes, H, W): the last map's size, or that of stride 4 from the heads with a decoder (deeplabv3plus, dfn, gcn,
refinenet). `Head(channels, classes, config)` gets the C_i. Its last layer is `classifier`: that name is left out when
weights go to a model of other classes.
"""

from collections.abc import Sequence

from torch import nn

from ..config import HeadConfig
from ..errors import InputError, suggest
from .deeplabv3 import DeepLabV3Head
from .deeplabv3plus import DeepLabV3PlusHead
from .dfn import DFNHead
from .ema import EMAHead
from .encnet import EncNetHead
from .fcn import FCNHead
from .gcn import GCNHead
from .non_local import NonLocalHead
from .psanet import PSAHead
from .pspnet import PSPHead
from .refinenet import RefineNetHead

HEADS = {
    "ema": EMAHead,
    "fcn": FCNHead,
    "deeplabv3": DeepLabV3Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "dfn": DFNHead,
    "encnet": EncNetHead,
    "gcn": GCNHead,
    "nonlocal": NonLocalHead,
    "psanet": PSAHead,
    "pspnet": PSPHead,
    "refinenet": RefineNetHead,
}


def build(config: HeadConfig, channels: Sequence[int], classes: int) -> nn.Module:
    if config.name not in HEADS:
        raise InputError(f"no head {config.name!r}{suggest(config.name, HEADS)}")
    return HEADS[config.name](channels, classes, config)
