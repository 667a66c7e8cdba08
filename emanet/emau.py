"""The EM attention unit (paper, section 4): a residual block around EM attention, and the bases it keeps.

Shapes: B images, C channels, N = H * W pixels, K bases.
"""

import math

import torch
from torch import Tensor, nn

from . import distributed
from .ops.em_attention import EPS, Backend, Gradient, em_attention, unit_columns


class EMAU(nn.Module):
    """y = relu(x + BN(conv_out(relu(em_attention(conv_in(x))))))

    channels: C of input and output. num_bases: K. em_steps: T. bases_keep and renormalise: see `update_bases`.

    gradient and eps: see `em_attention`. With `detached` conv_in gets no gradient and stays a random projection.
    relu_out: one more ReLU between BN and the sum, as in PaddleSeg.
    backend: of `em_attention` on CUDA; auto elsewhere, so that a model trained with the kernels runs on any device.
    """

    bases: Tensor  # (1, C, K) float32, unit columns at the start

    def __init__(
        self,
        channels: int = 512,
        num_bases: int = 64,
        em_steps: int = 3,
        *,
        gradient: Gradient = "detached",
        eps: float = EPS,
        bases_keep: float = 0.9,
        renormalise: bool = False,
        relu_out: bool = False,
        backend: Backend = "auto",
    ):
        super().__init__()
        self.em_steps, self.gradient, self.eps, self.backend = em_steps, gradient, eps, backend
        self.bases_keep, self.renormalise, self.carries = bases_keep, renormalise, False
        self.conv_in = nn.Conv2d(channels, channels, 1).requires_grad_(gradient != "detached")
        self.conv_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn_out = nn.BatchNorm2d(channels)
        self.relu_out = nn.ReLU(inplace=True) if relu_out else nn.Identity()
        for conv in (self.conv_in, self.conv_out):
            nn.init.normal_(conv.weight, 0, math.sqrt(2 / channels))  # sqrt(2 / (kh * kw * out_channels))
        bases_1CK = torch.randn(1, channels, num_bases) * math.sqrt(2 / num_bases)
        self.register_buffer("bases", unit_columns(bases_1CK))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pixels_BCN = self.conv_in(x_BCHW).flatten(2)  # a view, also of channels_last memory
        rebuilt_BCN, mu_BCK = em_attention(
            pixels_BCN,
            self.bases.clone(),  # the buffer changes below, but the backward pass may need its value from here
            self.em_steps,
            gradient=self.gradient,
            eps=self.eps,
            backend=self.backend if x_BCHW.is_cuda else "auto",
        )
        if self.training:
            self.update_bases(mu_BCK)
        elif self.carries:  # see predict/carried.py
            self.bases = mu_BCK.detach()
        rebuilt_BCHW = rebuilt_BCN.unflatten(2, x_BCHW.shape[2:]).relu()
        return torch.relu(x_BCHW + self.relu_out(self.bn_out(self.conv_out(rebuilt_BCHW))))

    @torch.no_grad()
    def update_bases(self, mu_BCK: Tensor) -> None:
        """bases = bases_keep * bases + (1 - bases_keep) * mean of mu over the images of all ranks (section 4.2).

        The mean has columns shorter than 1; the released code keeps them so, other implementations renormalise them.
        """
        # The number of images is summed too, so that ranks may have different numbers of them.
        total = torch.cat([mu_BCK.sum(0).flatten(), mu_BCK.new_tensor([len(mu_BCK)])])
        distributed.sum_over_ranks(total)
        mean_1CK = (total[:-1] / total[-1]).view_as(self.bases)
        if self.renormalise:
            mean_1CK = unit_columns(mean_1CK, self.eps)
        # In place: DDP and compiled graphs hold this buffer's memory.
        self.bases.mul_(self.bases_keep).add_(mean_1CK, alpha=1 - self.bases_keep)
