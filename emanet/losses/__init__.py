"""Cross entropy over pixels: as a sum, so that whoever knows the whole batch divides once.

Over ranks and accumulated passes the mean of means is not the mean; sums and one common divisor are exact.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import IGNORE, LossConfig
from ..errors import InputError
from ..ops.upsample import upsample_cross_entropy


class PixelLoss(nn.Module):
    """loss(logits, labels) is a sum over pixels; divided by divisor(all labels of the step) it is the loss.

    of_low gives the same from logits at the stride of the head, without those at full size.
    """

    def __init__(self, config: LossConfig, classes: Sequence[str]):
        super().__init__()
        self.config = config
        if config.class_weights and len(config.class_weights) != len(classes):
            raise InputError(f"loss.class_weights has {len(config.class_weights)} values for {len(classes)} classes")
        weights = torch.tensor(config.class_weights, dtype=torch.float32) if config.class_weights else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits (B, classes, H, W), labels (B, H, W) uint8 or int64, 255 = ignored -> scalar sum, at least float32."""
        labels, logits = labels.long(), logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self._total(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none"), labels)

    def of_low(self, low: Tensor, labels: Tensor, padded: Sequence[int], align_corners: bool) -> Tensor:
        """The same of the logits that low (B, classes, h, w), spread over `padded`, has at the labels' pixels."""
        return self._total(upsample_cross_entropy(low, labels, padded, align_corners), labels)

    def divisor(self, labels: Tensor) -> Tensor:
        """The scalar float64 to divide by, of these labels alone; over ranks the divisors add up.

        average `all`: every pixel, ignored ones included (the released code); `valid`: the pixels that count, by
        weight. With OHEM the mean is over the kept pixels of each pass, and passes count by their size.
        """
        if self.config.average == "all" or self.config.ohem_threshold:
            return torch.tensor(float(labels.numel()), dtype=torch.float64, device=labels.device)
        if self.weights is None:
            return (labels != IGNORE).sum().double()
        counts = torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)
        return (counts[: len(self.weights)] * self.weights).sum().double()

    def _total(self, losses: Tensor, labels: Tensor) -> Tensor:
        """losses (B, H, W), 0 where labels are ignored -> scalar sum."""
        if self.config.ohem_threshold:
            return self._hard_pixels(losses, labels)
        if self.weights is not None:
            losses = losses * self._pixel_weights(labels, losses)
        return losses.sum()

    def _pixel_weights(self, labels: Tensor, losses: Tensor) -> Tensor:
        return self.weights.to(losses.dtype)[labels.long().masked_fill(labels == IGNORE, 0)]

    def _hard_pixels(self, losses: Tensor, labels: Tensor) -> Tensor:
        images, pixels = len(labels), labels.numel()
        valid = labels != IGNORE
        losses, labels = losses[valid], labels[valid]
        if not len(losses):
            return losses.sum()
        kept = min(len(losses), self.config.ohem_min_kept * images)
        hardest = losses.detach().topk(kept).values[-1] if kept else losses.new_tensor(math.inf)
        keep = ~(losses < hardest.clamp_max(-math.log(self.config.ohem_threshold)))  # NaN stays in, to be seen
        if self.weights is not None:
            losses = losses * self._pixel_weights(labels, losses)
        return losses[keep].sum() / keep.sum().clamp_min(1) * pixels
