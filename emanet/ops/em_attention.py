"""EM attention (paper, section 3): estimate K bases from an image's N pixels, and rebuild the image from them.

Shapes: B images, C channels, N pixels, K bases. x_BCN pixels, mu_BCK bases, z_BNK responsibilities.

`em_attention_plain` is the algorithm. `em_attention` runs it or, where nothing needs gradient, a faster form of it:
`em_attention_buffered` on a CPU with AVX-512, the kernels of em_attention_triton.py on CUDA for pixels of 16 bits.
benchmarks/em_attention.py measures them.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .autocast import no_autocast
from .em_attention_cpu import em_attention_buffered, fits_buffer

EPS = 1e-6  # the released code's, in both divisions of the M-step
Gradient = Literal["detached", "last", "unrolled"]
Backend = Literal["auto", "plain", "triton"]


def em_attention_plain(
    x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, gradient: Gradient = "detached", eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Run `steps` EM iterations on every image and rebuild it from the last bases and responsibilities.

    E-step (eq. 11): z = softmax over the bases of x^T mu.
    M-step (eq. 13, with the sum over pixels that it lacks): mu_k = sum_n z_nk x_n / (eps + sum_n z_nk), then each
    column over (eps + its norm). Rebuilding (eq. 14): y = mu z^T, with the z from before the last M-step.

    Arguments and results as in `em_attention`.
    """
    with no_autocast(x_BCN.device.type):
        x = x_BCN.to(torch.promote_types(x_BCN.dtype, torch.float32))
        mu = mu_1CK.to(x.dtype).expand(x.shape[0], -1, -1)
        for step in range(1, steps + 1):
            carries = gradient == "unrolled" or (gradient == "last" and step == steps)
            z_BNK, mu = em_step(x if carries else x.detach(), mu if gradient == "unrolled" else mu.detach(), eps)
        y_BCN = mu @ z_BNK.transpose(1, 2)
    return y_BCN.to(x_BCN.dtype), mu


def em_step(x_BCN: Tensor, mu_BCK: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """One iteration. Returns the responsibilities (B, N, K), which sum to 1 over K, and the new bases (B, C, K)."""
    z_BNK = torch.softmax(x_BCN.transpose(1, 2) @ mu_BCK, dim=2)
    weights_BNK = z_BNK / (eps + z_BNK.sum(dim=1, keepdim=True))
    return z_BNK, unit_columns(x_BCN @ weights_BNK, eps)


def unit_columns(mu_BCK: Tensor, eps: float = EPS) -> Tensor:
    """Divide each column by (eps + its L2 norm)."""
    return mu_BCK / (eps + torch.linalg.vector_norm(mu_BCK, dim=1, keepdim=True))


def em_attention(
    x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, gradient: Gradient = "detached", eps: float = EPS,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The function of `em_attention_plain`, by the code that `backend` names.

    x_BCN: (B, C, N), any floating dtype, any strides, any real values. mu_1CK: (1, C, K) or (B, C, K), columns of unit
    norm. gradient: the iterations that carry it to x. detached: none, as in the released code. last: the last iteration
    and the rebuilding, with constant bases before it. unrolled: all of them, also to mu_1CK.
    backend: plain uses PyTorch's own operations; on a CPU with AVX-512, without gradient, a faster form of them. triton
    uses fused kernels on CUDA, and raises InputError with the reason if they cannot take the input. auto: the fastest
    that has been measured, which is triton for bfloat16 and float16 without gradient on GPUs such as the H100 and H200.
    Returns y_BCN in x's dtype and mu_BCK in float32. The arithmetic is float32 (float64 for float64 input), also under
    autocast. Backends and gradient modes differ in rounding only. Raises ValueError for wrong shapes or options.
    """
    if x_BCN.dim() != 3 or mu_1CK.dim() != 3 or x_BCN.shape[1] != mu_1CK.shape[1]:
        raise ValueError(f"need x (B, C, N) and bases (1, C, K), got {tuple(x_BCN.shape)} and {tuple(mu_1CK.shape)}")
    if steps < 1:
        raise ValueError(f"need at least one EM step, got {steps}")
    for name, value, kinds in (("gradient", gradient, Gradient), ("backend", backend, Backend)):
        if value not in get_args(kinds):
            raise ValueError(f"{name} is one of {', '.join(get_args(kinds))}, not {value!r}")
    if backend == "triton" or (backend == "auto" and x_BCN.is_cuda):
        reason = _kernels_refuse(x_BCN, mu_1CK, gradient, backend)
        if not reason:
            from .em_attention_triton import em_attention_triton

            return em_attention_triton(x_BCN, mu_1CK, steps, eps=eps)
        if backend == "triton":
            raise InputError(f"EM attention cannot run with backend 'triton': {reason}; choose 'auto' or 'plain'")
    if fits_buffer(x_BCN, mu_1CK, gradient):
        return em_attention_buffered(x_BCN, mu_1CK, steps, eps=eps)
    return em_attention_plain(x_BCN, mu_1CK, steps, gradient=gradient, eps=eps)


def _kernels_refuse(x_BCN: Tensor, mu_1CK: Tensor, gradient: Gradient, backend: Backend) -> str:
    """Why the Triton kernels cannot do it, or why `auto` does not take them; empty if they can."""
    try:
        from .em_attention_triton import is_measured, refusal
    except ImportError as error:
        return str(error)
    if backend == "auto" and not is_measured(x_BCN.device):
        return "nobody has measured it on this kind of GPU"
    return refusal(x_BCN, mu_1CK.shape[2], gradient)
