"""EM attention in fused Triton kernels, forward and backward: `em_attention(backend="triton")`. Needs triton and CUDA.

Shapes as in em_attention.py: B images, C channels, N pixels, K bases; T iterations, S parts of an image's pixels. Bases
are stored as mu_BKC here, so that the channels of a base are contiguous. README.md beside this file has the formulas.

One iteration reads X once from memory. A program takes one part of an image's pixels, tile by tile. For each tile it
sums X^T mu over chunks of channels, takes the softmax, and reads the same chunks again, now from the L2 cache, to add
Z^T X to its own sums in scratch memory (S x K x C). A small kernel adds the parts in a fixed order and normalises.
There are no atomics, and the parts depend on the shapes alone, so the same input gives the same bits. The only N x K
matrix in memory is the last Z: writing and reading it costs 8K bytes per pixel; computing it again would cost another
reading of X (C times the bytes of a value: at K = 64, C = 512, bf16, twice as much) and one more product.

Sums and the softmax are float32. Products of float32 follow torch.get_float32_matmul_precision(): "highest", PyTorch's
default, is IEEE float32; "high" is three TF32 products, whose sum is almost as exact; "medium" is TF32.

X may have any strides; (B, C, N) and channels_last memory are read in whole cache lines. Offsets have 64 bits.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BASES, MAX_CHANNELS = 256, 8192  # a tile's softmax, and one base in the kernel that normalises, fit in registers
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PROGRAMS = 256  # about two per multiprocessor of a large GPU; a constant, so that results do not depend on the GPU
CHANNELS = 16  # per chunk
PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}


def refusal(x_BCN: Tensor, bases: int) -> str:
    """Why these kernels cannot take the input; empty if they can."""
    if x_BCN.device.type not in ("cuda", "meta") and not INTERPRETED:
        return f"it runs on CUDA, and the input is on {x_BCN.device.type}"
    if x_BCN.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {x_BCN.dtype}"
    if bases > MAX_BASES or x_BCN.shape[1] > MAX_CHANNELS:
        return f"it takes {MAX_BASES} bases and {MAX_CHANNELS} channels at most, not {bases} and {x_BCN.shape[1]}"
    if x_BCN.numel() == 0:
        return "the input is empty"
    return ""


def em_attention_triton(
    x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, gradient: str = "detached", eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """`em_attention` by the kernels; see there. y_BCN has the memory format of x_BCN. No second derivatives."""
    carried = {"detached": 0, "last": 1, "unrolled": steps}[gradient]
    mu_BKC = mu_1CK.mT.to(torch.float32).expand(len(x_BCN), -1, -1)
    y_BCN, mu_TBKC, _ = em_forward(
        x_BCN if carried else x_BCN.detach(), mu_BKC if gradient == "unrolled" else mu_BKC.detach(), steps, eps, carried
    )
    return y_BCN, mu_TBKC[-1].mT


@torch.library.custom_op("emanet::em_forward", mutates_args=())
def em_forward(x_BCN: Tensor, mu_BKC: Tensor, steps: int, eps: float, carried: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y_BCN, the bases mu_TBKC, T + 1 of them from mu_BKC on, and what the M-steps divided by, scale_2TBK:
    the sum of a base's responsibilities, then its norm, each without eps. carried: see em_backward.
    """
    mu_TBKC, scale_2TBK = _outputs(x_BCN, mu_BKC, steps)
    mu_TBKC[0] = mu_BKC
    plan = _Plan(x_BCN, mu_BKC.shape[1])
    z_BNK = x_BCN.new_empty((plan.B, plan.N, plan.K), dtype=torch.float32)
    sums_BSKC, weights_BSK = plan.scratch()
    for step in range(steps):
        last = step == steps - 1
        plan.accumulate(x_BCN, x_BCN, mu_TBKC[step], sums_BSKC, weights_BSK, z_BNK if last else None)
        plan.new_bases(sums_BSKC, weights_BSK, mu_TBKC[step + 1], scale_2TBK[0, step], scale_2TBK[1, step], eps)
    y_BCN = torch.empty_like(x_BCN)
    plan.rebuild(mu_TBKC[steps], z_BNK, y_BCN)
    return y_BCN, mu_TBKC, scale_2TBK


