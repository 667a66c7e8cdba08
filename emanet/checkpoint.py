"""Our files: a model is one .safetensors with its experiment (classes, palette, flags and all) in the header.

A checkpoint is a folder of the run, checkpoints/000400/: model.safetensors and training.pt (optimiser, scaler, best).
Everything is written beside its place and renamed, so that a name never stands for half a file.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from . import __version__
from .backbones import read_weights
from .config import DatasetSpec, Experiment
from .distributed import pick_device
from .errors import InputError, some
from .experiments import from_dict, override, read_header, to_dict
from .model import EMANet, build_model

STEP_DIGITS = 6


def save_model(path: Path, model: EMANet, experiment: Experiment, **facts: Any) -> None:
    """Write the model file. experiment.data.spec must be set; facts (step, metrics) are JSON values."""
    header = {"emanet": __version__, "experiment": to_dict(experiment), **facts}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, {"emanet": json.dumps(header)}))


def model_path(source: str | Path) -> Path:
    """The model file that a path means: itself, a run folder's best model, else its latest, or a checkpoint's."""
    path = Path(source)
    if path.is_dir():
        found = [path / "best.safetensors", path / "model.safetensors"]
        found += [folder / "model.safetensors" for folder in checkpoints(path)[::-1]]
        path = next((candidate for candidate in found if candidate.is_file()), path / "best.safetensors")
    if not path.is_file():
        raise InputError(f"no model file {path}")
    return path


def load(source: str | Path, device: str | torch.device = "cpu") -> EMANet:
    """The model of a file or a run folder, in eval mode; nothing but the file is read, no hub, no code.

    device: as in distributed.pick_device. Raises InputError that names the file, the keys or the device.
    """
    where = pick_device(str(device))
    path = model_path(source)
    experiment = from_dict(Experiment, read_header(path)["experiment"])
    model = build_model(override(experiment.model, {"backbone.pretrained": False}), spec_of(experiment))
    load_strictly(model, read_weights(str(path)), str(path))
    return model.to(where).eval()


def spec_of(experiment: Experiment) -> DatasetSpec:
    if experiment.data.spec is None:
        raise InputError("the experiment inside the model file has no data.spec, so that its classes are unknown")
    return experiment.data.spec


def load_strictly(model: EMANet, state: dict[str, torch.Tensor], path: str) -> None:
    """Every key of the model from the file and no other; InputError names those that do not fit."""
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
    model.load_state_dict(state)


def start_from(model: EMANet, source: str) -> tuple[list[str], list[str]]:
    """Load another training's weights into a model that may have other classes.

    Returns the names loaded and the names left as they were: the classifiers (and the auxiliary head's), where their
    shapes differ, or an auxiliary head that the source lacks. Any other difference is an InputError.
    """
    path = model_path(source)
    state, own = read_weights(str(path)), model.state_dict()
    fresh = [
        key
        for key in own
        if (".classifier." in key and key in state and state[key].shape != own[key].shape)
        or (key.startswith("aux_head.") and key not in state)
    ]
    state = {key: value for key, value in state.items() if key in own or not key.startswith("aux_head.")}
    state |= {"mean": own["mean"], "std": own["std"]}  # how pixels are normalised is this experiment's to say
    load_strictly(model, state | {key: own[key] for key in fresh}, str(path))
    return [key for key in own if key not in fresh], fresh


def save_checkpoint(run: Path, model: EMANet, experiment: Experiment, training: dict[str, Any], step: int) -> None:
    """Write run/checkpoints/STEP and thin out the older ones: two can be resumed from, every keep_every-th is kept."""
    folder = run / "checkpoints" / f"{step:0{STEP_DIGITS}d}"
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(partial / "model.safetensors", model, experiment, step=step)
    torch.save(training, partial / "training.pt")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for old in checkpoints(run)[:-2]:
        if experiment.keep_every and int(old.name) % experiment.keep_every == 0:
            (old / "training.pt").unlink(missing_ok=True)
        else:
            shutil.rmtree(old)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(
        (f for f in (run / "checkpoints").glob("*") if f.name.isdigit() and f.is_dir()),
        key=lambda folder: int(folder.name),
    )


def load_checkpoint(run: Path, model: EMANet, device: torch.device) -> tuple[int, dict[str, Any]]:
    """Put the latest checkpoint's weights into the model; returns its step and its training state."""
    folders = checkpoints(run)
    if not folders:
        raise InputError(f"{run} has no checkpoint to resume from")
    path = folders[-1]
    load_strictly(model, read_weights(str(path / "model.safetensors")), str(path / "model.safetensors"))
    try:
        training = torch.load(path / "training.pt", map_location=device, weights_only=True)
    except Exception as error:  # whatever a broken file makes of the reader
        raise InputError(f"cannot read {path / 'training.pt'}: {type(error).__name__}") from error
    return int(path.name), training


def write_whole(path: Path, content: bytes) -> None:
    """Atomically: whoever reads `path` sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
