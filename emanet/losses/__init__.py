"""The loss: weighted terms, one file each, from which the config chooses (`loss.terms`).

A term returns its loss of each pixel (B, H, W), of each image (B,), or of the whole pass (). PixelLoss turns any of
them into a sum over pixels, so that a training step divides once, by a divisor that adds up over ranks and passes.
The mean of means would not be the mean.

To add a loss: write its file here and add its line to OF_CROSS_ENTROPY or OF_LOGITS.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import IGNORE, LossConfig
from ..errors import InputError, suggest
from ..ops.autocast import no_autocast
from ..ops.upsample import full_size, upsample_cross_entropy
from . import boundary, cross_entropy, dice, distillation, lovasz, ohem

OF_CROSS_ENTROPY: dict[str, Callable[[Tensor, Tensor, Tensor | None, LossConfig], Tensor]] = {
    "cross_entropy": cross_entropy.of_pixels,
    "ohem": ohem.of_pass,
    "boundary": boundary.of_pixels,
}
"""term(losses, labels, weights, config), from the cross entropy of each pixel. Needs no logits at full size.

losses (B, H, W) float32 or float64, 0 at ignored pixels; labels (B, H, W) uint8 or int64, 255 = ignored; weights
(B, H, W), each pixel's class weight, or None.
"""
OF_LOGITS: dict[str, Callable[[Tensor, Tensor, LossConfig], Tensor]] = {
    "dice": dice.of_images,
    "lovasz": lovasz.of_images,
}
"""term(logits, labels, config): logits (B, classes, H, W) float32 or float64, labels (B, H, W) int64, 255 = ignored."""


class PixelLoss(nn.Module):
    """The config's terms as one sum over pixels. Divided by `divisor(all labels of the step)` it is the loss.

    An image's loss counts by the image's part of the divisor, a pass's loss by the pass's part. So with average `all`
    a term of images is their mean; with `valid`, images weigh by their labelled pixels.
    """

    weights: Tensor | None

    def __init__(self, config: LossConfig, classes: Sequence[str]):
        """Raises InputError for an unknown term, and for class weights that do not fit the classes."""
        super().__init__()
        for name, _ in config.terms:
            if name not in OF_CROSS_ENTROPY and name not in OF_LOGITS:
                hint = suggest(name, (*OF_CROSS_ENTROPY, *OF_LOGITS))
                raise InputError(f"loss.terms has an unknown loss {name!r}{hint}")
        if config.class_weights and len(config.class_weights) != len(classes):
            raise InputError(f"loss.class_weights has {len(config.class_weights)} values for {len(classes)} classes")
        self.config = config
        self.pixel_terms = [term for term in config.terms if term[0] in OF_CROSS_ENTROPY]
        self.logit_terms = [term for term in config.terms if term[0] in OF_LOGITS]
        weights = torch.tensor(config.class_weights, dtype=torch.float32) if config.class_weights else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """logits (B, classes, H, W), labels (B, H, W) uint8 or int64, 255 = ignored -> scalar sum.

        teacher: the logits of another network, (B, classes, H, W), to come close to at the labelled pixels.
        Computed in float32 (float64 for float64 logits) whatever autocast says.
        """
        with no_autocast(logits.device.type):
            labels, logits = labels.long(), logits.to(torch.promote_types(logits.dtype, torch.float32))
            values = [(OF_LOGITS[name](logits, labels, self.config), weight) for name, weight in self.logit_terms]
            if teacher is not None:
                apart = distillation.of_pixels(logits, teacher, self.config.distill_temperature)
                weights = self._of_pixels(labels)
                apart = apart.masked_fill(labels == IGNORE, 0) if weights is None else apart * weights
                values.append((apart, self.config.distill_weight))
            total = self._sum(values, labels)
            if not self.pixel_terms:
                return total
            losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
            return total + self._of_losses(losses, labels)

    def of_low(
        self, low: Tensor, labels: Tensor, padded: Sequence[int], align_corners: bool, teacher: Tensor | None = None
    ) -> Tensor:
        """The same from logits at the head's stride, without those at full size where every term allows it.

        low (B, classes, h, w) is upsampled to the size `padded`; the labels' (H, W) are its upper left part.
        """
        if not self.logit_terms and teacher is None:
            return self._of_losses(upsample_cross_entropy(low, labels, padded, align_corners), labels)
        with no_autocast(low.device.type):
            return self(full_size(low, padded, labels.shape[1:], align_corners), labels, teacher)

    def divisor(self, labels: Tensor) -> Tensor:
        """The scalar float64 to divide by, for these labels alone; over ranks and passes the divisors add up.

        average `all`: every pixel, ignored ones included (the released code); `valid`: the labelled pixels, each by
        its class weight.
        """
        if self.config.average == "valid" and self.weights is not None:
            return (self._counts(labels).sum(0) * self.weights).sum().double()
        return self._shares(labels).sum()

    def _shares(self, labels: Tensor) -> Tensor:
        """(B,) float64: each image's part of the divisor."""
        if self.config.average == "all":
            size = float(labels[0].numel()) if len(labels) else 0.0
            return torch.full((len(labels),), size, dtype=torch.float64, device=labels.device)
        if self.weights is None:
            return (labels != IGNORE).flatten(1).sum(1).double()
        return (self._counts(labels) * self.weights).sum(1).double()

    def _counts(self, labels: Tensor) -> Tensor:
        """(B, classes) int64: each image's pixels of each class."""
        start = (IGNORE + 1) * torch.arange(len(labels), device=labels.device)[:, None]
        counts = torch.bincount((labels.flatten(1).long() + start).flatten(), minlength=(IGNORE + 1) * len(labels))
        return counts.view(len(labels), IGNORE + 1)[:, : len(self.config.class_weights)]

    def _of_pixels(self, labels: Tensor) -> Tensor | None:
        """(B, H, W): each pixel's class weight, 0 where it is ignored; None without class weights."""
        if self.weights is None:
            return None
        ignored = labels == IGNORE
        return self.weights[labels.long().masked_fill(ignored, 0)].masked_fill(ignored, 0)

    def _of_losses(self, losses: Tensor, labels: Tensor) -> Tensor:
        """The terms of OF_CROSS_ENTROPY, from the cross entropy of each pixel (B, H, W) -> scalar sum."""
        weights = self._of_pixels(labels)
        weights = None if weights is None else weights.to(losses.dtype)
        terms = [(OF_CROSS_ENTROPY[name], weight) for name, weight in self.pixel_terms]
        return self._sum([(term(losses, labels, weights, self.config), weight) for term, weight in terms], labels)

    def _sum(self, values: Sequence[tuple[Tensor, float]], labels: Tensor) -> Tensor:
        """Losses of pixels (B, H, W), of images (B,) or of the pass (), and their weights -> scalar sum over pixels."""
        total = torch.zeros((), device=labels.device)
        for value, weight in values:
            if value.dim() == 1:
                value = value * self._shares(labels).to(value.dtype)
            elif value.dim() == 0:
                value = value * self._shares(labels).sum().to(value.dtype)
            total = total + weight * value.sum()
        return total
