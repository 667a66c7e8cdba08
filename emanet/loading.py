"""From a name to a model: a model file, a run folder or a checkpoint, a model of the package, or one on the hub.

file = read("runs/a")    # opened, checked and parsed once: file.experiment, file.header, file.tensors
model = model_of(file)   # load("runs/a") does both
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .config import LARGE, DatasetSpec, Experiment
from .distributed import pick_device, rank
from .errors import InputError, short, suggest
from .experiments import checkpoints, experiment_names, holds_run, override
from .model import EMANet, build_model
from .show.terminal import note
from .weights import hub, zoo
from .weights.model_file import ModelFile, load_strictly, read_model, require_fit

# Functions of Tensor and of torch.nn.init that fill a tensor with random values.
RANDOM = re.compile("(trunc_)?normal_|uniform_|(kaiming|xavier)_(normal|uniform)_|orthogonal_")


def model_path(source: str | Path | None = None) -> Path:
    """The model file that a path means: itself, a run folder's best model or else its latest one, or a checkpoint's.

    A name of weights.zoo is the package's model, unless a model or a run is at that path. `hf:owner/name` is a model on
    the hub, which is downloaded unless the cache has it: see weights.hub. None: the package's default.
    """
    if source is None:
        return zoo.path_of(zoo.DEFAULT)
    if hub.is_name(source):
        return hub.path_of(source)
    path, packaged = Path(source), str(source) in zoo.names()
    if packaged and not path.is_file() and not holds_run(path):
        return zoo.path_of(str(source))
    if path.is_dir():
        candidates = [path / "best.safetensors", path / "model.safetensors"]
        candidates += [folder / "model.safetensors" for folder in checkpoints(path)[::-1]]
        path = next((candidate for candidate in candidates if candidate.is_file()), path)
        if path.is_dir():
            raise InputError(f"{path} holds no model: it is neither a run folder with a checkpoint nor one of those")
    if not path.is_file():
        if str(source) in experiment_names():
            raise InputError(f"{source} is an experiment, not a model: train it first, then name its run folder")
        raise InputError(f"no model file {path}{suggest(str(source), zoo.names(), listed=False)}")
    return path


def read(source: str | Path | None = None) -> ModelFile:
    """The model file of a path as in model_path, whole. Raises InputError that names the file.

    A note says that the package's default is used, which commit on the hub, or that a path was taken for what is also
    the name of a model.
    """
    if source is not None and hub.is_name(source):
        return read_model(hub.path_of(source, note if rank() == 0 else str))
    path = model_path(source)
    if source is None:
        note(f"no model is named: using {zoo.DEFAULT!r}, which comes with emanet and labels street photos")
    elif str(source) in zoo.names() and path != zoo.path_of(str(source)):
        note(f"{str(source)!r} is the model at {path} here, not the one of that name that comes with emanet")
    return read_model(path)


def load(source: str | Path, device: str | torch.device = "cpu") -> EMANet:
    """The model of a file, a run folder or `hf:owner/name`, in eval mode. No code that comes with it is run.

    Only `hf:` names ask a hub. device: as in distributed.pick_device. Raises InputError that names the file, the keys
    or the device.
    """
    where = pick_device(str(device))  # before hundreds of megabytes are read
    return model_of(read(source)).to(where)


def model_of(file: ModelFile) -> EMANet:
    """The model of a file that has been read, on the CPU and in eval mode. Raises InputError that names the file."""
    values = sum(tensor.numel() for tensor in file.tensors.values())
    try:
        config = override(file.experiment.model, {"backbone.pretrained": False})
        spec = stored_spec(file.experiment)
        with Unfilled(4 * values + (1 << 24)):  # networks are built with parts that they do not keep
            model = build_model(config, spec)
    except InputError as error:
        raise InputError(f"cannot build the model of {file.path}: {error}") from error
    require_fit(model, file.tensors, file.path)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        with Unfilled():
            model = build_model(config, spec)
    model.load_state_dict(file.tensors)
    return model.eval()


class Unfilled(TorchFunctionMode):
    """Within, new tensors are not filled with random values, which takes as long as reading a file of them.

    most: how many values may be made. A file of a megabyte may describe a model of gigabytes: the tensors beyond are on
    the meta device, which has shapes alone.
    """

    def __init__(self, most: int = LARGE):
        super().__init__()
        self.free = most

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if RANDOM.fullmatch(getattr(function, "__name__", "")):
            return args[0] if args else kwargs["tensor"]
        if function not in (torch.empty, torch.randn):
            return function(*args, **kwargs)
        shape = args[0] if args and not isinstance(args[0], int) else args or kwargs.get("size", ())
        self.free -= math.prod(shape)
        return torch.empty(*args, **kwargs | ({"device": "meta"} if self.free < 0 else {}))


def load_teacher(source: str, spec: DatasetSpec, channels: int, device: torch.device) -> EMANet:
    """A model to learn from (`distill`), in eval mode. Raises InputError if its classes or images are others."""
    model = load(source, device).requires_grad_(False)
    for what, own, needed in (
        ("classes", model.classes, spec.classes),
        ("channels", model.backbone.in_channels, channels),
        ("bands", model.bands, spec.bands),
        ("range", model.range, spec.range),
    ):
        if own != needed:
            raise InputError(f"distill: {source} has the {what} {short(own)}, but the data set has {short(needed)}")
    return model


def stored_spec(experiment: Experiment) -> DatasetSpec:
    """The spec that a model file holds: its classes and how its images are read. Raises InputError."""
    if experiment.data.spec is None:
        raise InputError("its experiment has no data.spec, so its classes are unknown")
    return experiment.data.spec


def start_from(model: EMANet, file: ModelFile) -> tuple[list[str], list[str]]:
    """Load another run's weights into a model that may have other classes.

    Returns the names loaded and the names left as they were: the classifiers (and the auxiliary head's), where their
    shapes differ, or an auxiliary head that the source lacks. Any other difference is an InputError.
    """
    own = model.state_dict()
    fresh = [
        key
        for key in own
        if (".classifier." in key and key in file.tensors and file.tensors[key].shape != own[key].shape)
        or (key.startswith("aux_head.") and key not in file.tensors)
    ]
    state = {key: value for key, value in file.tensors.items() if key in own or not key.startswith("aux_head.")}
    state |= {"mean": own["mean"], "std": own["std"]}  # this experiment decides how pixels are normalised
    load_strictly(model, state | {key: own[key] for key in fresh}, file.path)
    return [key for key in own if key not in fresh], fresh
