"""Labels and losses from low-resolution logits: without the logits at full size, beside the plain way with them.

    python benchmarks/upsample.py --threads 1                        # every case; a minute and 6 GB, most for the last
    python benchmarks/upsample.py --cases 513x513/21 --csv upsample.csv

Plain is F.interpolate and then argmax, or F.cross_entropy and the backward pass down to the low-resolution logits. Both
ways get the same logits of stride 8, and must agree on them before they are timed. `scene`: regions with smooth borders
and some noise, in place of a trained network's; `noise`: noise alone, the worst there is, as nearly every class can win
in every tile. Memory is the peak of what is allocated beyond the inputs.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import compare, machine, print_machine, print_table, write_csv
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emanet.analysis.cost import peak_memory  # noqa: E402
from emanet.ops.upsample import upsample_argmax, upsample_cross_entropy  # noqa: E402

CASES = {  # images, classes, (h, w), (H, W)
    "513x513/21": (4, 21, (65, 65), (513, 513)),
    "513x513/150": (4, 150, (65, 65), (513, 513)),
    "1024x2048/150": (1, 150, (129, 257), (1024, 2048)),
}
Ways = dict[str, Callable[[], object]]


def scene(images: int, classes: int, low: tuple[int, int]) -> Tensor:
    g = torch.Generator().manual_seed(0)
    regions = torch.randn(images, classes, *(max(2, side // 8) for side in low), generator=g)
    regions = F.interpolate(regions, low, mode="bicubic", align_corners=True)
    return 4 * regions + 0.5 * torch.randn(regions.shape, generator=g)


def noise(images: int, classes: int, low: tuple[int, int]) -> Tensor:
    return torch.randn(images, classes, *low, generator=torch.Generator().manual_seed(0))


def prediction(low: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Ways:
    def plain() -> Tensor:
        high = F.interpolate(low, padded, mode="bilinear", align_corners=True)[:, :, : size[0], : size[1]]
        return high.argmax(1).to(torch.uint8)

    def ours() -> Tensor:
        return upsample_argmax(low, padded, size, True)

    a, b = plain(), ours()
    if (a != b).float().mean() > 1e-5:  # what may differ are pixels of two equal logits; tests/test_upsample.py
        raise SystemExit(f"{(a != b).sum()} of {a.numel()} labels differ")
    return {"plain": plain, "ours": ours}


def training(low: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Ways:
    low = low.requires_grad_()
    labels = torch.randint(0, low.shape[1], (len(low), *size), generator=torch.Generator().manual_seed(1))
    labels[:, : size[0] // 8] = 255
    labels = labels.to(low.device)

    def plain() -> tuple[Tensor, Tensor]:
        high = F.interpolate(low, padded, mode="bilinear", align_corners=True)[:, :, : size[0], : size[1]]
        loss = F.cross_entropy(high, labels, ignore_index=255, reduction="sum")
        return loss, *torch.autograd.grad(loss, low)

    def ours() -> tuple[Tensor, Tensor]:
        loss = upsample_cross_entropy(low, labels, padded, True).sum()
        return loss, *torch.autograd.grad(loss, low)

    (a, a_grad), (b, b_grad) = plain(), ours()
    torch.testing.assert_close(b, a, rtol=1e-5, atol=0)
    torch.testing.assert_close(b_grad, a_grad, rtol=1e-4, atol=1e-5 * a_grad.abs().max().item())
    return {"plain": plain, "ours": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--for", dest="ends", nargs="+", choices=["labels", "loss"], default=["labels", "loss"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time: for a CPU that others use too")
    parser.add_argument("--csv", help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print_machine()
    rows = []
    for case in arguments.cases:
        images, classes, small, size = CASES[case]
        padded = tuple(8 * (side - 1) + 1 for side in small)
        for end in arguments.ends:
            for make in (scene, noise) if end == "labels" else (scene,):
                low = make(images, classes, small).to(device)
                ways = (prediction if end == "labels" else training)(low, size, padded)
                peaks = {name: peak_memory(run, device) / 1e6 for name, run in ways.items()}
                what = {"case": case, "for": end, "images": images, "logits": make.__name__}
                for row in compare(ways, arguments.repeats, warmup=0, device=device, clock=clock):
                    rows.append(
                        what | row | {"MB": peaks[row["name"]], "MB/plain": peaks[row["name"]] / peaks["plain"]}
                    )
    print_table(rows, "Milliseconds and ratio to plain: median, smallest, largest; peak memory")
    if arguments.csv:
        write_csv(arguments.csv, rows, machine())


if __name__ == "__main__":
    main()
