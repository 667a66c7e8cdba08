"""How others name the weights that this program has too: one table per layout, from their prefixes to ours.

Names are translated whole and both ways, so that an error can name the key as the file does. The values behind them
are convert.py's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError

NET = "backbone.net."  # where a whole model keeps timm's feature extractor
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    prefixes: dict[str, str]
    """Start of a key in the file, up to a dot or whole -> start of ours. The longest that fits counts."""
    stems: tuple[str, ...]
    """Kinds of stem, as in timm's names: `` is 7x7, s 64-64-128, c 32-32-64, d and t with an averaged shortcut."""
    whole: bool = True
    """A segmentation model; else a backbone of timm's own names."""
    leaves: dict[str, str] = field(default_factory=dict)
    """Last part of a key -> of ours, where they differ."""
    biases: dict[str, str] = field(default_factory=dict)
    """Our name for a convolution's bias that we do not have -> the running mean of the BatchNorm behind it."""
    empty: tuple[str, ...] = ()
    """Keys that carry nothing."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of ModelConfig, dotted: what every model of this layout computes, and its weights do not tell."""

    def ours(self, key: str) -> str | None:
        """Our name of a file's key, None if the layout has no such key."""
        parts = key.split(".")
        for length in range(len(parts), -1, -1):
            prefix = ".".join(parts[:length]) + ("." if 0 < length < len(parts) else "")
            if prefix in self.prefixes:
                rest = parts[length:]
                rest[-1:] = [self.leaves.get(leaf, leaf) for leaf in rest[-1:]]
                return self.prefixes[prefix] + ".".join(rest)
        return None

    def theirs(self, key: str) -> str:
        """The file's name of one of our keys."""
        prefix = max((ours for ours in self.prefixes.values() if key.startswith(ours)), key=len, default=None)
        if prefix is None:
            return key
        source = next(theirs for theirs, ours in self.prefixes.items() if ours == prefix)
        rest = key[len(prefix) :].split(".")
        leaves = {ours: theirs for theirs, ours in self.leaves.items()}
        return source + ".".join([*rest[:-1], leaves.get(rest[-1], rest[-1])])


def _layers(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}layer{n}.": f"{ours}layer{n}." for n in (1, 2, 3, 4)}


def _flat_stem(theirs: str, ours: str) -> dict[str, str]:
    """Three convolutions and their norms in one Sequential, where timm has the last norm apart."""
    return {f"{theirs}stem.{i}.": f"{ours}conv1.{i}." for i in (0, 1, 3, 4, 6)} | {f"{theirs}stem.7.": f"{ours}bn1."}


def _conv_bn(theirs: str, ours: str, conv: str = "conv", bn: str = "bn") -> dict[str, str]:
    return {f"{theirs}.{conv}.": f"{ours}.0.", f"{theirs}.{bn}.": f"{ours}.1."}


def _paddle_conv_bn(theirs: str, conv: str, bn: str) -> dict[str, str]:
    return {f"{theirs}._conv.": conv, f"{theirs}._batch_norm.": bn}


