"""How other programs name the same weights: one table per layout, from their prefixes to ours.

Names translate both ways, so an error can name a key as the file does. convert.py moves the values.
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
    """Prefix of a key in the file (up to a dot, or the whole key) -> our prefix. The longest match wins."""
    stems: tuple[str, ...]
    """Kinds of stem, as in timm's names: empty is 7x7, s is 64-64-128, c is 32-32-64; d and t average the shortcut."""
    whole: bool = True
    """True: a segmentation model. False: a backbone, with timm's names."""
    leaves: dict[str, str] = field(default_factory=dict)
    """Last part of a key in the file -> ours, where they differ."""
    biases: dict[str, str] = field(default_factory=dict)
    """Bias of a convolution that has none here -> the running mean of the BatchNorm after it."""
    empty: tuple[str, ...] = ()
    """Keys without content."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of ModelConfig, dotted, that all models of this layout share and that weights do not show."""

    def ours(self, key: str) -> str | None:
        """Our name for a key of the file; None if the layout does not have it."""
        parts = key.split(".")
        for length in range(len(parts), -1, -1):
            prefix = ".".join(parts[:length]) + ("." if 0 < length < len(parts) else "")
            if prefix in self.prefixes:
                rest = parts[length:]
                rest[-1:] = [self.leaves.get(leaf, leaf) for leaf in rest[-1:]]
                return self.prefixes[prefix] + ".".join(rest)
        return None

    def theirs(self, key: str) -> str:
        """The file's name for one of our keys."""
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
    """A stem of three convolutions and norms in one Sequential; timm has the last norm outside it."""
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
OTHERS = {"head.eps": 1e-12, "head.renormalise": True, "align_corners": False}

# The original saves {'net', 'step'}, or its net alone. v1c: OpenMMLab's ImageNet weights.
LAYOUTS = {
    "original": Layout(
        prefixes=ORIGINAL,
        stems=("s",),
        settings={"backbone.multi_grid": (1, 2, 4), "head.eps": 1e-6, "align_corners": True, "bn_momentum": 3e-4},
    ),
    "mmseg": Layout(prefixes=MMSEG, stems=("c",), settings=OTHERS),
    "ssseg": Layout(prefixes=SSSEG, stems=("c",), settings=OTHERS),
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
        settings=OTHERS
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
    """The kind of stem of a ResNet from the shapes of its weights (timm's names); None if it has no stem."""
    if "conv1.weight" in shapes:
        return ""
    width = next((shapes[key][0] for key in ("conv1.0.weight", "conv1.1.weight") if key in shapes), 0)
    averaged = "layer1.0.downsample.2.weight" in shapes
    return {64: "s", 32: "d" if averaged else "c", 24: "t"}.get(width)


def resnet_name(shapes: Shapes, stem: str | None) -> str:
    """timm's name of the ResNet with these weights and this stem; empty if it is not a plain one."""
    blocks = {key.split(".")[1] for key in shapes if key.startswith("layer3.")}
    basic = "layer1.0.conv3.weight" not in shapes and "layer1.1.conv3.weight" not in shapes
    depth = {2: 18, 6: 34}.get(len(blocks)) if basic else {6: 50, 23: 101, 36: 152}.get(len(blocks))
    plain = basic or shapes.get("layer1.1.conv2.weight", (64, 64, 3, 3)) == (64, 64, 3, 3)
    return f"resnet{depth}{stem}" if stem is not None and depth and plain else ""


def recognise(shapes: Shapes, model: str, path: str) -> str:
    """The layout that fits the keys of a file. model: the timm model that the file or the user names, or "".

    A layout must know more than half of the keys; single missing or unexpected keys are reported later, by name.
    """
    shares = {}
    for name, layout in LAYOUTS.items():
        ours = {new: shape for key, shape in shapes.items() if (new := layout.ours(key)) is not None}
        stem = stem_of(ours)
        fits = layout.whole or stem in layout.stems or stem is stem_of(shapes) is None
        shares[name] = len(ours) / len(shapes) if shapes and fits else 0.0
    del shares["timm"]  # it accepts any key
    best = max(shares, key=lambda name: shares[name])
    if shares[best] > 0.5:
        return best
    if model or resnet_name(shapes, stem_of(shapes)):
        return "timm"
    if any(key.startswith(NET) for key in shapes):
        raise InputError(f"{path} has this program's own keys; there is nothing to convert")
    nearest = sorted(shares, key=lambda name: -shares[name])[:2]
    listed = ", ".join(f"{name} knows {shares[name]:.0%}" for name in nearest)
    odd = next((key for key in shapes if LAYOUTS[nearest[0]].ours(key) is None), "")
    raise InputError(
        f"the keys of {path} fit no layout (for example {odd!r}; {listed}); name the layout with --from, "
        f"or a timm model with --backbone; layouts: {', '.join(LAYOUTS)}"
    )
