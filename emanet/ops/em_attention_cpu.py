"""EM attention on the CPU without gradient: one N x K matrix at a time, products by oneDNN."""

import torch
from torch import Tensor

from ..processor import is_wide
from .autocast import no_autocast


@torch.no_grad()
def em_attention_buffered(x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, eps: float) -> tuple[Tensor, Tensor]:
    """`em_attention_plain` without gradient, image by image, with one N x K matrix and one copy of X at a time.

    The C x K sums are divided instead of the N x K responsibilities. y_BCN has the memory format of x_BCN.
    """
    with no_autocast("cpu"):
        y_BCN = torch.empty_like(x_BCN)
        dtype = torch.promote_types(x_BCN.dtype, torch.float32)
        mu_BCK = mu_1CK.detach().to(dtype).expand(len(x_BCN), -1, -1).clone(memory_format=torch.contiguous_format)
        for x_CN, y_CN, mu_CK in zip(x_BCN.detach(), y_BCN, mu_BCK, strict=True):
            x_CN = x_CN.to(dtype)
            x_CN, x_NC = x_CN.contiguous(), x_CN.T.contiguous()  # one of the two is a view, in either format
            for step in range(1, steps + 1):
                z_NK = product(x_NC, mu_CK)
                torch.softmax(z_NK, dim=1, out=z_NK)
                sums_CK = product(x_CN, z_NK)
                sums_CK /= eps + z_NK.sum(dim=0)
                torch.div(sums_CK, eps + torch.linalg.vector_norm(sums_CK, dim=0), out=mu_CK)
                if step < steps:
                    del z_NK  # before the next one is made
            del x_CN, x_NC
            y_CN.copy_(product(mu_CK, z_NK.T) if y_CN.is_contiguous() else product(z_NK, mu_CK.T).T)
    return y_BCN, mu_BCK


def product(a_PQ: Tensor, b_QR: Tensor) -> Tensor:
    """The matrix product a b, (P, R), of a contiguous a; in float32 as oneDNN's 1x1 convolution of P pixels.

    The convolution computes the same sums, 2.3 times as fast as torch.mm on an AMD processor, where the library behind
    torch.mm uses only half of the vector width (docs/performance.md).
    """
    if a_PQ.dtype != torch.float32 or not torch.backends.mkldnn.is_available() or not a_PQ.numel():
        return a_PQ @ b_QR
    pixels_1QP1 = a_PQ[None, :, None].permute(0, 3, 1, 2)  # a view, in channels_last order
    kernels_RQ11 = b_QR.T[:, :, None, None]
    out_1RP1 = torch.mkldnn_convolution(pixels_1QP1, kernels_RQ11, None, (0, 0), (1, 1), (1, 1), 1)
    return out_1RP1[0, :, :, 0].T.contiguous()


def fits_buffer(x_BCN: Tensor, mu_1CK: Tensor, gradient: str) -> bool:
    """Whether the input is a non-empty plain CPU tensor, is not being traced, and needs no gradient, with AVX-512.

    Without AVX-512 the plain formulas are faster, by a sixth. Subclasses of Tensor trace, count or distribute
    operations.
    """
    needed = gradient != "detached" and torch.is_grad_enabled() and (x_BCN.requires_grad or mu_1CK.requires_grad)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    plain = type(x_BCN) is Tensor and not traced and x_BCN.numel() > 0
    return x_BCN.device.type == "cpu" and plain and not needed and is_wide()
