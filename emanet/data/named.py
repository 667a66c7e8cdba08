"""The data set that a command line names: by itself, by an experiment, or as the one that a model was trained on."""

from collections.abc import Sequence
from pathlib import Path

from ..config import DataConfig, Experiment
from ..errors import InputError
from ..experiments import FOLDER_FILES, experiment_names, load_experiment, override
from .datasets import resolve, spec_of


def data_of(source: str, root: str = "") -> tuple[DataConfig, Experiment | None]:
    """What the data commands' first argument and --root mean: a resolved config, and the experiment if it is one.

    source: an experiment, or a data set's name, dataset.json or folder. Raises InputError, also where there is no root.
    """
    path = Path(source)
    is_experiment = path.suffix in (".py", ".safetensors") or path.name == "config.json" or source in experiment_names()
    is_experiment |= any((path / file).is_file() for file in FOLDER_FILES)
    experiment = load_experiment(source) if is_experiment else None
    data = experiment.data if experiment else DataConfig(dataset=source)
    config = resolve(override(data, {"root": root}) if root else data)
    if config.root and not Path(config.root).is_dir():
        hint = _hint_at_folder(config)
        raise InputError(f"no folder {config.root} for data set {config.dataset!r}; name it with --root{hint}")
    return config, experiment


def _hint_at_folder(config: DataConfig) -> str:
    """How to name a folder that has the name of a known data set: the name alone means the data set in data/NAME."""
    folder = Path(config.dataset)
    if not folder.is_dir():
        return ""
    return f", or write ./{folder} to mean that folder" if (folder / "dataset.json").is_file() else f" ./{folder}"


def at_hand(config: DataConfig, classes: Sequence[str], dataset: str = "", root: str = "") -> DataConfig:
    """A model's data set, resolved, or the one that `dataset` and `root` name. InputError unless it has `classes`."""
    if dataset:
        config = override(config, {"dataset": dataset, "spec": None, "root": ""})
    config = resolve(override(config, {"root": root}) if root else config)
    own = spec_of(config).classes
    if len(own) != len(classes):
        raise InputError(f"data set {config.dataset!r} has {len(own)} classes, but the model has {len(classes)}")
    for label, (name, expected) in enumerate(zip(own, classes, strict=True)):
        if name != expected:
            differs = f"{label} is {name!r}, but the model's is {expected!r}"
            raise InputError(f"class names of data set {config.dataset!r} differ from the model's: {differs}")
    return config
