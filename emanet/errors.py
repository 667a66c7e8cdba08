"""What ends a command: shown as a single sentence, never as a traceback."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """A file, key or value given from outside is wrong. The message is one sentence that names it."""

    exit_code = 2  # of the command


class Interrupted(Exception):
    """A signal has ended the work, and nothing of it is lost. The message is one sentence that says how to go on."""

    exit_code = 75  # EX_TEMPFAIL in sysexits.h: try again


def suggest(name: str, options: Iterable[str]) -> str:
    """`; did you mean 'nearest'?`, or the list of options where nothing is near: the end of an error sentence."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {some(options, 12)}" if options else ""


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text, with the number of those left out."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in items[:limit]) + more
