"""EM attention in fused Triton kernels, for pixels of 16 bits without gradient: `em_attention(backend="triton")`.

Shapes as in em_attention.py: B images, C channels, N pixels, K bases; T iterations, S parts of an image's pixels. Bases
are stored as mu_BKC here, so that the channels of a base are contiguous.

An iteration is three kernels: the responsibilities Z of a tile of pixels; the sums Z^T X of a part of the pixels and
some channels; the parts added and normalised. X is read twice an iteration and Z, in float32, is written once, which is
half of X's bytes at C = 512, K = 64. There are no atomics, and the parts depend on the shapes alone, so the same input
gives the same bits.

The matrix units take bfloat16 or float16 and add in float32. X and Y are of that type already. What is float32, bases
and responsibilities, goes through them as two values of 16 bits, whose sum keeps 16 or more of its bits.

Kernels of the same kind for float32 and for the gradients were 0.2 to 0.4 times as fast as plain PyTorch on an H200
(docs/LOG.md), so there are none.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BASES, MAX_CHANNELS = 128, 8192  # a tile's softmax, and one base in the kernel that normalises, fit in registers
DTYPES = (torch.float16, torch.bfloat16)
PROGRAMS = 256  # about two per multiprocessor of a large GPU; a constant, so that results do not depend on the GPU


def is_measured(device: torch.device) -> bool:
    """Whether docs/performance.md has figures of this kind of GPU."""
    gpu = torch.cuda.get_device_properties(device)  # a constant for torch.compile
    return (gpu.major, gpu.minor) == (9, 0)


def refusal(x_BCN: Tensor, bases: int, gradient: str) -> str:
    """Why these kernels cannot take the input; empty if they can."""
    if gradient != "detached":
        return f"it has no gradient, and gradient is {gradient!r}"
    if x_BCN.device.type not in ("cuda", "meta") and not INTERPRETED:
        return f"it runs on CUDA, and the input is on {x_BCN.device.type}"
    if x_BCN.dtype not in DTYPES:
        return f"it takes float16 and bfloat16, not {x_BCN.dtype}"
    if bases > MAX_BASES or x_BCN.shape[1] > MAX_CHANNELS:
        return f"it takes {MAX_BASES} bases and {MAX_CHANNELS} channels at most, not {bases} and {x_BCN.shape[1]}"
    if x_BCN.numel() == 0:
        return "the input is empty"
    return ""


def em_attention_triton(x_BCN: Tensor, mu_1CK: Tensor, steps: int = 3, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """`em_attention` by the kernels, without gradient; see there. y_BCN has the memory format of x_BCN."""
    mu_BKC = mu_1CK.detach().mT.to(torch.float32).expand(len(x_BCN), -1, -1)
    y_BCN, mu_BKC = em_forward(x_BCN.detach(), mu_BKC, steps, eps)
    return y_BCN, mu_BKC.mT


@torch.library.custom_op("emanet::em_forward", mutates_args=())
def em_forward(x_BCN: Tensor, mu_BKC: Tensor, steps: int, eps: float) -> tuple[Tensor, Tensor]:
    """Returns y_BCN and the last bases (B, K, C), float32."""
    return launch(x_BCN, mu_BKC, steps, eps)


@em_forward.register_fake
def _(x_BCN, mu_BKC, steps, eps):
    return torch.empty_like(x_BCN), torch.empty_like(mu_BKC, memory_format=torch.contiguous_format)


def launch(x_BCN: Tensor, mu_BKC: Tensor, steps: int, eps: float) -> tuple[Tensor, Tensor]:
    (B, C, N), K = x_BCN.shape, mu_BKC.shape[1]
    bk = max(16, triton.next_power_of_2(K))  # products of matrix units have sides of 16 at least
    large = 128 if bk <= 64 else 64  # pixels of a tile, so that it stays in registers
    chunks, tiles = triton.cdiv(C, 128), triton.cdiv(N, 64)
    of_part = triton.cdiv(tiles, max(1, PROGRAMS // (B * chunks)))
    S = triton.cdiv(tiles, of_part)
    z_BNK = x_BCN.new_empty((B, N, K), dtype=torch.float32)
    sums_BSKC = x_BCN.new_empty((B, S, K, C), dtype=torch.float32)
    weights_BSK = x_BCN.new_empty((B, S, K), dtype=torch.float32)
    mu_BKC, y_BCN = mu_BKC.contiguous(), torch.empty_like(x_BCN)
    shape = C, N, K, *x_BCN.stride()
    with torch.cuda.device(x_BCN.device) if x_BCN.is_cuda else contextlib.nullcontext():
        for _ in range(steps):
            responsibilities_kernel[triton.cdiv(N, large), B](
                x_BCN, mu_BKC, z_BNK, *shape, BN=large, BC=64, BK=bk, num_warps=8, num_stages=3
            )
            sums_kernel[chunks, S, B](
                x_BCN, z_BNK, sums_BSKC, weights_BSK, *shape, of_part, BN=64, BC=128, BK=bk,
                num_warps=4 if bk <= 64 else 8, num_stages=3,
            )  # fmt: skip
            mu_BKC = torch.empty_like(mu_BKC)
            new_bases_kernel[B, K](sums_BSKC, weights_BSK, mu_BKC, C, K, S, eps, BC=triton.next_power_of_2(C))
        rebuild_kernel[triton.cdiv(N, large), B](
            mu_BKC, z_BNK, y_BCN, C, N, K, *y_BCN.stride(), BN=large, BC=64, BK=bk, num_warps=8
        )
    return y_BCN, mu_BKC


@triton.jit
def product(a, b, sums):
    """sums + a b of values of 16 bits, added in float32."""
    if INTERPRETED:  # it would multiply the integers in which it keeps bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums)


@triton.jit
def rest(x, high):
    """What the 16 bits of `high` leave of a float32 value, in 16 bits as well."""
    return (x - high.to(tl.float32)).to(high.dtype)


@triton.jit
def responsibilities_kernel(
    x_ptr, mu_ptr, z_ptr, C, N, K, x_B, x_C, x_N, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Z of one tile of pixels: the softmax over the bases of X^T mu."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    image = tl.program_id(1).to(tl.int64)
    k, c = tl.arange(0, BK), tl.arange(0, BC).to(tl.int64)
    x = x_ptr + image * x_B + n[:, None] * x_N + c[None, :] * x_C
    mu = mu_ptr + (image * K + k[:, None]) * C + c[None, :]
    scores_NK = tl.zeros((BN, BK), tl.float32)
    for start in range(0, C, BC):
        inside_C = (start + c < C)[None, :]
        x_NC = tl.load(x + start * x_C, (n < N)[:, None] & inside_C, 0.0)
        mu_KC = tl.load(mu + start, (k < K)[:, None] & inside_C, 0.0)
        high_KC = mu_KC.to(x_NC.dtype)
        scores_NK = product(x_NC, tl.trans(high_KC), scores_NK)
        scores_NK = product(x_NC, tl.trans(rest(mu_KC, high_KC)), scores_NK)
    scores_NK = tl.where((k < K)[None, :], scores_NK, -float("inf"))
    z_NK = tl.exp(scores_NK - tl.max(scores_NK, 1)[:, None])
    z_NK = z_NK / tl.sum(z_NK, 1)[:, None]
    tl.store(z_ptr + (image * N + n[:, None]) * K + k[None, :], z_NK, (n < N)[:, None] & (k < K)[None, :])


@triton.jit
def sums_kernel(
    x_ptr, z_ptr, sums_ptr, weights_ptr, C, N, K, x_B, x_C, x_N, tiles,
    BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Over the pixels of one part, for BC channels: sums_KC = Z^T X and weights_K = sums of Z."""
    chunk, part, image = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    k, c = tl.arange(0, BK), chunk.to(tl.int64) * BC + tl.arange(0, BC)
    part_BS = image * tl.num_programs(1) + part
    weights_K, sums_CK = tl.zeros((BK,), tl.float32), tl.zeros((BC, BK), tl.float32)
    for tile in range(0, tiles):
        n = (part * tiles + tile) * BN + tl.arange(0, BN).to(tl.int64)
        x = x_ptr + image * x_B + n[:, None] * x_N + c[None, :] * x_C
        x_NC = tl.load(x, (n < N)[:, None] & (c < C)[None, :], 0.0)
        z = z_ptr + (image * N + n[:, None]) * K + k[None, :]
        z_NK = tl.load(z, (n < N)[:, None] & (k < K)[None, :], 0.0)
        weights_K += tl.sum(z_NK, 0)
        high_NK = z_NK.to(x_NC.dtype)
        sums_CK = product(tl.trans(x_NC), high_NK, sums_CK)
        sums_CK = product(tl.trans(x_NC), rest(z_NK, high_NK), sums_CK)
    tl.store(sums_ptr + (part_BS * K + k[None, :]) * C + c[:, None], sums_CK, (k < K)[None, :] & (c < C)[:, None])
    if chunk == 0:
        tl.store(weights_ptr + part_BS * K + k, weights_K, k < K)


