"""Training samples: randomly scaled, cropped, flipped and coloured, and what else DataConfig turns on.

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
from torch import Tensor

from ..config import DataConfig
from . import augmentations
from .kept import Kept

ORDER, SAMPLE, OTHER = 0, 1, 2  # part of the seed: what the generator is for


class Readable(Protocol):
    """A data set: see datasets.py."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class TrainingSamples:
    """samples[position] -> (image (C, h, w) uint8, labels (h, w) uint8, position), endless.

    dataset: see datasets.py. fill: the colour outside the image, a value of 0 to 255 for each channel.
    last_from: the first position whose crop is config.last_crop, if there is one. room: bytes of memory for decoded
    images that come again (kept.py).
    """

    dataset: Readable
    config: DataConfig
    fill: Sequence[int]
    seed: int = 0
    last_from: float = math.inf
    room: int = 0

    def __post_init__(self):
        augmentations.require_colours(self.config, len(self.fill))
        _ = self.pasted  # unknown names are refused now, not at the first sample

    @cached_property
    def pasted(self) -> list[int]:
        return augmentations.labels_to_paste(self.config)

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
        index = self.index(position)
        image, labels = self._augmented(index, position)
        if self.config.paste or self.config.class_mix:
            self._mix(image, labels, index, position)
        return image, labels, position

    def _augmented(self, index: int, position: int, around: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, SAMPLE, position])
        return augment(*self.read(index), rng, self.config_at(position), self.fill, around)

    @cached_property
    def read(self) -> Kept:
        return Kept(self.dataset.read, self.room)

    def _mix(self, image: Tensor, labels: Tensor, index: int, position: int) -> None:
        """Perhaps paste classes of another image, which is augmented as this one is, in place."""
        rng = np.random.default_rng([self.seed, OTHER, position])
        pasted = self.pasted if rng.random() < self.config.paste else []
        mixed = rng.random() < self.config.class_mix
        if not pasted and not mixed:
            return
        other = (index + 1 + int(rng.integers(max(1, len(self.dataset) - 1)))) % len(self.dataset)
        pixels, target = self._augmented(other, position, pasted)
        half = augmentations.half_of_classes(target, rng) if mixed else []
        augmentations.paste(image, labels, pixels, target, [*pasted, *half])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def augment(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, config: DataConfig, fill: Sequence[int],
    around: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A crop of config.crop from the image at a random scale, bilinear (labels: nearest), perhaps flipped.

    around: classes; the crop holds a pixel of one of them if the image has one.
    image (H, W, C) uint8, labels (H, W) uint8 -> (C, h, w) uint8, in memory (h, w, C), and (h, w) uint8. The image is
    cropped first and then resized: the same crops as by resizing first, for a fraction of the work. Where the scaled
    image is smaller than the crop, `fill` and ignored labels pad it on the right and below.

    What is off draws no random numbers, and how many an option draws does not depend on the image.
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
    if config.class_crop or config.paste:
        chance, *place = rng.random(5)
        if around or chance < config.class_crop:
            box = augmentations.box_around(labels, box, around, place)
    degrees = rng.uniform(-config.rotate, config.rotate) if config.rotate else 0.0

    outside = None
    if degrees:
        pixels, target, outside = augmentations.rotated(image, labels, box, size, config.crop, degrees, flip)
    else:
        pixels, target = augmentations.resized(image, labels, box, size, config.crop, flip)
    pixels = augmentations.changed_looks(pixels, factors, rng, config)
    if outside is not None:
        pixels.permute(1, 2, 0).numpy()[outside] = fill
    elif tuple(size) != tuple(config.crop):
        padded = np.empty((*config.crop, len(pixels)), np.uint8)
        padded[0] = fill
        padded[1:] = padded[0]  # whole rows: filling pixel by pixel takes longer than resizing
        padded[: size[0], : size[1]] = pixels.permute(1, 2, 0).numpy()
        pixels = torch.from_numpy(padded).permute(2, 0, 1)
    return pixels, torch.from_numpy(target)
