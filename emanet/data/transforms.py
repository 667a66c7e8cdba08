"""Training samples: scaled, cropped, flipped and coloured, each by draws of its own.

Sample number `position` of a training is a function of (seed, position) alone: which image it is and all its draws.
So batches do not depend on the number of workers or ranks, nor on where a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from ..config import IGNORE, DataConfig
from ..errors import InputError

ORDER, SAMPLE = 0, 1  # what a generator is for, as part of its seed


@dataclass(frozen=True)
class TrainingSamples:
    """samples[position] -> (image (C, h, w) uint8, labels (h, w) uint8, position), endless.

    dataset: see data.datasets. fill: colour of what lies outside the image, one value of 0 to 255 a channel.
    """

    dataset: object
    config: DataConfig
    fill: Sequence[int]
    seed: int = 0

    def __post_init__(self):
        if self.config.colour and len(self.fill) not in (1, 3):
            raise InputError(f"data.colour is for grey and RGB images, not for {len(self.fill)} channels")

    def index(self, position: int) -> int:
        """Which image: every epoch is a permutation of its own."""
        epoch, place = divmod(position, len(self.dataset))
        return int(_permutation(self.seed, epoch, len(self.dataset))[place])

    def name(self, position: int) -> str:
        return self.dataset.name(self.index(position))

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        image, labels = self.dataset.read(self.index(position))
        rng = np.random.default_rng([self.seed, SAMPLE, position])
        return *augment(image, labels, rng, self.config, self.fill), position


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def augment(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, config: DataConfig, fill: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """A crop of config.crop from the image at a random scale, bilinear (labels: nearest), perhaps mirrored.

    image (H, W, C) uint8, labels (H, W) uint8 -> (C, h, w) uint8, in memory (h, w, C), and (h, w) uint8. The crop is
    taken in source coordinates and only then resized: the same draw as resizing first, for a part of the work. Where
    the scaled image is smaller than the crop, `fill` and ignored pixels follow at the right and the bottom.
    """
    scale = rng.uniform(*config.scales) if config.continuous_scale else rng.choice(config.scales)
    box, size = [], []
    for side, crop in zip(labels.shape, config.crop, strict=True):
        wanted = max(1, round(crop / scale))
        length = min(side, wanted)
        start = int(rng.integers(side - length + 1))
        box.append(slice(start, start + length))
        size.append(crop if wanted <= side else min(crop, max(1, round(length * scale))))
    flip = rng.random() < config.flip
    factors = 1 + config.colour * rng.uniform(-1, 1, 3)

    labels = labels[box[0], box[1]]
    rows, columns = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(size, labels.shape, strict=True))
    target = np.full(config.crop, IGNORE, np.uint8)
    target[: size[0], : size[1]] = labels.take(columns[::-1] if flip else columns, 1).take(rows, 0)

    # With its batch axis first, torch knows these strides as channels last, and its uint8 kernels need no other order.
    pixels = torch.from_numpy(image)[None, box[0], box[1]].permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels.flip(3) if flip else pixels, size, mode="bilinear", align_corners=False)[0]
    if config.colour:
        pixels = TF.adjust_brightness(pixels, factors[0])
        pixels = TF.adjust_contrast(pixels, factors[1])
        pixels = TF.adjust_saturation(pixels, factors[2])
    if tuple(size) != tuple(config.crop):
        padded = np.empty((*config.crop, len(pixels)), np.uint8)
        padded[0] = fill
        padded[1:] = padded[0]  # whole rows: a pixel at a time takes longer than the resizing
        padded[: size[0], : size[1]] = pixels.permute(1, 2, 0).numpy()
        pixels = torch.from_numpy(padded).permute(2, 0, 1)
    return pixels, torch.from_numpy(target)
