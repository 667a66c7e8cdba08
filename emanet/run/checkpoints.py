"""Our files: a model is one .safetensors with its experiment (classes, palette, flags and all) in the header.

A checkpoint is a folder of the run, checkpoints/000400/: model.safetensors and training.pt (optimiser, scaler, best).
Everything is written beside its place and renamed, so that a name never stands for half a file. A model file carries
the SHA-256 of all that is in it, and a checkpoint's that of its training.pt too; both are checked when it is read.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from .. import __version__
from ..atomic import sync_folder, write_whole
from ..backbones import read_weights
from ..config import DatasetSpec, Experiment
from ..distributed import pick_device
from ..errors import InputError, some
from ..experiments import from_dict, override, read_header, to_dict
from ..model import EMANet, build_model

STEP_DIGITS = 6


def save_model(path: Path, model: EMANet, experiment: Experiment, **facts: Any) -> None:
    """Write the model file. experiment.data.spec must be set; facts (step, metrics) are JSON values."""
    header = json.dumps({"emanet": __version__, "experiment": to_dict(experiment), **facts})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, {"emanet": header, "sha256": _digest(header, tensors)}))


def save_best(run: Path, model: EMANet, experiment: Experiment, step: int, metrics: dict[str, Any]) -> None:
    path = run / "best.safetensors"
    try:
        save_model(path, model, experiment, step=step, metrics=metrics)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; what it held before stays") from error


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
    header, state = read_model(path)
    try:
        experiment = from_dict(Experiment, header["experiment"])
        config, spec = override(experiment.model, {"backbone.pretrained": False}), spec_of(experiment)
        with torch.device("meta"):  # a file of a megabyte may state a model of gigabytes
            shell = build_model(config, spec)
    except InputError as error:
        raise InputError(f"cannot build the model of {path}: {error}") from error
    require_fit(shell, state, str(path))
    model = build_model(config, spec)
    model.load_state_dict(state)
    return model.to(where).eval()


def spec_of(experiment: Experiment) -> DatasetSpec:
    if experiment.data.spec is None:
        raise InputError("its experiment has no data.spec, so that its classes are unknown")
    return experiment.data.spec


def load_strictly(model: EMANet, state: dict[str, torch.Tensor], path: str) -> None:
    """Every key of the model from the file and no other; InputError names those that do not fit."""
    require_fit(model, state, path)
    model.load_state_dict(state)


def require_fit(model: EMANet, state: dict[str, torch.Tensor], path: str) -> None:
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


def start_from(model: EMANet, source: str) -> tuple[list[str], list[str]]:
    """Load another training's weights into a model that may have other classes.

    Returns the names loaded and the names left as they were: the classifiers (and the auxiliary head's), where their
    shapes differ, or an auxiliary head that the source lacks. Any other difference is an InputError.
    """
    path = model_path(source)
    (_, state), own = read_model(path), model.state_dict()
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
    """Write run/checkpoints/STEP and thin out the older ones: the last keep_last can be resumed from, every
    keep_every-th keeps its model. InputError if it cannot be written, the ones before being as they were."""
    folder = run / "checkpoints" / f"{step:0{STEP_DIGITS}d}"
    partial = folder.with_name(f".{folder.name}.partial")
    content = io.BytesIO()
    torch.save(training, content)
    before = checkpoints(run)
    try:
        for left in folder.parent.glob(".*.partial"):
            shutil.rmtree(left)
        write_whole(partial / "training.pt", content.getbuffer())
        checksum = hashlib.sha256(content.getbuffer()).hexdigest()
        save_model(partial / "model.safetensors", model, experiment, step=step, training_sha256=checksum)
        if folder.exists():  # from before a validation that was cut off
            folder.rename(_replaced(folder))
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(_replaced(folder), ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        rest = f"--resume goes on from {before[-1].name}" if before else "there is none before it"
        raise InputError(f"cannot write the checkpoint {folder}: {error.strerror or error}; {rest}") from error
    for old in checkpoints(run)[: -experiment.keep_last]:
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


def put_back(run: Path) -> None:
    """Mend what an end between the two renames of save_checkpoint leaves: the step's older folder beside its place."""
    for old in (run / "checkpoints").glob(".*.replaced"):
        folder = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def load_checkpoint(run: Path, model: EMANet, device: torch.device) -> tuple[Path, dict[str, Any], dict[Path, str]]:
    """Put the latest sound checkpoint's weights into the model.

    Returns its folder, its training state, and of each later folder, which cannot be read, why. InputError if there is
    none that can.
    """
    broken: dict[Path, str] = {}
    for folder in checkpoints(run)[::-1]:
        try:
            return folder, _read_checkpoint(folder, model, device), broken
        except InputError as error:
            broken[folder] = str(error)
    raise InputError(f"{run} has no checkpoint to resume from{': ' * bool(broken)}{'; '.join(broken.values())}")


def _read_checkpoint(folder: Path, model: EMANet, device: torch.device) -> dict[str, Any]:
    path = folder / "training.pt"
    header, state = read_model(folder / "model.safetensors")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if "training_sha256" not in header:
        raise InputError(f"cannot resume from {folder}: a version of emanet wrote it that kept no checksums")
    if hashlib.sha256(content).hexdigest() != header["training_sha256"]:
        raise InputError(f"cannot read {path}: it is damaged, its checksum is another")
    training = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    load_strictly(model, state, str(folder / "model.safetensors"))
    return training


def set_aside(folders: Iterable[Path]) -> None:
    """Rename checkpoints that cannot be read to STEP.broken: nothing takes them for the latest."""
    for folder in folders:
        target = folder.with_name(f"{folder.name}.broken")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
