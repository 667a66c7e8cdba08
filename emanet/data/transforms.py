"""Training samples: randomly scaled, cropped, flipped and coloured.

Which image sample number `position` of a run is, and how it is augmented, depends on (seed, position) alone. So batches
do not depend on the number of workers or ranks, nor on where a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from ..config import IGNORE, DataConfig
from ..errors import InputError, some, suggest
from .augmentations import changed_looks, half_of_classes, held_pixel, paste, rotated, start_around
from .datasets import spec_of

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
    """

    dataset: Readable
    config: DataConfig
    fill: Sequence[int]
    seed: int = 0

    def __post_init__(self):
        if self.config.colour and len(self.fill) not in (1, 3):
            raise InputError(f"data.colour is for grey and RGB images, not for {len(self.fill)} channels")
        for name in ("hue", "grey"):
            if getattr(self.config, name) and len(self.fill) != 3:
                raise InputError(f"data.{name} is for RGB images, not for {len(self.fill)} channels")
        _ = self.pasted  # unknown names are refused now, not at the first sample

    @cached_property
    def pasted(self) -> list[int]:
        """The labels of data.paste_classes. Raises InputError for a name that is not a class, or if none is named."""
        if not self.config.paste:
            return []
        classes = spec_of(self.config).classes
        if not self.config.paste_classes:
            raise InputError(f"data.paste is on; name in data.paste_classes what to paste: {some(classes)}")
        for name in self.config.paste_classes:
            if name not in classes:
                raise InputError(f"data.paste_classes has {name!r}, which is not a class{suggest(name, classes)}")
        return [classes.index(name) for name in self.config.paste_classes]

    def index(self, position: int) -> int:
        """Which image: each epoch is another permutation."""
        epoch, place = divmod(position, len(self.dataset))
        return int(_permutation(self.seed, epoch, len(self.dataset))[place])

    def name(self, position: int) -> str:
        return self.dataset.name(self.index(position))

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int]:
        index = self.index(position)
        image, labels = self._augmented(index, position)
        if self.config.paste or self.config.class_mix:
            self._mix(image, labels, index, position)
        return image, labels, position

    def _augmented(self, index: int, position: int, around: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, SAMPLE, position])
        return augment(*self.dataset.read(index), rng, self.config, self.fill, around)

    def _mix(self, image: Tensor, labels: Tensor, index: int, position: int) -> None:
        """Perhaps paste classes of another image, which is augmented as this one is, in place."""
        rng = np.random.default_rng([self.seed, OTHER, position])
        pasted = self.pasted if rng.random() < self.config.paste else []
        mixed = rng.random() < self.config.class_mix
        if not pasted and not mixed:
            return
        other = (index + 1 + int(rng.integers(max(1, len(self.dataset) - 1)))) % len(self.dataset)
        pixels, target = self._augmented(other, position, pasted)
        half = half_of_classes(target, rng) if mixed else []
        paste(image, labels, pixels, target, [*pasted, *half])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def augment(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, config: DataConfig, fill: Sequence[int],
    around: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A crop of config.crop from the image at a random scale, bilinear (labels: nearest), perhaps flipped.

    around: the crop holds a pixel of one of these classes, if the image has one; see held_pixel.
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
        pixel = held_pixel(labels, around, place) if around else None
        if pixel is None and chance < config.class_crop:
            pixel = held_pixel(labels, (), place)
        if pixel is not None:
            starts = map(start_around, pixel, (part.stop - part.start for part in box), labels.shape, place[2:])
            box = [slice(start, start + part.stop - part.start) for start, part in zip(starts, box, strict=True)]
    degrees = rng.uniform(-config.rotate, config.rotate) if config.rotate else 0.0

    outside = None
    if degrees:
        pixels, target, outside = rotated(image, labels, box, size, config.crop, degrees, flip)
    else:
        pixels, target = _resized(image, labels, box, size, config.crop, flip)
    if config.colour:
        pixels = TF.adjust_brightness(pixels, factors[0])
        pixels = TF.adjust_contrast(pixels, factors[1])
        pixels = TF.adjust_saturation(pixels, factors[2])
    pixels = changed_looks(pixels, rng, config)
    if outside is not None:
        pixels.permute(1, 2, 0).numpy()[outside] = fill
    elif tuple(size) != tuple(config.crop):
        padded = np.empty((*config.crop, len(pixels)), np.uint8)
        padded[0] = fill
        padded[1:] = padded[0]  # whole rows: filling pixel by pixel takes longer than resizing
        padded[: size[0], : size[1]] = pixels.permute(1, 2, 0).numpy()
        pixels = torch.from_numpy(padded).permute(2, 0, 1)
    return pixels, torch.from_numpy(target)


def _resized(
    image: np.ndarray, labels: np.ndarray, box: Sequence[slice], size: Sequence[int], crop: Sequence[int], flip: bool
) -> tuple[Tensor, np.ndarray]:
    """The part `box` of an image, resized to `size`, and of its labels, padded to `crop` with ignored ones."""
    labels = labels[box[0], box[1]]
    rows, columns = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(size, labels.shape, strict=True))
    target = np.full(crop, IGNORE, np.uint8)
    target[: size[0], : size[1]] = labels.take(columns[::-1] if flip else columns, 1).take(rows, 0)

    # With a batch axis torch recognises these strides as channels last, which its uint8 kernels take without a copy.
    pixels = torch.from_numpy(image)[None, box[0], box[1]].permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels.flip(3) if flip else pixels, size, mode="bilinear", align_corners=False)[0]
    return pixels, target
