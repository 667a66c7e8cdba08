"""Images to labels or probabilities: the one place that knows padding, windows, scales and flips.

Evaluation, Predictor, TIFFs in windows, the engines' calibration and `explain` all call it.

Two paddings exist, and only the first is decided here. Inference pads an image to the model's grid (`grid_size`), so
that its logits are as far apart as the backbone computed them. EMANet itself pads whatever it gets to a multiple of
its backbone's divisor (`EMANet.padded_size`), because some networks cannot run otherwise, and cuts that off again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import EvalConfig
from .model import EMANet
from .ops.upsample import upsample_argmax
from .windows import WindowGrid


@torch.no_grad()
def predict_labels(model: EMANet, images: Tensor, config: EvalConfig = EvalConfig()) -> Tensor:
    """Class indices (B, H, W) uint8 of images (B, C, H, W), uint8 in [0, 255] or floating in [0, 1].

    The images are on the model's device; the model is in eval mode.
    """
    return _labels(model, model.normalise(images), config)


@torch.no_grad()
def predict_many(model: EMANet, images: Sequence[Tensor], config: EvalConfig = EvalConfig()) -> list[Tensor]:
    """Class indices (H, W) uint8 of each image (C, H, W); images of one `shared_size` go through in one pass.

    They are what predict_labels gives for each image alone, to rounding.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(shared_size(model, image.shape[1:], config), []).append(i)
    labels: dict[int, Tensor] = {}
    for size, members in groups.items():
        x = torch.cat([_pad(model.normalise(images[i][None]), size) for i in members])
        for i, own in zip(members, _labels(model, x, config), strict=True):
            h, w = images[i].shape[1:]
            labels[i] = own[:h, :w]
    return [labels[i] for i in range(len(images))]


@torch.no_grad()
def predict_logits(model: EMANet, images: Tensor) -> Tensor:
    """Logits (B, classes, H, W) of images as in predict_labels, whole and at one scale."""
    return padded_logits(model, model.normalise(images))


@torch.no_grad()
def probabilities(model: EMANet, images: Tensor, config: EvalConfig = EvalConfig()) -> Tensor:
    """Softmax (B, classes, H, W) float32 of images as in predict_labels, averaged over scales, flips and windows."""
    return _probabilities(model, model.normalise(images), config)


def padded_logits(model: EMANet, x: Tensor) -> Tensor:
    """Logits (B, classes, H, W) of normalised images (B, C, H, W), padded to the grid on the way."""
    h, w = x.shape[2:]
    return model.logits(_pad(x, grid_size(model, (h, w))))[:, :, :h, :w]


@torch.no_grad()
def calibration_input(model: EMANet, images: Tensor, config: EvalConfig = EvalConfig()) -> Tensor:
    """What one pass of the network gets of images (B, C, H, W): normalised and padded; a middle window in mode slide.

    An int8 engine measures the range of its values on these.
    """
    x = shrunk(model.normalise(images), config, model.align_corners)
    if config.mode == "slide":
        grid, (h, w) = WindowGrid.over(x.shape[2:], config), x.shape[2:]
        x = x[grid.place((h - grid.size[0]) // 2, (w - grid.size[1]) // 2)]
    return _pad(x, grid_size(model, x.shape[2:]))


def grid_size(model: EMANet, size: Sequence[int]) -> tuple[int, int]:
    """The (h, w) to which an image is padded, at the right and the bottom.

    The smallest with (side - 1) % stride == 0 for align_corners (the original's evaluation), else side % stride == 0:
    only then are the logits, spread evenly over the image, as far apart as the backbone computed them.
    """
    h, w = size
    extra, stride = int(model.align_corners), model.stride
    return h + -(h - extra) % stride, w + -(w - extra) % stride


def shared_size(model: EMANet, size: Sequence[int], config: EvalConfig) -> tuple[int, int]:
    """Images of one (h, w) under this function can share a pass: padded alike, or else of exactly the same size."""
    h, w = size
    return grid_size(model, size) if _one_pass(config) and shrunk_size(size, config) == (h, w) else (h, w)


def shrunk_size(size: Sequence[int], config: EvalConfig) -> tuple[int, int]:
    """The (h, w) at which an image is predicted: its own, or with its longer side at config.longest_side."""
    h, w = size
    if config.mode == "slide" or not 0 < config.longest_side < max(h, w):
        return h, w
    scale = config.longest_side / max(h, w)
    return max(1, round(h * scale)), max(1, round(w * scale))


def shrunk(x: Tensor, config: EvalConfig, align_corners: bool) -> Tensor:
    """Images (B, C, H, W) at their shrunk_size, uint8 or floating as they are: bilinear with antialiasing."""
    size = shrunk_size(x.shape[2:], config)
    if size == x.shape[2:]:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners, antialias=True)


def _one_pass(config: EvalConfig) -> bool:
    return config.mode == "whole" and config.scales == (1.0,) and not config.flip


def _labels(model: EMANet, x: Tensor, config: EvalConfig) -> Tensor:
    """Class indices (B, H, W) uint8 of normalised images."""
    if not _one_pass(config):
        return _probabilities(model, x, config).argmax(1).to(torch.uint8)
    small, extra = shrunk(x, config, model.align_corners), int(model.align_corners)
    size = grid_size(model, small.shape[2:])
    low = model.low_logits(_pad(small, size))[0]  # without the softmax, which keeps the order of the logits
    padded = [  # what the logits are spread over, in pixels of the image that was not shrunk
        extra + round((spread - extra) * (side - extra) / max(1, side_of_small - extra))
        for spread, side, side_of_small in zip(model.padded_size(size), x.shape[2:], small.shape[2:], strict=True)
    ]
    return upsample_argmax(low, padded, x.shape[2:], model.align_corners)


def _probabilities(model: EMANet, x: Tensor, config: EvalConfig) -> Tensor:
    """Softmax (B, classes, H, W) of normalised images, averaged over scales and flips."""
    whole, x = (x.shape[2], x.shape[3]), shrunk(x, config, model.align_corners)
    h, w = x.shape[2:]
    total = torch.zeros(len(x), len(model.classes), h, w, device=x.device)
    for scale in config.scales:
        scaled = _resize(x, (max(1, round(h * scale)), max(1, round(w * scale))), model.align_corners)
        p = _at_one_scale(model, scaled, config)
        if config.flip:
            p = (p + _at_one_scale(model, scaled.flip(3), config).flip(3)) / 2
        total += _resize(p, (h, w), model.align_corners)
    return _resize(total / len(config.scales), whole, model.align_corners)


def _at_one_scale(model: EMANet, x: Tensor, config: EvalConfig) -> Tensor:
    """Softmax (B, classes, H, W) of normalised images, whole or averaged over the windows that cover a pixel."""
    if config.mode == "whole":
        return padded_logits(model, x).softmax(1)
    total = torch.zeros(len(x), len(model.classes), *x.shape[2:], device=x.device)
    count = torch.zeros(x.shape[2:], device=x.device)
    grid = WindowGrid.over(x.shape[2:], config)
    for top in grid.tops:
        for left in grid.lefts:
            place = grid.place(top, left)
            total[place] += padded_logits(model, x[place]).softmax(1)
            count[place] += 1
    return total / count


def _pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Normalised images (B, C, h, w) filled up to (H, W) at the right and the bottom with 0, the mean colour."""
    h, w = x.shape[2:]
    return F.pad(x, (0, size[1] - w, 0, size[0] - h))


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear without antialiasing, as in published multi-scale figures; it skips no pixel down to half size."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
