"""Model files: one .safetensors with its experiment (classes, palette, normalisation and all) in the header.

A file carries the SHA-256 of all that is in it, which is checked when it is read. No network is built here.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from .. import __version__
from ..atomic import write_whole
from ..config import Experiment
from ..errors import InputError, some
from ..experiments import read_header, to_dict
from .tensors import read_weights


def save_model(path: Path, model: nn.Module, experiment: Experiment, **facts: Any) -> None:
    """Write the model file. experiment.data.spec must be set; facts (step, metrics) are JSON values."""
    header = json.dumps({"emanet": __version__, "experiment": to_dict(experiment), **facts})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, {"emanet": header, "sha256": _digest(header, tensors)}))


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A model file's header and tensors. InputError that names the file unless all of it is as it was written.

    Files without a checksum (those of other programs, or edited ones) are taken as they are.
    """
    header, state = read_header(path), read_weights(str(path))
    with safe_open(str(path), "pt") as file:
        stored = file.metadata()
    if "sha256" in stored and stored["sha256"] != _digest(stored["emanet"], state):
        raise InputError(f"cannot read model file {path}: it is damaged, its checksum is another")
    return header, state


def _digest(header: str, tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """Every key of the model from the file and no other; InputError names those that do not fit."""
    require_fit(model, state, path)
    model.load_state_dict(state)


def require_fit(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {some(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(f"{path} does not fit the model: {listed}")
