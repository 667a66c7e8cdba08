"""The profile command: a model's parameters, multiply-adds and memory, and the paper's Table 1 beside ours.

    python -m emanet profile voc_resnet101 --memory
    python -m emanet profile --paper

Multiply-adds are counted on fake tensors, which have shapes but no content: any size takes a second and no memory.
Convolutions of every kind and matrix products count, those of attention too: the EM attention has 2T + 1 products of
C * N * K each (see ops/em_attention.py). Padding counts as if it were pixels. Biases, BatchNorm, ReLU, softmax, sums,
pooling and resampling do not count, and neither does upsampling the logits. The auxiliary head runs in training only:
its parameters count, its multiply-adds do not. Bases are a buffer, not parameters.

Memory is measured, in float32: the peak of the bytes allocated at one time, minus what was allocated before, which is
the weights (parameters and buffers, in a column of their own) and the uint8 images. On CUDA these are torch's own
statistics, after a pass to warm up; on the CPU the allocations that torch.profiler records. Both include the kernels'
scratch memory. An inference is model(images) without gradient. A training step is the forward pass, the loss and the
backward pass of train.py, with the gradients but without the optimiser's state. BatchNorm uses its running statistics,
so that one image is enough; it keeps as much for the backward pass as with the batch's statistics.
"""

import contextlib
import json
import platform
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..atomic import require_writable
from ..config import BackboneConfig, DatasetSpec, Experiment, HeadConfig, ModelConfig
from ..data.datasets import SPECS, resolve
from ..distributed import pick_device
from ..errors import InputError
from ..experiments import load_experiment, override
from ..losses import PixelLoss
from ..model import EMANet, build_model
from ..show.tables import Grid, flat, put_out, require_different
from ..show.terminal import note
from ..train import StepNet
from ..weights import hub
from .published import FIGURES, TABLE1

Size = tuple[int, int]
PAPER_SIZE = (513, 513)
PAPER_SHAPE = (1, 3, *PAPER_SIZE)

# The paper's Table 1, with 21 classes.
PAPER_BACKBONE = BackboneConfig(name="resnet101s", pretrained=False, output_stride=8, multi_grid=(1, 2, 4))
PAPER_HEADS = {
    "DeepLabV3": HeadConfig(name="deeplabv3"),
    "DeepLabV3+": HeadConfig(name="deeplabv3plus"),
    "PSANet": HeadConfig(name="psanet"),
    "EMANet(256)": HeadConfig(channels=256, fc1_channels=0),
    "EMANet(512)": HeadConfig(channels=512, fc1_channels=0),
}


