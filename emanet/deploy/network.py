"""The network that engines get: normalised images in, low-resolution logits out."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class Network(nn.Module):
    """What engines get: normalised images (B, C, H, W), padded to the backbone's divisor, to low-resolution logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Pixels(nn.Module):
    """In the backbone's place: its facts, and the images themselves as the one map, so that Whole sees them."""

    def __init__(self, of: nn.Module):
        super().__init__()
        self.channels, self.stride, self.in_channels, self.divisor = of.channels, of.stride, of.in_channels, of.divisor

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class Whole(nn.Module):
    """In the head's place: an engine that runs backbone and head at once."""

    def __init__(self, run: Callable[[Tensor], Tensor]):
        super().__init__()
        self.run = run

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.run(features[-1])