ORIGINAL = (
    {"extractor.0.": NET + "conv1.", "extractor.1.": NET + "bn1."}
    | {f"extractor.{n + 3}.": f"{NET}layer{n}." for n in (1, 2, 3, 4)}
    | _conv_bn("fc0", "head.fc0")
    | {
        "emau.mu": "head.emau.bases",
        "emau.conv1.": "head.emau.conv_in.",
        "emau.conv2.0.": "head.emau.conv_out.",
        "emau.conv2.1.": "head.emau.bn_out.",
    }
    | _conv_bn("fc1.0", "head.fc1")
    | {"fc2.": "head.classifier."}
)
MMSEG = (
    _flat_stem("backbone.", NET)
    | _layers("backbone.", NET)
    | _conv_bn("decode_head.ema_in_conv", "head.fc0")
    | {
        "decode_head.ema_module.bases": "head.emau.bases",
        "decode_head.ema_mid_conv.conv.": "head.emau.conv_in.",
        "decode_head.ema_out_conv.conv.": "head.emau.conv_out.",
        "decode_head.ema_out_conv.bn.": "head.emau.bn_out.",
    }
    | _conv_bn("decode_head.bottleneck", "head.fc1")
    | _conv_bn("decode_head.conv_cat", "head.concat")
    | {"decode_head.conv_seg.": "head.classifier."}
    | _conv_bn("auxiliary_head.convs.0", "aux_head.fc0")
    | {"auxiliary_head.conv_seg.": "aux_head.classifier."}
)
SSSEG = (
    _flat_stem("backbone_net.", NET)
    | _layers("backbone_net.", NET)
    | _conv_bn("ema_in_conv", "head.fc0", "0", "1")
    | {
        "ema_module.bases": "head.emau.bases",
        "ema_mid_conv.": "head.emau.conv_in.",
        "ema_out_conv.0.": "head.emau.conv_out.",
        "ema_out_conv.1.": "head.emau.bn_out.",
    }
    | _conv_bn("bottleneck", "head.fc1", "0", "1")
    | _conv_bn("decoder", "head.concat", "0", "1")
    | {"decoder.4.": "head.classifier."}
    | _conv_bn("auxiliary_decoder", "aux_head.fc0", "0", "1")
    | {"auxiliary_decoder.4.": "aux_head.classifier."}
)
PADDLESEG: dict[str, str] = (
    _paddle_conv_bn("backbone.conv1_1", NET + "conv1.0.", NET + "conv1.1.")
    | _paddle_conv_bn("backbone.conv1_2", NET + "conv1.3.", NET + "conv1.4.")
    | _paddle_conv_bn("backbone.conv1_3", NET + "conv1.6.", NET + "bn1.")
    | _paddle_conv_bn("head.ema_in_conv", "head.fc0.0.", "head.fc0.1.")
    | {"head.emau.mu": "head.emau.bases", "head.ema_mid_conv.": "head.emau.conv_in."}
    | _paddle_conv_bn("head.ema_out_conv", "head.emau.conv_out.", "head.emau.bn_out.")
    | _paddle_conv_bn("head.bottleneck", "head.fc1.0.", "head.fc1.1.")
    | _paddle_conv_bn("head.conv_cat", "head.concat.0.", "head.concat.1.")
    | {"head.cls.1.": "head.classifier."}
    | _paddle_conv_bn("head.aux.0", "aux_head.fc0.0.", "aux_head.fc0.1.")
    | {"head.aux.2.": "aux_head.classifier."}
)
for _stage in range(4):
    for _block in range(36):  # layer3 of ResNet-152
        _theirs, _ours = f"backbone.bb_{_stage}_{_block}.", f"{NET}layer{_stage + 1}.{_block}."
        for _i in range(3):
            PADDLESEG |= _paddle_conv_bn(f"{_theirs}conv{_i}", f"{_ours}conv{_i + 1}.", f"{_ours}bn{_i + 1}.")
        PADDLESEG |= _paddle_conv_bn(f"{_theirs}short", f"{_ours}downsample.1.", f"{_ours}downsample.2.")

CLASSIFIER = _layers("", "") | {"conv1.": "conv1.", "bn1.": "bn1.", "fc.": "fc."}
RELATIVES = {"head.eps": 1e-12, "head.renormalise": True, "align_corners": False}

