"""Model files: one .safetensors with its experiment (classes, palette, normalisation, ...) in the header.

A file carries the SHA-256 of its contents, which is checked when it is read. No network is built here.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .. import __version__
from ..atomic import write_whole
from ..config import Experiment
from ..errors import InputError, some
from ..experiments import experiment_of, parse_header, to_dict, utf8_name, what_instead


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model file, read and checked."""

    path: Path
    experiment: Experiment
    header: dict[str, Any]
    """What else is stored: `emanet` (version), and facts such as `step` and `metrics`."""
    tensors: dict[str, torch.Tensor]


def save_model(path: Path, model: nn.Module, experiment: Experiment, **facts: Any) -> None:
    """Write the model file. experiment.data.spec must be set; facts (step, metrics) are JSON values."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_model(path, tensors, experiment, facts)


def write_model(path: Path, tensors: dict[str, torch.Tensor], experiment: Experiment, facts: dict[str, Any]) -> None:
    """The same for a model's tensors, contiguous and on the CPU. Facts may hold an `emanet` version of their own."""
    header = json.dumps({"emanet": __version__, "experiment": to_dict(experiment), **facts})
    write_whole(path, save(tensors, {"emanet": header, "sha256": _digest(header, tensors)}))


def read_model(path: Path) -> ModelFile:
    """Read a model file. Raises InputError that names the file unless all of it is as it was written.

    Files without a checksum (those of other programs, or edited ones) are taken as they are.
    """
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            header = parse_header(metadata, path)
            experiment = experiment_of(header["experiment"], path, header.get("emanet"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(what_instead(path) or f"cannot read model file {path}: {error}") from error
    if "sha256" in metadata and metadata["sha256"] != _digest(metadata["emanet"], tensors):
        raise InputError(f"cannot read model file {path}: file is damaged: checksum mismatch")
    return ModelFile(path, experiment, header, tensors)


def _digest(header: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Load exactly the model's keys; InputError names the keys that do not fit."""
    require_fit(model, state, path)
    model.load_state_dict(state)


def require_fit(model: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
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
    if not any(problems.values()):
        floats = [key for key in own if state[key].is_floating_point() and state[key].numel()]
        problems = {"not finite": [key for key in floats if not all(map(torch.isfinite, state[key].aminmax()))]}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {some(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(f"{path} does not fit the model: {listed}")
