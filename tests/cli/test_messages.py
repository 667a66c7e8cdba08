"""Every flag that a message names exists in the command that prints it.

The messages of a command are the texts in what its `run` and `main` reach: a call graph by names, read from the source.
A name that is used counts as called, and so does each method of a class in use whose name is an attribute somewhere.
A flag of another command may be named after that command: "`train --root OUT` reads them".
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, run_cli

from emanet.cli import (
    COMMANDS,
    compare,
    config,
    convert,
    data,
    demo,
    evaluate,
    explain,
    export,
    flags,
    plan,
    predict,
    profile,
    push,
    submit,
    train,
)
from emanet.experiments import load_experiment

PACKAGE = ROOT / "emanet"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*(?![\w.-]*[{:=]|[.-]\w)")
# Of torchrun, docker run, git, npm and http.server.
OF_OTHERS = {"--max-restarts", "--nproc-per-node", "--shm-size", "--porcelain", "--prefer-offline", "--directory"}
# Texts about another command than the one that prints them.
ABOUT = {
    ("convert.convert", "use_of_backbone"): "train",
    ("data.prepare.recipes", "RECIPES"): "train",
    ("data.datasets", "list_split"): "train",  # commands without --root only look for masks, and go on without them
}
# Modules that the call graph reaches, but the command does not.
NOT_REACHED = dict.fromkeys(("explain", "push"), "deploy.engines")  # their Predictor has the plain engine
NOT_REACHED["export"] = "data.loader"  # it reads in this process

CLASSES = {
    "train": train.Train,
    "plan": plan.Plan,
    "evaluate": evaluate.Evaluate,
    "predict": predict.Predict,
    "explain": explain.Explain,
    "demo": demo.Demo,
    "convert": convert.Convert,
    "compare": compare.Compare,
    "profile": profile.Profile,
    "export": export.Export,
    "submit": submit.Submit,
    "push": push.Push,
    "config show": config.Show,
    "config diff": config.Diff,
    "data draw": data.Draw,
    "data import": data.Import,
    "data prepare": data.Prepare,
    "data pack": data.Pack,
    "data check": data.Check,
}
DRAWN = {command: ["drawn"] if command == "train" else [] for command in CLASSES}
Place = tuple[str, str]  # a module's dotted name below emanet, and a name defined at its top


@functools.cache
def own_flags(command: str) -> frozenset[str]:
    """The flags in a command's help, and those that every command has."""
    default = train.Train(config=load_experiment("drawn")) if command == "train" else None
    short = {"--root", "--workers"} if command == "train" else set()
    return frozenset({*flags.flags_of(CLASSES[command], default), *short, "--help", "--version"})


@functools.cache
def modules() -> dict[str, ast.Module]:
    paths = [path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts]
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    return {name.removesuffix("__init__").rstrip("."): ast.parse(path.read_text()) for path, name in names.items()}


@functools.cache
def names_in(module: str) -> dict[str, Place]:
    """Every name that a module defines or imports from the package -> where it is defined. ("x", "") is a module."""
    places: dict[str, Place] = {}
    is_package = (PACKAGE / Path(*module.split("."), "__init__.py")).is_file() if module else True
    package = module.split(".") if is_package and module else module.split(".")[:-1]
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                places[alias.asname or alias.name] = (inner, "") if inner in modules() else (base, alias.name)
    for node in modules()[module].body:
        for name in defined_by(node):
            places[name] = (module, name)
    return places


def defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def definitions(place: Place) -> list[ast.stmt]:
    module, name = place
    return [node for node in modules()[module].body if name in defined_by(node)] if module in modules() else []


def parts(place: Place, attributes: set[str]) -> Iterator[ast.AST]:
    """What of a definition may run: a function; of a class what is not a method, and the methods with these names."""
    for definition in definitions(place):
        if not isinstance(definition, ast.ClassDef):
            yield definition
            continue
        yield from definition.bases
        for node in definition.body:
            if not isinstance(node, ast.FunctionDef) or node.name in attributes or node.name.startswith("__"):
                yield node


def used_by(module: str, node: ast.AST) -> Iterator[Place]:
    """What a part of a module refers to: its own names, those it imports, and attributes of modules it imports."""
    names = names_in(module)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id in names:
            yield names[inner.id]
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id in names:
            imported, name = names[inner.value.id]
            if not name:
                yield imported, inner.attr


