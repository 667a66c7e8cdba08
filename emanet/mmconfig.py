"""What mmsegmentation's files say of their model: the text of its Python config, parsed and never run, and the classes.

Versions 0.x keep CLASSES, PALETTE and `config` in the file's `meta`; 1.x `dataset_meta` and `cfg`.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any

from .config import DatasetSpec
from .errors import InputError
from .foreign import Array


def mmseg_settings(content: Mapping[str, Any], multi_grid_given: bool = False) -> dict[str, Any]:
    """Dotted names of ModelConfig that the config in the file sets, empty if there is none that can be read."""
    meta = _table(content.get("meta"))
    config = parse(str(meta.get("cfg") or meta.get("config") or ""))
    model = _table(config.get("model"))
    backbone, head = _table(model.get("backbone")), _table(model.get("decode_head"))
    settings: dict[str, Any] = {}
    if isinstance(head.get("align_corners"), bool):
        settings["align_corners"] = head["align_corners"]
    if isinstance(head.get("num_stages"), int):
        settings["head.em_steps"] = head["num_stages"]
    strides, dilations = backbone.get("strides"), backbone.get("dilations")
    if isinstance(strides, tuple) and all(isinstance(stride, int) for stride in strides):
        settings["backbone.output_stride"] = 4 * math.prod(strides)  # 4 of the stem
    if isinstance(dilations, tuple) and dilations != (1,) * len(dilations):
        settings["backbone.dilation"] = "contract" if backbone.get("contract_dilation") is True else "uniform"
    if backbone.get("multi_grid") is not None and not multi_grid_given:
        raise InputError(
            f"the config in the file sets multi_grid {backbone['multi_grid']}, which are dilations and not factors; "
            "name the factors with --multi-grid"
        )
    pixels = _table(config.get("img_norm_cfg") or model.get("data_preprocessor"))
    if pixels.get("to_rgb", pixels.get("bgr_to_rgb")) is False:
        raise InputError("the config in the file gives the network BGR pixels, but models here read RGB")
    for name in ("mean", "std"):
        values = pixels.get(name)
        if isinstance(values, tuple) and all(isinstance(value, int | float) for value in values):
            settings[name] = tuple(round(value / 255, 6) for value in values)
    return settings


def mmseg_classes(content: Mapping[str, Any]) -> DatasetSpec | None:
    """The classes and colours that the file states, None if it states none."""
    meta = _table(content.get("meta"))
    stated = _table(meta.get("dataset_meta"))
    names = stated.get("classes") or meta.get("CLASSES")
    colours = stated.get("palette") if stated.get("palette") is not None else meta.get("PALETTE")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    try:
        rows = colours.value().tolist() if isinstance(colours, Array) else colours or ()
        palette = tuple((int(r), int(g), int(b)) for r, g, b in rows)
    except (TypeError, ValueError):
        palette = ()
    return DatasetSpec(classes=tuple(names), palette=palette if len(palette) == len(names) else ())


def parse(text: str) -> dict[str, Any]:
    """The assignments of a config's text: dicts, lists, tuples and constants; whatever else is None."""
    try:
        body = ast.parse(text).body
        return {
            target.id: _literal(line.value)
            for line in body
            if isinstance(line, ast.Assign)
            for target in line.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _literal(word.value) for word in node.keywords if word.arg}
    return None


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
