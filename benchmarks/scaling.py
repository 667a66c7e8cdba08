"""How cost grows: EM attention against non-local attention with the image, and training with the number of processes.

    python benchmarks/scaling.py [--memory 3] [--processes 1 2] [--csv FILE]

Part 1: float32, one image, 512 channels and 64 bases, inference, on the CPU or the GPU. Maps start at 33 x 33 (a
513-pixel image at output stride 8) and each next one has 4 times the pixels, until non-local attention's memory, which
is known from the sizes before, would pass --memory GiB; EM attention goes on for one size more. The exponents are those
of N, the number of pixels, fitted in logarithms: 1 is linear, 2 quadratic.

Part 2: images per second of training steps in 1, 2, ... gloo processes on this machine, one thread each, the drawn
experiment. What a step sends is counted: gradients, bases and SyncBatchNorm's sums, forward and backward; a ring
all-reduce makes each of N machines send and receive 2 (N - 1) / N times that.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.multiprocessing as mp
from bench import Row, compare, machine, print_machine, print_table, write_csv
from torch import nn

from emanet.analysis.cost import peak_memory
from emanet.config import Experiment
from emanet.data.specs import SPECS
from emanet.emau import EMAU
from emanet.experiments import load_experiment, override
from emanet.heads.non_local import NonLocal
from emanet.losses import PixelLoss
from emanet.model import EMANet, build_model
from emanet.ops.sync_batch_norm import sync_batch_norm
from emanet.optim import build_optimizer
from emanet.train import StepNet

CHANNELS, BASES = 512, 64
STEPS, SIDE = 8, 129  # of the training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=float, default=3.0, help="GiB beyond which an attention is not tried")
    parser.add_argument("--processes", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    print_machine()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = attention(given.memory * 2**30, device, given.repeats)
    print_table(rows, f"attention on {device}, {CHANNELS} channels, {BASES} bases; memory limit {given.memory:g} GiB")
    fits = exponents(rows)
    print_table(fits, "exponent of the number of pixels")
    volume = [communication(name) for name in ("drawn", "voc_resnet50", "voc_resnet101")]
    print_table(volume, "what a training step all-reduces, MiB; a_ring_of_N: what each of N machines sends")
    speed = training(given.processes)
    print_table(speed, "training in gloo processes of one thread each, drawn, 4 images of 129 x 129 a process")
    if given.csv:
        tables = {"attention": rows, "exponents": fits, "communication": volume, "training": speed}
        keys = dict.fromkeys(key for table in tables.values() for row in table for key in row)
        lines = [{"table": name} | dict.fromkeys(keys, "") | row for name, table in tables.items() for row in table]
        write_csv(given.csv, lines, machine())


def attention(limit: float, device: torch.device, repeats: int) -> list[Row]:
    """A row per side and attention, until the memory of the second would pass the limit."""
    torch.manual_seed(0)
    modules = {"em": EMAU(CHANNELS, BASES), "non-local": NonLocal(CHANNELS)}
    modules = {name: module.to(device).eval() for name, module in modules.items()}
    rows: list[Row] = []
    side, left = 33, list(modules)
    while left:
        x = torch.randn(1, CHANNELS, side, side, device=device)
        runs = {name: _inference(modules[name], x) for name in left}
        memory = {name: peak_memory(run, device) for name, run in runs.items()}
        for row in compare(runs, repeats, warmup=1, device=device):
            name, took = row["name"], memory[row["name"]]
            rows.append({"name": name, "side": side, "ms": row["ms"], "ms_min": row["ms_min"], "ms_max": row["ms_max"]})
            rows[-1]["MiB"] = took / 2**20
        if "non-local" not in left:
            break
        growth = 16 if memory["non-local"] > 2 * memory["em"] else 4  # with four times the pixels
        if growth * memory["non-local"] > limit:
            left.remove("non-local")
        side = 2 * side - 1
    return rows


def exponents(rows: Sequence[Row]) -> list[Row]:
    """Least squares of log(time) and log(memory) over log(pixels)."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        x = [math.log(row["side"] ** 2) for row in own]
        fit = {"name": name, "sizes": len(own)}
        for key in ("ms", "MiB"):
            y = [math.log(row[key]) for row in own]
            mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
            slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
            fit[f"{key}_exponent"] = slope / sum((a - mean_x) ** 2 for a in x) if len(own) > 1 else math.nan
        found.append(fit)
    return found


def _inference(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            module(x)

    return run


def communication(name: str) -> Row:
    """MiB that one optimiser step of an experiment all-reduces, by what it is for, and per machine in a ring of N."""
    net = _model(load_experiment(name))
    gradients = 4 * sum(p.numel() for p in net.parameters() if p.requires_grad)
    bases = sum(4 * (module.bases.numel() + 1) for module in net.modules() if isinstance(module, EMAU))
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    # Sums, sums of squares and the count, and their gradients; emanet.distributed sends float64, CUDA's norm float32.
    batch_norm = sum(2 * 8 * (2 * module.num_features + 1) for module in norms)
    total = (gradients + bases + batch_norm) / 2**20
    parts = {"gradients": gradients / 2**20, "bases": bases / 2**20, "SyncBatchNorm": batch_norm / 2**20}
    return {"name": name} | parts | {"sum": total} | {f"a_ring_of_{n}": total * 2 * (n - 1) / n for n in (2, 4, 8, 64)}


def training(counts: Sequence[int]) -> list[Row]:
    """A row per number of processes, without and with SyncBatchNorm; each process has its own 4 images.

    efficiency: images per second and process, over those of the first row.
    """
    rows: list[Row] = []
    with mp.Manager() as manager:
        for world, sync in [(world, sync) for world in counts for sync in (False, True) if world > 1 or not sync]:
            times = manager.dict()
            mp.spawn(_train, (world, sync, 29_500 + 2 * world + sync, times), nprocs=world)
            own = sorted(times[0])
            rate = world * 4 / own[len(own) // 2]
            best = rows[0]["images_per_s"] / counts[0] if rows else rate / world
            row = {"name": f"processes: {world}{', SyncBatchNorm' * sync}", "images_per_s": rate}
            row |= {"step_ms": 1e3 * own[len(own) // 2], "step_ms_min": 1e3 * own[0], "step_ms_max": 1e3 * own[-1]}
            rows.append(row | {"efficiency": rate / world / best})
    return rows


def _train(rank: int, world: int, sync: bool, port: int, times: dict[int, list[float]]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # that broadcast_buffers has another name by now
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.manual_seed(0)
        experiment = load_experiment("drawn")
        net = _model(experiment)
        if sync:
            net = sync_batch_norm(net)
        net.train()
        optimizer = build_optimizer(net, experiment.optim)
        step_net: nn.Module = StepNet(net, PixelLoss(experiment.loss, net.classes))
        if world > 1:
            step_net = nn.parallel.DistributedDataParallel(step_net, broadcast_buffers=False)
        images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
        labels = torch.randint(0, len(net.classes), (4, SIDE, SIDE), dtype=torch.uint8)
        taken = []
        for _ in range(STEPS + 2):
            start = time.perf_counter()
            (step_net(images, labels) / labels.numel()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            taken.append(time.perf_counter() - start)
        times[rank] = taken[2:]
    finally:
        torch.distributed.destroy_process_group()


def _model(experiment: Experiment) -> EMANet:
    return build_model(override(experiment.model, {"backbone.pretrained": False}), SPECS[experiment.data.dataset])


if __name__ == "__main__":
    main()
