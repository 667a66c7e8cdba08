"""Experiments: load one by name or path, change it by dotted names, write it as JSON, read it back strictly.

from emanet import load_experiment, override
config = override(load_experiment("voc_resnet101"), {"model.head.channels": 256})
"""

import codecs
import contextlib
import dataclasses
import json
import runpy
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import __version__
from .config import LARGE, Experiment, require
from .errors import InputError, short, suggest, utf8

Config = TypeVar("Config")
FOLDER_FILES = ("config.json", "model.safetensors")
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


def override(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with dotted names changed: override(config, {"model.head.channels": 256, "steps": 100}).

    Changes are made together, as some values fit only each other, such as in_channels and mean. Another head, backbone
    or optimiser may not use all that was set for the one before it: see `inherit`. Raises InputError that names the
    field.
    """
    return inherit(_replaced(config, changes), config)


def _replaced(config: Any, changes: dict[str, Any], owner: str = "") -> Any:
    """owner: the dotted name of `config` itself, for errors."""
    if not hasattr(config, "__dataclass_fields__"):
        wanted = _join(owner, next(iter(changes)))
        raise InputError(f"cannot set {wanted}: {owner} is {short(config)}, without fields; set {owner} as a whole")
    fields = [f.name for f in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        name, dot, rest = dotted.partition(".")
        if name not in fields:
            raise InputError(f"{type(config).__name__} has no field {name!r}{suggest(name, fields)}")
        if dot:
            inner.setdefault(name, {})[rest] = value
        else:
            values[name] = value
            inner.pop(name, None)
    for name, deeper in inner.items():
        values[name] = _replaced(values.get(name, getattr(config, name)), deeper, _join(owner, name))
    return dataclasses.replace(config, **values)


def inherit(config: Config, base: Config) -> Config:
    """`config`, made from `base` by some changes, without the settings of `base` that these made useless.

    They go back to their defaults: after `--model.head.name fcn`, the bases of the EMA head before it. A setting that
    was given another value, or that `base` did not use either, stays, so that `checked` refuses it.
    """
    before, now = flatten(base), flatten(config)
    for name in unused(config).keys() - unused(base).keys():
        if name in before and before[name] == now[name]:
            config = _to_default(config, name)
    return config


def without_unused(config: Config) -> Config:
    """The same config with the default in place of every setting that nothing uses."""
    for name in unused(config):
        config = _to_default(config, name)
    return config


def _to_default(config: Config, name: str) -> Config:
    return _replaced(config, {name: next(_default(f) for n, f, _ in leaves(config) if n == name)})


def checked(config: Config) -> Config:
    """The same config, with every value of its declared type and every setting used; what a run starts from.

    Python itself lets any value into a dataclass. Raises InputError that names the setting.
    """
    config = from_dict(type(config), to_dict(config))
    for reason in unused(config).values():
        raise InputError(reason)
    return config


def unused(config: Any) -> dict[str, str]:
    """Dotted name -> error message, for each setting that was changed from its default and that nothing uses.

    Who uses a setting is declared beside it in config.py.
    """
    flat = flatten(config)
    reasons = {name: _why_unused(name, f, flat) for name, f, value in leaves(config) if value != _default(f)}
    return {name: f"{name} is {_text(flat[name])}, but {reason}" for name, reason in reasons.items() if reason}


def _why_unused(name: str, field: dataclasses.Field, flat: dict[str, Any]) -> str:
    owner = name.rpartition(".")[0]
    kind = owner.rpartition(".")[2]
    used_by = field.metadata.get("used_by")
    terms = flat.get(_join(owner, "terms"))
    chosen = [flat.get(_join(owner, "name"))] if terms is None else [term for term, _ in terms]
    if used_by and not set(used_by) & set(chosen):
        return f"{kind} {' + '.join(map(repr, chosen))} does not use it; these do: {', '.join(used_by)}"
    conditions = field.metadata.get("unused_while")
    if not conditions:
        return ""
    values = {_around(owner, key, flat): options for key, options in conditions.items()}
    if not all(key in flat and flat[key] in options for key, options in values.items()):
        return ""
    if list(conditions) == ["name"]:
        return f"{kind} {chosen[0]!r} does not use it; all do but {', '.join(conditions['name'])}"
    return "nothing uses it while " + " and ".join(f"{key} is {_text(flat[key])}" for key in values)


def _around(owner: str, key: str, flat: dict[str, Any]) -> str:
    """The dotted name of the field `key` beside the settings of `owner`, or else in the nearest config around it."""
    while owner and _join(owner, key) not in flat:
        owner = owner.rpartition(".")[0]
    return _join(owner, key)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else short(value)


def names_with(
    mark: Literal["resume", "ranks"], cls: Any = Experiment, where: str = "", marked: bool = False
) -> set[str]:
    """Dotted names of the settings that have a mark in config.py, as `flatten` names them.

    resume: a resumed run may change it. ranks: it may differ between the ranks of one run.
    """
    names: set[str] = set()
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        name, hint, holds = _join(where, f.name), hints[f.name], marked or f.metadata.get(mark, False)
        kinds = (kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type))
        below = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if below:
            names |= names_with(mark, below[0], name, holds)
        elif holds:
            names.add(name)
    return names


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values: tuples become lists, keys strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(cls: type[Config], values: Any, where: str = "") -> Config:
    """The dataclass from JSON values; InputError names the unknown field or the wrong type, dotted.

    A dataclass with a method `upgrade` gets the values of older files through it.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where or cls.__name__} is {short(values)}, but must be an object")
    kind: Any = cls
    if hasattr(kind, "upgrade"):
        values = kind.upgrade(values)
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise InputError(f"unknown field {short(_join(where, name))}{suggest(name[:100], hints)}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        if name not in values:
            raise InputError(f"field {_join(where, name)!r} is missing")
    return cls(**{name: _cast(hints[name], value, _join(where, name)) for name, value in values.items()})


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _cast(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
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
        require(abs(value) < LARGE, where, value, "finite and below 2^53 in size")
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = " or ".join(repr(a) for a in args) if origin is Literal else str(getattr(hint, "__name__", hint))
    wanted = str(hint).replace("typing.", "") if origin in (tuple, dict) else wanted
    raise InputError(f"{where} is {short(value)}, but must be {wanted}")


def leaves(config: Any, where: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted name, field, value) of every setting, in the order of the fields."""
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), _join(where, f.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, name)
        else:
            yield name, f, value


def flatten(config: Any) -> dict[str, Any]:
    """Dotted name -> value, in the order of the fields; what `config diff` compares."""
    return {name: value for name, _, value in leaves(config)}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def experiment_names() -> list[str]:
    folder = Path(__file__).parent / "configs"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def load_experiment(source: str) -> Experiment:
    """The experiment of a name in emanet/configs, a .py file, a run folder, a config.json or a model file.

    Only a .py file is executed; it can import the files beside it. A run or a model may be older than the check for
    unused settings: there they have their defaults, as they never had an effect. Raises InputError, naming the nearest
    experiment, if there is none of this name.
    """
    path = Path(source)
    if source in experiment_names():
        path = Path(__file__).parent / "configs" / f"{source}.py"
    ours = path.is_dir() or path.suffix == ".safetensors"
    if path.is_dir():  # a run, or one of its checkpoints
        path = next((file for name in FOLDER_FILES if (file := path / name).is_file()), path / FOLDER_FILES[0])
    if not path.is_file():
        raise InputError(f"no experiment, run folder or file {source!r}{suggest(source, experiment_names())}")
    if path.suffix == ".py":
        return _run(path)
    if path.suffix not in (".safetensors", ".json"):
        text = f"{source} is neither an experiment (.py), a config (.json) nor a model (.safetensors)"
        raise InputError(what_instead(path) or text)
    header = {"experiment": read_json(path)} if path.suffix == ".json" else read_header(path)
    experiment = experiment_of(header["experiment"], path, header.get("emanet", __version__))
    return without_unused(experiment) if ours else experiment


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(
        (f for f in (run / "checkpoints").glob("*") if f.name.isdigit() and f.is_dir()),
        key=lambda folder: int(folder.name),
    )


def holds_run(folder: Path) -> bool:
    """Whether it is the folder of a run or of a checkpoint."""
    files = (*FOLDER_FILES, "best.safetensors")
    return any((folder / name).is_file() for name in files) or bool(checkpoints(folder))


def _run(path: Path) -> Experiment:
    """The `config` that a Python file defines."""
    try:
        with importable(path.parent):
            # Under its own name, not as a module of a package: experiments build on each other from anywhere.
            config = runpy.run_path(str(path), run_name=path.stem).get("config")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        first = (str(error).splitlines() or [""])[0]
        hint = "; save it as UTF-8" if "null bytes" in first else ""  # UTF-16, as PowerShell writes
        raise InputError(f"{path} does not run: {type(error).__name__}: {first}{hint}") from error
    if not isinstance(config, Experiment):
        raise InputError(f"{path} defines no `config = Experiment(...)`")
    try:
        values = to_dict(config)
    except (TypeError, ValueError, RecursionError) as error:  # Python lets anything into a dataclass
        raise InputError(f"{path}: its experiment has values that no setting can have: {error}") from error
    return experiment_of(values, path)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Imports find the files of this folder first, as in a script; afterwards what came from there is forgotten.

    Else the next experiment, in another folder, would get this one's file of the same name.
    """
    folder, before = folder.resolve(), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the experiment may have changed the path itself
            sys.path.remove(str(folder))
        imported = set(sys.modules) - before
        tops = {name.partition(".")[0] for name in imported} - before - {__package__}
        beside = {top for top in tops if _lies_in(sys.modules.get(top), folder)}
        for name in imported:
            if name.partition(".")[0] in beside:
                del sys.modules[name]


def _lies_in(module: types.ModuleType | None, folder: Path) -> bool:
    paths = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(path and Path(path).resolve().parent == folder for path in paths)


def experiment_of(values: Any, path: str | Path, version: Any = __version__) -> Experiment:
    """The experiment from a file's JSON values; InputError names the file, the field and any `version` but ours."""
    try:
        return from_dict(Experiment, values)
    except InputError as error:
        other = f"; emanet {version} has written it, and this is {__version__}" if version != __version__ else ""
        raise InputError(f"{path}: {error}{other}") from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError names the file if it is missing or not JSON."""
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise InputError(f"cannot read {path}: not a regular file")
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has a number of too many digits, or too many levels of brackets") from error


def read_text(path: Path, names: bool = False) -> str:
    """A text file as editors of any system save it: UTF-8 with or without a byte order mark, or UTF-16.

    names: it lists files, whose names may be in another encoding: their bytes are kept, as Python does with names of
    files. Raises InputError that names the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content[:40:2].count(0) * 3 > len(content[:40]) or content[1:40:2].count(0) * 3 > len(content[:40]):
        encoding = "utf-16-be" if not content[0] else "utf-16-le"  # every other byte of Latin letters is 0
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding, "surrogateescape" if names and encoding == "utf-8-sig" else "strict")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is not text in UTF-8 or UTF-16, in line {line}: save it as UTF-8") from error


def what_instead(path: Path) -> str:
    """A sentence about a file that is named as a model and is something else; "" if that is not known."""
    suffix = path.suffix.lower()
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page, not a model: download the file itself"
    if suffix in (".onnx", ".xml", ".pt2"):
        return f"{path} is an exported model, for predict, evaluate and submit; name a model file or a run folder"
    if start.startswith((b"PK\x03\x04", b"\x80")) and suffix != ".npz":
        return f"{path} is another program's checkpoint; turn it into a model: convert {path} model.safetensors"
    if start.startswith(IMAGE_STARTS):
        return f"{path} is an image, not a model: the model comes first, then the images"
    return ""


@contextlib.contextmanager
def utf8_name(path: str | Path) -> Iterator[str]:
    """The path, or while the block runs another one of the same file if it is not UTF-8, which safetensors needs."""
    if str(path) == utf8(str(path)):
        yield str(path)
    else:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"


def read_header(path: str | Path) -> dict[str, Any]:
    """What is written beside the weights of a model file: `experiment`, `emanet` (version), `step`, `metrics`.

    Only the header is read. Raises InputError that names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with utf8_name(path) as name, safe_open(name, "np") as file:
            return parse_header(file.metadata() or {}, path)
    except (OSError, SafetensorError) as error:
        raise InputError(what_instead(Path(path)) or f"cannot read model file {path}: {error}") from error


def parse_header(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    """The header of a model file from the metadata of its .safetensors. Raises InputError that names the file."""
    try:
        header = json.loads(metadata.get("emanet", "null"))
    except ValueError as error:
        raise InputError(f"cannot read model file {path}: {error}") from error
    except RecursionError as error:
        raise InputError(f"cannot read model file {path}: its header has too many levels of brackets") from error
    if not isinstance(header, dict) or "experiment" not in header:
        hint = f"if it is another program's checkpoint: convert {path} model.safetensors"
        raise InputError(f"{path} holds weights but no emanet header, so it is not a model of this program; {hint}")
    return header
