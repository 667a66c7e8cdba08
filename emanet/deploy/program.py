"""The function of a trained model as one torch.export program: raw pixels in, label maps out. Every export starts here.

    program = program_of(model, ("labels", "probabilities"), model_config.eval)
    labels, probabilities = program.module()(pixels)       # pixels (N, H, W, C) uint8, any N, H and W

Inside are what inference.predict_labels does for whole images at one scale: normalising, shrinking to `longest_side`,
padding to the model's grid, the network with its EM iterations, upsampling and argmax.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

from ..config import EvalConfig
from ..emau import EMAU
from ..errors import InputError
from ..inference import grid_size
from ..model import EMANet
from ..ops.em_attention import em_step
from .artefact import OUTPUTS
from .engines import fold
from .network import Network, quiet

SAMPLE = (2, 97, 130)  # images, rows and columns that the program is traced with; none of them is fixed by it


def program_of(model: EMANet, outputs: Sequence[str] = ("labels",), config: EvalConfig = EvalConfig()) -> Any:
    """The program of `outputs`, in that order (artefact.OUTPUTS), for uint8 images (N, H, W, C) of any size.

    config: only its longest_side. The model, in eval mode and on the CPU, stays as it is. Raises InputError where
    torch.export cannot follow the network, or an output is not one of this model's.
    """
    whole = Whole(model, outputs, config.longest_side)
    sample = torch.zeros(*SAMPLE, model.in_channels, dtype=torch.uint8)
    free = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(whole, (sample,), dynamic_shapes=(free,), strict=False)
        except Exception as error:  # torch has many kinds, of which the first line is the shortest
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"torch.export cannot follow this network: {line}; choose another backbone") from error


class Whole(nn.Module):
    """What `program_of` traces: forward(pixels) gives a tuple of the outputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: EMANet, outputs: Sequence[str], longest_side: int = 0):
        super().__init__()
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown or not outputs:
            raise InputError(f"outputs are one or more of {', '.join(OUTPUTS)}, not {' '.join(outputs) or 'none'}")
        self.outputs, self.longest_side = tuple(outputs), longest_side
        self.stride, self.align_corners = model.stride, model.align_corners
        self.divisor = model.backbone.divisor
        self.network = Network(copy.deepcopy(model.backbone), copy.deepcopy(model.head)).eval().requires_grad_(False)
        self.network.backbone.kept = None
        self.seen = None
        if "responsibilities" in outputs:
            self.seen = Iterations.put_into(self.network.head)
            if self.seen is None:
                raise InputError("responsibilities are those of EM attention, which this model's head does not have")
        pad_explicitly(self.network, model)
        pool_by_matrices(self.network)
        fold(self.network, torch.zeros(1, model.in_channels, *sides(model, (65, 97))))
        self.register_buffer("mean", model.mean.detach().clone())
        self.register_buffer("std", model.std.detach().clone())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """pixels: (N, H, W, C) uint8."""
        x = (pixels.permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        h, w = x.shape[2:]
        extra, stride, divisor = int(self.align_corners), self.stride, self.divisor
        small_h: Any = h
        small_w: Any = w
        if self.longest_side:
            # inference.shrunk_size without a condition: a side that is not longer stays as it is.
            longest = torch.sym_max(torch.sym_max(h, w), self.longest_side)
            small_h, small_w = (
                torch.sym_max(1, (2 * side * self.longest_side + longest) // (2 * longest)) for side in (h, w)
            )
            x = F.interpolate(x, (small_h, small_w), mode="bilinear", align_corners=self.align_corners, antialias=True)
        grid = [side + -(side - extra) % stride for side in (small_h, small_w)]  # inference.grid_size
        spread = [side + -side % divisor for side in grid]  # EMANet.padded_size
        x = F.pad(x, (0, spread[1] - small_w, 0, spread[0] - small_h))
        low = self.network(x).float()
        found: dict[str, Tensor] = {}
        if self.seen is not None:
            found["responsibilities"] = self.seen.z_NTKHW()
        full = spread
        if self.longest_side:  # as in inference._labels
            ends = zip(spread, (h, w), (small_h, small_w), strict=True)
            full = [extra + _rounded((s - extra) * (side - extra), small - extra) for s, side, small in ends]
        if "labels" in self.outputs or not self.longest_side:
            high = self.resize(low, full)[:, :, :h, :w]
            found["labels"] = high.argmax(1).to(torch.uint8)
        if "probabilities" in self.outputs:  # as in inference._probabilities: spread over the smaller image first
            if self.longest_side:
                p = self.resize(low, spread)[:, :, :small_h, :small_w].softmax(1)
                found["probabilities"] = self.resize(p, (h, w))
            else:
                found["probabilities"] = high.softmax(1)
        return tuple(found[name] for name in self.outputs)

    def resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=self.align_corners)


def _rounded(numerator: int, denominator: int) -> int:
    divisor: Any = torch.sym_max(1, denominator)
    return (2 * numerator + divisor) // (2 * divisor)


def sides(model: EMANet, size: tuple[int, int]) -> list[int]:
    """What the backbone gets of an image of (h, w): padded to the grid and to the divisor."""
    return list(model.padded_size(grid_size(model, size)))


class Iterations(nn.Module):
    """EM attention that also keeps the responsibilities of every iteration, for one forward pass."""

    def __init__(self, unit: EMAU):
        super().__init__()
        self.unit, self.kept = unit, _Kept()

    @classmethod
    def put_into(cls, head: nn.Module) -> "_Kept | None":
        for name, module in head.named_children():
            if isinstance(module, EMAU):
                counting = cls(module)
                setattr(head, name, counting)
                return counting.kept
        return None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        unit = self.unit
        pixels_BCN = unit.conv_in(x_BCHW).flatten(2)
        mu_BCK = unit.bases.expand(pixels_BCN.shape[0], -1, -1)
        iterations = []
        for _ in range(unit.em_steps):
            z_BNK, mu_BCK = em_step(pixels_BCN, mu_BCK, unit.eps)
            iterations.append(z_BNK)
        self.kept.iterations, self.kept.size = iterations, x_BCHW.shape[2:]
        rebuilt_BCHW = (mu_BCK @ z_BNK.transpose(1, 2)).unflatten(2, x_BCHW.shape[2:]).relu()
        return torch.relu(x_BCHW + unit.relu_out(unit.bn_out(unit.conv_out(rebuilt_BCHW))))


class _Kept:
    iterations: list[Tensor]
    size: Sequence[int]

    def z_NTKHW(self) -> Tensor:
        return torch.stack([z.transpose(1, 2).unflatten(2, self.size) for z in self.iterations], 1)


def pad_explicitly(network: Network, model: EMANet) -> None:
    """Replace TensorFlow's SAME layers, whose padding depends on the map's size, by constant padding and plain layers.

    On the model's grid every map of a layer needs the same padding; three sizes are tried. Some runtimes compute SAME
    with a stride of 2 wrongly. Raises InputError where the padding differs.
    """
    paddings: dict[str, set[tuple[int, ...]]] = {}
    same = {name: layer for name, layer in network.named_modules() if isinstance(layer, SAME)}

    def remembering(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor]) -> None:
            sides, kernel, stride = inputs[0].shape[2:], _pair(layer.kernel_size), _pair(layer.stride)
            dilation = _pair(getattr(layer, "dilation", 1))
            each = zip(sides, kernel, stride, dilation, strict=True)
            paddings.setdefault(name, set()).add(tuple(get_same_padding(*values) for values in each))

        return hook

    hooks = [layer.register_forward_pre_hook(remembering(name)) for name, layer in same.items()]
    with torch.no_grad():
        for size in (33, 65), (64, 128), (200, 97):
            network(torch.zeros(1, model.in_channels, *sides(model, size)))
    for hook in hooks:
        hook.remove()
    for name, seen in paddings.items():
        if len(seen) > 1:
            raise InputError(f"{name} pads differently at different image sizes, which an exported model cannot")
        (h, w), layer = seen.pop(), same[name]
        ends = (w // 2, w - w // 2, h // 2, h - h // 2)
        new = nn.Sequential(nn.ConstantPad2d(ends, -torch.inf if isinstance(layer, MaxPool2dSame) else 0), plain(layer))
        _replace(network, name, new)


SAME = (Conv2dSame, AvgPool2dSame, MaxPool2dSame)


def plain(layer: Any) -> nn.Module:
    """A SAME layer without its padding."""
    if isinstance(layer, AvgPool2dSame):
        return nn.AvgPool2d(layer.kernel_size, layer.stride, 0, layer.ceil_mode, layer.count_include_pad)
    if isinstance(layer, MaxPool2dSame):
        return nn.MaxPool2d(layer.kernel_size, layer.stride, 0, layer.dilation, ceil_mode=layer.ceil_mode)
    bias = layer.bias is not None
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0, layer.dilation
    conv = nn.Conv2d(*sizes, groups=layer.groups, bias=bias)
    conv.load_state_dict(layer.state_dict())
    return conv.requires_grad_(False)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class MatrixPool(nn.Module):
    """AdaptiveAvgPool2d(bins) as two products with matrices of shares, which runtimes have for any size."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.shares(side, x) for side in x.shape[2:])
        return rows @ x @ columns.transpose(0, 1)

    def shares(self, side: int, like: Tensor) -> Tensor:
        """(bins, side): 1 / count for the pixels of bin i, floor(i side / bins) to ceil((i + 1) side / bins)."""
        i = torch.arange(self.bins, device=like.device)[:, None]
        pixel = torch.arange(side, device=like.device)
        start, end = i * side // self.bins, ((i + 1) * side + self.bins - 1) // self.bins
        inside = ((pixel >= start) & (pixel < end)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


def pool_by_matrices(network: nn.Module) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size != 1:
            if not isinstance(module.output_size, int):
                raise InputError(f"{name} pools to {module.output_size}, but only squares are exported")
            _replace(network, name, MatrixPool(module.output_size))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module.eval())
