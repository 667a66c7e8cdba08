"""The fingerprint of a data set: what a recipe depends on, measured on its images and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from ..config import IGNORE
from ..show.terminal import bar
from .images import pixels_per_label

SAMPLE = 300
"""Images that are read at most, evenly spread over the split."""
NEAR = 2
"""Images are near duplicates if at most so many of the 64 bits of their hashes differ. Saving as JPEG at quality 60, or
a brightness 15 % higher, flips 1 bit (median). Unlike images differ in 9 and more (validation and training images of
CamVid), on a plain ground in 3 and more (coffee leaves)."""


class Samples(Protocol):
    def __len__(self) -> int: ...
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class ClassFacts:
    """One class over the images that were read."""

    pixels: int = 0
    images: int = 0
    """Images that show it."""
    thickness: float = 0.0
    """Mean width of its regions in pixels: 2 * area / length of the border. That is the width of a long strip, and half
    the side of a square."""


@dataclass(frozen=True)
class Fingerprint:
    train: int
    val: int
    read: int
    """Training images that were read."""
    sizes: tuple[tuple[int, int], ...]
    """(h, w) of the images that were read, training and validation."""
    channels: int
    mean: tuple[float, ...]
    """Of each channel, in [0, 1], over the training images."""
    std: tuple[float, ...]
    classes: tuple[ClassFacts, ...]
    ignored: float
    """Share of the pixels."""
    twins: int = 0
    """Validation images, of those that were read, that nearly equal a training image that was read."""
    read_val: int = 0

    @property
    def median(self) -> tuple[int, int]:
        """(h, w): the middle height and the middle width."""
        h, w = np.median(self.sizes, 0)
        return int(h), int(w)

    @property
    def largest(self) -> tuple[int, int]:
        """(h, w) of the image with the most pixels."""
        return max(self.sizes, key=lambda size: size[0] * size[1])


def fingerprint(train: Samples, val: Samples, classes: int) -> Fingerprint:
    """Read up to SAMPLE images of each split. Raises InputError for files that cannot be read."""
    sizes: list[tuple[int, int]] = []
    hashes: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    pixels, areas, borders, shown = (np.zeros(256, np.int64) for _ in range(4))
    sums: list[np.ndarray] = []
    chosen = _spread(len(train)), _spread(len(val))
    with bar("measuring the data", len(chosen[0]) + len(chosen[1])) as advance:
        for split, dataset, indices in (("train", train, chosen[0]), ("val", val, chosen[1])):
            for index in indices:
                image, labels = dataset.read(index)
                sizes.append(labels.shape)
                hashes[split].append(difference_hash(image))
                if split == "train":
                    counts = pixels_per_label(labels)
                    pixels += counts
                    shown += counts > 0
                    area, border = areas_and_borders(labels)
                    areas += area
                    borders += border
                    values = (
                        image[:: max(1, len(image) // 64), :: max(1, image.shape[1] // 64)].reshape(-1, image.shape[2])
                        / 255
                    )
                    sums.append(np.stack([values.mean(0), (values**2).mean(0)]))
                advance(len(sizes))
    mean, square = np.mean(sums, 0)
    thickness = 2 * areas / np.maximum(borders, 1)
    facts = tuple(ClassFacts(int(pixels[i]), int(shown[i]), float(thickness[i])) for i in range(classes))
    return Fingerprint(
        train=len(train),
        val=len(val),
        read=len(chosen[0]),
        sizes=tuple(sizes),
        channels=len(mean),
        mean=tuple(round(float(value), 4) for value in mean),
        std=tuple(round(float(value), 4) for value in np.sqrt(np.maximum(square - mean**2, 1e-6))),
        classes=facts,
        ignored=float(pixels[IGNORE] / max(1, pixels.sum())),
        twins=_twins(hashes["train"], hashes["val"]),
        read_val=len(chosen[1]),
    )


def _spread(count: int) -> Sequence[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, SAMPLE))})


def areas_and_borders(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each label in (H, W) uint8: its pixels, and the sides of pixels between it and others, both int64 (256,).

    The edge of the image and of ignored regions is no border: what lies behind it is unknown.
    """
    areas, borders = np.bincount(labels.ravel(), minlength=256), np.zeros(256, np.int64)
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        differ = (a != b) & (a != IGNORE) & (b != IGNORE)
        borders += np.bincount(a[differ], minlength=256) + np.bincount(b[differ], minlength=256)
    return areas, borders


def difference_hash(image: np.ndarray) -> np.ndarray:
    """64 bits: whether each of 8 x 8 places of the grey image is brighter than its right neighbour."""
    grey = image[..., :3].mean(2).astype(np.uint8)
    small = np.asarray(Image.fromarray(grey).resize((9, 8), Image.Resampling.BOX), np.int16)
    return (small[:, :-1] > small[:, 1:]).ravel()


def _twins(train: Sequence[np.ndarray], val: Sequence[np.ndarray]) -> int:
    if not train or not val:
        return 0
    a, b = np.array(train, bool), np.array(val, bool)
    return sum(int((row ^ a).sum(1).min() <= NEAR) for row in b)