@functools.cache
def reached(command: str) -> dict[ast.AST, Place]:
    """The parts of the source that a command may run, and where each is defined."""
    module = f"cli.{command.partition(' ')[0]}"
    places: set[Place] = {(module, CLASSES[command].__name__)}
    places |= {(module, "main")} if " " not in command else set()
    attributes, nodes, before = {"run"}, {}, -1
    while len(nodes) > before:
        before = len(nodes)
        for place in list(places):
            for node in parts(place, attributes):
                if node not in nodes and place[0] != NOT_REACHED.get(command):
                    nodes[node] = place
                    attributes |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
                    places |= set(used_by(place[0], node))
    return nodes


def texts(node: ast.AST, *, docstrings: bool) -> Iterator[str]:
    """The strings in a part of the source; of f-strings the text with {} for values."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        node = ast.Tuple([part for part in node.values if not isinstance(part, ast.Constant)])
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        if docstrings or not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from texts(child, docstrings=docstrings)


def settings_of(command: str) -> set[Place]:
    """The classes of config.py whose fields are flags of the command."""
    waiting = [field.default for field in dataclasses.fields(CLASSES[command])]
    waiting += [load_experiment("drawn")] if command == "train" else []
    places = set()
    while waiting:
        value = waiting.pop()
        if dataclasses.is_dataclass(value):
            places.add(("config", type(value).__name__))
            waiting += [getattr(value, field.name) for field in dataclasses.fields(value)]
    return places


def messages(command: str) -> Iterator[tuple[Place, str]]:
    """Every text that a command may print: strings in code, and the docstrings of settings, which are its help."""
    for node, place in reached(command).items():
        is_help = isinstance(node, ast.Expr) and (place[0].startswith("cli.") or place in settings_of(command))
        if place != ("cli.flags", "TWINS") and (is_help or not isinstance(node, ast.Expr)):
            for text in texts(node, docstrings=is_help):
                if "var(--" not in text:  # a style sheet
                    yield place, text


def unknown_flags(text: str, command: str, about: str = "") -> list[str]:
    """The flags in a text that the command lacks, and that are not of a command named before them."""
    missing = []
    for match in FLAG.finditer(text):
        before = text[: match.start()]
        named = [name for name in CLASSES if re.search(rf"(emanet |`|for |^){name} [^.;]*$", before)]
        if match[0] not in OF_OTHERS.union(*map(own_flags, [command, *named, *filter(None, [about])])):
            missing.append(match[0])
    return missing


@pytest.mark.parametrize("command", CLASSES)
def test_a_command_names_only_flags_that_it_has(command):
    wrong = []
    for place, text in messages(command):
        flags_of_nobody = unknown_flags(text, command, ABOUT.get(place, ""))
        wrong += [f"{'.'.join(place)}: {flag} in {text!r}" for flag in flags_of_nobody]
    assert not wrong, f"{command} may print flags that it does not have:\n" + "\n".join(wrong)


def test_the_walk_covers_every_command_and_arrives():
    assert {command.split()[0] for command in CLASSES} == set(COMMANDS)
    assert ("train", "train") in reached("train").values()
    assert ("data.datasets", "list_split") in reached("evaluate").values()
    assert ("convert.convert", "_require_place") in reached("convert").values()
    assert ("predict.raster", "predict_raster") in reached("predict").values()
    assert ("train", "train") not in reached("profile").values()  # which uses its StepNet alone
    for command in CLASSES:
        shown = run_cli(*command.split(), *DRAWN[command], "-h").stdout
        assert own_flags(command) >= set(re.findall(r"^│ (--[\w.-]+)", shown, re.M)), command


def test_the_walk_would_find_a_flag_that_is_missing():
    assert unknown_flags("no folder; name it with --rooot", "evaluate") == ["--rooot"]
    assert unknown_flags("continue with --resume", "evaluate") == ["--resume"]
    assert unknown_flags("python -m emanet train {} --resume", "evaluate") == []
    assert unknown_flags("torchrun --max-restarts needs --out", "train") == []
    texts_of_evaluate = {text for _, text in messages("evaluate")}
    assert settings_of("evaluate") == {("config", "EvalConfig"), ("config", "EngineConfig")}
    assert ("config", "LossConfig") in settings_of("train")
    assert any("--masks belong together" in text for text in texts_of_evaluate)
    assert "Folder of masks, in the values or colours of the model's data set." in texts_of_evaluate
