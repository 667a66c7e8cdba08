"""The same network, faster, for inference: folded, compiled or through OpenVINO, in a choice of precisions.

    quick = faster(model, "openvino", "bf16")   # the model itself stays as it was
    quick(images)                               # what model(images) gives, to rounding

On the command line: python -m emanet predict MODEL IMAGES... --out FOLDER --engine openvino --precision bf16

plain     the model as it is
eager     BatchNorm folded into the convolutions, channels last
compile   the same, through torch.compile: seconds to a minute before the first image, and again for the second size
openvino  through OpenVINO on the CPU (the extra `openvino`): seconds before the first image, then any size
auto      openvino on a CPU where it is installed, eager on CUDA, if it gives the model's logits on a small image; else
          plain

bf16 and fp16 are autocast types (in OpenVINO the type of its kernels). int8 needs OpenVINO and NNCF (the extra `int8`)
and measures its scales on images of yours. EM attention computes in float32 in all of them except openvino's bf16.
Speed and what each costs in mIoU: docs/performance.md.
"""

import copy
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..backbones import Backbone
from ..config import Engine, Precision
from ..errors import InputError
from ..heads.layers import PooledBatchNorm
from ..model import EMANet
from ..ops.sync_batch_norm import SyncBatchNorm
from ..processor import require_fast
from ..show.terminal import note
from .network import Network, Pixels, Whole

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FOLDABLE = (nn.BatchNorm2d, PooledBatchNorm, BatchNormAct2d, SyncBatchNorm)
COMPILERS = {"darwin": "clang++"}  # what torch itself takes where the variable CXX is not set
TRIED_SIZE = 129, 161  # (h, w) of the image that `auto` compares an engine on
CLOSE = 1e-3  # of the logits' standard deviation: well above rounding, well below what changes labels
FASTEST: dict[str, Engine] = {"cpu": "openvino", "cuda": "eager"}  # what `auto` tries: docs/performance.md
TRACED_SIZE = 65  # pixels of a side of the image that a network is traced with


