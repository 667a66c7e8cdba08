"""What a checkpoint of mmsegmentation says about its model: its classes, and its Python config, parsed but never run.

`meta` holds CLASSES, PALETTE and `config` in versions 0.x, `dataset_meta` and `cfg` in 1.x.
"""

import ast
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import DatasetSpec, EvalConfig
from ..errors import InputError
from ..weights.foreign import Array


class Unread(dict):
    """A value that is not a literal. Anything inside it is unknown too."""

    def get(self, key: str, default: Any = None) -> "Unread":
        return self

    def __bool__(self) -> bool:
        return True


UNREAD = Unread()
CONVOLUTIONS = (None, {"type": "Conv2d"}, {"type": "Conv"})
# Settings that change the function, with the values that models here support. Other settings of mmseg's EMAHead,
# FCNHead and ResNet concern training or initialisation, show in the shapes of the weights, or are read below.
NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "model": {"type": ("EncoderDecoder",), "neck": (None,)},
    "backbone": {
        "type": ("ResNetV1c", "ResNet"),  # with deep_stem, the same keys and function
        "style": ("pytorch",),
        "avg_down": (False,),
        "deep_stem": (True,),
        "conv_cfg": CONVOLUTIONS,
        "dcn": (None,),
        "plugins": (None, ()),
        "num_stages": (4,),
        "out_indices": ((0, 1, 2, 3),),
    },
    "decode_head": {
        "type": ("EMAHead",),
        "in_index": (3, -1),
        "input_transform": (None,),
        "conv_cfg": CONVOLUTIONS,
        "threshold": (None,),
    },
    "auxiliary_head": {
        "type": ("FCNHead",),
        "num_convs": (1,),
        "kernel_size": (3,),
        "concat_input": (False,),
        "dilation": (1,),
        "in_index": (2, -2),
        "input_transform": (None,),
        "conv_cfg": CONVOLUTIONS,
    },
}
NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN", "SyncBatchNorm")
STRIDES: dict[
    tuple[int, ...], tuple[int, tuple[int, ...]]
] = {  # of the four stages -> output stride, and the dilations that keep the receptive field
    (1, 2, 2, 2): (32, (1, 1, 1, 1)),
    (1, 2, 2, 1): (16, (1, 1, 1, 2)),
    (1, 2, 1, 1): (8, (1, 1, 2, 4)),
}
# Setting of the decode_head -> our setting, its types, and how to translate the value.
HEAD: dict[str, tuple[str, tuple[type, ...], Callable[[Any], Any]]] = {
    "align_corners": ("align_corners", (bool,), bool),
    "num_stages": ("head.em_steps", (int,), int),
    "ema_channels": ("head.channels", (int,), int),
    "channels": ("head.fc1_channels", (int,), int),
    "num_bases": ("head.num_bases", (int,), int),
    "concat_input": ("head.concat", (bool,), bool),
    "momentum": ("head.bases_keep", (int, float), lambda momentum: 1 - momentum),
    "dropout_ratio": ("head.dropout", (int, float), float),
}


@dataclass(frozen=True)
class Stated:
    """What the config in a file sets, and what it sets in a form that cannot be read."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted names of ModelConfig."""
    evaluation: EvalConfig = EvalConfig()
    unread: dict[str, str] = field(default_factory=dict)
    """Our name (or the config's, if we have none) -> the config's name."""

    def take(self, ours: str, theirs: str, value: Any, fits: bool, change: Callable[[Any], Any]) -> None:
        if fits:
            self.settings[ours] = change(value)
        elif value is not None:
            self.unread[ours] = theirs


def mmseg_settings(content: Mapping[str, Any], multi_grid_given: bool = False) -> Stated:
    """What the config in the file sets; nothing if the file has no readable config.

    Raises InputError for a setting that models here do not support.
    """
    meta = _table(content.get("meta"))
    config = parse(str(meta.get("cfg") or meta.get("config") or ""))
    model = _table(config.get("model"))
    parts = {"model": model} | {name: _table(model.get(name)) for name in list(NEUTRAL)[1:]}
    stated = Stated(evaluation=_evaluation(model, config))
    for part, table in parts.items():
        for name, neutral in NEUTRAL[part].items():
            value = table.get(name, neutral[0])
            value = value.rpartition(".")[2] if name == "type" and isinstance(value, str) else value
            _require(stated, f"{part}.{name}", value, value in neutral)
        _require_layers(stated, part, table)
    backbone, head = parts["backbone"], parts["decode_head"]
    _require(stated, "decode_head.out_channels", head.get("out_channels"), head.get("out_channels") != 1)
    for name, (ours, kinds, change) in HEAD.items():
        stated.take(ours, name, head.get(name), type(head.get(name)) in kinds, change)
    if "type" in backbone:
        backbone = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)} | dict(backbone)
    _read_strides(stated, backbone)
    if backbone.get("multi_grid") not in (None, UNREAD) and not multi_grid_given:
        raise InputError(
            f"the config in the file sets multi_grid {reprlib.repr(backbone['multi_grid'])}, which are dilations, "
            "not factors; give the factors with --multi-grid"
        )
    _read_pixels(stated, config, model)
    return stated


def _require(stated: Stated, name: str, value: Any, fits: bool) -> None:
    if value is UNREAD:
        stated.unread[name] = name
    elif not fits:
        raise InputError(f"the config in the file sets {name} to {reprlib.repr(value)}, which is not supported")


