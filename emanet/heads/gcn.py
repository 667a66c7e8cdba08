"""Global convolutional network (Peng et al., CVPR 2017): score maps from kernels almost as large as the image."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..config import HeadConfig
from .layers import last_stages, resize

KERNEL = 15  # k of section 4: the largest and best of Table 1


class GCNHead(nn.Module):
    """A large kernel and boundary refinement on each of the last four stages, resized and added from coarse to fine.

    Every map has one channel per class, so all layers belong to `classifier` and there is no dropout. The paper's
    learned upsampling is bilinear here, because neighbouring stages of a dilated backbone differ by a factor of 1 or 2.
    The logits have the size of the finest stage.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: HeadConfig):
        super().__init__()
        stages = last_stages(channels)
        self.classifier = nn.ModuleDict(
            {
                "large": nn.ModuleList(LargeKernel(c, classes, KERNEL) for c in stages),
                "refine": nn.ModuleList(BoundaryRefinement(classes) for _ in stages),
                "refine_sum": nn.ModuleList(BoundaryRefinement(classes) for _ in stages[1:]),
            }
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        large, refine, refine_sum = (cast(nn.ModuleList, layers) for layers in self.classifier.values())
        stages = zip(large, refine, last_stages(features), strict=True)
        *finer, total = (refined(kernel(x)) for kernel, refined, x in stages)
        for refined, scores in zip(refine_sum, reversed(finer), strict=True):
            total = refined(resize(total, scores.shape[2:]) + scores)
        return total


class LargeKernel(nn.Module):
    """A k x k convolution of rank two (section 3.1, figure 2 B): k x 1 then 1 x k, plus 1 x k then k x 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()

        def column(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, out_channels, (kernel, 1), padding=(kernel // 2, 0))

        def row(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, out_channels, (1, kernel), padding=(0, kernel // 2))

        self.left = nn.Sequential(column(in_channels), row(out_channels))
        self.right = nn.Sequential(row(in_channels), column(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class BoundaryRefinement(nn.Module):
    """x + conv(relu(conv(x))), 3x3 (section 3.2, figure 2 C)."""

    def __init__(self, channels: int):
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.residual = nn.Sequential(first, nn.ReLU(inplace=True), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)
