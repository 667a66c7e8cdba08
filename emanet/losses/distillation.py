"""Distillation: how far a network is from another one, its teacher (arXiv 1503.02531, section 2).

    loss of a pixel = t^2 * KL(q || p),  p = softmax(logits / t),  q = softmax(teacher / t)

A high temperature t shows the network which wrong classes the teacher finds likely; t^2 keeps the gradient's size. This
loss is not available in `loss.terms`, because it needs the teacher's logits as well as the labels.
"""

import torch.nn.functional as F
from torch import Tensor


def of_pixels(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """logits and the teacher's logits, both (B, classes, H, W), floating -> (B, H, W), at least 0."""
    log_p, log_q = ((x / temperature).log_softmax(1) for x in (logits, teacher.to(logits.dtype)))
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
