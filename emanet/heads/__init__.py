"""Heads: feature maps in, low-resolution logits out. A new head is one small file and one line of HEADS.

`Head(channels, classes, config)` gets the channels C_i of the backbone's maps. Its `forward` gets these maps,
(B, C_i, H_i, W_i) from fine to coarse, and returns logits (B, classes, H, W) of the last map's size, or of stride 4
from heads with a decoder (deeplabv3plus, dfn, ema_fusion, gcn, refinenet). Its last layer is called `classifier`:
weights under that name are not loaded into a model with other classes.

A head reads its settings from HeadConfig. A setting that only some heads use names them there (`used_by`), and is
refused with the others; a test compares this with what each head reads.
"""

from collections.abc import Sequence

from torch import nn

from ..config import HeadConfig
from ..errors import InputError, suggest
from .deeplabv3 import DeepLabV3Head
from .deeplabv3plus import DeepLabV3PlusHead
from .dfn import DFNHead
from .ema import EMAHead
from .ema_fusion import EMAFusionHead
from .encnet import EncNetHead
from .fcn import FCNHead
from .gcn import GCNHead
from .non_local import NonLocalHead
from .psanet import PSAHead
from .pspnet import PSPHead
from .refinenet import RefineNetHead

HEADS = {
    "ema": EMAHead,
    "ema_fusion": EMAFusionHead,
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
