"""Images to labels or probabilities: padding, windows, scales and flips, for all that runs a model."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import EvalConfig
from .model import EMANet
from .ops.upsample import upsample_argmax


@torch.no_grad()
def predict_labels(model: EMANet, images: Tensor, config: EvalConfig = EvalConfig()) -> Tensor:
    """Class indices (B, H, W) uint8 of images (B, C, H, W), uint8 in [0, 255] or floating in [0, 1].

    The images are on the model's device; the model is in eval mode.
    """
    if config.mode == "whole" and config.scales == (1.0,) and not config.flip:
        x = _padded(model, model.normalise(images))  # softmax would not change the order of the logits
        low = model.low_logits(x)[0]
        return upsample_argmax(low, model.padded_size(x.shape[2:]), images.shape[2:], model.align_corners)
    return probabilities(model, images, config).argmax(1).to(torch.uint8)


@torch.no_grad()
def probabilities(model: EMANet, images: Tensor, config: EvalConfig = EvalConfig()) -> Tensor:
    """Softmax (B, classes, H, W) float32 of images as in predict_labels, averaged over scales, mirroring, windows."""
    x = model.normalise(images)
    h, w = x.shape[2:]
    total = torch.zeros(len(x), len(model.classes), h, w, device=x.device)
    for scale in config.scales:
        scaled = _resize(x, (max(1, round(h * scale)), max(1, round(w * scale))), model.align_corners)
        p = _at_one_scale(model, scaled, config)
        if config.flip:
            p = (p + _at_one_scale(model, scaled.flip(3), config).flip(3)) / 2
        total += _resize(p, (h, w), model.align_corners)
    return total / len(config.scales)


def _at_one_scale(model: EMANet, x: Tensor, config: EvalConfig) -> Tensor:
    """Softmax (B, classes, H, W) of normalised images, whole or averaged over the windows that cover a pixel."""
    if config.mode == "whole":
        return padded_logits(model, x).softmax(1)
    (h, w), (window_h, window_w) = x.shape[2:], config.window
    total = torch.zeros(len(x), len(model.classes), h, w, device=x.device)
    count = torch.zeros(h, w, device=x.device)
    for top in window_starts(h, window_h, config.overlap):
        for left in window_starts(w, window_w, config.overlap):
            place = (..., slice(top, top + window_h), slice(left, left + window_w))
            total[place] += padded_logits(model, x[place]).softmax(1)
            count[place] += 1
    return total / count


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixels of the fewest evenly placed windows that cover a side and overlap by at least that share.

    One window at 0, cut off at the side, where the side is no longer than the window.
    """
    if side <= window:
        return [0]
    step = max(1, round(window * (1 - overlap)))
    gaps = math.ceil((side - window) / step)
    return [round(i * (side - window) / gaps) for i in range(gaps + 1)]


def padded_logits(model: EMANet, x: Tensor) -> Tensor:
    """Logits (B, classes, H, W) of normalised images, padded meanwhile."""
    h, w = x.shape[2:]
    return model.logits(_padded(model, x))[:, :, :h, :w]


def _padded(model: EMANet, x: Tensor) -> Tensor:
    """Normalised images padded on the right and below with the mean colour.

    Until (side - 1) % stride == 0 for align_corners (the original's evaluation), side % stride == 0 without:
    only then are the logits, spread evenly over the image, as far apart as the backbone computed them.
    """
    h, w = x.shape[2:]
    extra = int(model.align_corners)
    pad_h, pad_w = -(h - extra) % model.stride, -(w - extra) % model.stride
    return F.pad(x, (0, pad_w, 0, pad_h))


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear, without antialiasing: so published multi-scale figures are made, and down to half size no pixel is
    skipped without it."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