# The original's file is {'net', 'step'} or its net alone; v1c are OpenMMLab's ImageNet weights.
LAYOUTS = {
    "original": Layout(
        prefixes=ORIGINAL,
        stems=("s",),
        settings={"backbone.multi_grid": (1, 2, 4), "head.eps": 1e-6, "align_corners": True, "bn_momentum": 3e-4},
    ),
    "mmseg": Layout(prefixes=MMSEG, stems=("c",), settings=RELATIVES),
    "ssseg": Layout(prefixes=SSSEG, stems=("c",), settings=RELATIVES),
    "paddleseg": Layout(
        prefixes=PADDLESEG,
        stems=("d",),
        leaves={"_mean": "running_mean", "_variance": "running_var"},
        biases={
            "head.fc0.0.bias": "head.fc0.1.running_mean",
            "head.emau.conv_out.bias": "head.emau.bn_out.running_mean",
            "head.fc1.0.bias": "head.fc1.1.running_mean",
            "head.concat.0.bias": "head.concat.1.running_mean",
            "aux_head.fc0.0.bias": "aux_head.fc0.1.running_mean",
        },
        empty=("StructuredToParameterName@@", "backbone.conv1_logit"),
        settings=RELATIVES
        | {"head.relu_out": True, "backbone.dilation": "uniform", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    ),
    "torchvision": Layout(prefixes=CLASSIFIER, stems=("",), whole=False),
    "encoding": Layout(prefixes=CLASSIFIER, stems=("s",), whole=False),
    "v1c": Layout(
        prefixes=_flat_stem("", "") | _layers("", "") | {"fc.": "fc."},
        stems=("c",),
        whole=False,
    ),
    "timm": Layout(prefixes={"": ""}, stems=("", "s", "c", "d", "t"), whole=False),
}


def stem_of(shapes: Shapes) -> str | None:
    """The kind of a ResNet's stem from its weights by timm's names, None if it has none."""
    if "conv1.weight" in shapes:
        return ""
    width = next((shapes[key][0] for key in ("conv1.0.weight", "conv1.1.weight") if key in shapes), 0)
    averaged = "layer1.0.downsample.2.weight" in shapes
    return {64: "s", 32: "d" if averaged else "c", 24: "t"}.get(width)


def resnet_name(shapes: Shapes, stem: str | None) -> str:
    """timm's name of the ResNet with these weights and this stem, empty if it is none of the plain ones."""
    blocks = {key.split(".")[1] for key in shapes if key.startswith("layer3.")}
    basic = "layer1.0.conv3.weight" not in shapes and "layer1.1.conv3.weight" not in shapes
    depth = {2: 18, 6: 34}.get(len(blocks)) if basic else {6: 50, 23: 101, 36: 152}.get(len(blocks))
    plain = basic or shapes.get("layer1.1.conv2.weight", (64, 64, 3, 3)) == (64, 64, 3, 3)
    return f"resnet{depth}{stem}" if stem is not None and depth and plain else ""


def recognise(shapes: Shapes, known: str, path: str) -> str:
    """The layout of a file's keys. known: the timm model it is said to be, if anything says so.

    A layout must know more than half of the keys, so that one that is missing or unexpected can be named later.
    """
    shares = {}
    for name, layout in LAYOUTS.items():
        ours = {new: shape for key, shape in shapes.items() if (new := layout.ours(key)) is not None}
        stem = stem_of(ours)
        fits = layout.whole or stem in layout.stems or stem is stem_of(shapes) is None
        shares[name] = len(ours) / len(shapes) if shapes and fits else 0.0
    del shares["timm"]  # knows every key of everything
    best = max(shares, key=lambda name: shares[name])
    if shares[best] > 0.5:
        return best
    if known or resnet_name(shapes, stem_of(shapes)):
        return "timm"
    if any(key.startswith(NET) for key in shapes):
        raise InputError(f"{path} has this program's own keys: there is nothing to convert")
    nearest = sorted(shares, key=lambda name: -shares[name])[:2]
    listed = ", ".join(f"{name} knows {shares[name]:.0%}" for name in nearest)
    odd = next((key for key in shapes if LAYOUTS[nearest[0]].ours(key) is None), "")
    raise InputError(
        f"{path} has the keys of no known layout ({odd!r} for one; {listed}); name it with --from, "
        f"or with --backbone if it is a model of timm's; layouts: {', '.join(LAYOUTS)}"
    )
