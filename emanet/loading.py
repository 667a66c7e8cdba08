"""From a path to a model: a model file, a run folder, or one of its checkpoints."""

from pathlib import Path

import torch

from .config import DatasetSpec, Experiment
from .distributed import pick_device
from .errors import InputError
from .experiments import from_dict, override
from .model import EMANet, build_model
from .run.checkpoints import checkpoints
from .weights.model_file import load_strictly, read_model, require_fit


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
