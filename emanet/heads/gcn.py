"""Global convolutional network (Peng et al., CVPR 2017): score maps from kernels almost as large as the image."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import HeadConfig
from .layers import last_stages, resize

KERNEL = 15  # k of section 4: the largest and best of Table 1


class GCNHead(nn.Module):
    """On each of the last four stages a large kernel and boundary refinement; from coarse to fine resized and added.

    Every map here has one channel per class, so that all layers are `classifier` and dropout has no place. The paper's
    learned upsampling is bilinear here: stages of a dilated backbone differ by 1 or 2, and stop at the finest stage.
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
        layers = (self.classifier["large"], self.classifier["refine"], last_stages(features))
        *finer, total = (refine(large(x)) for large, refine, x in zip(*layers, strict=True))
        for refine, scores in zip(self.classifier["refine_sum"], reversed(finer), strict=True):
            total = refine(resize(total, scores.shape[2:]) + scores)
        return total


class LargeKernel(nn.Module):
    """A k x k convolution of rank two (section 3.1, figure 2 B): k x 1 then 1 x k, plus 1 x k then k x 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        column = {"kernel_size": (kernel, 1), "padding": (kernel // 2, 0)}
        row = {"kernel_size": (1, kernel), "padding": (0, kernel // 2)}
        self.left = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, **column), nn.Conv2d(out_channels, out_channels, **row)
        )
        self.right = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, **row), nn.Conv2d(out_channels, out_channels, **column)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class BoundaryRefinement(nn.Module):
    """x + conv(relu(conv(x))), 3x3 (section 3.2, figure 2 C)."""

    def __init__(self, channels: int):
        super().__init__()
        conv, again = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.residual = nn.Sequential(conv, nn.ReLU(inplace=True), again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)
