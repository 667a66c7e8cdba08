"""Label maps in colours: alone, over the image, or beside it. Arrays in, arrays out."""

from collections.abc import Sequence

import numpy as np

from ..config import IGNORE
from ..errors import InputError

Array = np.ndarray
Palette = Sequence[tuple[int, int, int]]
IGNORE_COLOUR = (224, 224, 192)  # PASCAL VOC's cream; black is its background
GAP = 4  # white columns between the panels of a triptych


def colourise(labels: Array, palette: Palette) -> Array:
    """(H, W) class indices -> (H, W, 3) uint8 RGB; 255 becomes cream. InputError if a label has no colour."""
    table = np.full((IGNORE + 1, 3), IGNORE_COLOUR, np.uint8)
    table[: len(palette)] = palette
    _require_colours(labels, palette)
    return table[labels]


def overlay(image: Array, labels: Array, palette: Palette, alpha: float = 0.5) -> Array:
    """alpha * colours + (1 - alpha) * image, as (H, W, 3) uint8; where labels are 255, the image alone.

    image: (H, W, C) uint8; see rgb for other than three channels.
    """
    _require_colours(labels, palette)
    image, values = rgb(image), np.arange(256, dtype=np.float32)
    # What becomes of every value under every label: looked up, a picture takes a quarter of the time to compute it.
    table = np.empty((3, IGNORE + 1, 256), np.uint8)
    table[:] = values
    table[:, : len(palette)] = np.rint(alpha * np.array(palette).T[..., None] + (1 - alpha) * values)
    rows, mixed = labels.astype(np.intp) << 8, np.empty(image.shape, np.uint8)
    for channel in range(3):
        mixed[..., channel] = table[channel].ravel().take(rows | image[..., channel])
    return mixed


def _require_colours(labels: Array, palette: Palette) -> None:
    outside = labels[(labels >= len(palette)) & (labels != IGNORE)]
    if outside.size:
        raise InputError(f"label {outside[0]} has no colour: the palette has {len(palette)}")


def triptych(image: Array, labels: Array, predicted: Array, palette: Palette) -> Array:
    """Image, labels and prediction side by side: (H, 3 * W + 2 * GAP, 3) uint8."""
    gap = np.full((len(image), GAP, 3), 255, np.uint8)
    return np.concatenate([rgb(image), gap, colourise(labels, palette), gap, colourise(predicted, palette)], axis=1)


def rgb(image: Array) -> Array:
    """(H, W, C) -> (H, W, 3): the first three channels, or the first one as grey where there are fewer."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
