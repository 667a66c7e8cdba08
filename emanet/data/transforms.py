"""Training samples: randomly scaled, cropped, flipped and coloured.

Which image sample number `position` of a run is, and how it is augmented, depends on (seed, position) alone. So batches
do not depend on the number of workers or ranks, nor on where a run was resumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from ..config import IGNORE, DataConfig
from ..errors import InputError

ORDER, SAMPLE = 0, 1  # part of the seed: what the generator is for


class Readable(Protocol):
    """A data set: see datasets.py."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class TrainingSamples:
    """samples[position] -> (image (C, h, w) uint8, labels (h, w) uint8, position), endless.

    dataset: see datasets.py. fill: the colour outside the image, a value of 0 to 255 for each channel.
    last_from: the first position whose crop is config.last_crop, if there is one.
    """

    dataset: Readable
    config: DataConfig
    fill: Sequence[int]
    seed: int = 0
    last_from: float = math.inf

    def __post_init__(self):
        if self.config.colour and len(self.fill) not in (1, 3):
            raise InputError(f"data.colour is for grey and RGB images, not for {len(self.fill)} channels")

    def index(self, position: int) -> int:
        """Which image: each epoch is another permutation."""
        epoch, place = divmod(position, len(self.dataset))
        return int(_permutation(self.seed, epoch, len(self.dataset))[place])

    def name(self, position: int) -> str:
        return self.dataset.name(self.index(position))

    def config_at(self, position: int) -> DataConfig:
        """The settings of one sample: towards the end, `crop` is config.last_crop."""
        return self._last if position >= self.last_from else self.config

    @cached_property
    def _last(self) -> DataConfig:
        return replace(self.config, crop=self.config.last_crop or self.config.crop)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        image, labels = self.dataset.read(self.index(position))
        rng = np.random.default_rng([self.seed, SAMPLE, position])
        return *augment(image, labels, rng, self.config_at(position), self.fill), position


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def augment(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, config: DataConfig, fill: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """A crop of config.crop from the image at a random scale, bilinear (labels: nearest), perhaps flipped.

    image (H, W, C) uint8, labels (H, W) uint8 -> (C, h, w) uint8, in memory (h, w, C), and (h, w) uint8. The image is
    cropped first and then resized: the same crops as by resizing first, for a fraction of the work. Where the scaled
    image is smaller than the crop, `fill` and ignored labels pad it on the right and below.
    """
    scale = rng.uniform(config.scales[0], config.scales[1]) if config.continuous_scale else rng.choice(config.scales)
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

    # With a batch axis torch recognises these strides as channels last, which its uint8 kernels take without a copy.
    pixels = torch.from_numpy(image)[None, box[0], box[1]].permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels.flip(3) if flip else pixels, size, mode="bilinear", align_corners=False)[0]
    if config.colour:
        pixels = TF.adjust_brightness(pixels, factors[0])
        pixels = TF.adjust_contrast(pixels, factors[1])
        pixels = TF.adjust_saturation(pixels, factors[2])
    if tuple(size) != tuple(config.crop):
        padded = np.empty((*config.crop, len(pixels)), np.uint8)
        padded[0] = fill
        padded[1:] = padded[0]  # whole rows: filling pixel by pixel takes longer than resizing
        padded[: size[0], : size[1]] = pixels.permute(1, 2, 0).numpy()
        pixels = torch.from_numpy(padded).permute(2, 0, 1)
    return pixels, torch.from_numpy(target)
