"""Predict whole images or sliding windows, at several scales and mirrored, and measure it over a data set.

    matrix = evaluate(model, dataset, EvalConfig(scales=(0.75, 1.0, 1.25), flip=True))
    print_report(matrix.report(), Console())

A data set is any object with len(dataset), dataset.name(i) and dataset.read(i) -> image (H, W, C) uint8,
labels (H, W) uint8 with 255 = ignored. Images may differ in size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from . import distributed
from .config import EvalConfig
from .data.loader import delivered, end_with_main
from .errors import InputError
from .metrics import ConfusionMatrix
from .model import EMANet
from .ops.upsample import upsample_argmax

OnSample = Callable[[int, np.ndarray, np.ndarray, np.ndarray], None]


def evaluate(
    model: EMANet,
    dataset: Any,
    config: EvalConfig = EvalConfig(),
    *,
    workers: int = 0,
    progress: bool = False,
    on_sample: OnSample | None = None,
    until: Callable[[], bool] = lambda: False,
) -> ConfusionMatrix:
    """The confusion matrix of the whole data set, the same on every rank: each image is counted on exactly one.

    workers: processes that decode ahead; 0 decodes in this one. progress: a bar on stderr, on rank 0 only.
    on_sample(i, image, labels, predicted): called after each image, on the rank that has it, with uint8 arrays.
    until: asked before each image; where it is true this rank leaves the rest out.
    Needs memory for a few images, however many there are. Autocast, where wanted, is the caller's.
    Raises InputError that names the sample if image and labels differ in size or a label is not a class.
    """
    device = model.mean.device
    matrix = ConfusionMatrix(model.classes, device)
    indices = range(len(dataset))[distributed.rank() :: distributed.world_size()]  # no padding: none counts twice
    loader = DataLoader(_Samples(dataset, indices), batch_size=None, num_workers=workers, worker_init_fn=end_with_main)
    console = Console(stderr=True)
    bar = track(
        delivered(loader),
        "evaluate",
        total=len(indices),
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal) or distributed.rank() > 0,
    )
    training = model.training
    model.eval()
    try:
        for i, sample in zip(indices, bar, strict=True):
            if until():
                break
            if isinstance(sample, str):
                raise InputError(sample)
            image, labels = sample
            with torch.inference_mode():
                predicted = predict_labels(model, image.permute(2, 0, 1)[None].to(device), config)[0]
            try:
                matrix.add(labels, predicted)
            except InputError as error:
                raise InputError(f"{dataset.name(i)}: {error}") from error
            if on_sample:
                on_sample(i, image.numpy(), labels.numpy(), predicted.cpu().numpy())
    finally:
        bar.close()  # ends the workers; after an error, the garbage collector would take 5 seconds for each
        model.train(training)
    matrix.sum_over_ranks()
    return matrix


class _Samples(torch.utils.data.Dataset):
    """The samples of one rank as tensors, images (H, W, C), for the loader; of a bad one, what is wrong with it.

    An error raised in a worker would come back with that worker's traceback as its message.
    """

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor] | str:
        i = self.indices[k]
        try:
            image, labels = self.dataset.read(i)
            if image.shape[:2] != labels.shape:
                sizes = f"{image.shape[:2]}, but its labels are {labels.shape}"
                raise InputError(f"{self.dataset.name(i)}: the image is (h, w) = {sizes}")
        except InputError as error:
            return str(error)
        return torch.from_numpy(image.copy()), torch.from_numpy(labels.copy())  # readers may give read-only arrays


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
