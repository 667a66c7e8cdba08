"""Checkpoints to resume from: runs/NAME/checkpoints/000400/ with model.safetensors and training.pt (State).

A checkpoint is written to a temporary folder and renamed, so that it is complete or absent. Its model file also holds
the SHA-256 of its training.pt; both are checked on reading. With optim.average the model file has the averaged weights,
as best.safetensors has, and training.pt those that are trained.
"""

import hashlib
import io
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..atomic import sync_folder, write_whole
from ..config import Experiment
from ..errors import InputError
from ..experiments import checkpoints
from ..weights.model_file import load_strictly, read_model, save_model

STEP_DIGITS = 6


@dataclass
class Progress:
    """How a run is going."""

    best: float = -1.0
    """mIoU of best.safetensors."""
    seconds: float = 0.0
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    in_a_row: int = 0
    """The latest of them that came one after another."""
    unvalidated: bool = False
    """A signal cut this step's validation short."""
    ranks: int = 0
    """Processes that the run was started with, whose draws and passes it keeps; 0 in older checkpoints: not known."""
    recent: list[float] = field(default_factory=list)
    """Losses since the last line of the log."""


@dataclass
class State:
    """What changes from step to step besides the network; a checkpoint's training.pt holds it whole."""

    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    step: int = 0
    """Steps done: the name of the checkpoint's folder."""
    trained: nn.Module | None = None
    """The network that is trained, if the model file has an average of its weights instead."""

    def state_dict(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        parts |= {"trained": self.trained.state_dict()} if self.trained else {}
        return parts | {"progress": asdict(self.progress)}

    def load_state_dict(self, saved: dict[str, Any], step: int) -> None:
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.progress, self.step = Progress(**saved["progress"]), step
        if self.trained:
            self.trained.load_state_dict(saved["trained"])


def save_best(run: Path, model: nn.Module, experiment: Experiment, step: int, metrics: dict[str, Any]) -> None:
    path = run / "best.safetensors"
    try:
        save_model(path, model, experiment, step=step, metrics=metrics)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; what it held before stays") from error


def save_checkpoint(run: Path, model: nn.Module, experiment: Experiment, training: dict[str, Any], step: int) -> None:
    """Write run/checkpoints/STEP and delete older ones.

    The last keep_last can be resumed from; every keep_every-th keeps its model. If the checkpoint cannot be written,
    raises InputError and leaves the earlier ones as they were.
    """
    folder = run / "checkpoints" / f"{step:0{STEP_DIGITS}d}"
    before = checkpoints(run)
    try:
        write_checkpoint(folder, model, experiment, training, step)
    except OSError as error:
        rest = f"--resume continues from {before[-1].name}" if before else "there is none before it"
        raise InputError(f"cannot write the checkpoint {folder}: {error.strerror or error}; {rest}") from error
    for old in checkpoints(run)[: -experiment.keep_last]:
        if experiment.keep_every and int(old.name) % experiment.keep_every == 0:
            (old / "training.pt").unlink(missing_ok=True)
        else:
            shutil.rmtree(old)


def write_checkpoint(
    folder: Path, model: nn.Module, experiment: Experiment, training: dict[str, Any], step: int
) -> None:
    """Write a checkpoint into `folder`, which is complete or as it was before. Raises OSError."""
    partial = folder.with_name(f".{folder.name}.partial")
    content = io.BytesIO()
    torch.save(training, content)
    try:
        for left in folder.parent.glob(".*.partial"):
            shutil.rmtree(left)
        write_whole(partial / "training.pt", content.getbuffer())
        checksum = hashlib.sha256(content.getbuffer()).hexdigest()
        save_model(partial / "model.safetensors", model, experiment, step=step, training_sha256=checksum)
        if folder.exists():  # written when a signal cut this step's validation short
            folder.rename(_replaced(folder))
        partial.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(_replaced(folder), ignore_errors=True)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_back(run: Path) -> None:
    """Undo what a crash between the two renames of save_checkpoint leaves: the step's older folder, renamed."""
    for old in (run / "checkpoints").glob(".*.replaced"):
        folder = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def load_checkpoint(run: Path, model: nn.Module, device: torch.device) -> tuple[Path, dict[str, Any], dict[Path, str]]:
    """Load the latest readable checkpoint's weights into the model.

    Returns its folder, its training state, and why each later folder cannot be read. InputError if no checkpoint is
    readable.
    """
    broken: dict[Path, str] = {}
    for folder in checkpoints(run)[::-1]:
        try:
            return folder, read_checkpoint(folder, model, device), broken
        except InputError as error:
            broken[folder] = str(error)
    raise InputError(f"{run} has no checkpoint to resume from{': ' * bool(broken)}{'; '.join(broken.values())}")


def read_checkpoint(folder: Path, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Load a checkpoint's weights into the model; returns its training state. Raises InputError."""
    path = folder / "training.pt"
    file = read_model(folder / "model.safetensors")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if "training_sha256" not in file.header:
        raise InputError(f"cannot resume from {folder}: it was written by an old version of emanet, without checksums")
    if hashlib.sha256(content).hexdigest() != file.header["training_sha256"]:
        raise InputError(f"cannot read {path}: file is damaged: checksum mismatch")
    training = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    load_strictly(model, file.tensors, file.path)
    return training


def set_aside(folders: Iterable[Path]) -> None:
    """Rename unreadable checkpoints to STEP.broken, so that they are not taken for the latest."""
    for folder in folders:
        target = folder.with_name(f"{folder.name}.broken")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
