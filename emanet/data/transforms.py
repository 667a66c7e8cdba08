"""Training samples: scaled, cropped, flipped and coloured, each by draws of its own.

Sample number `position` of a training is a function of (seed, position) alone: which image it is and all its draws.
So batches do not depend on the number of workers or ranks, nor on where a run was resumed.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import IGNORE, DataConfig, Experiment
from ..errors import InputError
from .loader import delivered, end_with_main

ORDER, SAMPLE = 0, 1  # what a generator is for, as part of its seed
PREFETCH = 4  # batches that each worker may be ahead
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it; Docker gives 64 MB


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

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Tensor, Tensor, int]] | InputError:
        """What a loader's worker calls. An error raised there would come back wrapped in a traceback."""
        try:
            return [self[position] for position in positions]
        except InputError as error:
            return error


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


@dataclass(frozen=True)
class StepPositions:
    """For every step from `start` on, the positions of this rank's share of the batch."""

    start: int
    steps: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[range]:
        share = self.batch_size // self.world_size
        for step in range(self.start, self.steps):
            first = step * self.batch_size + self.rank * share
            yield range(first, first + share)


@dataclass(frozen=True)
class _Slots:
    """Shared memory for batches, written by a loader's workers in turn.

    Fresh shared memory for every batch takes a core longer, page by page, than resizing its images does.
    """

    images: Tensor  # (slots, b, h, w, C) uint8
    labels: Tensor  # (slots, b, h, w) uint8
    batch_size: int

    def __call__(self, samples: list[tuple[Tensor, Tensor, int]] | InputError) -> tuple[int, list[int]] | InputError:
        """In a worker: put a batch into its step's slot; the slot's number and the positions."""
        if isinstance(samples, InputError):
            return samples
        images, labels, positions = zip(*samples, strict=True)
        slot = positions[0] // self.batch_size % len(self.images)
        for i, (image, target) in enumerate(zip(images, labels, strict=True)):
            self.images[slot, i] = image.permute(1, 2, 0)
            self.labels[slot, i] = target
        return slot, list(positions)


def training_loader(
    samples: TrainingSamples, config: Experiment, start: int, rank: int, world_size: int
) -> Iterator[list[Tensor] | InputError]:
    """Batches [images (b, C, h, w) uint8 channels last, labels (b, h, w) uint8, positions (b,)] from step `start` on.

    A sample that cannot be read gives its InputError in place of the batch, for the caller to raise. Raises InputError
    at once where shared memory is too small for the workers, and from the iterator where one of them was killed.
    """
    workers, share = config.data.workers, config.batch_size // world_size
    # One slot more than batches can be under way: a batch is copied out before its slot's next one is asked for.
    shape = (PREFETCH * workers + 1 if workers else 1, share, *config.data.crop)
    images = torch.empty(*shape, len(samples.fill), dtype=torch.uint8)
    labels = torch.empty(shape, dtype=torch.uint8)
    if workers:
        _share(images, labels)
    loader = DataLoader(
        samples,
        batch_sampler=StepPositions(start, config.steps, config.batch_size, rank, world_size),
        num_workers=workers,
        collate_fn=_Slots(images, labels, config.batch_size),
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=end_with_main,
    )
    return _batches(loader, images, labels)


def _share(*tensors: Tensor) -> None:
    """Move them to shared memory; InputError where it has no room: filled beyond its end it would kill the process."""
    needed = sum(x.numel() for x in tensors)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    try:
        if free < needed:
            raise RuntimeError
        for x in tensors:
            x.share_memory_()
    except RuntimeError as error:  # torch's own, where another rank has taken the rest meanwhile
        raise InputError(
            f"{SHARED_MEMORY} has {free} bytes free, but the batches of the loader's workers need {needed}: give fewer "
            "--data.workers (0 needs no shared memory), or to docker run a larger --shm-size"
        ) from error


def _batches(loader: DataLoader, images: Tensor, labels: Tensor) -> Iterator[list[Tensor] | InputError]:
    pinned = torch.cuda.is_available()
    for batch in delivered(loader):
        if isinstance(batch, InputError):
            yield batch
            continue
        slot, positions = batch
        taken = [torch.empty(x.shape, dtype=x.dtype, pin_memory=pinned).copy_(x) for x in (images[slot], labels[slot])]
        yield [taken[0].permute(0, 3, 1, 2), taken[1], torch.tensor(positions)]
