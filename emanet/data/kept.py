"""Images that come again every epoch, decoded once."""

from collections.abc import Callable

import numpy as np

Pixels = tuple[np.ndarray, np.ndarray]


class Kept:
    """read(index), with what it gives kept as far as `room` bytes of memory go; the rest is read every time.

    Nothing is ever thrown out: an epoch takes every image once, so that one kept is worth as much as another. The
    arrays must not be written to.
    """

    def __init__(self, read: Callable[[int], Pixels], room: int):
        self.read, self.room = read, room
        self.kept: dict[int, Pixels] = {}

    def __call__(self, index: int) -> Pixels:
        if index in self.kept:
            return self.kept[index]
        image, labels = self.read(index)
        size = image.nbytes + labels.nbytes
        if size <= self.room:
            self.room -= size
            self.kept[index] = image, labels
        return image, labels