@torch.library.custom_op("emanet::em_backward", mutates_args=())
def em_backward(
    g_y_BCN: Tensor, g_mu_BKC: Tensor, x_BCN: Tensor, mu_TBKC: Tensor, scale_2TBK: Tensor, eps: float, carried: int
) -> tuple[Tensor, Tensor]:
    """Gradients with regard to x and to the bases before the last `carried` iterations, which alone carry it.

    The formulas are in README.md. Z is computed again from x and the bases, tile by tile.
    """
    plan = _Plan(x_BCN, mu_TBKC.shape[2])
    sums_BSKC, weights_BSK = plan.scratch()
    steps = len(mu_TBKC) - 1
    plan.accumulate(x_BCN, g_y_BCN, mu_TBKC[steps - 1], sums_BSKC, weights_BSK, None)
    g_mu_BKC = g_mu_BKC + sums_BSKC.sum(1)
    # One iteration's gradient is written as it is; several are added in float32.
    g_x_BCN = torch.empty_like(x_BCN, dtype=x_BCN.dtype if carried == 1 else torch.float32)
    for step in range(steps, steps - carried, -1):
        mu, (weight, norm) = mu_TBKC[step], scale_2TBK[:, step - 1, ..., None]
        along = mu * (mu * g_mu_BKC).sum(2, keepdim=True)
        g_mean = g_mu_BKC / (eps + norm) - torch.where(norm > 0, along / norm, 0.0)
        g_sum_BKC = g_mean / (eps + weight)
        g_weight_BK = -(g_sum_BKC * mu * (eps + norm)).sum(2)
        plan.step_backward(
            x_BCN, g_y_BCN, mu_TBKC[step - 1], mu, g_sum_BKC, g_weight_BK, g_x_BCN, sums_BSKC, last=step == steps
        )
        g_mu_BKC = sums_BSKC.sum(1)
    return g_x_BCN.to(x_BCN.dtype), g_mu_BKC


