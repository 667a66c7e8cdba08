"""EMANet = backbone + head, with its own preprocessing: pixels in, float32 logits out at the pixels' size."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backbones, heads
from .config import DatasetSpec, HeadConfig, ModelConfig
from .errors import InputError
from .ops.upsample import full_size


class EMANet(nn.Module):
    """model(images) -> logits.

    backbone: see backbones.Backbone. head, aux_head: see heads. spec: names and colours of the classes.
    mean, std: per channel, of images in [0, 1]; buffers, so that they travel with the weights.
    bands, range: how files become its images, as in DatasetSpec; the model itself takes them ready.
    """

    mean: Tensor  # (1, in_channels, 1, 1)
    std: Tensor

    def __init__(
        self,
        backbone: backbones.Backbone,
        head: nn.Module,
        aux_head: nn.Module | None = None,
        *,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        mean: Sequence[float],
        std: Sequence[float],
        align_corners: bool = True,
        bands: Sequence[int] = (),
        range: Sequence[float] = (),
    ):
        super().__init__()
        self.backbone, self.head, self.aux_head = backbone, head, aux_head
        self.classes, self.palette = tuple(classes), tuple(palette)
        self.align_corners = align_corners
        self.bands, self.range = tuple(bands), tuple(range)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @property
    def in_channels(self) -> int:
        return self.backbone.in_channels

    @property
    def stride(self) -> int:
        """Image pixels per logit pixel."""
        return self.backbone.stride

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, in_channels, H, W) RGB, uint8 in [0, 255] or floating in [0, 1], any size.

        Returns float32 logits (B, classes, H, W).
        """
        return self.logits(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 in [0, 255] or floating in [0, 1] -> float32 with the mean at 0.

        ValueError for floating values far above 1; a warning for values below 0, which look normalised already.
        """
        if images.dim() != 4 or images.shape[1] != self.backbone.in_channels:
            shape = f"(B, {self.backbone.in_channels}, H, W)"
            raise ValueError(f"images must be {shape}, got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = images / 255
        elif not images.is_floating_point():
            raise TypeError(f"images must be uint8 in [0, 255] or floating in [0, 1], got {images.dtype}")
        else:
            _require_unit_range(images)
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W) in float32 of normalised images (B, in_channels, H, W)."""
        size = x.shape[2:]
        return self.upsample(self.low_logits(x)[0], size)

    def low_logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits at the stride of the head; in training also those of the auxiliary head, if there is one."""
        h, w = x.shape[2:]
        padded_h, padded_w = self.padded_size((h, w))
        features = self.backbone(F.pad(x, (0, padded_w - w, 0, padded_h - h)))
        aux = self.aux_head(features) if self.aux_head is not None and self.training else None
        return self.head(features), aux

    def padded_size(self, size: Sequence[int]) -> tuple[int, int]:
        """What the backbone gets for images of (H, W), and what low-resolution logits are spread over."""
        d = self.backbone.divisor
        return size[0] + -size[0] % d, size[1] + -size[1] % d

    def upsample(self, low: Tensor, size: Sequence[int]) -> Tensor:
        """Bilinear to (H, W), in float32 at least; what the backbone padded is cut off again.

        ops.upsample has the two ends that logits at full size usually come to, labels and the loss, without them.
        """
        return full_size(low, self.padded_size(size), size, self.align_corners)


def _require_unit_range(images: Tensor) -> None:
    """ValueError for floats of 0 to 255. Resizing may leave [0, 1] by a little, and noise by more."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(images) is not Tensor or images.is_meta
    if traced or not images.numel() or (images.is_cuda and torch.cuda.is_current_stream_capturing()):
        return  # there are no values to look at
    low, high = (float(value) for value in images.detach().aminmax())
    if high > 10:
        raise ValueError(f"images go up to {high:g}, but floats must be in [0, 1]: divide by 255, or pass uint8")
    if low < -0.5:
        text = f"images go down to {low:g}, as if normalised already: EMANet normalises them, pass them in [0, 1]"
        warnings.warn(text, stacklevel=3)


def build_model(config: ModelConfig, spec: DatasetSpec | Sequence[str]) -> EMANet:
    """The model of a config, for the classes of a data set (or a list of class names)."""
    if not isinstance(spec, DatasetSpec):
        spec = DatasetSpec(classes=tuple(spec))
    backbone = backbones.build(config.backbone)
    _require_statistics(backbone, config)
    head = heads.build(config.head, backbone.channels, len(spec.classes))
    aux_head = None
    if config.aux_head:
        aux_config = HeadConfig(name="fcn", channels=config.aux_channels, dropout=config.head.dropout)
        aux_head = heads.FCNHead(backbone.channels, len(spec.classes), aux_config, level=-2)
    model = EMANet(
        backbone,
        head,
        aux_head,
        classes=spec.classes,
        palette=spec.colours,
        mean=config.mean,
        std=config.std,
        align_corners=config.align_corners,
        bands=spec.bands,
        range=spec.range,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = config.bn_momentum
    return model


def _require_statistics(backbone: backbones.Backbone, config: ModelConfig) -> None:
    """Hub weights need pixels normalised as in their pretraining; anything else would silently cost accuracy."""
    if config.backbone.pretrained is not True or config.backbone.in_channels != 3:
        return
    pretrained: Any = backbone.net.pretrained_cfg  # timm's
    mean, std = tuple(pretrained["mean"]), tuple(pretrained["std"])
    if (mean, std) != (config.mean, config.std):
        name = config.backbone.name
        raise InputError(f"the hub weights of {name} need model.mean {mean} and model.std {std}, not the config's")
