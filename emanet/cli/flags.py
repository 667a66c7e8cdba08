"""Command lines to frozen dataclasses, by tyro: one dataclass a command. A wrong one becomes one sentence.

tyro reports what is wrong as an event, before it prints anything: a structured object with the argument and its value.
The hook for these events is not part of tyro's public interface. Without it (tyro before 1.0.15) tyro's own message
appears instead, with the same exit code.
"""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from ..errors import InputError, suggest
from .imports import importing

Command = TypeVar("Command")

# Two names of one flag: every command that has one of them takes the other as well.
TWINS = {"--root": "--data.root", "--workers": "--data.workers"}
TWINS |= {long: short for short, long in TWINS.items()}


# What other programs call a flag, by ours.
CALLED = {
    "optim.lr": "lr learning-rate",
    "optim.weight-decay": "wd decay",
    "optim.name": "optimizer optimiser opt",
    "optim.poly-power": "scheduler lr-scheduler",
    "optim.warmup-steps": "warmup",
    "batch-size": "batch bs",
    "batch": "batch-size bs",
    "steps": "epochs max-steps max-iters iters iterations",
    "accumulate": "grad-accum accumulate-grad-batches",
    "precision": "amp fp16 half bf16",
    "device": "gpu gpus gpu-ids cuda cpu",
    "out": "output output-dir out-dir save-dir work-dir log-dir logdir o",
    "resume": "resume-from",
    "init-from": "checkpoint ckpt load-from finetune",
    "data.workers": "num-workers",
    "size": "img-size image-size imgsz crop-size input-size",
    "data.crop": "size img-size image-size imgsz crop-size input-size",
    "data.dataset": "data",
    "root": "data-dir data-root data-path",
    "model.backbone.name": "arch backbone encoder model",
    "model.backbone.pretrained": "weights pretrained",
    "model.head.name": "decoder head",
    "loss.terms": "loss criterion",
    "images": "source input",
    "flip": "tta mirror",
    "val-every": "val-interval eval-interval",
    "save-every": "save-interval",
}
# The same of arguments without a flag.
ALONE = {"model": "weights checkpoint ckpt model-path", "images": "source input image img", "source": "input src"}
# What else is to be said of a name.
BESIDES = {
    "epochs": "; a run's length is counted in optimiser steps: epochs * images / batch size",
    **dict.fromkeys(
        ("num-classes", "nc", "classes"), "a data set's dataset.json lists the classes, and a model keeps them"
    ),
    "ignore-index": "the value to ignore is ignore_label in the data set's dataset.json",
    "reduce-zero-label": "label_map in the data set's dataset.json says what each mask value means",
}

# How Python says that a text is no number, and what is needed.
NUMBERS = {
    "invalid literal for int() with base 10: ": "a whole number",
    "could not convert string to float: ": "a number",
}


def _default(text: str) -> str:
    """The end of an option's help: its default, unless that only means that the option was not given."""
    return "" if text in ("", "''", "None", "False") else f"(default: {text})"


