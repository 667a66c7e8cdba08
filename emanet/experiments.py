"""Experiments: found by name or path, changed by dotted names, written as JSON and read back strictly.

from emanet import load_experiment, override
config = override(load_experiment("voc_resnet101"), {"model.head.channels": 256})
"""

import dataclasses
import json
import reprlib
import runpy
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from .config import Experiment
from .errors import InputError, suggest

Config = TypeVar("Config")
FOLDER_FILES = ("config.json", "model.safetensors")
SHORT = reprlib.Repr()  # a wrong value may be megabytes, and the sentence about it is one line
SHORT.maxstring = SHORT.maxother = 200


def override(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with dotted names changed: override(config, {"model.head.channels": 256, "steps": 100})."""
    for dotted, value in changes.items():
        name, _, rest = dotted.partition(".")
        names = [f.name for f in dataclasses.fields(config)]
        if name not in names:
            raise InputError(f"{type(config).__name__} has no field {name!r}{suggest(name, names)}")
        value = override(getattr(config, name), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{name: value})
    return config


def checked(config: Config) -> Config:
    """The same config, every value of its stated type; Python itself lets any value into a dataclass."""
    return from_dict(type(config), to_dict(config))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values: tuples become lists, keys strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(cls: type[Config], values: Any, where: str = "") -> Config:
    """The dataclass from JSON values; InputError names the unknown field or the wrong type, dotted."""
    if not isinstance(values, dict):
        raise InputError(f"{where or cls.__name__} is {SHORT.repr(values)}, but must be an object")
    if hasattr(cls, "upgrade"):
        values = cls.upgrade(values)
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise InputError(f"unknown field {SHORT.repr(_join(where, name))}{suggest(name[:100], hints)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        if name not in values:
            raise InputError(f"field {_join(where, name)!r} is missing")
    return cls(**{name: _cast(hints[name], value, _join(where, name)) for name, value in values.items()})


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _cast(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if type(value) in args:  # before casting: bool | int must not turn True into 1
            return value
        for arg in args:
            try:
                return _cast(arg, value, where)
            except InputError as error:
                last = error
                if dataclasses.is_dataclass(arg) and isinstance(value, dict):
                    break  # this is the one that was meant
        raise last
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            return tuple(_cast(args[0], item, where) for item in value)
        if len(args) == len(value):
            return tuple(_cast(arg, item, where) for arg, item in zip(args, value, strict=True))
    if origin is dict and isinstance(value, dict):
        try:
            return {args[0](key): _cast(args[1], item, f"{where}[{key}]") for key, item in value.items()}
        except ValueError:
            pass
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = " or ".join(repr(a) for a in args) if origin is Literal else str(getattr(hint, "__name__", hint))
    wanted = str(hint).replace("typing.", "") if origin in (tuple, dict) else wanted
    raise InputError(f"{where} is {SHORT.repr(value)}, but must be {wanted}")


def flatten(config: Any, where: str = "") -> dict[str, Any]:
    """Dotted name -> value, in the order of the fields; what `config diff` compares."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), _join(where, f.name)
        flat |= flatten(value, name) if dataclasses.is_dataclass(value) else {name: value}
    return flat


def experiment_names() -> list[str]:
    folder = Path(__file__).parent / "configs"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def load_experiment(source: str) -> Experiment:
    """The experiment of a name in emanet/configs, a .py file, a run folder, a config.json or a model file.

    Only a .py file is executed. Raises InputError, naming the nearest experiment, if there is no such thing.
    """
    path = Path(source)
    if source in experiment_names():
        path = Path(__file__).parent / "configs" / f"{source}.py"
    if path.is_dir():  # a run, or one of its checkpoints
        path = next((file for name in FOLDER_FILES if (file := path / name).is_file()), path / FOLDER_FILES[0])
    if not path.is_file():
        raise InputError(f"no experiment, run folder or file {source!r}{suggest(source, experiment_names())}")
    if path.suffix in (".safetensors", ".json"):
        return experiment_of(read_header(path)["experiment"] if path.suffix != ".json" else read_json(path), path)
    if path.suffix != ".py":
        raise InputError(f"{source} is neither an experiment (.py), a config (.json) nor a model (.safetensors)")
    # A package module is found by its name, so that experiments can build on each other from anywhere.
    try:
        config = runpy.run_path(str(path), run_name=path.stem).get("config")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's own code: any error of it is theirs to read, in one sentence
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path} does not run: {type(error).__name__}: {said}") from error
    if not isinstance(config, Experiment):
        raise InputError(f"{path} defines no `config = Experiment(...)`")
    try:
        values = to_dict(config)
    except (TypeError, ValueError, RecursionError) as error:  # Python lets anything into a dataclass
        raise InputError(f"{path}: its experiment has values that are no settings: {error}") from error
    return experiment_of(values, path)


def experiment_of(values: Any, path: str | Path) -> Experiment:
    """The experiment that a file holds as JSON values; InputError names the file and the field."""
    try:
        return from_dict(Experiment, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError names the file if it is missing or not JSON."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise InputError(f"cannot read {path}: it is no file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} nests deeper than any file of ours") from error


def read_header(path: str | Path) -> dict[str, Any]:
    """What is written beside the weights of a model file: `experiment`, `emanet` (version), `step`, `metrics`.

    Only the header is read. Raises InputError that names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            return parse_header(file.metadata() or {}, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read model file {path}: {error}") from error


def parse_header(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    """The header of a model file from the metadata of its .safetensors. Raises InputError that names the file."""
    try:
        header = json.loads(metadata.get("emanet", "null"))
    except ValueError as error:
        raise InputError(f"cannot read model file {path}: {error}") from error
    except RecursionError as error:
        raise InputError(f"cannot read model file {path}: its header nests deeper than any of ours") from error
    if not isinstance(header, dict) or "experiment" not in header:
        raise InputError(f"{path} holds weights but no emanet header: it is not a model of this program")
    return header
