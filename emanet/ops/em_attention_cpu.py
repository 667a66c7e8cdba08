"""EM attention for CPUs where nothing needs a gradient: one N x K matrix at a time, products by oneDNN."""

import torch
from torch import Tensor

from .autocast import no_autocast


@torch.no_grad()
def em_attention_buffered(x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, eps: float) -> tuple[Tensor, Tensor]:
    """The same for CPUs, without gradient: image by image, with one matrix of N x K at a time and one copy of an X.

    Dividing the sums, C x K, replaces dividing the N x K responsibilities. y_BCN has the memory format of x_BCN.
    """
    with no_autocast("cpu"):
        y_BCN = torch.empty_like(x_BCN)
        dtype = torch.promote_types(x_BCN.dtype, torch.float32)
        mu_BCK = mu_1CK.detach().to(dtype).expand(len(x_BCN), -1, -1).clone(memory_format=torch.contiguous_format)
        for x_CN, y_CN, mu_CK in zip(x_BCN.detach(), y_BCN, mu_BCK, strict=True):
            x_CN = x_CN.to(dtype)
            x_CN, x_NC = x_CN.contiguous(), x_CN.T.contiguous()  # both rows are wanted; in either format one is there
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
    """a b, (P, R), of contiguous a: in float32 as oneDNN's 1x1 convolution of P pixels and Q channels.

    That is the same sum, at 2.3 times the rate of the matrix product on AMD processors, where the library behind
    torch.mm leaves half of the machine's width unused (docs/performance.md).
    """
    if a_PQ.dtype != torch.float32 or not torch.backends.mkldnn.is_available() or not a_PQ.numel():
        return a_PQ @ b_QR
    pixels_1QP1 = a_PQ[None, :, None].permute(0, 3, 1, 2)  # in channels_last order as it lies
    kernels_RQ11 = b_QR.T[:, :, None, None]
    out_1RP1 = torch.mkldnn_convolution(pixels_1QP1, kernels_RQ11, None, (0, 0), (1, 1), (1, 1), 1)
    return out_1RP1[0, :, :, 0].T.contiguous()


def fits_buffer(x_BCN: Tensor, mu_1CK: Tensor, gradient: str) -> bool:
    """Whether the input has content on the CPU, nothing traces it, and no gradient is wanted.

    The subclasses of Tensor are those that trace, count or distribute.
    """
    wanted = gradient != "detached" and torch.is_grad_enabled() and (x_BCN.requires_grad or mu_1CK.requires_grad)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x_BCN.device.type == "cpu" and type(x_BCN) is Tensor and not traced and not wanted and x_BCN.numel() > 0
