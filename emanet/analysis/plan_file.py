"""A plan as a person would write it: a Python file with one line a setting, and its reason as a comment."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

from ..config import DataConfig, Experiment
from ..errors import printable

Settings = dict[str, tuple[Any, str]]
"""Dotted name of a setting -> its value, and the reason."""
SECTIONS = {
    "model.backbone": "BackboneConfig",
    "model.head": "HeadConfig",
    "model": "ModelConfig",
    "data": "DataConfig",
    "loss": "LossConfig",
    "optim": "OptimConfig",
    "eval": "EvalConfig",
}
WIDTH = 116


def write_python(experiment: Experiment, settings: Settings, title: str, origin: str) -> str:
    """A Python file that defines the experiment, with the reason for each setting above it."""
    values = {name: value for name, (value, _) in settings.items()}
    values |= {
        f"data.{f.name}": value
        for f in dataclasses.fields(DataConfig)
        if (value := getattr(experiment.data, f.name)) != f.default and f"data.{f.name}" not in values
    }
    used = sorted({SECTIONS[section] for name in values for section in _sections(name)} | {"Experiment"})
    imports = f"from emanet.config import {', '.join(used)}"
    if len(imports) > WIDTH:
        imports = "from emanet.config import (\n    " + ",\n    ".join(used) + ",\n)"
    lines = [
        f'"""A plan for {title}.',
        "",
        f"It was made for {_in_docstring(origin)}. Change what you like, then train it:",
        "",
        "    python -m emanet train THIS_FILE",
    ]
    lines += ['"""', "", imports, "", "config = Experiment("]
    lines += _body("", values, {name: why for name, (_, why) in settings.items()}, 1)
    return "\n".join([*lines, ")", ""])


def _sections(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _body(prefix: str, values: Mapping[str, Any], reasons: Mapping[str, str], depth: int) -> list[str]:
    """The arguments of a section: inner sections first, then its own settings."""
    indent, lines = "    " * depth, []
    inner = dict.fromkeys(section for name in values for section in _sections(name) if section.startswith(prefix))
    for section in inner:
        head = section.removeprefix(prefix)
        if head and "." not in head.strip("."):
            lines.append(f"{indent}{head.strip('.')}={SECTIONS[section]}(")
            lines += [*_body(f"{section}.", values, reasons, depth + 1), f"{indent}),"]
    for name, value in values.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and "." not in own:
            why = reasons.get(name, "")
            line = f"{indent}{own}={_literal(value)},"
            if why and len(line) + len(why) + 4 <= WIDTH:
                lines.append(f"{line}  # {why}")
                continue
            lines += textwrap.wrap(why, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            if len(line) > WIDTH and isinstance(value, tuple):
                more, items = f"{indent}    ", ", ".join(map(_literal, value)) + ","
                lines += [f"{indent}{own}=(", *textwrap.wrap(items, WIDTH, initial_indent=more, subsequent_indent=more)]
                line = f"{indent}),"
            lines.append(line)
    return lines


def _literal(value: Any) -> str:
    """As repr, but texts in double quotes where they hold none."""
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and '"' not in text else text


def _in_docstring(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', "'")
