"""Backbones: any timm model with feature maps, at a given output stride, multi-grid and number of input channels."""

import hashlib
import re
from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor, nn

from . import architectures
from .config import BackboneConfig
from .errors import InputError, some, suggest
from .ops.uncompiled import uncompiled
from .weights.foreign import unwrapped
from .weights.tensors import read_weights


class Backbone(nn.Module):
    """Normalised images (B, in_channels, H, W) in, list of maps (B, channels[i], H_i, W_i) out, fine to coarse."""

    def __init__(self, net: nn.Module, *, frozen: bool = False, keep: float = 0):
        """frozen, keep: see BackboneConfig."""
        super().__init__()
        self.net = net
        self.kept = Kept(net, int(keep * 2**30)) if frozen and keep else None
        info: Any = net.feature_info  # timm's
        self.channels: list[int] = info.channels()
        self.stride: int = info.reduction()[-1]
        self.in_channels: int = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
        # Strided convolutions without padding (ConvNeXt's) drop pixels that do not fill a kernel, so images are padded.
        unpadded = any(
            isinstance(m, nn.Conv2d) and m.stride[0] > 1 and m.padding == (0, 0) and m.kernel_size == m.stride
            for m in net.modules()
        )
        self.divisor = (32 if 32 % self.stride == 0 else self.stride) if unpadded else 1
        self.frozen, self.learning = frozen, True
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        self.learning = mode
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.kept(x) if self.kept and self.learning else self.net(x)


class Kept:
    """A network that never changes, with its maps of the images that it has seen, up to some bytes of them.

    Every image goes through alone, so that its maps do not depend on the others of a batch, nor on what is kept.
    """

    def __init__(self, net: nn.Module, most: int):
        self.net, self.free = net, most
        self.maps: dict[bytes, list[Tensor]] = {}

    @uncompiled
    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Tensor]:
        each = [self.of_image(image[None]) for image in x]
        return [torch.cat(maps) for maps in zip(*each, strict=True)]

    def of_image(self, x: Tensor) -> list[Tensor]:
        """x: (1, in_channels, H, W)."""
        digest = hashlib.blake2b(str(x.shape).encode(), digest_size=16)
        digest.update(x.contiguous().cpu().numpy().data)
        key = digest.digest()
        maps = self.maps.get(key)
        if maps is None:
            maps = self.net(x)
            size = sum(each.numel() * each.element_size() for each in maps)
            if size <= self.free:
                self.maps[key], self.free = maps, self.free - size
        return maps


def build(config: BackboneConfig) -> Backbone:
    home = architectures.home(config.name)
    if home is None:
        import timm

        raise InputError(f"timm has no model {config.name!r}{suggest(config.name, timm.list_models())}")
    arguments: dict[str, Any] = {
        "in_chans": config.in_channels,
        "output_stride": config.output_stride,
        **config.options,
    }
    if home == "vision_transformer":
        arguments.setdefault("dynamic_img_size", True)  # they take images of one size otherwise
    hub = config.pretrained is True  # a string is a path
    net: Any
    try:
        net = _create(config.name, hub, arguments)
    except (OSError, RuntimeError, ValueError) as error:
        if not hub:
            raise InputError(f"backbone {config.name} cannot be built with {arguments}: {error}") from error
        raise InputError(
            f"cannot get the pretrained weights of {config.name} from the hub or its cache ({type(error).__name__}); "
            "bring the cache (HF_HOME) from a machine that has them, or give the path of a file downloaded elsewhere "
            "as model.backbone.pretrained, or set it to False"
        ) from error
    except Exception as error:  # timm's models raise anything on arguments that they do not have
        raise InputError(f"backbone {config.name} cannot be built with {arguments}: {error!r}") from error
    stride = net.feature_info.reduction()[-1]
    if stride != config.output_stride:
        raise InputError(f"model.backbone.output_stride is {config.output_stride}, but {config.name} gives {stride}")
    if isinstance(config.pretrained, str):
        load_weights(net, config)
    if config.dilation == "uniform":
        set_uniform_dilation(net, config)
    if config.multi_grid:
        set_multi_grid(net, config)
    return Backbone(net, frozen=config.frozen, keep=config.keep)


def _create(name: str, hub: bool, arguments: dict[str, Any]) -> nn.Module:
    """timm's feature extractor; models of a fixed stride have no argument output_stride."""
    try:
        return architectures.create(name, pretrained=hub, features_only=True, **arguments)
    except TypeError as error:
        if "output_stride" not in str(error):
            raise
    fixed = {key: value for key, value in arguments.items() if key != "output_stride"}
    return architectures.create(name, pretrained=hub, features_only=True, **fixed)


