"""The only place that prints. Results go to stdout; notes, warnings and progress bars go to stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


def say(*lines: object) -> None:
    """Lines on stdout, as they are: no markup, no wrapping."""
    for line in lines:
        print(line)


def note(text: object) -> None:
    """One line on stderr, as it is, above any bar."""
    print(text, file=sys.stderr, flush=True)


def show(*renderables: Any) -> None:
    """Tables and other rich objects on stdout."""
    console = Console()
    for renderable in renderables:
        console.print(renderable)


@contextmanager
def bar(label: str, total: int | None = None, *, unit: str = "", hidden: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, cleared at the end and absent where stderr is not a terminal.

    Yields advance(done, total=None, label=None), which is told how much is done so far. unit: "bytes" for downloads.
    """
    console = Console(stderr=True)
    amount: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn()
    disable = hidden or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(label, total=total or None)

        def advance(done: int, total: int | None = None, label: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=label)

        yield advance


def track(items: Iterable[Item], label: str, total: int | None = None, *, hidden: bool = False) -> Iterator[Item]:
    """The items, with a bar of how many have been taken."""
    total = len(items) if total is None and hasattr(items, "__len__") else total
    with bar(label, total, hidden=hidden) as advance:
        for done, item in enumerate(items):
            yield item
            advance(done + 1)
