"""Windows: overlapping parts of one size that cover an image which is too large for the network at once."""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .config import EvalConfig
from .errors import InputError, out_of_memory

if TYPE_CHECKING:
    from torch import Tensor


LARGE = 2 << 20  # pixels: several such images at a time would need the memory of several
TURN = threading.RLock()


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one size that cover an image of (h, w) pixels and overlap by at least a share of their side."""

    size: tuple[int, int]
    """(h, w) of every window: the config's, or the image's where that is smaller."""
    tops: list[int]
    lefts: list[int]

    @classmethod
    def over(cls, size: Sequence[int], config: EvalConfig) -> "WindowGrid":
        (h, w), (window_h, window_w) = size, config.window
        tops, lefts = window_starts(h, window_h, config.overlap), window_starts(w, window_w, config.overlap)
        return cls((min(h, window_h), min(w, window_w)), tops, lefts)

    def place(self, top: int, left: int) -> tuple:
        """The index of a window in a tensor (..., h, w)."""
        return ..., slice(top, top + self.size[0]), slice(left, left + self.size[1])


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixels of the fewest evenly placed windows that cover a side and overlap by at least that share.

    One window at 0, cut off at the side, where the side is not longer than the window.
    """
    if side <= window:
        return [0]
    step = max(1, round(window * (1 - overlap)))
    gaps = math.ceil((side - window) / step)
    return [round(i * (side - window) / gaps) for i in range(gaps + 1)]


def window_weight(size: tuple[int, int], overlap: float) -> "Tensor":
    """Weight of a window's probabilities where windows are blended, (h, w) in (0, 1].

    sin^2 over the overlap, so that the weights of two neighbouring windows add up to 1.
    """
    import torch  # here: an exported model is used without it

    sides = []
    for side in size:
        ramp = max(1, round(side * overlap) + 1)
        place = torch.arange(1, side + 1)
        height = torch.minimum(place, side + 1 - place).clamp(max=ramp) / ramp
        sides.append(torch.sin(height * (torch.pi / 2)) ** 2)
    return sides[0][:, None] * sides[1]


@contextlib.contextmanager
def enough_memory(name: object, size: Sequence[int], config: EvalConfig) -> Iterator[None]:
    """Around the prediction of (h, w) pixels at once: InputError with the image's name if memory is not enough.

    Threads that predict images side by side take turns here where these are large.
    """
    try:
        with TURN if size[0] * size[1] > LARGE else contextlib.nullcontext():
            yield
    except Exception as error:  # each library has its own
        if not out_of_memory(error):
            raise
        (h, w), hint = size, "mode slide predicts it in windows"
        if config.mode == "slide":
            windows = h <= config.window[0] and w <= config.window[1]
            hint = "smaller windows need less" if windows else "split the image or make it smaller"
        raise InputError(f"{name}: not enough memory to predict {w} x {h} pixels; {hint}") from error
