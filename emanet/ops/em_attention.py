"""EM attention (paper, section 3): K bases estimated from an image's N pixels, and the image rebuilt from them.

Shapes: B images, C channels, N pixels, K bases. x_BCN pixels, mu_BCK bases, z_BNK responsibilities.
"""

import torch
from torch import Tensor

EPS = 1e-6  # the released code's, in both divisions of the M-step


def em_attention(x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3) -> tuple[Tensor, Tensor]:
    """Run `steps` EM iterations on every image and rebuild it from the last bases and responsibilities.

    E-step (eq. 11): z = softmax over the bases of x^T mu.
    M-step (eq. 13, with the sum over pixels that it lacks): mu_k = sum_n z_nk x_n / (EPS + sum_n z_nk), then each
    column over (EPS + its norm). Rebuilding (eq. 14): y = mu z^T, with the z from before the last M-step.

    x_BCN: (B, C, N), any floating dtype, any real values. mu_1CK: (1, C, K) or (B, C, K), columns of unit norm.
    Returns y_BCN in x's dtype and mu_BCK in float32. The arithmetic is float32 (float64 for float64 input) whatever
    autocast says. No gradient flows, as in the released code.
    """
    if x_BCN.dim() != 3 or mu_1CK.dim() != 3 or x_BCN.shape[1] != mu_1CK.shape[1]:
        raise ValueError(f"need x (B, C, N) and bases (1, C, K), got {tuple(x_BCN.shape)} and {tuple(mu_1CK.shape)}")
    if steps < 1:
        raise ValueError(f"need at least one EM step, got {steps}")
    dtype = x_BCN.dtype
    with torch.no_grad(), torch.autocast(x_BCN.device.type, enabled=False):
        x = x_BCN.to(torch.promote_types(dtype, torch.float32))
        mu = mu_1CK.to(x.dtype).expand(len(x), -1, -1)
        for _ in range(steps):
            z_BNK = responsibilities(x, mu)
            mu = _m_step(x, z_BNK)
        y_BCN = mu @ z_BNK.mT
    return y_BCN.to(dtype), mu


def responsibilities(x_BCN: Tensor, mu_BCK: Tensor) -> Tensor:
    """E-step: (B, N, K) shares of each pixel among the bases, which sum to 1 over K."""
    return torch.softmax(x_BCN.mT @ mu_BCK, dim=2)


def _m_step(x_BCN: Tensor, z_BNK: Tensor) -> Tensor:
    weights_BNK = z_BNK / (EPS + z_BNK.sum(dim=1, keepdim=True))
    return unit_columns(x_BCN @ weights_BNK)


def unit_columns(mu_BCK: Tensor, eps: float = EPS) -> Tensor:
    """Each column divided by (eps + its L2 norm)."""
    return mu_BCK / (eps + torch.linalg.vector_norm(mu_BCK, dim=1, keepdim=True))