def faster(
    model: EMANet, engine: Engine = "plain", precision: Precision = "fp32", calibration: Sequence[Tensor] = (),
    *, force: bool = False,
) -> EMANet:  # fmt: skip
    """A model for inference that gives the logits of `model` with the same weights, on the same device.

    It shares nothing with the model that training could change, has no auxiliary head and cannot be saved. `plain` in
    fp32 is the model itself. calibration: for int8, images like those to come, as inference.calibration_input gives
    them. force: take a precision that the processor only emulates. Raises InputError where engine, precision and device
    do not go together.
    """
    device = model.mean.device
    if engine == "auto":
        return fastest(model, precision, calibration, force)
    check(engine, precision, device, force)
    if (engine, precision) == ("plain", "fp32"):
        return model
    if precision == "int8" and not calibration:
        raise InputError("int8 needs images to measure the range of values on; name a folder of them with --calibrate")
    network = Network(copy.deepcopy(model.backbone), copy.deepcopy(model.head)).eval().requires_grad_(False)
    divisor = model.backbone.divisor
    side = max(1, TRACED_SIZE // divisor) * divisor
    sample = torch.zeros(1, model.backbone.in_channels, side, side, device=device)
    if engine in ("eager", "compile"):
        fold(network, sample)
        network = network.to(memory_format=torch.channels_last)
    run: Callable[[Tensor], Tensor]
    if engine == "openvino":
        from .openvino import OpenVINO

        run = OpenVINO(network, sample, precision, calibration)
    else:
        run = Compiled(network) if engine == "compile" else network
        run = Torch(run, AUTOCAST[precision], channels_last=engine != "plain")
    quick = EMANet(
        cast(Backbone, Pixels(model.backbone)),
        Whole(run),
        classes=model.classes,
        palette=model.palette,
        mean=model.mean.flatten().tolist(),
        std=model.std.flatten().tolist(),
        align_corners=model.align_corners,
        bands=model.bands,
        range=model.range,
    )
    return quick.to(device).eval()


def fastest(model: EMANet, precision: Precision, calibration: Sequence[Tensor], force: bool) -> EMANet:
    """The engine `auto`. A note says which one it is, and why."""
    kind, hint = model.mean.device.type, ""
    engine = FASTEST.get(kind, "plain")
    if engine == "openvino" and not importlib.util.find_spec("openvino"):
        engine, hint = "eager", '; openvino is often faster still: pip install "emanet[openvino]"'
    if engine == "plain":
        why = f"no engine is known to be faster on {kind}"
    else:
        quick = faster(model, engine, precision, calibration, force=force)
        off = difference(model, quick) if precision == "fp32" else 0.0
        if off <= CLOSE:
            note(f"engine: {engine}" + "; its logits are the model's" * (precision == "fp32") + hint)
            return quick
        why = f"{engine}'s logits differ from the model's by {off:.2g} of their spread on a test image"
    note(f"engine: plain; {why}")
    return faster(model, "plain", precision, calibration, force=force)


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # whose rounding differs from kernel to kernel
def difference(model: EMANet, quick: EMANet) -> float:
    """The largest difference of two models' low logits for an image of noise, in their standard deviations."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, model.in_channels, *TRIED_SIZE), dtype=torch.uint8, generator=generator)
    x = model.normalise(pixels.to(model.mean.device))
    wanted, found = model.low_logits(x)[0], quick.low_logits(x)[0]
    return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-12))


def check(engine: Engine, precision: Precision, device: torch.device, force: bool = False) -> None:
    """Raises InputError where engine, precision and device do not go together."""
    for name, value, kinds in (("engine", engine, Engine), ("precision", precision, Precision)):
        if value not in get_args(kinds):
            raise InputError(f"no {name} {value!r}; there are: {', '.join(get_args(kinds))}")
    if engine == "openvino" and device.type != "cpu":
        raise InputError(f"the openvino engine computes on the CPU, not on {device}; give --device cpu")
    compiler = os.environ.get("CXX", COMPILERS.get(sys.platform, "g++"))
    if engine == "compile" and device.type == "cpu" and not shutil.which(compiler):
        raise InputError(
            f"the compile engine needs a C++ compiler for the CPU, but {compiler} is not installed; "
            "install it, name another in the variable CXX, or choose another --engine"
        )
    if precision == "int8" and engine != "openvino":
        raise InputError(f"int8 needs --engine openvino, not {engine}")
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"fp16 needs a CUDA device, not {device}; bf16 is the fast type of CPUs")
    if engine != "openvino":  # which asks the processor itself
        require_fast(precision, device, force)


class Torch:
    """A network in an autocast type and a memory layout; float32 in and out."""

    def __init__(self, network: Callable[[Tensor], Tensor], dtype: torch.dtype, *, channels_last: bool):
        self.network, self.dtype = network, dtype
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(x.contiguous(memory_format=self.layout)).float()


class Compiled:
    """torch.compile with frozen weights on the CPU and CUDA graphs on a GPU; a second size makes one graph for all.

    Calls from several threads take turns: the options are the whole process's.
    """

    def __init__(self, network: nn.Module):
        cuda = next(network.parameters()).is_cuda
        self.network = torch.compile(network, mode="reduce-overhead" if cuda else None)
        self.options: dict[str, Any] = (
            {} if cuda else {"freezing": True}
        )  # weights as constants: packed once for the kernels
        self.turn = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        import torch._inductor.config as inductor
        from torch._dynamo.exc import TorchDynamoException

        # Freezing needs no_grad, and inference tensors would make another graph. The next call of a CUDA graph
        # overwrites its output.
        try:
            with self.turn, torch.inference_mode(False), torch.no_grad(), inductor.patch(self.options):
                return self.network(x.clone()).clone()
        except TorchDynamoException as error:  # its text is pages of compiler messages
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"torch could not compile the network ({first}); choose another --engine") from error


def fold(network: nn.Module, sample: Tensor) -> int:
    """Fold every BatchNorm that follows a convolution into it, in place; returns how many.

    A pass over `sample` shows which BatchNorms do, whatever the names and the order of the modules: the BatchNorm
    takes the convolution's output, nothing else takes it, and neither module is used twice. The network must be in
    eval mode.
    """
    uses = _Uses()
    with torch.no_grad(), uses:
        network(sample)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    by_weight = {id(conv.weight): conv for conv in convs}
    norms_by_name: list[tuple[str, Any]] = [(n, m) for n, m in network.named_modules() if type(m) in FOLDABLE]
    by_mean = {id(norm.running_mean): (name, norm) for name, norm in norms_by_name}
    pairs = []
    for arguments, _ in uses.calls:
        norms = [by_mean[key] for key in arguments if key in by_mean]
        made_by = [call for call in uses.calls if call[1] == arguments[0] and "convolution" in uses.names[call[1]]]
        if not norms or len(made_by) != 1 or uses.count[arguments[0]] != 1:
            continue
        weights = [key for key in made_by[0][0] if key in by_weight]
        name, norm = norms[0]
        if len(weights) == 1 and uses.count[weights[0]] == uses.count[id(norm.running_mean)] == 1:
            pairs.append((by_weight[weights[0]], name, norm))
    for conv, name, norm in pairs:
        _fold(conv, norm)
        parent, _, own = name.rpartition(".")
        rest = nn.Sequential(getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity()))
        setattr(network.get_submodule(parent), own, rest.eval())
    return len(pairs)


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """conv then computes norm(conv(x)).

    torch's own fuse_conv_bn_weights, but in float64: in float32 it rounds every factor (2e-7 of a weight instead of
    6e-8), and a network multiplies dozens of such layers.
    """

    def double(x: Any) -> Any:
        return None if x is None else x.detach().cpu().double()  # a Mac's GPU has no float64

    mean, var, scale, shift = map(double, (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    weight, bias = fuse_conv_bn_weights(double(conv.weight), double(conv.bias), mean, var, norm.eps, scale, shift)
    where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    conv.weight = nn.Parameter(weight.to(**where), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(**where), requires_grad=False)


class _Uses(TorchDispatchMode):
    """Records which tensors every operation takes and gives, by id; all are kept, so that no id stands for two."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[int], int]] = []  # ids of the arguments, id of the first result
        self.names: dict[int, str] = {}  # id of a result -> the operation that made it
        self.count: dict[int, int] = {}  # id of a tensor -> how often it is an argument
        self.kept: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = [id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for key in inputs:
            self.count[key] = self.count.get(key, 0) + 1
        if inputs and outputs:
            self.calls.append((inputs, id(outputs[0])))
            self.names.setdefault(id(outputs[0]), str(function))
        self.kept.append((args, kwargs, result))
        return result