def shown_as(metavar: str) -> Any:
    """What the help calls an option's values."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=_default)


# Types of options: what the help calls their values, and no default where that would be an empty text.
File = Annotated[str, shown_as("FILE")]
Folder = Annotated[str, shown_as("DIR")]
Name = Annotated[str, shown_as("NAME")]
Whole = Annotated[int | None, shown_as("INT")]
Wholes = Annotated[tuple[int, ...], shown_as("INT ...")]
Numbers = Annotated[tuple[float, ...], shown_as("NUMBER ...")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE")]
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint=_default)]  # without --no-x

# Arguments without a flag. Where the model may be left out, the first image comes as `model`: see model_first.
Model = Annotated[str, tyro.conf.Positional, shown_as("MODEL")]
ModelOrNone = Annotated[str, tyro.conf.Positional, shown_as("[MODEL]")]
Images = Annotated[tuple[str, ...], tyro.conf.Positional, shown_as("IMAGE ...")]


def parse(command: type[Command], arguments: list[str], name: str, default: Command | None = None) -> Command:
    """The command's dataclass from its arguments; fields that they do not name are those of `default`.

    Raises InputError in one sentence for whatever does not fit, SystemExit after printing the help.
    """
    flags = list(flags_of(command, default))
    alone = [
        field
        for field, hint in typing.get_type_hints(command, include_extras=True).items()
        if tyro.conf.Positional in getattr(hint, "__metadata__", ())
    ]
    arguments = [_in_own_words(argument, flags) for argument in arguments]
    values: dict[str, Any] = {} if default is None else {"default": default}

    def refuse(event: Any) -> None:
        sentence = _sentence(event, flags, alone, name)
        if sentence:
            raise InputError(sentence)

    with _hooked(refuse):
        # A union (a data set's spec or none) is filled from its default; it must not become a subcommand.
        config = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(command, args=arguments, prog=f"python -m emanet {name}", config=config, **values)


def parse_for_model(command: type[Command], arguments: list[str], name: str, *, images: bool = False) -> Command:
    """The same for a command with a `model` and evaluation `settings`, whose defaults are that model's own.

    images: the command is one of those of model_first. Others do without a model if none is named.
    """
    parsed: Any = parse(command, arguments, name)
    parsed = model_first(parsed) if images else parsed
    if not parsed.model and not images:
        return parsed
    from ..deploy.artefact import is_artefact

    if is_artefact(parsed.model):  # it predicts in one way only, and torch stays out
        return parsed
    with importing():
        from ..experiments import load_experiment, unused
        from ..loading import model_path
        from ..weights import hub

    parsed = dataclasses.replace(parsed, model=hub.pinned(parsed.model))  # settings and weights of one commit
    own = load_experiment(str(model_path(parsed.model or None))).eval
    # Arguments are read again, so switches start from their defaults: one that is on has no flag that turns it on.
    switches = {field.name: field.default for field in dataclasses.fields(parsed) if field.type is Switch}
    again: Any = parse(command, arguments, name, default=dataclasses.replace(parsed, settings=own, **switches))
    for setting, reason in unused(again.settings).items():  # a large TIFF goes in windows in either mode
        if getattr(again.settings, setting) != getattr(own, setting) and not (images and setting != "longest_side"):
            raise InputError(reason)
    return dataclasses.replace(again, model=parsed.model, images=parsed.images)


def model_first(parsed: Command) -> Command:
    """The command with its first argument as the first of its `images`, and no `model`, where it is not a model.

    Raises InputError where it is neither.
    """
    command: Any = parsed
    from ..predict.inputs import means_model

    if not command.model or means_model(command.model):
        return command
    return dataclasses.replace(command, model="", images=(command.model, *command.images))


def subcommand(commands: dict[str, type[Any]], arguments: list[str], prog: str) -> None:
    """Run the one of the commands that the first argument names."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        from ..show.terminal import say

        say(f"usage: python -m emanet {prog} COMMAND [-h] ...\n\ncommands:")
        say(*(f"  {name:10} {(command.__doc__ or '').splitlines()[0]}" for name, command in commands.items()))
    elif name in commands:
        parse(commands[name], arguments[1:], f"{prog} {name}").run()
    else:
        raise InputError(f"no command {f'{prog} {name}'!r}{suggest(name, commands)}")


def flags_of(command: type[Any], default: Any = None, prefix: str = "") -> Iterator[str]:
    """Every flag of a command's dataclass, those of the dataclasses in it included: --steps, --data.root, --no-flip."""
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = made if default is None else getattr(default, field.name)
        marks = getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Positional in marks:
            continue
        renamed = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        name = (renamed[0] if renamed else field.name).replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from flags_of(type(value), value, f"{prefix}{name}." if name else prefix)
            continue
        yield f"--{prefix}{name}"
        if isinstance(value, bool) and tyro.conf.FlagCreatePairsOff not in marks:
            yield f"--{prefix}no-{name}"


