"""What a model file says, without the paths of the machine that wrote it: for files that others get."""

import re
from pathlib import PurePosixPath
from typing import Any

from ..config import Experiment
from ..experiments import flatten, override
from . import hub

PATHS = ("model.backbone.pretrained", "data.dataset", "data.root", "init_from", "distill")
"""Settings that may name a file or a folder."""
LAYOUT = ("data.spec.images", "data.spec.masks", "data.spec.split_list")
"""Settings that are paths below the data set's root, and could leave it."""
# An absolute path, or one that leaves the folder, at the start of a word: /a/b, ~/a, C:\a, ../a.
PATH = re.compile(r"(?<![^\s\"'(=,;])(?:~\w*|[A-Za-z]:|\.\.)?[\\/][^\s\"'<>|]+")


def without_paths(experiment: Experiment) -> Experiment:
    """The experiment with the last part of every path to a file or folder of this machine, and without its root."""
    values = flatten(experiment)
    changes: dict[str, Any] = {"data.root": ""}
    for name in PATHS:
        value = values.get(name)
        if isinstance(value, str) and value and name != "data.root" and not hub.is_name(value):
            changes[name] = _last(value.removesuffix("dataset.json") or value)
    for name in LAYOUT:
        value = values.get(name, "")
        if PATH.match(value):
            changes[name] = _last(value)
    return override(experiment, changes)


def _last(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def facts_without_paths(header: dict[str, Any]) -> dict[str, Any]:
    """What a model file's header holds beside the experiment, without paths of this machine."""
    facts = {name: value for name, value in header.items() if name not in ("experiment", "training_sha256")}
    return {name: value if name == "metrics" else _clean(value) for name, value in facts.items()}  # it names classes


def _clean(value: Any) -> Any:
    """A fact of a model file without paths of this machine."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return PATH.sub(lambda match: _last(match[0]), value) if isinstance(value, str) else value
