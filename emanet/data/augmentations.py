"""What DataConfig can add to scaled, flipped crops: rotation, crops around rare classes, looks, parts of other images.

Images are uint8 (C, h, w), in memory (h, w, C), and labels uint8 (h, w), before and after.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from ..config import IGNORE, DataConfig
from ..errors import InputError, some, suggest
from .datasets import spec_of


def require_colours(config: DataConfig, channels: int) -> None:
    """InputError where an option has no meaning for so many channels."""
    for name, fits, kinds in (("colour", (1, 3), "grey and RGB"), ("hue", (3,), "RGB"), ("grey", (3,), "RGB")):
        if getattr(config, name) and channels not in fits:
            raise InputError(f"data.{name} is for {kinds} images, not for {channels} channels")


def labels_to_paste(config: DataConfig) -> list[int]:
    """The labels of data.paste_classes, none if data.paste is off. Raises InputError for a name that is not a class."""
    if not config.paste:
        return []
    classes = spec_of(config).classes
    if not config.paste_classes:
        raise InputError(f"data.paste is on; name in data.paste_classes what to paste: {some(classes)}")
    for name in config.paste_classes:
        if name not in classes:
            raise InputError(f"data.paste_classes has {name!r}, which is not a class{suggest(name, classes)}")
    return [classes.index(name) for name in config.paste_classes]


def box_around(labels: np.ndarray, box: list[slice], classes: Sequence[int], place: Sequence[float]) -> list[slice]:
    """A box of the same size that holds a pixel of a class: see held_pixel. The same box if there is none.

    place: four numbers in [0, 1): for the class, its pixel, the row and the column.
    """
    pixel = held_pixel(labels, classes, place)
    if pixel is None:
        return box
    lengths = [part.stop - part.start for part in box]
    starts = map(start_around, pixel, lengths, labels.shape, place[2:])
    return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def held_pixel(labels: np.ndarray, classes: Sequence[int], place: Sequence[float]) -> tuple[int, int] | None:
    """(row, column) of the pixel that a class-balanced crop holds; None if `labels` has none of the classes.

    A class is drawn uniformly from those of `classes` that `labels` has, then one of its pixels uniformly.
    classes: empty means all. place: numbers in [0, 1), for the class and the pixel.
    """
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    allowed = sorted(set(classes)) or range(IGNORE)
    present = [label for label in allowed if counts[label]]
    if not present:
        return None
    label = present[int(place[0] * len(present))]
    pixel = np.flatnonzero(labels == label)[int(place[1] * counts[label])]
    row, column = divmod(int(pixel), labels.shape[1])
    return row, column


def start_around(pixel: int, length: int, side: int, place: float) -> int:
    """Where a part of `length` of a side begins that holds a pixel: uniform over what fits, by place in [0, 1)."""
    first, last = max(0, pixel - length + 1), min(pixel, side - length)
    return first + int(place * (last - first + 1))


def resized(
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


def rotated(
    image: np.ndarray, labels: np.ndarray, box: Sequence[slice], size: Sequence[int], crop: Sequence[int],
    degrees: float, flip: bool,
) -> tuple[Tensor, np.ndarray, np.ndarray]:  # fmt: skip
    """The part `box` of an image, resized to `size` and rotated about its middle, in one bilinear resampling.

    image (H, W, C), labels (H, W) -> (C, h, w), (h, w) by the nearest pixel, and a bool (h, w): outside of the image.
    (h, w) is `crop`; the part's corner is the crop's. Beyond the part there is more of the image, where it has more.
    Outside, pixels are the image's nearest and labels are ignored.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    v, u = (np.arange(side, dtype=np.float32) + (0.5 - n / 2) for side, n in zip(crop, size, strict=True))
    if flip:
        u = -u
    turned = cos * v[:, None] - sin * u, sin * v[:, None] + cos * u
    part, places, inside = [], [], np.ones(tuple(crop), bool)
    for side, cut, n, offset in zip(labels.shape, box, size, turned, strict=True):
        place = (cut.start + cut.stop) / 2 + (cut.stop - cut.start) / n * offset  # pixel i covers i to i + 1
        inside &= (place >= 0) & (place < side)
        start = max(0, int(place.min()) - 1)  # only what is looked at becomes float32
        part.append(slice(start, min(side, int(place.max()) + 2)))
        places.append(place - start)
    image, labels = image[*part], labels[*part]
    rows, columns = (place.astype(np.int32).clip(0, n - 1) for place, n in zip(places, labels.shape, strict=True))
    target = labels.take(rows * labels.shape[1] + columns)  # a quarter of the time of labels[rows, columns]
    target[~inside] = IGNORE

    h, w = labels.shape
    grid = torch.from_numpy(np.stack([places[1] * (2 / w) - 1, places[0] * (2 / h) - 1], 2))
    source = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float()
    pixels = F.grid_sample(source, grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    return pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1), target, ~inside


