"""The whole network, by every engine and precision, against the plain forward pass; on CUDA also training.

    python benchmarks/network.py [--experiment voc_resnet50] [--size 513 513] [--repeats 7] [--csv FILE]
    python benchmarks/network.py --device cuda    # voc_resnet101, batch 16, on the GPU alone

Weights are random and so are the calibration images of int8: neither changes how long an inference takes. What int8
costs in mIoU is measured with `evaluate --engine openvino --precision int8`. error: the largest difference of the
low-resolution logits from the plain ones, in their standard deviations; agree: the share of their pixels whose class is
the same. What is not to be had here (CUDA, openvino) is a row that says so.
"""

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from bench import Row, both_kinds, compare, machine, print_machine, print_table, write_csv
from torch import Tensor, nn

from emanet.config import Experiment
from emanet.data.datasets import resolve
from emanet.deploy.engines import faster
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.losses import PixelLoss
from emanet.model import EMANet, build_model
from emanet.optim import build_optimizer
from emanet.train import StepNet

CPU = (
    ("eager", "fp32"), ("compile", "fp32"), ("openvino", "fp32"), ("eager", "bf16"), ("compile", "bf16"),
    ("openvino", "bf16"), ("openvino", "int8"),
)  # fmt: skip
CUDA = (
    ("eager", "fp32"), ("compile", "fp32"), ("plain", "bf16"), ("eager", "bf16"), ("eager", "fp16"),
    ("compile", "bf16"),
)  # fmt: skip
BATCH = 16  # on CUDA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="voc_resnet50", help="of the CPU's part; CUDA's is voc_resnet101")
    parser.add_argument("--size", type=int, nargs=2, default=(513, 513))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[], help="ENGINE-PRECISION to take beside plain-fp32; default all")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the CPU, and a GPU where there is one")
    parser.add_argument("--both", action="store_true", help="also as on a CPU with AVX2 alone; a column says which")
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch")
    print_machine()
    rows: list[Row] = []
    size = tuple(given.size)
    if given.device != "cuda":
        wanted = [each for each in CPU if not given.only or "-".join(each) in given.only]
        rows += inference(given.experiment, size, 1, torch.device("cpu"), wanted, given.repeats)
        print_table(rows, f"{given.experiment}, inference on the CPU, batch 1, {size[0]} x {size[1]}")
        rows += layouts(given.experiment, given.repeats)
        print_table(rows[-2:], f"{given.experiment}, a training step on the CPU, 2 x 257 x 257")
    on_cuda = []
    if given.device != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda")
        on_cuda = inference("voc_resnet101", size, BATCH, device, CUDA, given.repeats)
        on_cuda += training("voc_resnet101", size, BATCH, device, given.repeats)
    elif given.device != "cpu":
        on_cuda = [_missing(name) for name in ("inference on CUDA", "training on CUDA")]
    if on_cuda:
        print_table(on_cuda, f"voc_resnet101, CUDA, batch {BATCH}, {size[0]} x {size[1]}")
    rows = both_kinds(rows + on_cuda) if given.both else rows + on_cuda
    if given.csv:
        write_csv(given.csv, rows, machine())


def inference(
    name: str, size: tuple[int, int], batch: int, device: torch.device, wanted: object, repeats: int
) -> list[Row]:
    """A row for the plain model and for each (engine, precision) wanted."""
    model = _model(load_experiment(name)).to(device).eval()
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1)).to(device)
    _scale_logits(model, x[:1])
    runs, found, absent = {"plain-fp32": lambda: model.low_logits(x)[0]}, {}, []
    with torch.no_grad():
        reference = runs["plain-fp32"]()
        found["plain-fp32"] = _agreement(reference, reference, runs["plain-fp32"], device)
        for engine, precision in wanted:
            label = f"{engine}-{precision}"
            calibration = [torch.randn(1, 3, 129, 129) for _ in range(8)] if precision == "int8" else ()
            needed = {"openvino": ["openvino"] + ["nncf"] * (precision == "int8")}.get(engine, [])
            lacking = [package for package in needed if not importlib.util.find_spec(package)]
            if lacking:
                absent.append(_missing(f"{label}: {lacking[0]} is not installed"))
                continue
            quick = faster(model, engine, precision, calibration, force=True)
            runs[label] = lambda quick=quick: quick.low_logits(x)[0]
            found[label] = _agreement(reference, runs[label](), runs[label], device)
        rows = compare(runs, repeats, warmup=1, device=device)
    for row in rows:
        row["images_per_s"] = batch * 1e3 / row["ms"]
        row |= found[row["name"]]
    return rows + absent


