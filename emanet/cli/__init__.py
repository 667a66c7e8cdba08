"""The commands. The only package that knows the CLI library; torch is imported inside them, so that help is instant.

models.py has what runs a model, files.py the rest, flags.py how arguments are read.
"""

import contextlib
import sys
import tempfile
import traceback

from .. import __version__
from ..errors import InputError, Interrupted, suggest
from . import files, models
from .threads import choose_wait_policy

# Each is handled by the function of the same name in models.py or files.py, whose docstring is its help.
COMMANDS = {
    "train": "train an experiment into a run folder",
    "evaluate": "score a model on a data set or on folders of images and masks",
    "predict": "label the pixels of images, folders and globs",
    "explain": "draw which pixels and classes use which bases of the EM attention",
    "convert": "turn a checkpoint of another program into a model of this one",
    "config": "show an experiment, or what differs between two",
    "compare": "put the results of runs side by side",
    "profile": "count parameters and multiply-adds; the paper's Table 1",
    "submit": "pack predictions for the test server of VOC, Cityscapes, ADE20K",
    "data": "make a public data set ready, check one, write drawn scenes",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Whatever is wrong with what the user gave ends in one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    choose_wait_policy()
    try:
        _dispatch(arguments)
    except InputError as error:
        _fail(str(error), error.exit_code)
    except Interrupted as end:
        with contextlib.suppress(OSError):  # its reader may have ended at the same signal
            print(end, file=sys.stderr, flush=True)
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (head, less) has gone: nobody is left to tell
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except MemoryError:
        _fail("there is not enough memory for this", 2)
    except Exception as error:  # a fault of ours: the sentence for the user, the traceback for a report
        with tempfile.NamedTemporaryFile("w", prefix="emanet-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        first = (str(error).splitlines() or [""])[0]
        _fail(f"unexpected {type(error).__name__}: {first} (the traceback is in {file.name})", 1)


def _fail(sentence: str, code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m emanet COMMAND [-h] ...\n\nEMANet: label every pixel of your pictures.\n\ncommands:")
        print("\n".join(f"  {command:10} {text}" for command, text in COMMANDS.items()))
    elif name == "--version":
        print(f"emanet {__version__}")
    elif name in COMMANDS:
        module = models if hasattr(models, name) else files
        getattr(module, name)(arguments[1:])
    else:
        raise InputError(f"no command {name!r}{suggest(name, COMMANDS)}")
