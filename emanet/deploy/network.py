"""The network that an engine runs, how an EMANet calls an engine, and converters without their chatter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ..backbones import Backbone


class Network(nn.Module):
    """Backbone and head: normalised images (B, C, H, W), padded to the backbone's divisor, to low-resolution logits."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Pixels(nn.Module):
    """Stands in for the backbone: says the same about itself, and hands the images on as its only feature map."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.channels, self.stride = backbone.channels, backbone.stride
        self.in_channels, self.divisor = backbone.in_channels, backbone.divisor

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class Whole(nn.Module):
    """Stands in for the head: an engine that runs the backbone and the head."""

    def __init__(self, run: Callable[[Tensor], Tensor]):
        super().__init__()
        self.run = run

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.run(features[-1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what tracers, exporters and quantisers print and warn of: the results are compared afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
