"""Arguments by tyro, and its complaints as one sentence."""

import contextlib
import functools
import io
from typing import Annotated, Any

from ..errors import InputError, suggest


def positional(kind: Any, name: str) -> Any:
    """An argument's type: without a flag, called `name` in the help."""
    import tyro

    return Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=name)]


def run_with(command, arguments: list[str], prog: str):
    import tyro

    @functools.wraps(command)
    def parse(*values, **named):
        return values, named

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # around the parsing alone: what the command itself says is not ours
            # A union (a data set's spec or none) is filled from its default; it must not become a subcommand.
            config = (tyro.conf.AvoidSubcommands,)
            values, named = tyro.cli(parse, args=arguments, prog=f"python -m emanet {prog}", config=config)
    except SystemExit as end:
        if end.code:
            raise InputError(_sentence(said.getvalue())) from None
        raise
    return command(*values, **named)


def _sentence(box: str) -> str:
    """What the CLI library says in a box of several paragraphs, as one sentence: the first, and the nearest option."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or not text:
            continue
        if text.strip("─-"):
            paragraphs[-1].append(text)
        else:
            paragraphs.append([])
    if "╭" not in box and len(paragraphs) > 1:
        del paragraphs[0]  # without Unicode the box's title is a paragraph too
    what = " ".join(paragraphs[0]).rstrip(".")
    near = [text.split()[0] for paragraph in paragraphs[1:] for text in paragraph if text.startswith("--")]
    return what + (f"; did you mean {near[0]}?" if near and what.startswith("Unrecognized") else "")


def parse_for_model(command, arguments: list[str], prog: str) -> dict[str, Any]:
    """The arguments by name of a command with a `model` and, last, evaluation `settings`.

    The model's own settings are their defaults, so the arguments are read again once the model is known.
    """
    from ..experiments import load_experiment

    given = run_with(command, arguments, prog)
    if given["model"]:
        from ..loading import model_path

        own = load_experiment(str(model_path(given["model"]))).eval
        command.__defaults__ = (*command.__defaults__[:-1], own)
        given = run_with(command, arguments, prog)
    return given


def subcommand(commands: dict, arguments: list[str], prog: str) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(f"usage: python -m emanet {prog} COMMAND [-h] ...\n\ncommands:")
        print("\n".join(f"  {name:10} {command.__doc__.splitlines()[0]}" for name, command in commands.items()))
    elif name in commands:
        run_with(commands[name], arguments[1:], f"{prog} {name}")
    else:
        raise InputError(f"no command {f'{prog} {name}'!r}{suggest(name, commands)}")
