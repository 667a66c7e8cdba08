"""The only place that prints. Results go to stdout; notes, warnings and progress bars go to stderr.

rich is imported when it draws something: an exported model is used without it.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ..errors import InputError, printable

Item = TypeVar("Item")
NARROWEST = 60  # columns; a narrower terminal breaks lines, where rich would leave out the names in a table


def say(*lines: object) -> None:
    """Lines on stdout, as they are: no markup, no wrapping."""
    _put("".join(f"{line}\n" for line in lines))


def note(text: object) -> None:
    """One line on stderr, above any bar; control codes in it, of a file's name, are written out."""
    with suppress(OSError):  # a note that cannot be shown ends nothing
        print(printable(str(text)), file=sys.stderr, flush=True)


def show(*renderables: Any) -> None:
    """Tables and other rich objects on stdout."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, NARROWEST)
    with console.capture() as shown:
        console.print(*renderables, sep="\n", markup=False, highlight=False)
    _put(shown.get())


def _put(text: str) -> None:
    """Text on stdout; what its encoding lacks is written as \\uXXXX.

    A reader that has gone (head, less) ends the output, not the command and its exit code.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in the buffer
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"cannot write to standard output: {error.strerror}") from error


@contextmanager
def bar(label: str, total: int | None = None, *, unit: str = "", hidden: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, cleared at the end and absent where stderr is not a terminal.

    Yields advance(done, total=None, label=None), which is told how much is done so far. unit: "bytes" for downloads.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    amount: Any = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn()
    disable = hidden or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(label, total=total or None)

        def advance(done: int, total: int | None = None, label: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=label)

        yield advance


def track(items: Iterable[Item], label: str, total: int | None = None, *, hidden: bool = False) -> Iterator[Item]:
    """The items, with a bar of how many have been taken."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    with bar(label, total, hidden=hidden) as advance:
        for done, item in enumerate(items):
            yield item
            advance(done + 1)