def changed_looks(pixels: Tensor, factors: np.ndarray, rng: np.random.Generator, config: DataConfig) -> Tensor:
    """Colour, hue, gamma, grey and blur, as far as config turns them on, in this order.

    factors: of brightness, contrast and saturation.
    """
    if config.colour:
        pixels = TF.adjust_brightness(pixels, factors[0])
        pixels = TF.adjust_contrast(pixels, factors[1])
        pixels = TF.adjust_saturation(pixels, factors[2])
    if config.hue:
        pixels = _hue_turned(pixels, rng.uniform(-config.hue, config.hue))
    if config.gamma:
        exponent = (1 + config.gamma) ** rng.uniform(-1, 1)
        table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
        pixels = _from_rows(table.take(_rows(pixels)))
    if config.grey and rng.random() < config.grey:
        pixels = TF.rgb_to_grayscale(pixels, 3).permute(1, 2, 0).contiguous().permute(2, 0, 1)  # else it is a view
    if config.blur:
        chance, sigma = rng.random(), rng.uniform(*config.blur_sigma)
        pixels = _blurred(pixels, sigma) if chance < config.blur else pixels
    return pixels


def _hue_turned(pixels: Tensor, degrees: float) -> Tensor:
    """RGB turned about the axis of greys by Rodrigues' formula: hues change, greys and (R + G + B) / 3 do not."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = (1 - cos) / 3, sin / math.sqrt(3)
    matrix = torch.tensor([[cos + a, a + b, a - b], [a - b, cos + a, a + b], [a + b, a - b, cos + a]])
    turned = pixels.permute(1, 2, 0).float() @ matrix
    return turned.round_().clamp_(0, 255).to(torch.uint8).permute(2, 0, 1)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels, over 3 sigma either way; the outermost pixels are repeated beyond the edge."""
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2).astype(np.float32)
    weights /= 2 * weights.sum() - weights[0]
    rows = _rows(pixels)
    h, w, _ = rows.shape
    # Sums of shifted arrays: a fifth of the time of torchvision's blur, whose kernel is two-dimensional.
    padded = np.pad(rows, ((reach, reach), (reach, reach), (0, 0)), mode="edge").astype(np.float32)
    down = padded[reach : reach + h] * weights[0]
    for k in range(1, reach + 1):
        down += (padded[reach - k : reach - k + h] + padded[reach + k : reach + k + h]) * weights[k]
    across = down[:, reach : reach + w] * weights[0]
    for k in range(1, reach + 1):
        across += (down[:, reach - k : reach - k + w] + down[:, reach + k : reach + k + w]) * weights[k]
    return _from_rows(np.rint(across).astype(np.uint8))


def paste(image: Tensor, labels: Tensor, other: Tensor, other_labels: Tensor, classes: Iterable[int]) -> None:
    """Put all pixels of these classes of the other sample, of the same size, over this one, in place."""
    chosen = np.zeros(IGNORE + 1, bool)
    chosen[list(classes)] = True
    mask = chosen.take(other_labels.numpy())
    np.copyto(labels.numpy(), other_labels.numpy(), where=mask)
    for ours, theirs in zip(image.numpy(), other.numpy(), strict=True):  # all channels at once take five times as long
        np.copyto(ours, theirs, where=mask)


def half_of_classes(labels: Tensor, rng: np.random.Generator) -> list[int]:
    """Half of the classes that labels have, rounded up, drawn uniformly: ClassMix, arXiv:2007.07936."""
    present = labels.flatten().bincount(minlength=IGNORE)[:IGNORE].nonzero().flatten().tolist()
    return rng.permutation(present)[: (len(present) + 1) // 2].tolist()


def _rows(pixels: Tensor) -> np.ndarray:
    """(C, h, w) as (h, w, C), in the same memory."""
    return pixels.permute(1, 2, 0).numpy()


def _from_rows(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).permute(2, 0, 1)