def profile(
    experiments: Sequence[str], size: Size, batch: int, json: str, csv: str, markdown: str, device: str, memory: bool,
    training: bool, by_module: bool, paper: bool, published: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The profile command; see its help for the arguments. Returns what it shows, ready for JSON."""
    if [bool(experiments), paper, published].count(True) != 1:
        raise InputError("profile needs either one or more EXPERIMENTs, or --paper, or --published")
    if min(size) < 1 or batch < 1:
        raise InputError(f"--size is {size[0]} {size[1]} and --batch {batch}, but they must be at least 1")
    if not experiments and (size != PAPER_SIZE or batch != 1 or by_module):
        raise InputError("--size, --batch and --by-module are for experiments, not for --paper and --published")
    if published and (memory or training):
        raise InputError("--memory and --training are not for --published")
    require_different(json, csv, markdown)
    require_writable(*(path for path in (json, csv, markdown) if path != "-"))
    where = pick_device(device, training=True) if memory or training else None
    if published:
        records = [asdict(figure) for figure in FIGURES]
        grids, rows = _published_grids(), records
    elif paper:
        records = paper_rows(where, training=training)
        grids, rows = _paper_grids(records), [flat(record) for record in records]
    else:
        records = [_experiment(name, size, batch, where, training, by_module) for name in experiments]
        grids, rows = _cost_grids(records), [row for record in records for row in _part_rows(record)]
    put_out(grids, records, rows, json_file=json, csv_file=csv, markdown=markdown)
    return records


def build(config: ModelConfig, spec: DatasetSpec) -> EMANet:
    """The model with random weights: its costs do not depend on them."""
    return build_model(override(config, {"backbone.pretrained": False}), spec)


def multiply_adds(model: nn.Module, shape: Sequence[int]) -> dict[str, Counter[str]]:
    """Multiply-adds of an inference on images of this shape (B, C, H, W): {module: {operation: count}}.

    Modules have their dotted names; "" is the model. Modules without multiply-adds are missing, and read as 0.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
        model(torch.empty(*shape))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, operations in counter.get_flop_counts().items():
        if name != type(model).__name__:  # the same as Global
            inner = "" if name == "Global" else name.partition(".")[2]
            counts[inner] = Counter({str(op): flops // 2 for op, flops in operations.items()})  # 2 per multiply-add
    return counts


def parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """The number of a module's parameters, or of those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that `run` needs at its peak, beyond what is allocated when it starts."""
    if device.type == "cuda":
        run()  # libraries allocate some memory once and keep it
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]  # negative for a release
        peak = max(peak, held)
    return peak


def measure(
    model: EMANet, size: Size, batch: int, device: torch.device, config: Experiment | None = None, *,
    training: bool = False, backbone_alone: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Bytes of the weights, and what an inference and, with `training`, a training step need beyond them."""
    config = config or Experiment()
    model.to(device)
    images = torch.zeros(batch, model.backbone.in_channels, *size, dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, *size, dtype=torch.uint8, device=device)
    step_net = StepNet(model, PixelLoss(config.loss, model.classes).to(device))
    part = model.backbone if backbone_alone else model

    def infer() -> None:
        with torch.no_grad():
            model.backbone(model.normalise(images)) if backbone_alone else model(images)

    def train() -> None:
        loss = model.backbone(model.normalise(images))[-1].sum() if backbone_alone else step_net(images, labels)
        if loss.requires_grad:  # not if everything measured is frozen
            loss.backward()
        model.zero_grad(set_to_none=True)

    model.eval()
    peaks = {"weights": sum(_bytes(t) for t in (*part.parameters(), *part.buffers()))}
    peaks["inference"] = peak_memory(infer, device)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return peaks | ({"training": peak_memory(train, device)} if training else {})


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextlib.contextmanager
def _refusals(name: str, size: Size, batch: int) -> Iterator[None]:
    """An error from the network or the machine about a size that it cannot take, as an InputError."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} cannot take {batch} x {size[0]}x{size[1]} pixels: {what}") from error


def _experiment(
    source: str, size: Size, batch: int, device: torch.device | None, training: bool, by_module: bool
) -> dict[str, Any]:
    """One experiment's record: the JSON object, whose `parts` are the network's."""
    config = load_experiment(hub.local(source, note))
    spec = resolve(config.data).spec
    assert spec is not None  # resolve fills it in
    model = build(config.model, spec)
    with _refusals(source, size, batch):
        counts = multiply_adds(model, (batch, model.backbone.in_channels, *size))
        memory = measure(model, size, batch, device, config, training=training) if device else None
    record = {
        "name": source,
        "backbone": config.model.backbone.name,
        "head": config.model.head.name,
        "classes": len(spec.classes),
        "height": size[0],
        "width": size[1],
        "batch": batch,
        "parameters": parameters(model),
        "trainable_parameters": parameters(model, trainable=True),
        "multiply_adds": counts[""].total(),
        "parts": [
            {
                "part": name,
                "parameters": parameters(module),
                "trainable_parameters": parameters(module, trainable=True),
                "multiply_adds": counts[name].total(),
            }
            for name, module in _parts(model, by_module).items()
            if parameters(module) or counts[name]
        ],
    }
    return record | ({"memory": {"device": _device_name(device), **memory}} if device and memory else {})


def _parts(model: EMANet, by_module: bool) -> dict[str, nn.Module]:
    """Backbone, head and auxiliary head by name; with by_module each is followed by its own modules."""
    parts: dict[str, nn.Module] = {}
    for name in ("backbone", "head", "aux_head"):
        part = getattr(model, name)
        if part is not None:
            parts[name] = part
            where, inner = ("backbone.net", part.net) if name == "backbone" else (name, part)
            parts |= {f"{where}.{child}": module for child, module in inner.named_children() if by_module}
    return parts


def paper_rows(device: torch.device | None = None, *, training: bool = False) -> list[dict[str, Any]]:
    """Table 1, counted here: the backbone, and what each head adds to it. With a device, memory is measured too."""
    rows: list[dict[str, Any]] = []
    alone: dict[str, int] = {}
    for name, head in PAPER_HEADS.items():
        model = build(ModelConfig(backbone=PAPER_BACKBONE, head=head), SPECS["voc"])
        counts = multiply_adds(model, PAPER_SHAPE)
        memory: dict[str, int] = {}
        with _refusals(name, PAPER_SIZE, 1):
            if device and not alone:
                alone = measure(model, PAPER_SIZE, 1, device, training=training, backbone_alone=True)
            if device:
                memory = measure(model, PAPER_SIZE, 1, device, training=training)
        if not rows:
            rows.append(_paper_row("ResNet-101", model.backbone, counts["backbone"].total(), BACKBONE_NOTE))
        rows.append(_paper_row(name, model.head, counts["head"].total(), _note(head, model, counts)))
        if device:
            rows[0]["memory"] = {"device": _device_name(device), **alone}
            rows[-1]["memory"] = rows[0]["memory"] | {key: memory[key] - alone[key] for key in alone}
    return rows


def _paper_row(name: str, module: nn.Module, counted: int, note: str) -> dict[str, Any]:
    cost = TABLE1[name]
    published = {
        "mIoU": cost.miou,
        "mIoU_ms_flip": cost.miou_ms_flip,
        "multiply_adds": cost.multiply_adds,
        "memory": cost.memory,
        "parameters": cost.parameters,
    }
    return {
        "name": name,
        "multiply_adds": counted,
        "parameters": parameters(module),
        "published": published,
        "note": note,
    }


BACKBONE_NOTE = (
    "without a classifier; the paper's figure is 0.7 G higher, as its tool seems to count 2 for every value of a "
    "BatchNorm and 1 for every value of ReLU and pooling"
)


def _note(config: HeadConfig, model: EMANet, counts: dict[str, Counter[str]]) -> str:
    """What a row of Table 1 counts, and why the paper's figure differs if it does."""
    head = model.head
    products = sum(number for operation, number in counts["head"].items() if "convolution" not in operation)
    if config.name == "ema":
        with_fc1 = override(config, {"fc1_channels": 256})
        trained = build(ModelConfig(backbone=PAPER_BACKBONE, head=with_fc1), SPECS["voc"])
        added = multiply_adds(trained, PAPER_SHAPE)["head"].total()
        return (
            f"fc0, EMAU and the classifier, with {products / 1e9:.2f} G for the products of the EM attention; the "
            f"trained network also has fc1, which the paper's figure leaves out: +{added / 1e9:.1f} G and "
            f"+{parameters(trained.head) / 1e6:.2f} M with it"
        )
    if config.name == "psanet":
        # The convolution reads the last map and the attention's; the paper's figure fits one of them.
        fewer = counts["head"].total() - counts["head.fuse"].total() // 2 - products
        weights = parameters(head) - head.get_parameter("fuse.0.weight").numel() // 2
        return (
            "the released layout; the paper's figure seems to count a last 3x3 convolution on the attention's map "
            f"alone, without the products of the attention: +{fewer / 1e9:.1f} G and +{weights / 1e6:.1f} M"
        )
    if config.name == "deeplabv3plus":
        return "ASPP, and its paper's decoder at stride 4; which decoder the EMANet paper counted is unknown"
    return "ASPP, its 1x1 convolution and the classifier"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def _millions(value: int, unit: float = 1e6, sign: str = "") -> str:
    return f"{value / unit:{sign}.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cost_grids(records: Sequence[dict[str, Any]]) -> list[Grid]:
    first, rows = records[0], []
    for record in records:
        for part in (record, *record["parts"]):
            path = part.get("part", "").removeprefix("backbone.net.").split(".")
            depth = part.get("part", "").count(".") > 0
            name = f"{'    ' if depth else '  '}{path[-1]}" if "part" in part else record["name"]
            cells = [_millions(part[key]) for key in ("parameters", "trainable_parameters")]
            rows.append([name, *cells, _millions(part["multiply_adds"], 1e9)])
    what = f"{first['batch']} x {first['height']}x{first['width']} pixels"
    header = ["", "parameters, M", "trainable, M", "multiply-adds, G"]
    return [Grid(f"Inference of {what}", header, rows), *_memory_grids(records, f"Memory for {what}")]


def _paper_grids(records: Sequence[dict[str, Any]]) -> list[Grid]:
    rows = []
    for i, record in enumerate(records):
        paper, sign = record["published"], "+" if i else ""
        rows.append([
            record["name"],
            *(_millions(of["multiply_adds"], 1e9, sign) for of in (record, paper)),
            *(_millions(of["parameters"], 1e6, sign) for of in (record, paper)),
            *(_percent(paper[key]) for key in ("mIoU", "mIoU_ms_flip")),
        ])  # fmt: skip
    header = ["", "G ours", "G paper", "M ours", "M paper", "mIoU", "MS+flip"]
    title = (
        "The paper's Table 1: G multiply-adds and M parameters at 513x513 pixels, output stride 8, 21 classes; heads "
        "as what they add to ResNet-101; mIoU is the paper's"
    )
    notes = [f"{record['name']}: {record['note']}." for record in records]
    return [Grid(title, header, rows, notes), *_memory_grids(records, "Memory beside the paper's", published=True)]


def _memory_grids(records: Sequence[dict[str, Any]], title: str, *, published: bool = False) -> list[Grid]:
    """One table, or none if memory was not measured."""
    if not records[0].get("memory"):
        return []
    keys = [key for key in ("weights", "inference", "training") if key in records[0]["memory"]]
    rows = []
    for i, record in enumerate(records):
        values = [record["memory"][key] for key in keys] + ([record["published"]["memory"]] if published else [])
        rows.append([record["name"], *(_millions(value, 1e6, "+" * (published and i > 0)) for value in values)])
    title += f": the weights, and peaks beyond them; {records[0]['memory']['device']}, torch {torch.__version__}"
    return [Grid(title, ["", *(f"{key}, MB" for key in keys), *["paper, M"] * published], rows)]


def _published_grids() -> list[Grid]:
    """One table per data set."""
    grids = []
    for dataset in dict.fromkeys(figure.dataset for figure in FIGURES):
        rows = [
            [figure.name, figure.backbone, _percent(figure.miou), _percent(figure.miou_ms_flip), figure.source]
            for figure in FIGURES
            if figure.dataset == dataset
        ]
        title = f"Published mIoU on {dataset}, not measured here"
        grids.append(Grid(title, ["", "backbone", "mIoU", "MS+flip", "source"], rows))
    return grids


def _part_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """CSV rows of one experiment: the whole model, the only row with memory, and its parts."""
    whole = flat({"part": "all"} | {key: value for key, value in record.items() if key not in ("parts", "memory")})
    memory = flat({"memory": record.get("memory", {})})
    return [whole | memory, *({**whole, **part, **dict.fromkeys(memory)} for part in record["parts"])]