def _require_layers(stated: Stated, part: str, table: Mapping[str, Any]) -> None:
    """Check norm_cfg and act_cfg, which are dicts; take the momentum of the norms."""
    norm, act = table.get("norm_cfg"), table.get("act_cfg")
    if norm is not None:
        kind = _table(norm).get("type", "BN")
        _require(stated, f"{part}.norm_cfg type", kind, kind in NORMS)
        eps = _table(norm).get("eps", 1e-5)
        _require(stated, f"{part}.norm_cfg eps", eps, eps == 1e-5)
        momentum = _table(norm).get("momentum", 0.1)
        agreed = type(momentum) is float and stated.settings.get("bn_momentum", momentum) == momentum
        _require(stated, f"{part}.norm_cfg momentum", momentum, agreed)
        if agreed:
            stated.settings["bn_momentum"] = momentum
    if "act_cfg" in table:
        kind = _table(act).get("type")
        _require(stated, f"{part}.act_cfg", UNREAD if kind is UNREAD else act, kind == "ReLU")


def _read_strides(stated: Stated, backbone: Mapping[str, Any]) -> None:
    strides: Any = backbone.get("strides")
    dilations: Any = backbone.get("dilations")
    if not all(isinstance(v, tuple) and all(type(n) is int for n in v) for v in (strides, dilations)):
        for ours, theirs in (("backbone.output_stride", "strides"), ("backbone.dilation", "dilations")):
            if strides is not None or dilations is not None:
                stated.unread[ours] = theirs
        return
    output_stride, fitting = STRIDES.get(strides, (0, ()))
    if dilations != fitting:
        raise InputError(
            f"the config in the file sets strides {reprlib.repr(strides)} with dilations {reprlib.repr(dilations)}, "
            "which fit no output stride of 8, 16 or 32"
        )
    stated.settings["backbone.output_stride"] = output_stride
    if output_stride < 32:
        contract = backbone.get("contract_dilation", False)
        kinds = {True: "contract", False: "uniform"}
        stated.take("backbone.dilation", "contract_dilation", contract, type(contract) is bool, kinds.get)


def _read_pixels(stated: Stated, config: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Mean and std in [0, 1]. mmcv reads BGR images; 0.x converts them to RGB by default, 1.x on request."""
    old = config.get("img_norm_cfg")
    given = old if old is not None else model.get("data_preprocessor") or config.get("data_preprocessor")
    if given is None:
        return
    pixels = _table(given)
    turns = ("to_rgb",) if old is not None else ("bgr_to_rgb", "rgb_to_bgr")
    turned = [pixels.get(name, old is not None) for name in turns]
    if UNREAD in turned:
        stated.unread["pixels"] = turns[0]
    elif True not in turned:
        raise InputError(f"the config in the file gives the network BGR pixels ({turns[0]}), but models here take RGB")
    if pixels.get("mean") is None:
        raise InputError("the config in the file gives no mean for the pixels, but models here need one")
    for name in ("mean", "std"):
        values = pixels.get(name)
        fits = isinstance(values, tuple) and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)
        stated.take(name, name, values, fits, lambda values: tuple(round(value / 255, 6) for value in values))


def _evaluation(model: Mapping[str, Any], config: Mapping[str, Any]) -> EvalConfig:
    """Evaluation by test_cfg. Windows here are evenly spaced and overlap at least as much as mmseg's."""
    test = _table(model.get("test_cfg") or config.get("test_cfg"))
    if test.get("mode") != "slide":
        return EvalConfig()
    sizes: list[Any] = [test.get("crop_size"), test.get("stride")]
    if any(not isinstance(v, tuple) or len(v) != 2 or any(type(n) is not int or n < 1 for n in v) for v in sizes):
        raise InputError("the config in the file sets test_cfg mode slide without crop_size and stride of (h, w)")
    window, steps = sizes
    overlap = max(1 - step / side for step, side in zip(steps, window, strict=True))
    return EvalConfig(mode="slide", window=window, overlap=round(overlap, 6))


def mmseg_classes(content: Mapping[str, Any]) -> DatasetSpec | None:
    """The classes and colours in the file; None if it has none. Names are stripped: mmseg's ADE20K has `bed `."""
    meta = _table(content.get("meta"))
    stated = _table(meta.get("dataset_meta"))
    names = stated.get("classes") or meta.get("CLASSES")
    colours = stated.get("palette") if stated.get("palette") is not None else meta.get("PALETTE")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    try:
        rows = colours.value().tolist() if isinstance(colours, Array) else colours or ()
        palette = tuple((int(r), int(g), int(b)) for r, g, b in rows)
    except (TypeError, ValueError, OverflowError):
        palette = ()
    names = tuple(name.strip() for name in names)
    return DatasetSpec(classes=names, palette=palette if len(palette) == len(names) else ())


def parse(text: str) -> dict[str, Any]:
    """The assignments of a config's text: dicts, lists, tuples, constants and names of these; the rest is UNREAD."""
    known: dict[str, Any] = {}
    try:
        for line in (line for line in ast.parse(text).body if isinstance(line, ast.Assign)):
            for target in line.targets:
                if isinstance(target, ast.Name):
                    known[target.id] = _literal(line.value, known)
                elif isinstance(name := next((n for n in ast.walk(target) if isinstance(n, ast.Name)), None), ast.Name):
                    known[name.id] = UNREAD  # model['decode_head'][...] = ...
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return known


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, UNREAD)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, known)
        return -value if type(value) in (int, float) else UNREAD
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_literal(item, known) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _literal(value, known) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _literal(word.value, known) for word in node.keywords if word.arg}
    return UNREAD


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