def stages(backbone: Backbone) -> list[list[nn.Parameter]] | None:
    """The backbone's parameters by depth, first stage first; None if it cannot be told where its stages end.

    A stage ends with the module that gives a feature map. A plain ViT, whose maps have one size, has no stages: there
    the patch embedding and each block stand for one.
    """
    info: Any = backbone.net.feature_info  # timm's
    # A feature extractor may join names with _ or hold the whole model; modules are in the order they run in.
    names = [name.removeprefix("model.").replace(".", "_") for name, _ in backbone.net.named_modules()]
    ends = [name.replace(".", "_") for name in info.module_name()]
    if len(set(info.reduction())) == 1:
        ends = ["patch_embed", *(name for name in names if re.fullmatch(r"blocks_\d+", name))]
    last = [max((i for i, name in enumerate(names) if f"{name}_".startswith(f"{end}_")), default=-1) for end in ends]
    if last[0] < 0 or last != sorted(set(last)):
        return None
    found: list[list[nn.Parameter]] = [[] for _ in ends]
    for i, module in enumerate(backbone.net.modules()):
        found[min(bisect_left(last, i), len(ends) - 1)] += module.parameters(recurse=False)
    return [members for members in found if members]


def set_uniform_dilation(net: nn.Module, config: BackboneConfig) -> None:
    """Dilate the first block of each dilated stage fully, and remove the average from its shortcut (PaddleSeg)."""
    for stride, stage in zip((4, 8, 16, 32), ("layer1", "layer2", "layer3", "layer4"), strict=True):
        blocks = getattr(net, stage, None)
        if blocks is None:
            raise InputError(
                f"model.backbone.dilation is 'uniform', but {config.name} is not a ResNet; only ResNets use it"
            )
        if stride > config.output_stride:
            dilate(blocks[0], stride // config.output_stride)
            if blocks[0].downsample is not None and len(blocks[0].downsample) == 3:  # pool, conv, norm
                blocks[0].downsample[0] = nn.Identity()


def set_multi_grid(net: nn.Module, config: BackboneConfig) -> None:
    """Dilate the last stage's 3x3 convolutions: block i by (stage dilation) * multi_grid[i].

    The first block continues the stage before and takes half of it, as in the original: with 1 2 4 the dilations are
    2 8 16 at output stride 8, and 1 4 8 at 16. timm has the stage's dilation but no multi-grid.
    """
    blocks = getattr(net, "layer4", None)
    if blocks is None or len(blocks) != len(config.multi_grid):
        grid = " ".join(map(str, config.multi_grid))
        need = f"{len(blocks)} factors, one per block of its last stage" if blocks else "none; only ResNets use it"
        raise InputError(f"model.backbone.multi_grid is {grid}, but {config.name} takes {need}")
    dilation = 32 // config.output_stride
    for i, (block, factor) in enumerate(zip(blocks, config.multi_grid, strict=True)):
        halved = i == 0 and config.dilation == "contract"
        dilate(block, factor * (max(1, dilation // 2) if halved else dilation))


def dilate(block: nn.Module, dilation: int) -> None:
    for conv in block.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (dilation, dilation)


def load_weights(net: nn.Module, config: BackboneConfig) -> None:
    """Load a file of the whole timm model into the feature extractor `net`, strictly.

    The file must have every key of `net`, and no key that the classification model lacks. If the file has another
    number of input channels, its first convolution is adapted as timm does it.
    """
    path = str(config.pretrained)
    source = read_weights(path)
    with torch.device("meta"):
        options: dict[str, Any] = {name: value for name, value in config.options.items() if name != "out_indices"}
        whole = architectures.create(config.name, **options).state_dict()
    # A feature extractor may join names with _ that the whole model joins with a dot: stem.0 -> stem_0. That of a
    # transformer puts "model." before all.
    plain = {key.replace(".", "_"): key for key in whole}
    wanted = {key: plain[key.removeprefix("model.").replace(".", "_")] for key in net.state_dict()}

    # The wrappers of other trainers put their names before every key.
    source = next((inner for _, inner in unwrapped(source) if not whole.keys().isdisjoint(inner)), source)
    missing = [key for key in wanted.values() if key not in source and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in source if key not in whole]
    if missing or unexpected:
        parts = [f"missing: {some(missing)}"] * bool(missing) + [f"unexpected: {some(unexpected)}"] * bool(unexpected)
        raise InputError(f"{path} does not fit backbone {config.name}: {'; '.join(parts)}")
    state = net.state_dict()
    first = next(key for key, value in state.items() if value.dim() == 4)
    for key, name in wanted.items():
        value = source.get(name, state[key])
        if value.shape != state[key].shape and key == first:
            import timm

            value = timm.models.adapt_input_conv(config.in_channels, value)
        if value.shape != state[key].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(state[key].shape)}"
            raise InputError(f"{path} does not fit backbone {config.name}: {name} has shape {shapes}")
        state[key] = value
    net.load_state_dict(state)
