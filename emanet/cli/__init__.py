"""The commands: `python -m emanet COMMAND ...`, one file each. The only package that knows the CLI library.

A command is a frozen dataclass, whose docstrings are its help, and a `run` that makes one call. Its file is imported
when it is named, and torch when it runs, so that help is instant. flags.py has how arguments are read.
"""

import contextlib
import importlib
import os
import sys
import traceback

from .. import __version__
from ..errors import InputError, Interrupted, out_of_memory, printable, suggest
from .threads import choose_wait_policy, let_mac_fall_back

# Each is the function `main` of the module of that name, which takes the arguments after the command.
COMMANDS = {
    "train": "train an experiment, or on a data set, into a run folder",
    "plan": "write an experiment for a data set, with its reasons",
    "evaluate": "score a model on a data set or on folders of images and masks",
    "predict": "label every pixel of images, folders and globs",
    "explain": "draw which pixels and classes use which bases of the EM attention",
    "demo": "serve a page that labels images and shows the attention at work",
    "convert": "turn another program's checkpoint into a model file",
    "config": "show an experiment, or what differs between two",
    "compare": "put the results of several runs side by side",
    "profile": "count parameters and multiply-adds; the paper's Table 1",
    "export": "write a model for ONNX, OpenVINO, torch or the web",
    "submit": "pack predictions for the test server of VOC, Cityscapes, ADE20K",
    "push": "publish a model with its card on the Hugging Face hub",
    "data": "import, prepare, check or pack a data set, write drawn scenes",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command.

    Exit codes: 2 and one sentence for wrong input, 75 for a run that a signal stopped, 130 for Ctrl-C elsewhere, and 1
    with the traceback for a fault of ours.
    """
    choose_wait_policy()
    let_mac_fall_back()
    _open_streams()
    try:
        _require_folder()
        _dispatch([_expanded(argument) for argument in (sys.argv[1:] if arguments is None else arguments)])
    except InputError as error:
        _fail(str(error), error.exit_code)
    except Interrupted as end:
        with contextlib.suppress(OSError):  # the reader of stderr may have ended at the same signal
            print(end, file=sys.stderr, flush=True)
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (head, less) has gone
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 2)
    except Exception as error:
        if out_of_memory(error):
            _fail("not enough memory, of this machine or of its GPU", 2)
        traceback.print_exc()
        _fail("this is a fault of emanet, not yours; please report it with the lines above and the command", 1)


def _fail(sentence: str, code: int) -> None:
    with contextlib.suppress(OSError):  # stderr may be full or closed; the exit code says it all the same
        print(f"error: {printable(sentence)}", file=sys.stderr, flush=True)
    sys.exit(code)


def _open_streams() -> None:
    """Streams that the caller has closed (`>&-`) go to nowhere; else the next file would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _require_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError("the folder you are in has been deleted; change to another one") from error


def _expanded(argument: str) -> str:
    """An argument with its leading ~ as the home folder: a shell leaves it alone after "=" and between quotes."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{flag}{equals}{os.path.expanduser(value)}"


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m emanet COMMAND [-h] ...\n\nEMANet: label every pixel of your images.\n\ncommands:")
        print("\n".join(f"  {command:10} {text}" for command, text in COMMANDS.items()))
        print("\n`python -m emanet COMMAND --help` lists the options of a command.")
    elif name == "--version":
        print(f"emanet {__version__}")
    elif name in COMMANDS:
        importlib.import_module(f".{name}", __name__).main(arguments[1:])
    else:
        raise InputError(f"no command {name!r}{suggest(name, COMMANDS)}")
