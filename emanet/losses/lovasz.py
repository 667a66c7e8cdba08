"""Lovász-softmax (arXiv 1705.08790): a convex surrogate of 1 - IoU, here of each image.

Of class c, with softmax probabilities p, each labelled pixel has the error m = 1 - p[c] where c is its label and
m = p[c] elsewhere (eq. 8). The loss of the class (eq. 9) is the Lovász extension of the Jaccard loss at m: the
errors, from the largest to the smallest, times what each adds to the Jaccard loss 1 - I/U of the pixels before it
(Algorithm 1). Of T pixels of class c and the first k errors, h of them at such pixels, I = T - h and U = T + k - h.
So an error adds

    1 / U                 where c is the label (I falls by one)
    I / (U * (U - 1))     elsewhere            (U grows by one)

which, unlike the difference of two fractions, float32 holds to its rounding. An image's loss is the mean over the
classes that it has, as in the paper's experiments. Class weights do not enter.
"""

import torch
from torch import Tensor

from ..config import IGNORE, LossConfig
from ..ops.uncompiled import uncompiled


@uncompiled  # shapes depend on the labels
def of_images(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """logits (B, classes, H, W), labels (B, H, W) int64 -> (B,), each in [0, 1]; 0 for an image without labels.

    Images do not depend on each other: over ranks and accumulated passes the mean is that of one large pass.
    """
    return torch.stack([_of_image(*image) for image in zip(logits, labels, strict=True)])


def _of_image(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (classes, H, W), labels (H, W) -> scalar."""
    valid = labels != IGNORE
    logits, labels = logits[:, valid], labels[valid]  # (classes, n), (n,)
    if not len(labels):
        return logits.sum()
    classes = labels.unique()
    p = logits.softmax(0)[classes]
    own = labels == classes[:, None]
    errors, order = torch.where(own, 1 - p, p).sort(dim=1, descending=True)  # NaN counts as the largest
    own = own.gather(1, order)
    hits = own.cumsum(1)
    total = hits[:, -1:]
    union = (total + torch.arange(1, len(labels) + 1, device=labels.device) - hits).to(p.dtype)
    added = torch.where(own, 1 / union, (total - hits) / (union * (union - 1)))
    return (errors * added).sum(1).mean()
