"""EM attention in one run: the released code's arithmetic, plain PyTorch, ours; and how far the limit is.

    python benchmarks/em_attention.py                          # CPU: B=1;  CUDA: B=16;  C=512, 65x65, K=64, T=3
    OMP_NUM_THREADS=1 python benchmarks/em_attention.py --forward-only --cpu-time --repeats 60
    python benchmarks/em_attention.py --csv figures.csv

Rows: `original` computes in float32 and gives float32 whatever the input, like the released code; `plain` are the same
formulas, with the output in the input's type; `ours` is em_attention as users call it. `limit` is what nobody beats: on
CUDA T readings of X and one writing of y, as copies; on the CPU the 2T + 1 products alone, by oneDNN. Before anything
is timed, all of them are compared with float64.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from bench import Row, both_kinds, compare, machine, print_machine, print_table, write_csv
from torch import Tensor

from emanet.ops.em_attention import em_attention, unit_columns
from emanet.ops.em_attention_cpu import product

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}  # of the largest value; bf16 rounds y and the gradients


def plain(x: Tensor, mu: Tensor, steps: int, gradient: str = "detached") -> Tensor:
    """The formulas, one line each, with every N x K matrix that they name; x_BCN, mu_1CK, as in em_attention."""
    kind, x = x.dtype, x.float()
    bases = mu.expand(len(x), -1, -1)
    for step in range(1, steps + 1):
        carries = gradient == "unrolled" or (gradient == "last" and step == steps)
        pixels, bases = (x if carries else x.detach()), (bases if gradient == "unrolled" else bases.detach())
        z = torch.softmax(pixels.transpose(1, 2) @ bases, dim=2)
        bases = pixels @ (z / (1e-6 + z.sum(dim=1, keepdim=True)))
        bases = bases / (1e-6 + bases.norm(dim=1, keepdim=True))
    return (bases @ z.transpose(1, 2)).to(kind)


def original(x: Tensor, mu: Tensor, steps: int, gradient: str = "detached") -> Tensor:
    return plain(x.float(), mu, steps, gradient)


def ours(x: Tensor, mu: Tensor, steps: int, gradient: str = "detached") -> Tensor:
    return em_attention(x, mu, steps, gradient=gradient)[0]


def products(x: Tensor, mu: Tensor, steps: int) -> Callable[[], None]:
    """The 2T + 1 products alone, image by image, as ours computes them, both orders of X being there."""
    orders = [(image.contiguous(), image.T.contiguous()) for image in x]
    mu_CK = mu[0].contiguous()

    def run() -> None:
        for x_CN, x_NC in orders:
            for _ in range(steps):
                z_NK = product(x_NC, mu_CK)
                product(x_CN, z_NK)
            product(mu_CK, z_NK.T)

    return run


def bytes_limit(x: Tensor, steps: int) -> Callable[[], None]:
    """Moves T + 1 times X's bytes: as many copies of half of it, each of which reads and writes."""
    source = torch.empty(x.numel() // 2, dtype=x.dtype, device=x.device)
    target = torch.empty_like(source)

    def run() -> None:
        for _ in range(steps + 1):
            target.copy_(source)

    return run


def check(run: Callable[..., Tensor], x: Tensor, mu: Tensor, steps: int, gradient: str, name: str) -> None:
    """Output and, where it is carried, gradient of one image, against float64."""
    found = x[:1].clone().requires_grad_(gradient != "detached")
    wanted = found.detach().double().requires_grad_(gradient != "detached")
    y, y64 = run(found, mu, steps, gradient=gradient), _float64(wanted, mu.double(), steps, gradient)
    pairs = [(y, y64)]
    if gradient != "detached":
        weights = torch.randn(y.shape, device=y.device, generator=torch.Generator(y.device).manual_seed(1))
        y.backward(weights.to(y.dtype))
        y64.backward(weights.to(y.dtype).double())
        pairs.append((found.grad, wanted.grad))
    for value, exact in pairs:
        error = ((value.double() - exact).abs().max() / exact.abs().max()).item()
        if not error <= TOLERANCE[x.dtype]:
            raise SystemExit(f"{name}, {x.dtype}, {gradient}: differs from float64 by {error:.2g} of the largest value")


def _float64(x: Tensor, mu: Tensor, steps: int, gradient: str) -> Tensor:
    return em_attention(x, mu, steps, gradient=gradient, backend="plain")[0]


def step(run: Callable[..., Tensor], x: Tensor, mu: Tensor, steps: int, gradient: str) -> None:
    x.grad = None
    run(x, mu, steps, gradient=gradient).backward(x.detach())


def measure(x: Tensor, mu: Tensor, steps: int, arguments: argparse.Namespace) -> list[Row]:
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    calls = 10 if x.is_cuda else 1  # a GPU gets its work in a row, as in a network
    timed = partial(compare, repeats=arguments.repeats, device=x.device, clock=clock, calls=calls)
    runs = {"original": original, "plain": plain, "ours": ours}
    if x.dtype == torch.float32:
        del runs["original"]  # the same
    rows = []
    for gradient in ["detached"] if arguments.forward_only else ["detached", "last", "unrolled"]:
        for name, run in runs.items():
            check(run, x, mu, steps, gradient, name)
        if gradient == "detached":
            with torch.no_grad():
                callables = {name: partial(run, x, mu, steps) for name, run in runs.items()}
                if x.is_cuda:
                    callables["limit"] = bytes_limit(x, steps)
                elif x.dtype == torch.float32:
                    callables["limit"] = products(x, mu, steps)
                found = timed(callables)
        else:
            leaf = x.clone().requires_grad_()
            found = timed({name: partial(step, run, leaf, mu, steps, gradient) for name, run in runs.items()})
        what = "forward" if gradient == "detached" else f"forward+backward, {gradient}"
        title = f"{what}, {str(x.dtype).removeprefix('torch.')}, B C N K T = {(*x.shape, mu.shape[2], steps)}"
        print_table(found, title)
        rows += [{"what": title, **row} for row in found]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images; 16 on CUDA, 1 on the CPU")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--side", type=int, default=65)
    parser.add_argument("--bases", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time: for a CPU that others use too")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--both", action="store_true", help="also as on a CPU with AVX2 alone; a column says which")
    parser.add_argument("--csv", help="write the figures to this file")
    arguments = parser.parse_args()
    print_machine()
    torch.manual_seed(0)
    batch = arguments.batch or (16 if arguments.device.startswith("cuda") else 1)
    x = torch.randn(batch, arguments.channels, arguments.side, arguments.side, device=arguments.device)
    x = x.contiguous(memory_format=torch.channels_last) if arguments.channels_last else x
    mu = unit_columns(torch.randn(1, arguments.channels, arguments.bases, device=arguments.device))
    rows = []
    for dtype in arguments.dtypes:
        rows += measure(x.to(getattr(torch, dtype)).flatten(2), mu, arguments.steps, arguments)
    if arguments.both:
        rows = both_kinds(rows)
    if arguments.csv:
        write_csv(arguments.csv, rows, machine())


if __name__ == "__main__":
    main()