def _outputs(x_BCN: Tensor, mu_BKC: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    B, K, C = mu_BKC.shape
    return (
        x_BCN.new_empty((steps + 1, B, K, C), dtype=torch.float32),
        x_BCN.new_empty((2, steps, B, K), dtype=torch.float32),
    )


@em_forward.register_fake
def _(x_BCN, mu_BKC, steps, eps, carried):
    return torch.empty_like(x_BCN), *_outputs(x_BCN, mu_BKC, steps)


@em_backward.register_fake
def _(g_y_BCN, g_mu_BKC, x_BCN, mu_TBKC, scale_2TBK, eps, carried):
    return torch.empty_like(x_BCN), torch.empty_like(mu_TBKC[0])


def _save(ctx, inputs, output):
    x_BCN, _, _, ctx.eps, ctx.carried = inputs
    ctx.save_for_backward(x_BCN, *output[1:])


def _backward(ctx, g_y_BCN, g_mu_TBKC, _):
    g_x_BCN, g_mu_BKC = em_backward(g_y_BCN, g_mu_TBKC[-1], *ctx.saved_tensors, ctx.eps, ctx.carried)
    return g_x_BCN, g_mu_BKC if ctx.needs_input_grad[1] else None, None, None, None


em_forward.register_autograd(_backward, setup_context=_save)


class _Plan:
    """How the work on one shape is divided, and the kernel launches."""

    def __init__(self, x_BCN: Tensor, K: int):
        self.B, self.C, self.N = x_BCN.shape
        self.K, self.x = K, x_BCN
        bk = max(16, triton.next_power_of_2(K))  # products of matrix units have sides of 16 at least
        # The tiles with which the compiler keeps the sums in registers (its report for an A100). IEEE products need
        # more of those than TF32's; 256 bases leave no shared memory for the parts of TF32 numbers, nor to load ahead.
        precision = "ieee" if bk > 128 else PRECISIONS[torch.get_float32_matmul_precision()]
        bn = 16 if bk > 64 else 32 if precision == "ieee" else 64
        tiles = triton.cdiv(self.N, bn)
        self.tiles = triton.cdiv(tiles, max(1, PROGRAMS // self.B))  # of a part
        self.S = triton.cdiv(tiles, self.tiles)
        self.blocks = {"BN": bn, "BC": CHANNELS, "BK": bk, "PRECISION": precision}
        self.blocks |= {"num_warps": 4 if bk <= 16 else 8, "num_stages": 1 if bk > 128 else 2}
        self.device = torch.cuda.device(x_BCN.device) if x_BCN.is_cuda else contextlib.nullcontext()

    def scratch(self) -> tuple[Tensor, Tensor]:
        shape = (self.B, self.S, self.K)
        return torch.empty(*shape, self.C, device=self.x.device), torch.empty(shape, device=self.x.device)

    def accumulate(
        self, x: Tensor, v: Tensor, mu_BKC: Tensor, sums_BSKC: Tensor, weights_BSK: Tensor, z_BNK: Tensor | None
    ) -> None:
        with self.device:
            accumulate_kernel[self.B, self.S](
                x, v, mu_BKC, sums_BSKC, weights_BSK, mu_BKC if z_BNK is None else z_BNK, self.C, self.N, self.K,
                *x.stride(), *v.stride(), self.tiles, KEEP_Z=z_BNK is not None, **self.blocks,
            )  # fmt: skip

    def new_bases(
        self, sums_BSKC: Tensor, weights_BSK: Tensor, mu_BKC: Tensor, weight_BK: Tensor, norm_BK: Tensor, eps: float
    ) -> None:
        with self.device:
            new_bases_kernel[self.B, self.K](
                sums_BSKC, weights_BSK, mu_BKC, weight_BK, norm_BK, self.C, self.K, self.S, eps,
                BC=triton.next_power_of_2(self.C),
            )  # fmt: skip

    def rebuild(self, mu_BKC: Tensor, z_BNK: Tensor, y: Tensor) -> None:
        bn, bc = self.blocks["BN"], self.blocks["BC"]
        with self.device:
            rebuild_kernel[triton.cdiv(self.N, bn), triton.cdiv(self.C, bc), self.B](
                mu_BKC, z_BNK, y, self.C, self.N, self.K, *y.stride(), **self.blocks
            )

    def step_backward(
        self, x: Tensor, g_y: Tensor, before_BKC: Tensor, after_BKC: Tensor, g_sum_BKC: Tensor, g_weight_BK: Tensor,
        g_x: Tensor, sums_BSKC: Tensor, *, last: bool,
    ) -> None:  # fmt: skip
        with self.device:
            step_backward_kernel[self.B, self.S](
                x, g_y, before_BKC, after_BKC, g_sum_BKC.contiguous(), g_weight_BK.contiguous(), g_x, sums_BSKC,
                self.C, self.N, self.K, *x.stride(), *g_y.stride(), *g_x.stride(), self.tiles, LAST=last, **self.blocks,
            )  # fmt: skip


@triton.jit
def responsibilities(scores_NK, n, k, N, K):
    """Softmax over the bases; 0 for the pixels and bases that only pad the tile."""
    scores_NK = tl.where((k < K)[None, :], scores_NK, -float("inf"))
    z_NK = tl.exp(scores_NK - tl.max(scores_NK, 1)[:, None])
    return tl.where((n < N)[:, None], z_NK / tl.sum(z_NK, 1)[:, None], 0.0)


@triton.jit
def accumulate_kernel(
    x_ptr, v_ptr, mu_ptr, sums_ptr, weights_ptr, z_ptr, C, N, K, x_B, x_C, x_N, v_B, v_C, v_N, tiles,
    KEEP_Z: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Over the pixels of one part: sums_KC = Z^T V and weights_K = sums of Z, with Z of X and the bases. V is X forward
    and y's gradient backward.
    """
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    k, c = tl.arange(0, BK), tl.arange(0, BC).to(tl.int64)
    x_ptr, v_ptr, mu_ptr = x_ptr + image * x_B, v_ptr + image * v_B, mu_ptr + image * K * C
    part_BS = image * tl.num_programs(1) + part
    weights_K = tl.zeros((BK,), tl.float32)
    for tile in range(0, tiles):
        n = (part * tiles + tile) * BN + tl.arange(0, BN).to(tl.int64)
        scores_NK = tl.zeros((BN, BK), tl.float32)
        for start in range(0, C, BC):
            cc = start + c
            x_NC = tl.load(x_ptr + n[:, None] * x_N + cc[None, :] * x_C, (n < N)[:, None] & (cc < C)[None, :], 0.0).to(
                tl.float32
            )
            mu_KC = tl.load(mu_ptr + k[:, None] * C + cc[None, :], (k < K)[:, None] & (cc < C)[None, :], 0.0)
            scores_NK = tl.dot(x_NC, tl.trans(mu_KC), scores_NK, input_precision=PRECISION)
        z_NK = responsibilities(scores_NK, n, k, N, K)
        weights_K += tl.sum(z_NK, 0)
        if KEEP_Z:
            z_offset = (image * N + n[:, None]) * K + k[None, :]
            tl.store(z_ptr + z_offset, z_NK, (n < N)[:, None] & (k < K)[None, :])
        for start in range(0, C, BC):
            cc = start + c
            v_NC = tl.load(v_ptr + n[:, None] * v_N + cc[None, :] * v_C, (n < N)[:, None] & (cc < C)[None, :], 0.0).to(
                tl.float32
            )
            own = sums_ptr + (part_BS * K + k[:, None]) * C + cc[None, :]
            inside = (k < K)[:, None] & (cc < C)[None, :]
            sums_KC = tl.load(own, inside & (tile > 0), 0.0)  # scratch memory is not initialised: tile 0 starts at 0
            tl.store(own, tl.dot(tl.trans(z_NK), v_NC, sums_KC, input_precision=PRECISION), inside)
        tl.debug_barrier()  # the next tile loads what other threads of this program may have stored
    tl.store(weights_ptr + part_BS * K + k, weights_K, k < K)


@triton.jit
def new_bases_kernel(
    sums_ptr, weights_ptr, mu_ptr, weight_ptr, norm_ptr, C, K, parts, eps, BC: tl.constexpr
):  # fmt: skip
    """One base of one image: the parts' sums, added in order; the mean; its norm; the unit base."""
    image, base = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BC)
    sum_C, weight = tl.zeros((BC,), tl.float32), tl.zeros((1,), tl.float32)
    for part in range(parts):
        row = (image * parts + part) * K + base
        sum_C += tl.load(sums_ptr + row * C + c, c < C, 0.0)
        weight += tl.load(weights_ptr + row + tl.arange(0, 1))
    mean_C = sum_C / (eps + weight)
    norm = tl.sqrt(tl.sum(mean_C * mean_C, 0, keep_dims=True))
    row = image * K + base
    tl.store(mu_ptr + row * C + c, mean_C / (eps + norm), c < C)
    tl.store(weight_ptr + row + tl.arange(0, 1), weight)
    tl.store(norm_ptr + row + tl.arange(0, 1), norm)


@triton.jit
def rebuild_kernel(
    mu_ptr, z_ptr, y_ptr, C, N, K, y_B, y_C, y_N,
    BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of y = mu Z^T."""
    image = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    c = tl.program_id(1).to(tl.int64) * BC + tl.arange(0, BC)
    k = tl.arange(0, BK)
    z_NK = tl.load(z_ptr + (image * N + n[:, None]) * K + k[None, :], (n < N)[:, None] & (k < K)[None, :], 0.0)
    mu_KC = tl.load(mu_ptr + (image * K + k[:, None]) * C + c[None, :], (k < K)[:, None] & (c < C)[None, :], 0.0)
    y_NC = tl.dot(z_NK, mu_KC, input_precision=PRECISION)
    y = y_ptr + image * y_B + n[:, None] * y_N + c[None, :] * y_C
    tl.store(y, y_NC.to(y_ptr.dtype.element_ty), (n < N)[:, None] & (c < C)[None, :])


@triton.jit
def step_backward_kernel(
    x_ptr, g_y_ptr, before_ptr, after_ptr, g_sum_ptr, g_weight_ptr, g_x_ptr, sums_ptr, C, N, K,
    x_B, x_C, x_N, g_y_B, g_y_C, g_y_N, g_x_B, g_x_C, g_x_N, tiles,
    LAST: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One iteration backward over the pixels of one part, in README.md's order: g_Z, g_S, g_X, and sums_KC = g_S^T X,
    the gradient of the bases before it. The last iteration comes first: it writes g_X, the others add to it.
    """
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    k, c = tl.arange(0, BK), tl.arange(0, BC).to(tl.int64)
    x_ptr, g_y_ptr, g_x_ptr = x_ptr + image * x_B, g_y_ptr + image * g_y_B, g_x_ptr + image * g_x_B
    g_weight_K = tl.load(g_weight_ptr + image * K + k, k < K, 0.0)
    for tile in range(0, tiles):
        n = (part * tiles + tile) * BN + tl.arange(0, BN).to(tl.int64)
        scores_NK, g_z_NK = tl.zeros((BN, BK), tl.float32), tl.zeros((BN, BK), tl.float32)
        for start in range(0, C, BC):
            cc = start + c
            inside_NC, inside_KC = (n < N)[:, None] & (cc < C)[None, :], (k < K)[:, None] & (cc < C)[None, :]
            offset_KC = (image * K + k[:, None]) * C + cc[None, :]
            x_NC = tl.load(x_ptr + n[:, None] * x_N + cc[None, :] * x_C, inside_NC, 0.0).to(tl.float32)
            before_KC = tl.load(before_ptr + offset_KC, inside_KC, 0.0)
            g_sum_KC = tl.load(g_sum_ptr + offset_KC, inside_KC, 0.0)
            scores_NK = tl.dot(x_NC, tl.trans(before_KC), scores_NK, input_precision=PRECISION)
            g_z_NK = tl.dot(x_NC, tl.trans(g_sum_KC), g_z_NK, input_precision=PRECISION)
            if LAST:
                g_y_NC = tl.load(g_y_ptr + n[:, None] * g_y_N + cc[None, :] * g_y_C, inside_NC, 0.0).to(tl.float32)
                after_KC = tl.load(after_ptr + offset_KC, inside_KC, 0.0)
                g_z_NK = tl.dot(g_y_NC, tl.trans(after_KC), g_z_NK, input_precision=PRECISION)
        z_NK = responsibilities(scores_NK, n, k, N, K)
        g_z_NK += g_weight_K[None, :]
        g_s_NK = z_NK * (g_z_NK - tl.sum(z_NK * g_z_NK, 1)[:, None])
        for start in range(0, C, BC):
            cc = start + c
            inside_NC, inside_KC = (n < N)[:, None] & (cc < C)[None, :], (k < K)[:, None] & (cc < C)[None, :]
            offset_KC = (image * K + k[:, None]) * C + cc[None, :]
            before_KC = tl.load(before_ptr + offset_KC, inside_KC, 0.0)
            g_sum_KC = tl.load(g_sum_ptr + offset_KC, inside_KC, 0.0)
            g_x = g_x_ptr + n[:, None] * g_x_N + cc[None, :] * g_x_C
            g_x_NC = tl.dot(z_NK, g_sum_KC, input_precision=PRECISION)
            g_x_NC = tl.dot(g_s_NK, before_KC, g_x_NC, input_precision=PRECISION)
            if not LAST:
                g_x_NC += tl.load(g_x, inside_NC, 0.0)
            tl.store(g_x, g_x_NC.to(g_x_ptr.dtype.element_ty), inside_NC)
            x_NC = tl.load(x_ptr + n[:, None] * x_N + cc[None, :] * x_C, inside_NC, 0.0).to(tl.float32)
            own = sums_ptr + ((image * tl.num_programs(1) + part) * K + k[:, None]) * C + cc[None, :]
            sums_KC = tl.load(own, inside_KC & (tile > 0), 0.0)
            tl.store(own, tl.dot(tl.trans(g_s_NK), x_NC, sums_KC, input_precision=PRECISION), inside_KC)
        tl.debug_barrier()  # as in accumulate_kernel


INTERPRETED = not isinstance(rebuild_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: runs on the CPU, for tests
