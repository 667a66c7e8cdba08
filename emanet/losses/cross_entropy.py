"""Cross entropy of each pixel, by class weight where there are any: l = -log p[label]."""

from torch import Tensor

from ..config import LossConfig


def of_pixels(losses: Tensor, labels: Tensor, weights: Tensor | None, config: LossConfig) -> Tensor:
    """Cross entropy (B, H, W), 0 at ignored pixels -> (B, H, W)."""
    return losses if weights is None else losses * weights