def _in_own_words(argument: str, flags: list[str]) -> str:
    """The argument with a flag's other name where the command has only that one."""
    flag, equals, value = argument.partition("=")
    name = flag[2:]
    group, dot, last = name.removeprefix("no-").rpartition(".")
    twin = f"--{group}.no-{last}" if dot and name.startswith("no-") else TWINS.get(flag, "")
    return f"{twin}{equals}{value}" if flag not in flags and twin in flags else argument


@contextlib.contextmanager
def _hooked(refuse: Callable[[Any], None]) -> Iterator[None]:
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # another version: it prints a message of its own
        yield
        return
    with on_parse_error(refuse):
        yield


def _sentence(event: Any, flags: list[str], alone: list[str], name: str) -> str:
    """What an event of tyro's says; nothing for kinds that are not known here, which tyro prints itself."""
    kind = type(event).__name__
    unknown = event.tokens if kind == "UnrecognizedArgs" else getattr(event, "unrecognized_tokens", [])
    if unknown:
        token = next((token for token in unknown if token.startswith("-")), unknown[0])
        if not token.startswith("-"):
            return f"unexpected argument {token!r}; `python -m emanet {name} --help` lists what there is"
        return f"unknown option {token}; {_hint(_plain(token.partition('=')[0]), flags, alone, name)}"
    if kind == "MissingArgs":
        missing = [" ".join(filter(None, _parts(each.arg))) for each in event.missing_arguments]
        return f"{name} needs {' and '.join(missing)}; `python -m emanet {name} --help` explains them"
    if kind == "InvalidChoice":
        return f"{_parts(event.argument)[0]} is {event.value!r}, but must be {_either(event.choices)}"
    if kind == "BadValue":
        flag, values = _parts(event.argument)
        return f"{flag} needs {values}"
    if kind == "InstantiationFailure" and event.argument is not None:
        flag, message = _parts(event.argument)[0], str(event.message)
        for start, needed in NUMBERS.items():
            if message.startswith(start):
                return f"{flag} is {message.removeprefix(start)}, but must be {needed}"
        return f"{flag}: {message}"
    return ""


def _plain(flag: str) -> str:
    return flag.lstrip("-").replace("_", "-").lower()


def _hint(typed: str, flags: Sequence[str], alone: Sequence[str], name: str) -> str:
    """What to write instead of an unknown option: by meaning, then by the last part of its name, then by letters."""
    besides, end = BESIDES.get(typed, ""), typed.rpartition(".")[2]
    for field in alone:
        if typed in (field, *ALONE.get(field, "").split()):
            return f"name the {field} without a flag: `python -m emanet {name} --help` shows where"
    like = [f"--{flag}" for flag, names in CALLED.items() if typed in names.split() or end in names.split()]
    meant = [flag for each in like for flag in (each, TWINS.get(each, "")) if flag in flags]
    if meant:
        return f"did you mean {meant[0]}?{besides}"
    if besides and not like:
        return besides
    last = {flag: flag.lstrip("-").rpartition(".")[2] for flag in flags}
    near = [flag for flag in flags if last[flag] == end]
    if not near:
        whole = {flag.lstrip("-"): flag for flag in flags}
        near = [whole[each] for each in difflib.get_close_matches(typed, whole, n=1, cutoff=0.75)]
    if not near:
        ends = difflib.get_close_matches(end, list(last.values()), n=1, cutoff=0.75)
        near = [flag for flag in flags if last[flag] in ends][:1]
    return f"did you mean {' or '.join(near[:3])}?" if near else f"`python -m emanet {name} --help` lists all"


def _either(choices: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))


def _parts(argument: Any) -> tuple[str, str]:
    """An argument's flag and what its values are called; of one without a flag, its name in the help alone."""
    metavar = str(argument.lowered.metavar)
    return (metavar, "") if argument.is_positional() else (argument.lowered.name_or_flags[-1], metavar)