@triton.jit
def new_bases_kernel(sums_ptr, weights_ptr, mu_ptr, C, K, parts, eps, BC: tl.constexpr):
    """One base of one image: the parts' sums, added in order; the mean; over (eps + its norm)."""
    image, base = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BC)
    sum_C, weight = tl.zeros((BC,), tl.float32), tl.zeros((1,), tl.float32)
    for part in range(parts):
        row = (image * parts + part) * K + base
        sum_C += tl.load(sums_ptr + row * C + c, c < C, 0.0)
        weight += tl.load(weights_ptr + row + tl.arange(0, 1))
    mean_C = sum_C / (eps + weight)
    norm = tl.sqrt(tl.sum(mean_C * mean_C, 0, keep_dims=True))
    tl.store(mu_ptr + (image * K + base) * C + c, mean_C / (eps + norm), c < C)


@triton.jit
def rebuild_kernel(
    mu_ptr, z_ptr, y_ptr, C, N, K, y_B, y_C, y_N, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """y = mu Z^T of one tile of pixels. What both rests would add is below the rounding of y."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    image = tl.program_id(1).to(tl.int64)
    k, c = tl.arange(0, BK), tl.arange(0, BC).to(tl.int64)
    z_NK = tl.load(z_ptr + (image * N + n[:, None]) * K + k[None, :], (n < N)[:, None] & (k < K)[None, :], 0.0)
    high_NK = z_NK.to(y_ptr.dtype.element_ty)
    low_NK = rest(z_NK, high_NK)
    y = y_ptr + image * y_B + n[:, None] * y_N + c[None, :] * y_C
    mu = mu_ptr + (image * K + k[:, None]) * C + c[None, :]
    for start in range(0, C, BC):
        inside_C = (start + c < C)[None, :]
        mu_KC = tl.load(mu + start, (k < K)[:, None] & inside_C, 0.0)
        high_KC = mu_KC.to(high_NK.dtype)
        y_NC = product(high_NK, high_KC, tl.zeros((BN, BC), tl.float32))
        y_NC = product(high_NK, rest(mu_KC, high_KC), y_NC)
        y_NC = product(low_NK, high_KC, y_NC)
        tl.store(y + start * y_C, y_NC.to(high_NK.dtype), (n < N)[:, None] & inside_C)


INTERPRETED = tl.constexpr(not isinstance(rebuild_kernel, triton.JITFunction))  # TRITON_INTERPRET=1, for tests
