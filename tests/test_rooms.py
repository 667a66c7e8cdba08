"""What may import what: every import of emanet/ is read, also those inside functions. docs/reading.md has the rules."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

GROUND = {"config", "experiments", "errors", "atomic", "distributed", "interrupt", "processor", "stages"}
METHOD = {
    "architectures",
    "emau",
    "backbones",
    "model",
    "losses",
    "metrics",
    "optim",
    "inference",
    "evaluate",
    "train",
    "loading",
    "advice",
    "windows",
}
MAY_IMPORT = {  # room: other rooms, or single modules of the method
    "ground": set(),
    "configs": {"ground"},
    "ops": {"ground"},
    "show": {"ground", "metrics"},
    "weights": {"ground"},
    "data": {"ground", "show"},
    "data/prepare": {"ground", "show", "data"},
    "data/check": {"ground", "show", "data"},
    "run": {"ground", "show", "weights", "metrics"},
    "heads": {"ground", "ops", "emau"},
    "method": {"ground", "show", "ops", "heads", "data", "data/check", "weights", "run"},
    "convert": {"ground", "show", "data", "weights", "heads", "model", "backbones"},
    "deploy": {"ground", "show", "ops", "heads", "weights", "backbones", "emau", "model", "inference", "loading"},
    "predict": {"ground", "show", "data", "weights", "deploy", "emau", "model", "inference", "loading", "windows"},
    "analysis": {"ground", "show", "ops", "heads", "data", "weights", "run", "method", "deploy", "predict", "convert"},
}
FILES = {path.relative_to(ROOT / "emanet").with_suffix("").as_posix(): path for path in ROOT.glob("emanet/**/*.py")}
MODULES = {name.removesuffix("__init__").removesuffix("/"): path for name, path in FILES.items()}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, as paths below emanet/: `data/check/quick`."""
    path, found = MODULES[module], set()
    package = ["emanet", *path.relative_to(ROOT / "emanet").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.replace(".", "/") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = "/".join(start + (node.module or "").split(".")).removesuffix("/")
            names = {f"{base}/{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("emanet/") in MODULES else base for name in names}
    return ({name.removeprefix("emanet/") for name in found if name.startswith("emanet/")} & MODULES.keys()) - {module}


def room(module: str) -> str:
    top = module.partition("/")[0]
    if top in GROUND or top in METHOD:
        return "ground" if top in GROUND else "method"
    return max((name for name in MAY_IMPORT if f"{module}/".startswith(f"{name}/")), key=len)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"", "__main__"}))
def test_imports_go_downwards(module):
    if module.startswith(("cli", "web")):  # they may import everything, and nothing but __main__ imports them
        return
    own = room(module)
    for other in imports(module):
        assert not other.startswith(("cli", "web")), f"{module} imports {other}"
        allowed = MAY_IMPORT[own] | {own}
        assert room(other) in allowed or other.partition("/")[0] in allowed, f"{module} ({own}) imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({module: imports(module) for module in MODULES}).prepare()  # CycleError names the circle
    assert imports("train") > {"model", "config"}, "the reader of imports reads them"
