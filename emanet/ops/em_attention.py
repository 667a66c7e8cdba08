"""EM attention (paper, section 3): K bases estimated from an image's N pixels, and the image rebuilt from them.

Shapes: B images, C channels, N pixels, K bases. x_BCN pixels, mu_BCK bases, z_BNK responsibilities.

`em_attention_plain` is the algorithm. `em_attention` runs it, or what computes the same faster: `em_attention_buffered`
on the CPU where nothing needs gradient, em_attention_triton.py on CUDA. benchmarks/em_attention.py measures them.
"""

import functools
import logging
from typing import Literal, get_args

import torch
from torch import Tensor

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


def em_attention(
    x_BCN: Tensor,
    mu_1CK: Tensor,
    steps: int = 3,
    *,
    gradient: Gradient = "detached",
    eps: float = EPS,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`em_attention_plain` by the fastest code that takes the input.

    x_BCN: (B, C, N), any floating dtype, any strides, any real values. mu_1CK: (1, C, K) or (B, C, K), columns of unit
    norm. gradient: which iterations carry it to x. detached: none, as in the released code. last: the last iteration
    and the rebuilding, its starting bases being constants. unrolled: all of them, to mu_1CK too.
    backend: auto is triton on CUDA where triton is there and takes the shapes, else plain, with the reason logged once.
    plain is PyTorch's own operations. triton that cannot be had is a ValueError with the reason.
    Returns y_BCN in x's dtype and mu_BCK in float32. The arithmetic is float32 (float64 for float64 input) whatever
    autocast says. The backends and gradient modes differ in rounding only.
    """
    if x_BCN.dim() != 3 or mu_1CK.dim() != 3 or x_BCN.shape[1] != mu_1CK.shape[1]:
        raise ValueError(f"need x (B, C, N) and bases (1, C, K), got {tuple(x_BCN.shape)} and {tuple(mu_1CK.shape)}")
    if steps < 1:
        raise ValueError(f"need at least one EM step, got {steps}")
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient is one of {', '.join(get_args(Gradient))}, not {gradient!r}")
    if backend not in get_args(Backend):
        raise ValueError(f"backend is one of {', '.join(get_args(Backend))}, not {backend!r}")
    run = em_attention_plain
    if backend == "triton" or (backend == "auto" and x_BCN.device.type == "cuda"):
        reason = _triton_refusal(x_BCN, mu_1CK.shape[2])
        if not reason:
            from .em_attention_triton import em_attention_triton as run
        elif backend == "triton":
            raise ValueError(f"backend='triton' cannot be had: {reason}")
        elif not torch.compiler.is_compiling():
            _log_once(f"EM attention runs without its Triton kernels: {reason}")
    elif fits_buffer(x_BCN, mu_1CK, gradient):
        return em_attention_buffered(x_BCN, mu_1CK, steps, eps=eps)
    return run(x_BCN, mu_1CK, steps, gradient=gradient, eps=eps)


def _triton_refusal(x_BCN: Tensor, bases: int) -> str:
    """Why the kernels cannot be had for this input; empty where they can."""
    try:
        from .em_attention_triton import refusal
    except ImportError as error:
        return str(error)
    return refusal(x_BCN, bases)


@functools.cache
def _log_once(message: str) -> None:
    logging.getLogger("emanet").warning(message)