def layouts(name: str, repeats: int) -> list[Row]:
    """Optimiser steps on the CPU in torch's own memory layout, and with channels last."""
    cpu, experiment = torch.device("cpu"), load_experiment(name)
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    options: dict[str, Any] = {"fused": True, "dtype": torch.float32}
    runs = {
        f"train, {label}": _step(experiment, (257, 257), 2, cpu, layout=layout, **options)
        for label, layout in formats.items()
    }
    rows = compare(runs, repeats, warmup=1)
    for row in rows:
        row |= {"images_per_s": 2e3 / row["ms"], "error": "-", "agree": "-", "peak_MiB": "-"}
    return rows


def training(name: str, size: tuple[int, int], batch: int, device: torch.device, repeats: int) -> list[Row]:
    """Optimiser steps: the original's formulation (float32, torch's own layout, an update per tensor), and ours."""
    experiment, runs, memory = load_experiment(name), {}, {}
    for label, options in {
        "train-plain-fp32": {"layout": torch.contiguous_format, "fused": False, "dtype": torch.float32},
        "train-fp32": {"layout": torch.channels_last, "fused": True, "dtype": torch.float32},
        "train-bf16": {"layout": torch.channels_last, "fused": True, "dtype": torch.bfloat16},
        "train-bf16, plain EM attention": {
            "layout": torch.channels_last,
            "fused": True,
            "dtype": torch.bfloat16,
            "backend": "plain",
        },
        "train-bf16, cudnn.benchmark": {
            "layout": torch.channels_last,
            "fused": True,
            "dtype": torch.bfloat16,
            "search": True,
        },
        "train-bf16-compile": {"layout": torch.channels_last, "fused": True, "dtype": torch.bfloat16, "compile": True},
    }.items():
        search = options.pop("search", False)
        backend = options.pop("backend", "auto")
        step = _step(override(experiment, {"model.head.backend": backend}), size, batch, device, **options)

        def run(step: Callable[[], None] = step, search: bool = search) -> None:
            torch.backends.cudnn.benchmark = search
            step()

        runs[label] = run
        runs[label]()
        memory[label] = _peak(runs[label], device)
    rows = compare(runs, repeats, warmup=1, device=device)
    for row in rows:
        row |= {"images_per_s": batch * 1e3 / row["ms"], "error": "-", "agree": "-", "peak_MiB": memory[row["name"]]}
    return rows


def _step(
    experiment: Experiment, size: tuple[int, int], batch: int, device: torch.device, *, layout: torch.memory_format,
    fused: bool, dtype: torch.dtype, compile: bool = False,
) -> Callable[[], None]:  # fmt: skip
    net = _model(experiment).to(device, memory_format=layout).train()
    optimizer = build_optimizer(net, experiment.optim)
    if not fused:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, False
    step_net: nn.Module = StepNet(net, PixelLoss(experiment.loss, net.classes).to(device))
    step_net = torch.compile(step_net) if compile else step_net
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, len(net.classes), (batch, *size), dtype=torch.uint8, device=device)

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = step_net(images, labels) / labels.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _model(experiment: Experiment) -> EMANet:
    torch.manual_seed(0)
    return build_model(override(experiment.model, {"backbone.pretrained": False}), resolve(experiment.data).spec)


def _scale_logits(model: EMANet, x: Tensor) -> None:
    """Centre and spread random weights' logits, so that not one class wins everywhere and `agree` says something."""
    with torch.no_grad():
        low = model.low_logits(x)[0].float()
        last = model.head.classifier
        last.bias -= low.mean((0, 2, 3))


def _agreement(wanted: Tensor, got: Tensor, run: Callable[[], Tensor], device: torch.device) -> Row:
    error = ((got.float() - wanted).abs().max() / wanted.std()).item()
    same = (got.argmax(1) == wanted.argmax(1)).float().mean().item()
    return {"error": error, "agree": same, "peak_MiB": _peak(run, device)}


def _peak(run: Callable[[], object], device: torch.device) -> float | str:
    """MiB that a run has at most at one time, weights included; CUDA only."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def _missing(name: str) -> Row:
    keys = ("repeats", "ms", "ms_min", "ms_max", "ratio", "ratio_min", "ratio_max", "images_per_s", "error", "agree")
    return {"name": name} | dict.fromkeys((*keys, "peak_MiB"), "not measured")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
