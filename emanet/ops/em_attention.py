"""EM attention (paper, section 3): K bases estimated from an image's N pixels, and the image rebuilt from them.

Shapes: B images, C channels, N pixels, K bases. x_BCN pixels, mu_BCK bases, z_BNK responsibilities.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

EPS = 1e-6  # the released code's, in both divisions of the M-step
Gradient = Literal["detached", "last", "unrolled"]


def em_attention(
    x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, gradient: Gradient = "detached", eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Run `steps` EM iterations on every image and rebuild it from the last bases and responsibilities.

    E-step (eq. 11): z = softmax over the bases of x^T mu.
    M-step (eq. 13, with the sum over pixels that it lacks): mu_k = sum_n z_nk x_n / (eps + sum_n z_nk), then each
    column over (eps + its norm). Rebuilding (eq. 14): y = mu z^T, with the z from before the last M-step.

    x_BCN: (B, C, N), any floating dtype, any real values. mu_1CK: (1, C, K) or (B, C, K), columns of unit norm.
    gradient: which iterations carry it to x. detached: none, as in the released code. last: the last iteration and
    the rebuilding, its starting bases being constants. unrolled: all of them, to mu_1CK too.
    Returns y_BCN in x's dtype and mu_BCK in float32. The arithmetic is float32 (float64 for float64 input) whatever
    autocast says.
    """
    if x_BCN.dim() != 3 or mu_1CK.dim() != 3 or x_BCN.shape[1] != mu_1CK.shape[1]:
        raise ValueError(f"need x (B, C, N) and bases (1, C, K), got {tuple(x_BCN.shape)} and {tuple(mu_1CK.shape)}")
    if steps < 1:
        raise ValueError(f"need at least one EM step, got {steps}")
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient is one of {', '.join(get_args(Gradient))}, not {gradient!r}")
    with torch.autocast(x_BCN.device.type, enabled=False):
        x = x_BCN.to(torch.promote_types(x_BCN.dtype, torch.float32))
        mu = mu_1CK.to(x.dtype).expand(len(x), -1, -1)
        for step in range(1, steps + 1):
            carries = gradient == "unrolled" or (gradient == "last" and step == steps)
            z_BNK, mu = em_step(x if carries else x.detach(), mu if gradient == "unrolled" else mu.detach(), eps)
        y_BCN = mu @ z_BNK.mT
    return y_BCN.to(x_BCN.dtype), mu


def em_step(x_BCN: Tensor, mu_BCK: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """One iteration: the responsibilities (B, N, K), each pixel's shares, which sum to 1 over K; and the new bases."""
    z_BNK = torch.softmax(x_BCN.mT @ mu_BCK, dim=2)
    weights_BNK = z_BNK / (eps + z_BNK.sum(dim=1, keepdim=True))
    return z_BNK, unit_columns(x_BCN @ weights_BNK, eps)


def unit_columns(mu_BCK: Tensor, eps: float = EPS) -> Tensor:
    """Each column divided by (eps + its L2 norm)."""
    return mu_BCK / (eps + torch.linalg.vector_norm(mu_BCK, dim=1, keepdim=True))
